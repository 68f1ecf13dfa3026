"""What commands print: results, notes, errors, progress; and the exit codes they end with."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error, Note
from medsam2_core.worker.system import peak_memory_mb  # noqa: F401

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.session.session import Session


#: Stands beside every confidence: an object with one of .80 has had a Dice of .27.
UNCALIBRATED = " (not calibrated: check)"


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2
    INTERRUPTED = 130
    TERMINATED = 143


_IRREGULAR = (
    "; or go on with --irregular resample (slices are interpolated where none was made) or --irregular as-is "
    "(as if they were evenly spaced: places, lengths and volumes are off)"
)
# Messages of the Python API, in terms of the command line, by the code of the error.
_WORDINGS = {
    "output-exists": "{path} exists already: choose another name, or add --overwrite",
    "slices-missing": "{message}" + _IRREGULAR,
    "slices-uneven": "{message}" + _IRREGULAR,
    "series-needed": "{message} (--series; `medsam2 info` lists them)",
    "no-such-series": "{message} (--series; `medsam2 info` lists them)",
    "no-segment-code": "{message} (--list-terms shows the names, --segments META.json describes segments, "
    "--generic allows the generic code)",
    "another-grid-than-series": "{message} (--resample)",
    "resampling-loss-too-large": "{message} (--most-lost PERCENT)",
    "seg-too-large": "{message} (--compression rle)",
    "probabilities-needed": "{message} (--probabilities FILE, here and when segmenting)",
    "metadata-unmatched": "{message} (--segments)",
    "classes-syntax": "--{message}",
    "too-few-images": "--shots {shots}: there are only {images} images to train on",
    "bad-images": "{message} with --skip-bad",
    "start-does-not-fit": "{message} (--start none)",
    "run-of-other-data": "{folder} holds an unfinished training with other images or settings: finish it "
    "with those, remove that folder, or choose another --out",
}


def worded(item: MedSAM2Error | Note) -> str:
    """Return the message of an error or note in terms of the command line."""
    wording = _WORDINGS.get(item.code)
    return str(item) if wording is None else wording.format(**item.fields, message=str(item))


def warn(line: str) -> None:
    """Print one line on stderr, prefixed with the program's name."""
    print(f"medsam2: {' '.join(line.split())}", file=sys.stderr)


def print_error(error: MedSAM2Error) -> None:
    """Print an error as one line on stderr."""
    warn(worded(error))


def print_bug(error: BaseException) -> None:
    """Report an unexpected error in one line, its traceback in a file; on stderr with ``MEDSAM2_DEBUG=1``."""
    if os.environ.get("MEDSAM2_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
        return
    try:
        handle, path = tempfile.mkstemp(prefix="medsam2-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            traceback.print_exception(error, file=file)
        where = f"the traceback is in {path}"
    except OSError:
        where = "no temporary file for its traceback could be written, set MEDSAM2_DEBUG=1 to print it"
    warn(f"{type(error).__name__}: {error} (a bug in this program, not in your input; {where})")


def print_notes(notes: Iterable[Note]) -> None:
    """Print notes on stderr, one a line."""
    for note in notes:
        print(f"note: {worded(note)}", file=sys.stderr)


def print_json(facts: Mapping[str, Any], notes: Iterable[Note] = ()) -> None:
    """Print the result of a command as JSON: facts, notes as objects, and ``error``, which is null."""
    print(json.dumps({**facts, "notes": [note.to_dict() for note in notes], "error": None}, indent=2))


def report(
    facts: Mapping[str, Any], notes: Iterable[Note], show: Callable[[Any], None], *, as_json: bool
) -> None:
    """Print the result of a command: as JSON, or with ``show`` for people, then the notes."""
    if as_json:
        print_json(facts, notes)
    else:
        show(facts)
        print_notes(notes)


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """Print left-aligned columns two spaces apart: plain text that can be piped and searched."""
    lines = [[str(cell) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not lines:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def volume_text(millilitres: float | None, voxels: int | None = None) -> str:
    """Return a volume as text; without a known spacing the number of voxels, if there is one."""
    if millilitres is not None:
        return f"{millilitres:g} ml"
    return "" if voxels is None else f"{voxels} pixels"


def millilitres(segmentation: Segmentation, name: str) -> float | None:
    """Return the volume of a segment for ``--json``; None where nothing says how large a voxel is."""
    known = segmentation.known_spacing == "all"
    return round(segmentation.volume_ml(name), 3) if known else None


def size_text(count: int | None) -> str:
    """Return a number of bytes as text."""
    return "size unknown" if count is None else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count} bytes"


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar on stderr, if that is a terminal; yield a function of (items done, description)."""
    with _bar(total) as progress:
        task = progress.add_task(title, total=total)

        def update(done: int, description: str = "") -> None:
            progress.update(task, completed=done, description=f"{title} {description}".rstrip())

        yield update


def propagate(
    session: Session,
    slices: tuple[int | None, int | None],
    limits: Mapping[str, tuple[int, int]] | None = None,
    overlap: bool = True,
    names: list[str] | None = None,
) -> None:
    """Propagate objects, all by default, from the first to the last slice, with a progress bar.

    Objects named in ``limits`` stay within these; without ``overlap`` they share no voxel.
    """
    progress = session.propagate(names, *slices, limits=limits, overlap=overlap)
    with progress_bar("segmenting", progress.total) as update:
        for result in progress:
            update(progress.done, f"{result.object}, slice {result.n}")


@contextmanager
def download_bar(title: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar of a download; yield a function of (bytes done, bytes in all or None)."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _bar(total, DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(title, total=total)

        def update(done: int, in_all: int | None) -> None:
            progress.update(task, completed=done, total=in_all)

        yield update


def _bar(total: int | None, *columns: ProgressColumn) -> Progress:
    from rich import progress as bars
    from rich.console import Console

    counts = columns or (bars.MofNCompleteColumn(),)
    remaining = bars.TimeRemainingColumn() if total else bars.TimeElapsedColumn()
    title = bars.TextColumn("{task.description}", markup=False)
    console = Console(file=sys.stderr, stderr=True)
    is_hidden = not sys.stderr.isatty()
    return bars.Progress(
        title, bars.BarColumn(), *counts, remaining, console=console, transient=True, disable=is_hidden
    )


def stop_on_request() -> Callable[[], bool]:
    """Return a function that is true from the first Ctrl-C or SIGTERM on; a second one interrupts at once."""
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print("stopping after this step …", file=sys.stderr)

    signal.signal(signal.SIGINT, receive)
    signal.signal(signal.SIGTERM, receive)
    return lambda: bool(received)
