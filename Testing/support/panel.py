"""A panel without a controller: who records what was pressed, states to show, and looks at what is drawn."""

import dataclasses
import math
import os
from pathlib import Path

from MedSAM2SegmentLib.Panels.PanelState import AutoView, PanelState, SliceConfidence, Status

from support import qt_shim as a_qt

WIDTH = 350  # of the Segment Editor's column
CHOICES = {
    "model": (
        ("embedded", "Embedded"),
        ("medsam2-latest", "MedSAM2, latest checkpoint of its authors"),
    ),
    "window": (("auto", "Automatic"), ("displayed", "As displayed"), ("lung", "Lung")),
    "direction": (("both", "Both ways"), ("forward", "Forward"), ("reverse", "Backward")),
    "stack": (("auto", "View of the first prompt"), ("axial", "Axial")),
}
VALUES = {
    **{"model": "embedded", "window": "auto", "direction": "both", "stack": "auto"},
    **{"range": "all", "stopWhenGone": "1", "autoPropagate": "0", "show3D": "1"},
}
AUTO = AutoView(
    isShown=True,
    models=(
        ("liver", "Liver of our clinic (liver, tumour, portal vein, …)"),
        ("nerve", "nerve (ulnar nerve)"),
    ),
    chosen="liver",
    canFindSlice=True,
    canFindVolume=True,
    text="liver 0.93, portal vein 0.71; not found: tumour",
)
LONG_PATH = "/data/projects/radiology/liver-lesions-2026/derivatives/segmentations/one/series-12.nrrd"


class RecordingActions:
    """Stands in for a controller and its sections: records every call, by name and values."""

    def __init__(self, calls=None, name=""):
        self.calls = [] if calls is None else calls
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return RecordingActions(self.calls, f"{self._name}.{name}".removeprefix("."))

    def __call__(self, *values):
        self.calls.append((self._name, *values))


def confidences(count=60):
    """A strip with weak and sure slices, prompts, a final slice, and an end that was not segmented."""
    return tuple(
        SliceConfidence(
            n,
            None if n >= count - 5 else 0.5 + 0.5 * math.sin(n / 6),
            prompted=n in (10, 20, 30),
            final=n == 20,
            kinds={10: "box, points 2+ 1-", 20: "mask, final", 30: "points 1+"}.get(n, ""),
        )
        for n in range(count)
    )


def a_state(status=Status.PROMPTED, **changes):
    """A state as the controller makes it while the user works."""
    usual = {
        "text": "Click to correct, or propagate.",
        **{"canPrompt": True, "canPropagate": True, "canFinalise": True, "canJump": True, "canClear": True},
        **{
            "confidences": confidences(),
            "slices": 60,
            "current": 30,
            "millilitres": 12.34,
            "choices": CHOICES,
            "values": VALUES,
        },
        "auto": AUTO,
    }
    return PanelState(status=status, **{**usual, **changes})


_REPORT = "the worker was ended by signal SIGKILL\n" + "\n".join(f"line {n}" for n in range(30))
_IDLE = {
    **{"canPrompt": False, "canPropagate": False, "canFinalise": False, "canJump": False, "canClear": False},
    **{"confidences": (), "current": None, "auto": AutoView(), "millilitres": None},
}
#: By status, what differs from the usual state; with words as long as they become.
_CHANGES = {
    Status.NO_VOLUME: dict(text="Choose a source volume above.", **_IDLE),
    Status.VOLUME_REFUSED: dict(
        text=f"{LONG_PATH} has 4 components: choose one frame of the sequence as the source volume.",
        action="Harden transform",
        **_IDLE,
    ),
    Status.NO_SEGMENT: dict(text="Add a segment, and choose it in the list.", **_IDLE),
    Status.NO_RUNTIME: dict(
        text="The network needs its own Python, which is not installed yet.",
        action="Install…",
        **_IDLE,
    ),
    Status.INSTALLING: dict(text="Installing PyTorch…", progress=(310, 1200), canCancel=True, **_IDLE),
    Status.STARTING: dict(text="Starting the worker…", progress=(0, 0), **_IDLE),
    Status.SENDING: dict(
        text="Sending the volume…",
        progress=(3 << 30, 5 << 30),
        remaining="4 s",
        **_IDLE,
    ),
    Status.DOWNLOADING: dict(
        text="Downloading the model…",
        progress=(40 << 20, 900 << 20),
        remaining="2 min",
        **{**_IDLE, "canCancel": True},
    ),
    Status.LOADING: dict(text="Loading the model…", progress=(0, 0), **_IDLE),
    Status.READY: dict(
        text="Click on what you want to segment.",
        confidences=(),
        millilitres=None,
        auto=AutoView(
            isShown=True, text="No Auto model yet: train one from 10 labelled images.", canTrain=True
        ),
    ),
    Status.ENCODING: dict(text="Looking at slice 41…", progress=(0, 0)),
    Status.PROMPTED: dict(),
    Status.PROPAGATING: dict(
        text="Following the segment through the volume; you may go on clicking.",
        progress=(41, 120),
        remaining="about 32 s left",
        canCancel=True,
        canPropagate=False,
    ),
    Status.FINDING: dict(
        text="Auto: 41 of 120 slices. Cancel stops, and leaves everything as it is.",
        progress=(41, 120),
        remaining="about 32 s left",
        canCancel=True,
        canPropagate=False,
        auto=dataclasses.replace(AUTO, canFindSlice=False, canFindVolume=False, text=""),
    ),
    Status.KEEP_OR_DISCARD: dict(text="Cancelled after 41 of 120 slices: keep them or not?", canKeep=True),
    Status.WORKER_LOST: dict(
        text="The worker was lost and is being started again; your prompts and segments are kept.",
        action="Restart",
        details=_REPORT,
    ),
    Status.FAILED: dict(
        text="CUDA out of memory: tried to allocate 2.5 GB, 0.8 GB are free. Close other programs that "
        f"use the card, or choose a smaller model. The log is {LONG_PATH}",
        action="Try again",
        details=_REPORT,
    ),
}


