"""What the page of the module shows: plain values, made by its controller, drawn by the panel."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from MedSAM2SegmentLib.Panels.ExportWish import FORMATS


class Kind(enum.Enum):
    """What a line is: it gets an icon by that."""

    PLAIN = "note"
    GOOD = "all is well"
    BUSY = "being worked on"
    WARNING = "needs you"
    ERROR = "failed"


@dataclass(frozen=True)
class Line:
    """One line that says how things are, and what to do next."""

    text: str = ""
    kind: Kind = Kind.PLAIN


@dataclass(frozen=True)
class RuntimeView:
    """The section about the worker's Python environment.

    Attributes
    ----------
    line
        What is installed.
    question, answer
        What is asked before something is done, and the label of the button that agrees; empty: nothing
        is asked.
    fraction
        How far the work is, 0 to 1; below 0 when that is not known; None when nothing is done.
    step
        What is being done, in a few words.
    log
        What the tools have printed; empty hides it.
    """

    line: Line = Line()
    question: str = ""
    answer: str = ""
    fraction: float | None = None
    step: str = ""
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
    doing
        How far it is with what is being done to it ("40 %"); empty when nothing is.
    """

    name: str
    title: str
    size: int | None = None
    licence: str = ""
    isInstalled: bool = False
    path: str = ""
    doing: str = ""


@dataclass(frozen=True)
class WorkerView:
    """The section about where the work is done.

    Attributes
    ----------
    line
        Whether a worker runs, and where.
    device, memory
        What it computes on, and what it uses; empty when unknown.
    log
        The worker's log file; empty when unknown.
    details
        What *Copy report* gives; empty hides the button.
    """

    line: Line = Line()
    device: str = ""
    memory: str = ""
    log: str = ""
    details: str = ""
    remoteCommand: str = ""
    canTest: bool = True


@dataclass(frozen=True)
class AutoModelRow:
    """One Auto model of the table.

    Attributes
    ----------
    file
        What it is asked for by.
    images
        How many it was trained on; empty when nobody knows.
    dice
        As its training has measured it; empty when it has not.
    """

    file: str
    name: str
    classes: str = ""
    images: str = ""
    dice: str = ""
    path: str = ""


@dataclass(frozen=True)
class AutoPageView:
    """The section about Auto models.

    Attributes
    ----------
    line
        How the last thing done has ended, or how far it is; empty hides it.
    sources
        What can be trained on: (value, label) pairs, "scene" and "folder".
    fraction
        How far a training is, 0 to 1; below 0 when that is not known; None when there is none.
    canChange
        Whether a worker is there to remove models.
    """

    rows: tuple[AutoModelRow, ...] = ()
    line: Line = Line()
    sources: tuple[tuple[str, str], ...] = (("folder", "A folder"),)
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
        Of the scene: (value, name) pairs.
    chosen
        The value of the one to export; empty for none.
    formats
        Those that are possible: (value, label) pairs.
    problem
        Why nothing can be exported here, and what to do; empty when it can.
    dicomProblem
        Why DICOM is not among the formats; empty when it is.
    line
        How the last export has ended, or that one is under way; empty hides it.
    """

    segmentations: tuple[tuple[str, str], ...] = ()
    chosen: str = ""
    formats: tuple[tuple[str, str], ...] = FORMATS
    problem: str = ""
    dicomProblem: str = ""
    line: Line = Line()
    isRunning: bool = False
    canExport: bool = False


@dataclass(frozen=True)
class PageState:
    """Everything the page needs to draw itself.

    Attributes
    ----------
    modelsLine
        Said under the table of models; empty hides it.
    canChangeModels
        Whether a worker is there to install and remove them.
    choices, values
        By name of a default ("model", "window"): (value, label) pairs, and the value chosen.
    """

    runtime: RuntimeView = RuntimeView()
    models: tuple[ModelRow, ...] = ()
    modelsLine: Line = Line()
    canChangeModels: bool = False
    canCancelModel: bool = False
    worker: WorkerView = WorkerView()
    choices: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    auto: AutoPageView = AutoPageView()
    export: ExportView = ExportView()


def sizeWords(size: int | None) -> str:
    """Bytes for people: "39 MB"."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
