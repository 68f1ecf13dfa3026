"""The page of the module, put together: what MedSAM2Segment.py shows."""

from __future__ import annotations

from collections.abc import Callable

import qt

from MedSAM2SegmentLib.Page.PageController import PageController
from MedSAM2SegmentLib.Panels.ModulePanel import ModulePanel
from MedSAM2SegmentLib.Worker.Corrections import Corrections
from MedSAM2SegmentLib.Worker.Settings import Settings
from MedSAM2SegmentLib.Worker.WorkerAccess import WorkerAccess

_UPDATE_MS = 100


class ModulePage:
    """Panel, controller, and the timer that makes one show the other.

    Parameters
    ----------
    parent
        The widget it will lie in.
    installer
        RuntimeInstaller, shared with the effects (WorkerAccess.sharedInstaller).
    settings, workers
        What it works with; Slicer's own when absent.
    cases, segmentations
        The labelled volumes of the scene (SceneCases), to train on, and its segmentations
        (SceneSegmentations), to export; None where there is no scene.
    corrections
        The slices kept to improve a model with; the user's own (Corrections) by default.
    reviewed
        Opens cases of a cohort in the scene (ReviewCases); None where there is none.

    Attributes
    ----------
    widget
        What to put into the module's layout.
    """

    def __init__(
        self,
        parent: qt.QWidget | None,
        installer,
        settings=None,
        workers=None,
        cases=None,
        segmentations=None,
        corrections=None,
        reviewed=None,
    ) -> None:
        self.settings = settings or Settings()
        self.installer = installer
        self._waiting: list[Callable[[], None]] = []  # until the next drawing
        self._due: list[Callable[[], None]] = []
        self._isOutdated = True
        self._isShown = False
        self.controller = PageController(
            self.installer,
            self.settings,
            workers or WorkerAccess(self.settings, self.installer),
            self._onChanged,
            cases=cases,
            segmentations=segmentations,
            corrections=corrections or Corrections(),
            reviewed=reviewed,
            later=self._waiting.append,
        )
        self.panel = ModulePanel(parent, self.controller)
        self.widget = self.panel.widget
        self._timer = qt.QTimer(self.widget)
        self._timer.interval = _UPDATE_MS
        self._timer.timeout.connect(self._onTimeout)
        self._onTimeout()

    def enter(self) -> None:
        """Start updating: the user has come to the page."""
        self._isShown = True
        self.controller.enter()
        self._isOutdated = True  # much may have happened elsewhere meanwhile
        self._onTimeout()
        self._timer.start()

    def exit(self) -> None:
        """Stop updating: the user has left the page. An installation and a review continue."""
        self._isShown = False
        self._timer.stop()
        due, self._due = [*self._due, *self._waiting], []
        self._waiting.clear()
        for work in due:  # there will be no drawing to wait for
            work()
        self.controller.exit()

    def scrollTo(self, section: str) -> None:
        """Scroll to a section ("auto") once the page has been drawn."""
        self._waiting.append(lambda: self.panel.scrollTo(section))

    def cleanup(self) -> None:
        """Stop everything: the module is taken down."""
        self._timer.stop()
        self._timer.timeout.disconnect(self._onTimeout)
        self._due = []
        self._waiting.clear()
        self.controller.cleanup()
        self.panel.cleanup()

    def _onChanged(self) -> None:
        self._isOutdated = True
        if not self._isShown:  # the keys of the review work elsewhere, too
            self._timer.start()

    def _onTimeout(self) -> None:
        due, self._due = self._due, []
        for work in due:
            work()
        if self._isShown:
            self.controller.update()
        else:
            self._timer.stop()
        if self._isOutdated:
            self._isOutdated = False
            self.panel.show(self.controller.state)
        self._due += self._waiting
        self._waiting.clear()
