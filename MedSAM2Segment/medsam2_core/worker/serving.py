"""The thread that computes: takes requests in their order, makes way for others, and answers each once."""

from __future__ import annotations

import logging
import os
import platform
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medsam2_core.errors import Cancelled, Interrupted, MedSAM2Error, ProtocolError
from medsam2_core.version import __version__
from medsam2_core.worker import auto_requests, model_requests
from medsam2_core.worker.ahead import Ahead
from medsam2_core.worker.exports import Exports
from medsam2_core.worker.jobs import Job, Jobs
from medsam2_core.worker.machine import device_facts
from medsam2_core.worker.masks import checked
from medsam2_core.worker.messages import PROTOCOLS, error_to_json
from medsam2_core.worker.sessions import Answer, Sessions
from medsam2_core.worker.trainings import Trainings

if TYPE_CHECKING:
    import torch

    from medsam2_core.worker.outbox import Outbox
    from medsam2_core.worker.receiving import Volumes

_log = logging.getLogger(__name__)
_SOON_S = 0.25  # an answer that takes longer is announced


class Serving:
    """Carries out requests.

    Parameters
    ----------
    jobs
        Where they come from.
    volumes
        What has come.
    outbox
        Where answers go.
    preload
        A model to load before anybody asks for it; "" for none.
    """

    def __init__(self, jobs: Jobs, volumes: Volumes, outbox: Outbox, preload: str = "embedded") -> None:
        self.jobs, self.volumes, self.outbox = jobs, volumes, outbox
        self.sessions = Sessions(volumes, self.ask, self._tell)
        self.ahead = Ahead(self.sessions)
        self.downloads = model_requests.Downloads(self.finish, self._tell)
        self.trainings = Trainings(self.finish, self._tell)
        self.exports = Exports(self.finish, self._tell)
        autos = auto_requests.AutoRequests(self.sessions, self.ask, self._tell)
        self.device: torch.device | None = None
        self._preload = preload
        self._moved = self._began = time.monotonic()
        self._is_announced = self._is_computing = False
        self._handlers: dict[str, Callable[[Job], Answer]] = {
            "hello": self._hello,
            "open_session": self.sessions.open,
            "close_session": self.sessions.close,
            "say": self.sessions.say,
            "restore": self.sessions.restore,
            "remove_object": self.sessions.remove_object,
            "propagate": self.sessions.propagate,
            "auto": autos.find,
            "close_volume": self._close_volume,
            "models": lambda job: (model_requests.listed(), {}),
            "remove_model": lambda job: (model_requests.removed(job), {}),
            "auto_models": lambda job: (auto_requests.listed(), {}),
            "remove_auto_model": lambda job: (auto_requests.removed(job), {}),
        }
        #: Carried out beside the computation, in threads or processes of their own.
        self.apart = {
            **{"install_model": self.downloads.start, "train_auto": self.trainings.start},
            "export": self.exports.start,
        }

    def cancel_apart(self, number: int | None) -> None:
        """Nobody wants what is carried out beside the computation any more (None: all of it)."""
        self.downloads.cancel(number)
        self.trainings.cancel(number)
        self.exports.cancel(number)

    @property
    def types(self) -> frozenset[str]:
        """Requests that are carried out here."""
        return frozenset(self._handlers)

    @property
    def step_age(self) -> float:
        """Seconds since the computation last moved; 0 when there is none."""
        return time.monotonic() - self._moved if self._is_computing else 0.0

    def run(self) -> None:
        """Begin with what takes long to import, then serve for ever."""
        self._is_computing = True
        from medsam2_core.engine.devices import choose_device

        self.device = choose_device("auto")
        while True:
            self._is_computing = False
            job = self.jobs.take(waits=lambda: not self._preload and not self.ahead.is_wanted)
            self._moved = self._began = time.monotonic()
            self._is_computing = True
            if job is not None:
                self.work(job)
                self.ahead.something_changed()
            elif self._preload:
                self._load_first()
            elif self.ahead.is_wanted:
                self._encode_ahead()

    def work(self, job: Job) -> None:
        """Carry out one request, or a part of it."""
        self._is_announced = False
        try:
            if job.is_cancelled:
                raise Cancelled("stopped before it began")
            fields, arrays = self._handlers[job.type](job)
            self.jobs.finish()  # before anybody can know, and ask whether there is still work
            self._answer(job, {"type": "result", "re": job.id, **fields}, arrays)
        except Interrupted:
            self.jobs.put_back(job)
        except Exception as error:
            self.jobs.finish()
            self.finish(job, error)

    def finish(self, job: Job, answer: dict[str, Any] | BaseException) -> None:
        """Answer a request with its result or its error; any thread may."""
        if isinstance(answer, BaseException):
            if _is_out_of_memory(answer):
                self.sessions.free_memory()
            self._answer(job, {"type": "error", "re": job.id, **told(answer)})
        else:
            self._answer(job, {"type": "result", "re": job.id, **answer})

    def ask(self) -> None:
        """Between two blocks of a network: is this still what should be computed?"""
        self._moved = time.monotonic()
        job = self.jobs.current
        if job is None:
            if not self.jobs.is_empty:
                raise Interrupted("there is something to do")
        elif job.is_cancelled:
            raise Cancelled("stopped as asked; what was done until then stays")
        elif job.is_patient:
            if self.jobs.is_urgent:
                raise Interrupted("something else comes first")
        elif not self._is_announced and self._moved - self._began > _SOON_S:
            self._is_announced = True
            self._tell(job, {"type": "progress", "what": "encoding", "done": 0, "total": None})

    def _hello(self, job: Job) -> Answer:
        import torch

        return {
            "protocol": PROTOCOLS[0],
            "software": f"MedSAM2Segment {__version__}",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "host": platform.node(),
            "pid": os.getpid(),
            "cores": os.cpu_count() or 1,
            "device": device_facts(self.device),
        }, {}

    def _close_volume(self, job: Job) -> Answer:
        name = checked(job.fields, "volume", str)
        opening = self.volumes.close(name)
        if opening is not None:
            self.finish(Job(opening, "open_volume"), Cancelled("the volume was closed"))
        self.sessions.close_of_volume(name)
        return {}, {}

    def _load_first(self) -> None:
        """Whoever works first will most likely want this model: have it ready."""
        name, self._preload = self._preload, ""
        try:
            self.sessions.model(name)
        except (MedSAM2Error, MemoryError, OSError, RuntimeError) as error:
            _log.info("no model loaded ahead: %s", type(error).__name__)  # who asks for it is told why

    def _encode_ahead(self) -> None:
        try:
            self.ahead.step()
        except (MedSAM2Error, MemoryError, RuntimeError) as error:
            if not isinstance(error, Interrupted):
                _log.info("nothing encoded ahead: %s", type(error).__name__)
                self.ahead.focus = None

    def _tell(self, job: Job, header: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None) -> None:
        self.outbox.put({**header, "re": job.id}, arrays)

    def _answer(
        self, job: Job, header: dict[str, Any], arrays: dict[str, NDArray[Any]] | None = None
    ) -> None:
        ended = header["type"] if header["type"] == "result" else header["kind"]
        _log.info("%s %d: %s after %.3f s", job.type, job.id, ended, time.monotonic() - self._began)
        self.outbox.put(header, arrays)


def told(error: BaseException) -> dict[str, str]:
    """Kind, message and details of an error for the client; a defect is written to the log, too."""
    if _is_out_of_memory(error):
        message = f"{error or 'the memory is full'}: close volumes or other programs, or take a smaller model"
        return {"kind": "OutOfMemoryError", "message": message, "details": ""}
    if isinstance(error, MedSAM2Error):
        return error_to_json(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("%s\n%s", type(error).__name__, frames)
    details = "".join(traceback.format_exception(error))
    message = f"the worker failed at something nobody foresaw ({type(error).__name__}: {error})"
    return {"kind": "InternalError", "message": message, "details": details}


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Of the computer, of torch on the CPU, or of a graphics card."""
    if error is None or isinstance(error, ProtocolError):
        return False
    of_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
    return isinstance(error, MemoryError) or of_torch or _is_out_of_memory(error.__cause__)
