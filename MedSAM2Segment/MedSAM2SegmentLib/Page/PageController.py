"""Controller of the module's page, which connects its sections."""

from __future__ import annotations

import time
from collections.abc import Callable

from medsam2_core.imaging.intensity import PRESETS
from medsam2_core.worker.client import WorkerClient

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.ExportSection import ExportSection
from MedSAM2SegmentLib.Page.ModelsSection import ModelsSection
from MedSAM2SegmentLib.Page.MyModelsSection import MyModelsSection
from MedSAM2SegmentLib.Page.PageState import PageState
from MedSAM2SegmentLib.Page.ReviewSection import ReviewSection
from MedSAM2SegmentLib.Page.RuntimeSection import RuntimeSection
from MedSAM2SegmentLib.Page.WorkerSection import WorkerSection

_WINDOWS = (
    ("auto", _("Automatic")),
    ("displayed", _("As displayed")),
    *((name, name.capitalize()) for name in PRESETS),
)


class PageController:
    """Connects the runtime, the worker and the settings with what the page shows.

    Parameters
    ----------
    installer, settings, workers
        RuntimeInstaller, Settings and WorkerAccess.
    onStateChanged
        Called whenever `state` may have changed.
    clock
        Monotonic clock, in seconds.
    cases, segmentations
        Labelled volumes to train on (SceneCases) and segmentations to export (SceneSegmentations); None
        without a scene.
    corrections
        Slices kept to improve a model with (Corrections); None without.
    reviewed
        Opens cases of a cohort (ReviewCases); None without a scene.
    later
        Calls its argument once the page has been drawn.

    Attributes
    ----------
    runtime, worker, models, mine, export, review
        The sections, with the methods that their buttons call.
    """

    def __init__(
        self,
        installer,
        settings,
        workers,
        onStateChanged: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        cases=None,
        segmentations=None,
        corrections=None,
        reviewed=None,
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self._settings = settings
        self._onStateChanged = onStateChanged
        changed = self._changed
        self.runtime = RuntimeSection(
            installer, settings, changed, self._beforeRuntimeChange, self._afterRuntimeChange
        )
        self.models = ModelsSection(changed)
        self.mine = MyModelsSection(settings, workers, cases, changed, self.models, corrections)
        self.export = ExportSection(settings, workers, segmentations, changed, later)
        self.review = ReviewSection(reviewed, changed, clock)
        self.worker = WorkerSection(settings, workers, changed, self._onConnected, clock)

    def enter(self) -> None:
        """Start updating when the page is shown."""
        self.export.refresh()
        self.worker.open()
        self._changed()

    def exit(self) -> None:
        """Release the worker when the page is left, which ends a download of a model."""
        self.worker.close()

    def cleanup(self) -> None:
        """Stop everything before the page is destroyed."""
        self.exit()
        self._onStateChanged = lambda: None
        self.runtime.cleanup()
        self.mine.cleanup()
        self.export.cleanup()
        self.review.cleanup()

    def update(self) -> None:
        """Look for changes; to be called regularly while the page is shown."""
        self.export.update()
        self.worker.update()

    @property
    def state(self) -> PageState:
        """The state to show."""
        models = self.models.installed() or (("embedded", _("Embedded")),)
        worker = self.worker.view()
        return PageState(
            runtime=self.runtime.view(),
            models=self.models.view(worker.line, self.worker.freeBytes()),
            worker=worker,
            choices={"model": models, "window": _WINDOWS},
            values={"model": self._settings.defaultModel, "window": self._settings.defaultWindow},
            mine=self.mine.view(),
            export=self.export.view(),
            review=self.review.view(),
        )

    def setDefault(self, name: str, value: str) -> None:
        """Set the default "model" or "window" of new segmentations."""
        if name == "model":
            self._settings.defaultModel = value
        elif name == "window":
            self._settings.defaultWindow = value
        self._changed()

    def _changed(self) -> None:
        self._onStateChanged()

    def _onConnected(self, client: WorkerClient | None) -> None:
        self.models.setClient(client)
        self.mine.setClient(client)

    def _beforeRuntimeChange(self) -> None:
        self.mine.stop()
        self.export.stop()
        self.worker.disconnect()

    def _afterRuntimeChange(self) -> None:
        self.worker.reconnect()
        self._changed()
