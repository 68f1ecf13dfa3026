"""State of the module's page: plain values, made by its controller and shown by the panels."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.ExportOptions import FORMATS


class Level(enum.Enum):
    """Kind of a status line, which determines its icon."""

    INFO = "info"
    OK = "ok"
    BUSY = "busy"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class StatusLine:
    """One line with the status and what to do next; hidden if the text is empty."""

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
        Question before an action, and the label of the button that confirms it; empty for none.
    fraction
        Progress from 0 to 1; negative when unknown; None when idle.
    log
        Output of the tools; hidden if empty.
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
    """Row of the table of models.

    Attributes
    ----------
    size
        Bytes of its weights; None when unknown.
    memory
        Description of the memory it needs; empty when unknown.
    progress
        Progress of its installation or removal ("40 %"); empty for none.
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
        Whether a worker is running, and where.
    device, memory
        Its device, and the memory in use; empty when unknown.
    log
        Path of its log file; empty when unknown.
    report
        Text of *Copy report*; empty hides the button.
    """

    line: StatusLine = StatusLine()
    device: str = ""
    memory: str = ""
    log: str = ""
    report: str = ""
    remoteCommand: str = ""
    canTest: bool = True


@dataclass(frozen=True)
class MyModelRow:
    """Row of the table of the user's own models.

    Attributes
    ----------
    file
        Its name in requests.
    images, dice
        Number of training images (or volumes), and the Dice measured; empty when unknown.
    isPrompted
        Whether it was fine-tuned to answer prompts; the others are Auto models.
    about
        Further lines of the tooltip.
    """

    file: str
    name: str
    classes: str = ""
    images: str = ""
    dice: str = ""
    path: str = ""
    isPrompted: bool = False
    about: str = ""


@dataclass(frozen=True)
class MyModelsView:
    """The section about the user's own models.

    Attributes
    ----------
    line
        Status of the present action, or result of the last one.
    sources
        Possible training data: (value, label) pairs, "scene" and "folder".
    fraction
        Progress of a training from 0 to 1; negative when unknown; None without one.
    canChange
        Whether there is a worker that can remove models.
    corrections
        What was kept of the user's corrections, and where.
    canImprove, canForget
        Whether a model can be trained on them, and whether there are any to delete.
    """

    rows: tuple[MyModelRow, ...] = ()
    line: StatusLine = StatusLine()
    sources: tuple[tuple[str, str], ...] = (("folder", _("A folder")),)
    fraction: float | None = None
    canChange: bool = False
    canTrain: bool = False
    canCancel: bool = False
    corrections: str = ""
    canImprove: bool = False
    canForget: bool = False


@dataclass(frozen=True)
class ExportView:
    """The section about export.

    Attributes
    ----------
    segmentations
        Segmentations of the scene: (value, name) pairs.
    chosen
        Value of the one to export; empty for none.
    formats
        Possible formats: (value, label) pairs.
    problem
        Why nothing can be exported, and what to do; empty if it can.
    dicomProblem
        Why DICOM is not among the formats; empty if it is.
    line
        Status of a running export, or result of the last one.
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
class ReviewView:
    """The section about the review queue.

    Attributes
    ----------
    folder
        Of the results that are gone through; empty for none.
    case, counts
        The case that is open, and how far the queue has got; empty for none.
    canAccept
        Whether a case is in the scene; without, it can only be skipped.
    """

    folder: str = ""
    case: str = ""
    counts: str = ""
    line: StatusLine = StatusLine()
    canOpen: bool = False
    canAccept: bool = False
    canSkip: bool = False


@dataclass(frozen=True)
class PageState:
    """Complete state of the page.

    Attributes
    ----------
    choices, values
        By name of a default ("model", "window"): (value, label) pairs, and the chosen value.
    """

    runtime: RuntimeView = RuntimeView()
    models: ModelsView = ModelsView()
    worker: WorkerView = WorkerView()
    choices: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    mine: MyModelsView = MyModelsView()
    export: ExportView = ExportView()
    review: ReviewView = ReviewView()


def sizeText(size: int | None) -> str:
    """Format a number of bytes, as in "39 MB"; empty for None."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
