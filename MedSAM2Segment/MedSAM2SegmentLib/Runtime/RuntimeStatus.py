"""State of the runtime, as far as its files show."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Runtime.FileLock import FileLock
from MedSAM2SegmentLib.Runtime.RuntimePlan import RuntimeContext


class RuntimeState(enum.Enum):
    """Whether the worker can be started from the runtime."""

    NONE = "none"
    READY = "ready"
    INTERRUPTED = "interrupted"
    BROKEN = "broken"
    OUTDATED = "outdated"


@dataclass(frozen=True)
class RuntimeStatus:
    """State of the runtime."""

    state: RuntimeState
    text: str  # description, and what to do next
    interpreter: str = ""  # that starts the worker; empty if there is none
    isOwn: bool = True  # whether it is the own environment, not one chosen by the user
    manifest: dict | None = None  # versions, build, date, size; None when unknown
    isBusyElsewhere: bool = False  # whether another Slicer is installing in the same folder

    @property
    def isReady(self) -> bool:
        """Whether a worker can be started, also from an outdated runtime."""
        return self.state in (RuntimeState.READY, RuntimeState.OUTDATED)


def readStatus(context: RuntimeContext, isBusy: bool) -> RuntimeStatus:
    """Return the state; fast, without side effects. ``isBusy``: this process is installing."""
    folder = context.folder
    elsewhere = not isBusy and FileLock(folder.lock).isHeldElsewhere()
    if named := folder.interpreter():
        if os.path.isfile(named):
            text = _("Uses {path}").format(path=named)
            return RuntimeStatus(RuntimeState.READY, text, named, False, None, elsewhere)
        text = _("{path} is gone: choose another interpreter, or press Install").format(path=named)
        return RuntimeStatus(RuntimeState.BROKEN, text, "", False, None, elsewhere)
    state, text = _ownState(context)
    if elsewhere:
        text = _("Another Slicer is installing the runtime. {status}").format(status=text)
    python = str(folder.python) if state in (RuntimeState.READY, RuntimeState.OUTDATED) else ""
    return RuntimeStatus(state, text, python, True, folder.manifest(), elsewhere)


def _ownState(context: RuntimeContext) -> tuple[RuntimeState, str]:
    folder = context.folder
    if not folder.environment.exists():
        if folder.leftovers() or folder.cache.exists():
            text = _("The installation was interrupted: press Install to continue it")
            return RuntimeState.INTERRUPTED, text
        return RuntimeState.NONE, _("The runtime is not installed yet: press Install")
    manifest = folder.manifest()
    if problem := _visibleProblem(context, manifest):
        text = _("The runtime is damaged ({problem}): press Repair").format(problem=problem)
        return RuntimeState.BROKEN, text
    if manifest.get("lock") != context.lockHash():
        text = _(
            "The runtime works, but this extension was made for other versions: press Repair to renew it"
        )
        return RuntimeState.OUTDATED, text
    versions = manifest.get("versions", {})
    text = _("Installed: Python {python}, PyTorch {torch}")
    text = text.format(python=versions.get("python"), torch=versions.get("torch"))
    return RuntimeState.READY, text


def _visibleProblem(context: RuntimeContext, manifest: dict | None) -> str:
    """Return a problem that shows without starting the environment; empty if there is none."""
    if manifest is None:
        return _("it was never finished")
    if not os.path.isfile(context.folder.python):
        return _("its interpreter is gone")
    base = manifest.get("versions", {}).get("basePython", "")
    if base and not os.path.exists(base):
        return _("the Python it was made from, {path}, is gone").format(path=base)
    return ""