def every_state():
    """One state for every status."""
    return {status: a_state(status, **changes) for status, changes in _CHANGES.items()}


def dark_palette():
    """The colours of a dark style, as Slicer's own has them."""
    qt = a_qt.installed()
    palette = qt.QPalette()
    roles = {
        **{
            "Window": (53, 53, 53),
            "WindowText": (230, 230, 230),
            "Base": (35, 35, 35),
            "Text": (230, 230, 230),
        },
        **{"Button": (53, 53, 53), "ButtonText": (230, 230, 230), "AlternateBase": (45, 45, 45)},
        **{"Highlight": (42, 130, 218), "HighlightedText": (0, 0, 0), "PlaceholderText": (140, 140, 140)},
        **{"ToolTipBase": (35, 35, 35), "ToolTipText": (230, 230, 230), "Mid": (80, 80, 80)},
    }
    for role, colour in roles.items():
        palette.setColor(getattr(qt.QPalette, role), qt.QColor(*colour))
    for role in ("WindowText", "Text", "ButtonText"):
        palette.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, role), qt.QColor(127, 127, 127))
    return palette


def shown(widget, width=WIDTH):
    """The widget on an (invisible) screen, at this width and as high as it wants to be."""
    app = a_qt.application()
    widget.show()
    for _ in range(3):  # words that wrap need more than one round to find their height
        app.processEvents()
        height = widget.layout().totalHeightForWidth(width)
        widget.resize(width, max(height, widget.layout().totalMinimumSize().height()))
    app.processEvents()
    return widget


def clipped(widget):
    """What cannot be read in full: (name, text) of labels and buttons that are smaller than they need."""
    qt = a_qt.installed()
    found = []
    kinds = (qt.QLabel, qt.QPushButton, qt.QCheckBox, qt.QToolButton)
    for child in [one for kind in kinds for one in widget.findChildren(kind)]:
        if not child.visible or not child.objectName or not child.text:
            continue
        corner = child.mapTo(widget, qt.QPoint(child.width, child.height))
        wraps = isinstance(child, qt.QLabel) and child.wordWrap
        tall = child.heightForWidth(child.width) if wraps else child.fontMetrics().height()
        longest = max(child.text.replace("&", "").split("\n"), key=len)
        wide = child.minimumSizeHint.width() if wraps else child.fontMetrics().horizontalAdvance(longest)
        if (
            corner.x() > widget.width
            or corner.y() > widget.height
            or child.height < tall
            or child.width < wide
        ):
            found.append((child.objectName, child.text))
    return found


def keep_picture(widget, name, folder):
    """Save what the widget looks like; also where MEDSAM2_PICTURES says, for somebody to look at."""
    picture = widget.grab()
    path = Path(folder) / f"{name}.png"
    assert picture.save(str(path))
    if os.environ.get("MEDSAM2_PICTURES"):
        picture.save(str(Path(os.environ["MEDSAM2_PICTURES"]) / f"{name}.png"))
    return picture.toImage()
