"""The worker that the settings ask for: a remote command, or the runtime of this computer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from medsam2_core.errors import MedSAM2Error

from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessRunner
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller
from MedSAM2SegmentLib.Worker.Settings import Settings
from MedSAM2SegmentLib.Worker.WorkerProcess import (
    SharedWorker,
    remoteEnvironment,
    startupEnvironment,
    withPriority,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from medsam2_core.worker.client import WorkerClient

_MODULE = "MedSAM2Segment"
_CHECK_EVERY_S = 1.0  # reading the state of the runtime accesses the disk
_installers: list[RuntimeInstaller] = []


def sharedInstaller() -> RuntimeInstaller:
    """Return the installer shared by the module's page, which installs, and the effects, which wait."""
    if not _installers:
        _installers.append(RuntimeInstaller(None, QProcessRunner(), environment=startupEnvironment()))
    return _installers[0]


class WorkerAccess:
    """Gives effects and the module's page the worker that the settings ask for."""

    def __init__(
        self,
        settings: Settings | None = None,
        installer: RuntimeInstaller | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._installer = installer or sharedInstaller()
        self._settings = settings or Settings()
        self._clock = clock
        self._held: list[tuple[object, SharedWorker]] = []
        self._current: SharedWorker | None = None
        self._problem, self._checkedAt = "", float("-inf")

    def current(self) -> SharedWorker:
        """Return the shared worker, started or not.

        Raises
        ------
        MedSAM2Error
            There is no runtime, or the remote command cannot be read.
        """
        if words := self._settings.remoteWords():
            return SharedWorker.of(words, remoteEnvironment())
        return SharedWorker.of(withPriority(self._installer.command()), self._installer.environment())

    def problem(self) -> str:
        """Return why there can be no worker, checked once a second; empty if there can."""
        if self._clock() - self._checkedAt >= _CHECK_EVERY_S:
            self._checkedAt = self._clock()
            try:
                self._current = self.current()
                self._problem = ""
            except MedSAM2Error as error:
                self._problem = str(error)
        return self._problem

    def isInstalling(self) -> bool:
        """Return whether the runtime is being installed."""
        return self._installer.isBusy

    def resolve(self, section: str = "") -> None:
        """Show the module's page: the runtime at its top, or a section ("auto")."""
        import slicer

        self._checkedAt = float("-inf")
        slicer.util.selectModule(_MODULE)
        page = slicer.util.getModuleWidget(_MODULE).page
        if section and page is not None:
            page.scrollTo(section)

    def acquire(self, owner: object) -> WorkerClient:
        """Return the worker's client. MedSAM2Error when there can be no worker."""
        self._current = worker = self.current()
        client = worker.acquire(owner)
        self._held.append((owner, worker))
        return client

    def release(self, owner: object) -> None:
        """Release the worker of an owner, if it holds one."""
        for held in [one for one in self._held if one[0] is owner]:
            self._held.remove(held)
            held[1].release(owner)

    def hasChanged(self, owner: object) -> bool:
        """Return whether the settings now ask for a worker other than the owner's."""
        if self.problem():
            return False
        return any(one is owner and worker is not self._current for one, worker in self._held)
