"""What the page of the module shows: plain values, made by its controller, drawn by the panels."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.ExportOptions import FORMATS


class Level(enum.Enum):
    """What a line is about: its icon."""

    INFO = "info"
    OK = "ok"
    BUSY = "busy"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class StatusLine:
    """One line that tells how things are, and what to do next; without text it is hidden."""

    text: str = ""
    level: Level = Level.INFO


@dataclass(frozen=True)
class RuntimeView:
    """The section about the worker's Python environment.

    Attributes
    ----------
    line
        What is installed.
    question, answer
        What is asked before something is done, and the label of the button that agrees; empty: nothing.
    fraction
        How far the work is, 0 to 1; below 0 when unknown; None when nothing is done.
    log
        What the tools have printed; empty hides it.
    """

    line: StatusLine = StatusLine()
    question: str = ""
    answer: str = ""
    fraction: float | None = None
    log: str = ""
    interpreter: str = ""
    wheelFolder: str = ""
    canInstall: bool = False
    canRepair: bool = False
    canRemove: bool = False
    canCancel: bool = False
    canChoose: bool = True


@dataclass(frozen=True)
class ModelRow:
    """One model of the table.

    Attributes
    ----------
    size
        Bytes of its weights; None when unknown.
    memory
        What there is to know of the memory it needs; empty when unknown.
    progress
        How far its installation or removal is ("40 %"); empty when there is none.
    """

    name: str
    title: str
    size: int | None = None
    licence: str = ""
    isInstalled: bool = False
    path: str = ""
    progress: str = ""
    memory: str = ""


@dataclass(frozen=True)
class ModelsView:
    """The section about models."""

    rows: tuple[ModelRow, ...] = ()
    line: StatusLine = StatusLine()
    canChange: bool = False
    canCancel: bool = False


@dataclass(frozen=True)
class WorkerView:
    """The section about the worker.

    Attributes
    ----------
    line
        Whether a worker runs, and where.
    device, memory
        What it computes on, and what it uses; empty when unknown.
    log
        The worker's log file; empty when unknown.
    report
        What *Copy report* gives; empty hides the button.
    """

    line: StatusLine = StatusLine()
    device: str = ""
    memory: str = ""
    log: str = ""
    report: str = ""
    remoteCommand: str = ""
    canTest: bool = True


@dataclass(frozen=True)
class AutoModelRow:
    """One Auto model of the table.

    Attributes
    ----------
    file
        The name it is asked for by.
    images, dice
        How many images it was trained on, and the Dice its training measured; empty when unknown.
    """

    file: str
    name: str
    classes: str = ""
    images: str = ""
    dice: str = ""
    path: str = ""


@dataclass(frozen=True)
class AutoModelsView:
    """The section about Auto models.

    Attributes
    ----------
    line
        How the last thing done has ended, or how far it is.
    sources
        What can be trained on: (value, label) pairs, "scene" and "folder".
    fraction
        How far a training is, 0 to 1; below 0 when unknown; None when there is none.
    canChange
        Whether a worker is there to remove models.
    """

    rows: tuple[AutoModelRow, ...] = ()
    line: StatusLine = StatusLine()
    sources: tuple[tuple[str, str], ...] = (("folder", _("A folder")),)
    fraction: float | None = None
    canChange: bool = False
    canTrain: bool = False
    canCancel: bool = False


@dataclass(frozen=True)
class ExportView:
    """The section about export.

    Attributes
    ----------
    segmentations
        Those of the scene: (value, name) pairs.
    chosen
        The value of the one to export; empty for none.
    formats
        Those that are possible: (value, label) pairs.
    problem
        Why nothing can be exported here, and what to do; empty when it can.
    dicomProblem
        Why DICOM is not among the formats; empty when it is.
    line
        How the last export has ended, or that one is running.
    """

    segmentations: tuple[tuple[str, str], ...] = ()
    chosen: str = ""
    formats: tuple[tuple[str, str], ...] = FORMATS
    problem: str = ""
    dicomProblem: str = ""
    line: StatusLine = StatusLine()
    isRunning: bool = False
    canExport: bool = False


@dataclass(frozen=True)
class PageState:
    """Everything the page needs to draw itself.

    Attributes
    ----------
    choices, values
        By name of a default ("model", "window"): (value, label) pairs, and the value chosen.
    """

    runtime: RuntimeView = RuntimeView()
    models: ModelsView = ModelsView()
    worker: WorkerView = WorkerView()
    choices: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    auto: AutoModelsView = AutoModelsView()
    export: ExportView = ExportView()


def sizeText(size: int | None) -> str:
    """Return bytes as people read them: "39 MB"; empty for None."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
