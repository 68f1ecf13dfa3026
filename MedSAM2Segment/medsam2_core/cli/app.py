"""The commands put together, and the one place where every way to end becomes an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from medsam2_core.cli import auto, evaluate, export, import_seg, info, models, segment, synth, train, worker
from medsam2_core.cli.exits import ExitCode, say, say_defect, say_error
from medsam2_core.cli.ordered import OrderedCommand
from medsam2_core.errors import Cancelled, MedSAM2Error
from medsam2_core.version import __version__

# Newer releases of typer carry their own click: its errors are found through the one typer exports.
_UsageError = typer.BadParameter.__bases__[0]
_ClickError = _UsageError.__bases__[0]

_STOPPED = "stopped; nothing was left half-written"

app = typer.Typer(
    name="medsam2",
    help="Prompt an object on one slice of a scan, get its mask in the whole volume.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("segment", cls=OrderedCommand)(segment.segment)
app.command("auto")(auto.auto)
app.command("export")(export.export)
app.command("import")(import_seg.import_seg)
app.command("info")(info.info)
app.add_typer(models.app, name="models")
app.command("evaluate")(evaluate.evaluate)
app.command("synth")(synth.synth)
app.add_typer(train.app, name="train")
app.command("worker")(worker.worker)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"medsam2 {__version__}")
        raise typer.Exit


@app.callback()
def _medsam2(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Prompt an object on one slice of a scan, get its mask in the whole volume."""


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - one a way to end
    """Run a command line (``sys.argv`` by default) and return its exit code; never raises.

    0 done, 2 bad input (one line on stderr says which), 1 a defect of ours, 130 stopped by Ctrl-C.
    """
    before = _end_tidily_on_termination()
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        code = int(app(given, prog_name="medsam2", standalone_mode=False) or ExitCode.DONE)
        if code == ExitCode.INTERRUPTED:  # newer releases of typer keep Ctrl-C to themselves
            say(_STOPPED)
        return code
    except (KeyboardInterrupt, typer.Abort, Cancelled):
        say(_STOPPED)
        return ExitCode.INTERRUPTED
    except _Terminated:
        return ExitCode.TERMINATED
    except _UsageError as error:
        command = error.ctx.command_path.removeprefix("medsam2").strip() if error.ctx else ""
        say(f"{error.format_message()} (see `{' '.join(['medsam2', *command.split(), '--help'])}`)")
        return ExitCode.BAD_INPUT
    except _ClickError as error:
        say(error.format_message())
        return ExitCode.BAD_INPUT
    except MedSAM2Error as error:
        say_error(error)
        return ExitCode.BAD_INPUT
    except MemoryError:
        say("not enough memory on this machine for a volume of this size")
        return ExitCode.BAD_INPUT
    except BrokenPipeError:  # `medsam2 info … | head` is not an error
        sys.stderr.close()
        return ExitCode.DONE
    except Exception as error:
        say_defect(error)
        return ExitCode.OURS
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    """Somebody asked this process to end: unwinding removes temporary files on the way."""


def _end_tidily_on_termination() -> object:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    try:
        return signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread: whoever called us handles signals
        return None
