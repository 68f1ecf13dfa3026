"""The program `medsam2`: its commands, and how every way to end becomes an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from medsam2_core.cli import (
    auto,
    batch,
    bench,
    evaluate,
    export,
    image_set,
    import_seg,
    info,
    methods,
    models,
    replay,
    review,
    segment,
    synth,
    train,
    train_auto,
    train_finetune,
    worker,
)
from medsam2_core.cli.console import ExitCode, print_bug, print_error
from medsam2_core.cli.options import Invocation, OrderedCommand, register
from medsam2_core.errors import Cancelled, MedSAM2Error
from medsam2_core.version import __version__

# Newer releases of typer carry their own click: its errors are found through the one typer exports.
_UsageError: Any = typer.BadParameter.__bases__[0]
_ClickError: Any = _UsageError.__bases__[0]

_STOPPED = "stopped; no file was left incomplete"

app = typer.Typer(
    name="medsam2",
    help="Segment images and volumes with SAM 2: prompt an object on one slice, or use a trained Auto model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
register(app, "segment", segment.Segment, OrderedCommand)
register(app, "set", image_set.SegmentSet, OrderedCommand)
register(app, "auto", auto.Auto)
register(app, "batch", batch.Batch, OrderedCommand)
register(app, "review", review.Review)
register(app, "export", export.Export)
register(app, "import", import_seg.Import)
register(app, "info", info.Info)
register(app, "replay", replay.Replay)
register(app, "methods", methods.Methods)
app.add_typer(models.app, name="models")
register(app, "evaluate", evaluate.Evaluate)
register(app, "bench", bench.Bench)
register(app, "synth", synth.Synth)
register(train.app, "auto", train_auto.TrainAuto)
register(train.app, "finetune", train_finetune.TrainFinetune)
app.add_typer(train.app, name="train")
register(app, "worker", worker.worker)


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
    """Segment images and volumes with SAM 2: prompt an object on one slice, or use a trained Auto model."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` by default) and return its exit code; never raises.

    0 done; 2 bad input or a missing device, file or package, with one line on stderr that says what; 1 a bug
    in this program; 130 stopped by Ctrl-C; 143 terminated. With ``--json`` errors are printed to stdout, too,
    as ``{"notes": [], "error": {"code", "message", "severity", "fields"}}``.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    invocation = Invocation()
    previous = _raise_on_termination()
    try:
        code = app(given, prog_name="medsam2", standalone_mode=False, obj=invocation) or ExitCode.DONE
        if code == ExitCode.INTERRUPTED:  # newer releases of typer handle Ctrl-C themselves
            raise KeyboardInterrupt
        return int(code)
    except _Terminated:
        return ExitCode.TERMINATED
    except (BrokenPipeError, SystemExit) as error:  # `medsam2 info … | head` is no error
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            return _report(error, invocation)  # only a closed pipe is what click ends with SystemExit for
        _drop_output()
        return ExitCode.DONE
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, invocation)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _drop_output() -> None:
    """Write what is left in the buffer of stdout nowhere: writing it when Python ends would fail, too."""
    with contextlib.suppress(OSError, ValueError):  # no such stream in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]


def _report(error: BaseException, invocation: Invocation) -> ExitCode:
    """Print an error, and return the exit code that stands for it."""
    code, known = ExitCode.BAD_INPUT, error if isinstance(error, MedSAM2Error) else None
    if isinstance(error, KeyboardInterrupt | typer.Abort | Cancelled):
        code = ExitCode.INTERRUPTED
        known = error if isinstance(error, Cancelled) and str(error) else Cancelled(_STOPPED)
    elif isinstance(error, _UsageError):
        command = error.ctx.command_path.split()[1:] if error.ctx else []
        help_line = " ".join(["medsam2", *command, "--help"])
        text = error.format_message().replace("Value error, ", "")  # pydantic's, in newer releases of typer
        text = text or "name a command"  # after its help, where none was given
        known = MedSAM2Error(f"{text} (see `{help_line}`)", code="usage")
    elif isinstance(error, _ClickError):
        known = MedSAM2Error(error.format_message(), code="usage")
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _drop_output()
        known = MedSAM2Error(f"the output cannot be written: {error.strerror}", code="no-space")
    elif isinstance(error, MemoryError):
        message = "not enough memory on this machine for a volume of this size"
        known = MedSAM2Error(message, code="out-of-memory")
    elif known is None:
        code = ExitCode.BUG
        print_bug(error)
        known = MedSAM2Error(f"{type(error).__name__}: {error}", code="bug")
    if code is not ExitCode.BUG:
        print_error(known)
    if invocation.json:
        document = {"notes": [], "error": known.to_dict()}
        is_lines = invocation.json == "lines"
        content = {"stage": "error", **document} if is_lines else document
        print(json.dumps(content, default=str), flush=True)
    return code


class _Terminated(BaseException):
    """SIGTERM was received: unwinding the stack removes temporary files."""


def _raise_on_termination() -> Any:
    """Raise on SIGTERM; return the handler before, or None outside of the main thread."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread: signals are the caller's business
        return None
