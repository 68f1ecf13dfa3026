"""The page of the module, put together: what MedSAM2Segment.py shows."""

from __future__ import annotations

from collections.abc import Callable

import qt

from MedSAM2SegmentLib.Panels.ModulePageController import ModulePageController
from MedSAM2SegmentLib.Panels.ModulePanel import ModulePanel
from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessRunner
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller
from MedSAM2SegmentLib.Worker.Settings import Settings
from MedSAM2SegmentLib.Worker.WorkerProcess import Workers, startupEnvironment

_TICK_MS = 100


class ModulePage:
    """Panel, controller, and the clock that makes one show the other.

    Parameters
    ----------
    parent
        The widget it will lie in.
    installer, settings, workers
        What it works with; Slicer's own when absent.
    cases, segmentations
        The labelled volumes of the scene (SceneCases), to train Auto models on, and its segmentations
        (SceneSegmentations), to export; None where there is no scene.

    Attributes
    ----------
    widget
        What to put into the module's layout.
    """

    def __init__(
        self,
        parent: qt.QWidget | None,
        installer=None,
        settings=None,
        workers=None,
        cases=None,
        segmentations=None,
    ) -> None:
        self.settings = settings or Settings()
        self._runner = None
        if installer is None:
            self._runner = QProcessRunner(qt.QCoreApplication.instance())
            installer = RuntimeInstaller(None, self._runner, environment=startupEnvironment())
        self.installer = installer
        self._waiting: list[Callable[[], None]] = []  # until what was said before is seen
        self._due: list[Callable[[], None]] = []
        workers = workers or Workers(self.settings, self.installer)
        self.controller = ModulePageController(
            *(self.installer, self.settings, workers, self._onChanged),
            cases=cases,
            segmentations=segmentations,
            later=self._later,
        )
        self.panel = ModulePanel(parent, self.controller)
        self.widget = self.panel.widget
        self._isOld = True
        self._timer = qt.QTimer(self.widget)
        self._timer.interval = _TICK_MS
        self._timer.timeout.connect(self._onTick)
        self._onTick()

    def enter(self) -> None:
        """The user has come to the page."""
        self.controller.enter()
        self._isOld = True  # much may have happened elsewhere meanwhile
        self._onTick()
        self._timer.start()

    def exit(self) -> None:
        """The user has left the page. An installation goes on."""
        self._timer.stop()
        due, self._due, self._waiting = [*self._due, *self._waiting], [], []
        for work in due:  # nobody looks any more
            work()
        self.controller.exit()

    def cleanup(self) -> None:
        """The module is taken down: nothing of it may run on."""
        self._timer.stop()
        self._timer.timeout.disconnect(self._onTick)
        self._due, self._waiting = [], []
        self.controller.cleanup()
        self.panel.cleanup()
        if self._runner is not None:
            self._runner.killAll()

    def _onChanged(self) -> None:
        self._isOld = True

    def _later(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)

    def _onTick(self) -> None:
        due, self._due = self._due, []
        for work in due:
            work()
        self.controller.tick()
        if self._isOld:
            self._isOld = False
            self.panel.show(self.controller.state)
        self._due, self._waiting = [*self._due, *self._waiting], []
