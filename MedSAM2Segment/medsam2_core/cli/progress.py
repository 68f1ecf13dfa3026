"""Progress for people: bars with the time left on stderr, nothing at all when nobody looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def slices_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar of slices, or of whatever is counted; call what it yields with (how many are done, where)."""
    with _bar("slices", total) as progress:
        task = progress.add_task(title, total=total)

        def update(done: int, where: str = "") -> None:
            progress.update(task, completed=done, description=f"{title} {where}".rstrip())

        yield update


@contextmanager
def bytes_bar(title: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of bytes; call what it yields with (bytes done, bytes in all or None)."""
    with _bar("bytes", total) as progress:
        task = progress.add_task(title, total=total)

        def update(done: int, in_all: int | None) -> None:
            progress.update(task, completed=done, total=in_all)

        yield update


def _bar(kind: str, total: int | None) -> Progress:
    from rich import progress as bars
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
    ]
    if kind == "bytes":
        columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    else:
        columns += [bars.MofNCompleteColumn()]
    columns += [bars.TimeRemainingColumn() if total else bars.TimeElapsedColumn()]
    console = Console(file=sys.stderr, stderr=True)
    return bars.Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
