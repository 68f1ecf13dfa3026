"""The worker's process: one thread reads frames, one computes, one writes."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from medsam2_core.errors import Cancelled, MedSAM2Error, ProtocolError
from medsam2_core.version import __version__
from medsam2_core.worker.frames import Frame, FrameReader
from medsam2_core.worker.jobs import Job, Jobs
from medsam2_core.worker.machine import device_facts, rss_bytes
from medsam2_core.worker.masks import checked
from medsam2_core.worker.messages import PROTOCOLS
from medsam2_core.worker.outbox import Outbox
from medsam2_core.worker.receiving import SlabError, Volumes
from medsam2_core.worker.serving import Serving, told

_log = logging.getLogger(__name__)
_READ = 1 << 20
_DAMAGED = 76  # exit code: what came was no protocol
_DEFECT = 70  # exit code: a defect of ours in a thread that must not fail


class Server:
    """Serves one client over two file descriptors.

    Parameters
    ----------
    frames_in, frames_out
        Where frames come from and go to.
    log
        Where the log is written, to be told to who asks.
    """

    def __init__(self, frames_in: int, frames_out: int, log: str | None = None) -> None:
        self._frames_in, self._log_path = frames_in, log
        self._outbox = Outbox(frames_out)
        self._jobs, self._volumes = Jobs(), Volumes()
        self._serving = Serving(self._jobs, self._volumes, self._outbox)
        self._is_greeted = False
        self._at_once = {
            "ping": self._ping,
            "status": self._status,
            "cancel": self._cancel,
            "focus": self._focus,
        }

    def run(self) -> None:
        """Serve until the input ends, which ends the process; never returns."""
        threading.excepthook = _end_with_a_defect
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._serving.run()

    def _read(self) -> None:
        reader = FrameReader()
        while True:
            try:
                data = os.read(self._frames_in, _READ)
            except OSError:
                data = b""
            if not data:
                _log.info("the input ended: so does the worker")
                os._exit(0)
            try:
                for frame in reader.feed(data):
                    self._take(frame)
                reader.feed(b"")  # damage behind whole frames
            except ProtocolError as error:
                self._error(None, error)
                self._outbox.drain(2.0)
                os._exit(_DAMAGED)

    def _take(self, frame: Frame) -> None:
        """Answer a message, or hand it to the thread that computes."""
        fields, number = frame.header, frame.header.get("id")
        try:
            if frame.type == "volume_data":
                self._slab(frame)
                return
            if type(number) is not int or number < 0:
                raise ProtocolError(f"{frame.type[:60]!r} needs an id, a whole number of 0 or more")
            if frame.type == "bye":
                self._result(number, {})
                self._outbox.drain(2.0)
                os._exit(0)
            self._check_greeting(frame)
            if frame.type in self._at_once:
                self._result(number, self._at_once[frame.type](fields))
            elif frame.type == "open_volume":
                self._volumes.open(number, fields)
            elif frame.type in self._serving.apart:
                self._serving.apart[frame.type](Job(number, frame.type, fields))
            elif frame.type in self._serving.types:
                self._jobs.add(Job(number, frame.type, fields, frame.arrays))
            else:
                raise ProtocolError(
                    f"unknown request {frame.type[:60]!r}: this worker is MedSAM2Segment {__version__}"
                )
        except SlabError as error:
            self._error(error.request, error.reason)
        except (MedSAM2Error, MemoryError) as error:
            self._error(number if type(number) is int else None, error)

    def _check_greeting(self, frame: Frame) -> None:
        if frame.type != "hello":
            if not self._is_greeted:
                raise ProtocolError(f"{frame.type[:60]!r} came before hello")
            return
        theirs = frame.header.get("protocols")
        if not isinstance(theirs, list) or not all(type(one) is int for one in theirs):
            raise ProtocolError(f"protocols must be a list of versions, not {repr(theirs)[:60]}")
        if not set(theirs) & set(PROTOCOLS):
            older = "client" if max(theirs, default=0) < PROTOCOLS[0] else "worker"
            spoken, known = (", ".join(map(str, versions)) or "none" for versions in (theirs, PROTOCOLS))
            raise ProtocolError(
                f"the client speaks version {spoken} of the worker's protocol, the worker (MedSAM2Segment "
                f"{__version__}) version {known}: update the {older}"
            )
        self._is_greeted = True

    def _slab(self, frame: Frame) -> None:
        incoming = self._volumes.fill(frame.header, frame.arrays)
        if incoming is None:
            return
        done, total = incoming.done, incoming.voxels_kji.nbytes
        progress = {"what": "receiving", "done": done, "total": total}
        self._outbox.put({"type": "progress", "re": incoming.request, **progress})
        if done == total:
            self._result(incoming.request, {"bytes": total})

    def _ping(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        is_busy = self._jobs.current is not None or not self._jobs.is_empty
        return {"busy": is_busy, "step_age": round(self._serving.step_age, 3), "rss_bytes": rss_bytes()}

    def _status(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        device, cache = self._serving.device, self._serving.sessions.cache
        return {
            "device": None if device is None else device_facts(device),
            "rss_bytes": rss_bytes(),
            "cache_bytes": 0 if cache is None else cache.nbytes,
            "cache_limit": 0 if cache is None else cache.byte_limit,
            "sessions": len(self._serving.sessions),
            "volumes": len(self._volumes),
            "log": self._log_path,
        }

    def _cancel(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        number = None if fields.get("request") is None else checked(fields, "request", int)
        cancelled = [job.id for job in self._jobs.cancel(number)] + self._volumes.give_up(number)
        for one in cancelled:
            self._error(one, Cancelled("stopped before it began"))
        self._serving.cancel_apart(number)
        return {}

    def _focus(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        self._serving.ahead.focus = (checked(fields, "session", str), checked(fields, "n", int))
        self._jobs.wake()
        return {}

    def _result(self, number: int, fields: Mapping[str, Any]) -> None:
        self._outbox.put({"type": "result", "re": number, **fields})

    def _error(self, number: int | None, error: BaseException) -> None:
        _log.info("request %s refused: %s", number, type(error).__name__)
        self._outbox.put({"type": "error", "re": number, **told(error)})


def _end_with_a_defect(hook: threading.ExceptHookArgs) -> None:
    """A thread that must not fail did: without it nothing is answered, so the process ends."""
    _log.error("defect in %s: %s", hook.thread and hook.thread.name, hook.exc_type.__name__)
    _show(hook.exc_type, hook.exc_value, hook.exc_traceback)
    os._exit(_DEFECT)


def _show(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    import traceback

    traceback.print_exception(kind, error, where)


def serve(streams: tuple[int, int], verbose: bool = False) -> None:
    """Serve the client at the other end of these streams until the input ends; never returns."""
    from medsam2_core.worker.journal import start_log
    from medsam2_core.worker.standard import end_by_signals

    end_by_signals()
    sys.setswitchinterval(0.0005)  # seconds; who reads and answers at once shall not wait for who computes
    log = start_log(verbose)
    _log.info("MedSAM2Segment %s begins", __version__)
    Server(*streams, None if log is None else str(log)).run()
