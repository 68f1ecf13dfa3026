"""Requests about models: which there are, getting one, deleting one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from medsam2_core.errors import MedSAM2Error
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.masks import checked

_log = logging.getLogger(__name__)
_PAUSE_S = 0.2  # between two messages about the same download


def listed() -> dict[str, Any]:
    """The result of `models`."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    store, models = Store.default(), []
    for entry in Catalogue.load():
        _, path = store.find(entry)
        size = entry.bytes if entry.bytes is not None or path is None else path.stat().st_size
        models.append(
            {
                **{"name": entry.name, "title": entry.title, "bytes": size, "licence": entry.licence},
                **{"installed": path is not None, "path": str(path) if path else None},
                **{"image_size": entry.image_size, "attribution": entry.attribution, "notice": entry.notice},
                **{"page": entry.page, "removable": store.download_path(entry) == path},
            }
        )
    return {"models": models}


def removed(job: Job) -> dict[str, Any]:
    """The result of `remove_model`, done."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    store, entry = Store.default(), Catalogue.load().find(checked(job.fields, "name", str))
    path = store.download_path(entry)
    size = path.stat().st_size if path.is_file() else 0
    store.remove(entry)
    return {"bytes": size}


class Downloads:
    """Models on their way, each in a thread of its own: nothing else waits for the network.

    Parameters
    ----------
    finish
        Gets a job with its result or its error.
    tell
        Gets a job and a message in between.
    """

    def __init__(
        self,
        finish: Callable[[Job, dict[str, Any] | BaseException], None],
        tell: Callable[[Job, dict[str, Any]], None],
    ) -> None:
        self._finish, self._tell = finish, tell
        self._running: dict[int, Job] = {}

    def start(self, job: Job) -> None:
        """`install_model`."""
        self._running[job.id] = job
        threading.Thread(target=self._fetch, args=(job,), name="download", daemon=True).start()

    def cancel(self, number: int | None) -> None:
        """Stop a download (None: all); what arrived is kept for the next try."""
        for job in list(self._running.values()):
            if number in (None, job.id):
                job.is_cancelled = True

    def _fetch(self, job: Job) -> None:
        from medsam2_core.engine.catalogue import Catalogue
        from medsam2_core.engine.download import fetch

        told = 0.0

        def progress(done: int, total: int | None) -> None:
            nonlocal told
            if time.monotonic() - told >= _PAUSE_S or done == total:
                told = time.monotonic()
                self._tell(job, {"type": "progress", "what": "downloading", "done": done, "total": total})

        try:
            entry = Catalogue.load().find(checked(job.fields, "name", str))
            path = fetch(entry, progress, should_cancel=lambda: job.is_cancelled)
            answer: dict[str, Any] | BaseException = {"path": str(path)}
        except (MedSAM2Error, MemoryError, OSError, RuntimeError, ValueError) as error:
            answer = error
        self._running.pop(job.id, None)
        self._finish(job, answer)
