"""Server of the worker: one thread reads frames, one computes, one writes; requests wait in one queue."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medsam2_core.errors import Cancelled, Interrupted, MedSAM2Error, ProtocolError
from medsam2_core.version import __version__
from medsam2_core.worker import model_requests, subprocesses, system
from medsam2_core.worker.incoming import IncomingVolumes
from medsam2_core.worker.jobs import Answer, Job
from medsam2_core.worker.measuring import Measurements
from medsam2_core.worker.protocol import (
    PROTOCOLS,
    Arrays,
    Frame,
    FrameReader,
    checked,
    encode,
    error_to_json,
    optional,
)
from medsam2_core.worker.session_requests import Prefetcher, Sessions

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_READ_BYTES = _WRITE_BYTES = 1 << 20
_ANNOUNCE_S = 0.25  # progress is reported for requests that take longer
_DAMAGED, _BUG = 76, 70  # exit codes: invalid input; a bug in the reading or writing thread


class RequestQueue:
    """Queue of requests between the reading and the computing thread."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self.current: Job | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no request waits."""
        return not self._jobs

    @property
    def is_urgent(self) -> bool:
        """Whether a request waits that preemptible requests yield to."""
        return any(not job.is_preemptible for job in self._jobs)

    def add(self, job: Job) -> None:
        """Append a request."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def put_back(self, job: Job) -> None:
        """Put an interrupted request back at the front."""
        with self._changed:
            self._jobs.insert(0, job)

    def finish(self) -> None:
        """Mark the current request as answered, so that it can no longer be cancelled."""
        with self._changed:
            self.current = None

    def wake(self) -> None:
        """Let :meth:`take` return, for work that is not a request."""
        with self._changed:
            self._changed.notify_all()

    def take(self, waits: Callable[[], bool]) -> Job | None:
        """Make the next request `current` and return it; preemptible requests come last.

        Returns None when there is none: at once, or if `waits()`, after a wake-up.
        """
        with self._changed:
            self.current = None
            if self.is_empty and waits():
                self._changed.wait()
            if self._jobs:
                job = next((job for job in self._jobs if not job.is_preemptible), self._jobs[0])
                self._jobs.remove(job)
                self.current = job
            return self.current

    def cancel(self, number: int | None) -> list[Job]:
        """Cancel a request (None: all); return those removed. The current one is only marked."""
        with self._changed:
            dropped = [job for job in self._jobs if number in (None, job.id)]
            for job in dropped:
                self._jobs.remove(job)
            if self.current is not None and number in (None, self.current.id):
                self.current.is_cancelled = True
            return dropped


class Outbox:
    """Frames to the client, written by a thread so that a slow reader does not block the callers.

    Parameters
    ----------
    descriptor
        Where to write. The process ends when the other end is closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[list[bytes | memoryview]] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        threading.Thread(target=self._write_all, name="outbox", daemon=True).start()

    def put(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Send a frame, from any thread. ProtocolError when it exceeds the limits of the protocol."""
        pieces = encode(header, arrays)
        with self._changed:
            self._waiting.append(pieces)
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait until everything is written, at most this long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_writing, seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                pieces = self._waiting.popleft()
                self._is_writing = True
            try:
                for piece in pieces:
                    view = memoryview(piece).cast("B")
                    while len(view):
                        view = view[os.write(self._descriptor, view[:_WRITE_BYTES]) :]
            except OSError as error:
                _log.info("the output was closed (%s): end", type(error).__name__)
                os._exit(0)


class RequestLoop:
    """The computing thread: takes requests from the queue, yields to urgent ones, answers each once.

    Parameters
    ----------
    preload
        Model to load before it is requested; empty for none.
    """

    def __init__(
        self, queue: RequestQueue, volumes: IncomingVolumes, outbox: Outbox, preload: str = "embedded"
    ) -> None:
        self.queue, self.volumes, self._outbox, self._preload = queue, volumes, outbox, preload
        self.sessions = Sessions(volumes, self.check, self._send)
        self.prefetcher = Prefetcher(self.sessions)
        self.device: torch.device | None = None
        self.slowest_step = 0.0
        self._created = self._moved = self._began = time.monotonic()
        self._is_announced = self._is_computing = False
        downloads = model_requests.Downloads(self.finish, self._send)
        exports = subprocesses.Exports(self.finish, self._send)
        trainings = subprocesses.Trainings(self.finish, self._send)
        #: Requests carried out beside the computation, by type.
        self.separate: dict[str, Any] = {
            "install_model": downloads,
            **dict.fromkeys(("measure", "compare"), Measurements(self.finish)),
            "export": exports,
            **dict.fromkeys(subprocesses.Trainings.kinds, trainings),
        }
        self.handlers: dict[str, Callable[[Job], Answer]] = {
            "hello": self._hello,
            "open_session": self.sessions.open,
            "close_session": self.sessions.close,
            "set_prompts": self.sessions.set_prompts,
            "restore": self.sessions.restore,
            "remove_object": self.sessions.remove_object,
            "propagate": self.sessions.propagate,
            "auto": self.sessions.auto,
            "find": self.sessions.find,
            "close_volume": self._close_volume,
            **{name: _plain(handle) for name, handle in model_requests.HANDLERS.items()},
        }

    @property
    def step_age(self) -> float:
        """Seconds since the last step of the computation; 0 when there is none."""
        return time.monotonic() - self._moved if self._is_computing else 0.0

    def run(self) -> None:
        """Import torch, which takes long, then serve forever."""
        self._is_computing = True
        from medsam2_core.engine.devices import choose_device

        self.device = choose_device("auto")
        while True:
            self._is_computing = False
            job = self.queue.take(waits=lambda: not self._preload and not self.prefetcher.is_wanted)
            self._moved = self._began = time.monotonic()
            self._is_computing = True
            if job is not None:
                self.work(job)
                self.prefetcher.reconsider()
            elif self._preload:
                self.load_first()
            elif self.prefetcher.is_wanted:
                self._prefetch()
            self._note_step()

    def work(self, job: Job) -> None:
        """Process one request, or a part of it."""
        self._is_announced = False
        try:
            if job.is_cancelled:
                raise Cancelled("cancelled before it started")
            fields, arrays = self.handlers[job.type](job)
            self.queue.finish()  # before the client receives the result, and asks whether the worker is busy
            self._send(job, {"type": "result", **fields}, arrays)
            self._log_end(job, "result")
        except Interrupted:
            self.queue.put_back(job)
        except Exception as error:
            self.queue.finish()
            self.finish(job, error)

    def finish(self, job: Job, answer: dict[str, Any] | BaseException) -> None:
        """Answer a request, from any thread."""
        if isinstance(answer, BaseException):
            if is_out_of_memory(answer):
                self.sessions.free_memory()
            header = {"type": "error", **describe_error(answer)}
        else:
            header = {"type": "result", **answer}
        self._send(job, header)
        self._log_end(job, header.get("kind", "result"))

    def check(self) -> None:
        """Raise Cancelled or Interrupted if the computation should stop; called between network blocks."""
        self._note_step()
        job = self.queue.current
        if job is None:
            if not self.queue.is_empty:
                raise Interrupted("a request is waiting")
        elif job.is_cancelled:
            raise Cancelled("stopped as asked; what was done until then stays")
        elif job.is_preemptible:
            if self.queue.is_urgent:
                raise Interrupted("a more urgent request is waiting")
        elif not self._is_announced and self._moved - self._began > _ANNOUNCE_S:
            self._is_announced = True
            self._send(job, {"type": "progress", "what": "encoding", "done": 0, "total": None})

    def load_first(self) -> None:
        """Load the model that will most likely be requested first."""
        name, self._preload = self._preload, ""
        try:
            self.sessions.model(name)
        except (MedSAM2Error, MemoryError, OSError, RuntimeError) as error:
            _log.info("no model preloaded: %s", type(error).__name__)  # reported when it is requested

    def _prefetch(self) -> None:
        try:
            self.prefetcher.step()
        except Interrupted:
            pass
        except (MedSAM2Error, MemoryError, RuntimeError) as error:
            _log.info("nothing prefetched: %s", type(error).__name__)
            self.prefetcher.focus = None

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
            "device": None if self.device is None else system.device_facts(self.device),
            "startup_s": round(time.monotonic() - self._created, 3),
        }, {}

    def _close_volume(self, job: Job) -> Answer:
        name = checked(job.fields, "volume", str)
        opening = self.volumes.close(name)
        if opening is not None:
            self.finish(Job(opening, "open_volume"), Cancelled("the volume was closed"))
        self.sessions.close_of_volume(name)
        return {}, {}

    def _note_step(self) -> None:
        now = time.monotonic()
        self.slowest_step, self._moved = max(self.slowest_step, now - self._moved), now

    def _send(self, job: Job, header: dict[str, Any], arrays: Arrays | None = None) -> None:
        self._outbox.put({**header, "re": job.id}, arrays)

    def _log_end(self, job: Job, how: str) -> None:
        _log.info("%s %d: %s after %.3f s", job.type, job.id, how, time.monotonic() - self._began)


def _plain(handle: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Job], Answer]:
    """Return a handler of jobs for a function from fields to fields."""
    return lambda job: (handle(job.fields), {})


class Server:
    """Server for one client: reads in a thread of its own, computes in the caller's."""

    def __init__(self, frames_in: int, frames_out: int, log: str | None = None) -> None:
        self._frames_in, self._log_path = frames_in, log
        self._outbox, self._queue, self._volumes = Outbox(frames_out), RequestQueue(), IncomingVolumes()
        self.loop = RequestLoop(self._queue, self._volumes, self._outbox)
        self._is_greeted = False
        self._immediate: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "ping": self._ping,
            "status": self._status,
            "cancel": self._cancel,
            "prefetch": self._prefetch,
        }

    def run(self) -> None:
        """Serve until the input ends, which ends the process; does not return."""
        threading.excepthook = _end_with_bug
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self.loop.run()

    def _read(self) -> None:
        reader = FrameReader()
        while True:
            try:
                data = os.read(self._frames_in, _READ_BYTES)
            except OSError:
                data = b""
            if not data:
                _log.info("the input ended: end")
                os._exit(0)
            try:
                for frame in reader.feed(data):
                    self._take(frame)
                reader.feed(b"")  # raises if what follows the frames is damaged
            except ProtocolError as error:
                self._refuse(None, error)
                self._outbox.drain(2.0)
                os._exit(_DAMAGED)

    def _take(self, frame: Frame) -> None:
        """Answer a message, or pass it on."""
        kind, fields, number = frame.type, frame.header, frame.header.get("id")
        try:
            if kind == "volume_data":
                self._take_slab(frame)
                return
            if type(number) is not int or number < 0:
                raise ProtocolError(
                    f"{kind[:60]!r} needs an id, a whole number of 0 or more",
                    code="message-field",
                    field="id",
                )
            if kind == "bye":
                self._outbox.put({"type": "result", "re": number})
                self._outbox.drain(2.0)
                os._exit(0)
            self._check_greeting(frame)
            if kind in self._immediate:
                self._outbox.put({"type": "result", "re": number, **self._immediate[kind](fields)})
            elif kind == "open_volume":
                self._volumes.open(number, fields)
            elif kind in self.loop.separate:
                self.loop.separate[kind].start(Job(number, kind, fields, frame.arrays))
            elif kind in self.loop.handlers:
                self._queue.add(Job(number, kind, fields, frame.arrays))
            else:
                raise ProtocolError(
                    f"unknown request {kind[:60]!r}: this worker is MedSAM2Segment {__version__}",
                    code="unknown-request",
                )
        except (MedSAM2Error, MemoryError) as error:
            self._refuse(number if type(number) is int else None, error)

    def _check_greeting(self, frame: Frame) -> None:
        if frame.type != "hello":
            if not self._is_greeted:
                raise ProtocolError(f"{frame.type[:60]!r} came before hello", code="no-hello")
            return
        theirs = checked(frame.header, "protocols", list)
        if not all(type(one) is int for one in theirs):
            raise ProtocolError(
                "protocols must be a list of versions", code="message-field", field="protocols"
            )
        if not set(theirs) & set(PROTOCOLS):
            outdated = "client" if max(theirs, default=0) < PROTOCOLS[0] else "worker"
            spoken, known = (", ".join(map(str, versions)) or "none" for versions in (theirs, PROTOCOLS))
            raise ProtocolError(
                f"the client speaks version {spoken} of the worker's protocol, the worker (MedSAM2Segment "
                f"{__version__}) version {known}: update the {outdated}",
                code="protocol-version",
                outdated=outdated,
            )
        self._is_greeted = True

    def _take_slab(self, frame: Frame) -> None:
        volume = self._volumes.fill(frame.header, frame.arrays)
        if volume is None:
            return
        if volume.error is not None:
            self._refuse(volume.request, volume.error)
            return
        answer = {"re": volume.request, "done": volume.done, "total": volume.voxels_kji.nbytes}
        self._outbox.put({"type": "progress", "what": "receiving", **answer})
        if volume.done == volume.voxels_kji.nbytes:
            self._outbox.put({"type": "result", "re": volume.request, "bytes": volume.done})

    def _ping(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "busy": self._queue.current is not None or not self._queue.is_empty,
            "step_age": round(self.loop.step_age, 3),
            "slowest_step": round(self.loop.slowest_step, 3),
            "cpu_s": round(time.process_time(), 3),
            "rss_bytes": system.rss_bytes(),
        }

    def _status(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        device, cache = self.loop.device, self.loop.sessions.cache
        return {
            "device": None if device is None else system.device_facts(device),
            "rss_bytes": system.rss_bytes(),
            "cache_bytes": 0 if cache is None else cache.nbytes,
            "cache_limit": 0 if cache is None else cache.byte_limit,
            "sessions": len(self.loop.sessions),
            "volumes": len(self._volumes),
            "log": self._log_path,
        }

    def _cancel(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        number = optional(fields, "request", int)
        for one in [job.id for job in self._queue.cancel(number)] + self._volumes.cancel(number):
            self._refuse(one, Cancelled("cancelled before it started"))
        for separate in self.loop.separate.values():
            separate.cancel(number)
        return {}

    def _prefetch(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        self.loop.prefetcher.focus = (checked(fields, "session", str), checked(fields, "n", int))
        self._queue.wake()
        return {}

    def _refuse(self, number: int | None, error: BaseException) -> None:
        _log.info("request %s refused: %s", number, type(error).__name__)
        self._outbox.put({"type": "error", "re": number, **describe_error(error)})


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an error as the fields of an `error` message; bugs are also logged."""
    if is_out_of_memory(error):
        message = f"{error or 'the memory is full'}: close volumes or other programs, or take a smaller model"
        return error_to_json(MemoryError(message))
    if isinstance(error, MedSAM2Error):
        return error_to_json(error)
    trace = "".join(traceback.format_tb(error.__traceback__))
    _log.error("%s\n%s", type(error).__name__, trace)
    message = f"unexpected error in the worker ({type(error).__name__}: {error})"
    return {**error_to_json(error, "".join(traceback.format_exception(error))), "message": message}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error of Python or torch means that main or GPU memory was exhausted."""
    if error is None or isinstance(error, ProtocolError):
        return False
    of_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
    return isinstance(error, MemoryError) or of_torch or is_out_of_memory(error.__cause__)


def _end_with_bug(hook: threading.ExceptHookArgs) -> None:
    """End the process after an error in the reading or writing thread."""
    _log.error("bug in %s: %s", hook.thread and hook.thread.name, hook.exc_type.__name__)
    traceback.print_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
    os._exit(_BUG)


def serve(streams: tuple[int, int], verbose: bool = False) -> None:
    """Serve the client at the other end of these streams until the input ends; does not return."""
    system.end_on_signals()
    log = system.start_log(verbose)
    _log.info("MedSAM2Segment %s starts", __version__)
    Server(*streams, None if log is None else str(log)).run()
