"""What the runtime is, and what installing it would bring: told before anything is done."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsam2_core.errors import Cancelled, RuntimeInstallError


class RuntimeState(enum.Enum):
    """Whether the worker can be started from the runtime."""

    NONE = "none"
    READY = "ready"
    INTERRUPTED = "interrupted"
    BROKEN = "broken"
    OUTDATED = "outdated"


@dataclass(frozen=True)
class RuntimeStatus:
    """What is installed.

    Attributes
    ----------
    state
        See :class:`RuntimeState`.
    text
        One line: what there is and what to do next.
    interpreter
        The interpreter the worker would be started with; empty when there is none.
    isOwn
        Whether that is the environment made here, rather than one the user named.
    manifest
        Versions, torch build, date, size as recorded at the end of the installation; empty when unknown.
    isBusyElsewhere
        Another Slicer is installing in the same folder now.
    """

    state: RuntimeState
    text: str
    interpreter: str = ""
    isOwn: bool = True
    manifest: dict | None = None
    isBusyElsewhere: bool = False

    @property
    def isReady(self) -> bool:
        """Whether a worker can be started; an outdated runtime still can."""
        return self.state in (RuntimeState.READY, RuntimeState.OUTDATED)


@dataclass(frozen=True)
class InstallPlan:
    """What a click on *Install* would do.

    Attributes
    ----------
    folder
        Where everything goes.
    torch
        The build of PyTorch, and why this one.
    python, uv
        Which Python and which uv would be used, or that they are downloaded.
    source
        Where packages come from.
    downloadMegabytes, diskMegabytes, freeMegabytes
        About what is downloaded and takes up room; what is free there.
    licences
        (name, licence) of what is installed.
    problems
        What would make it fail, each with the way out; empty when nothing is known.
    """

    folder: Path
    torch: str
    python: str
    uv: str
    source: str
    downloadMegabytes: int
    diskMegabytes: int
    freeMegabytes: int
    licences: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The plan as plain text, for a message box."""
        lines = [
            f"Folder: {self.folder}",
            f"Download: about {_size(self.downloadMegabytes)}; on disk: about {_size(self.diskMegabytes)} "
            f"({_size(self.freeMegabytes)} free)",
            f"PyTorch: {self.torch}",
            f"Python: {self.python}",
            f"Tool: {self.uv}",
            f"Packages from: {self.source}",
            "Licences: " + "; ".join(f"{name} {licence}" for name, licence in self.licences),
            "Slicer's own Python is not changed.",
            *self.problems,
        ]
        return "\n".join(lines)


def _size(megabytes: int) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class InstallListener:
    """Who is told about a running installation, check or removal.

    Attributes
    ----------
    progress
        ``progress(fraction, text)``: 0 to 1, and what is being done in a few words.
    line
        Every line the tools print; for *Details*.
    ended
        Once: None when all went well, else the RuntimeInstallError or Cancelled.
    """

    progress: Callable[[float, str], None] = _ignore
    line: Callable[[str], None] = _ignore
    ended: Callable[[RuntimeInstallError | Cancelled | None], None] = _ignore
