"""What the worker says, written by a thread of its own: whoever says something never waits for a reader."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from medsam2_core.worker.frames import encode

_log = logging.getLogger(__name__)
_LARGEST_WRITE = 1 << 20


class Outbox:
    """Frames on their way to the client, in the order they were put in.

    Parameters
    ----------
    descriptor
        Where to write. When nobody reads there any more, the process ends.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[list[bytes | memoryview]] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        threading.Thread(target=self._write_all, name="outbox", daemon=True).start()

    def put(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Send a frame; any thread may. ProtocolError when it cannot be one."""
        pieces = encode(header, arrays)
        with self._changed:
            self._waiting.append(pieces)
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait until all is written, at most so long."""
        end = time.monotonic() + seconds
        with self._changed:
            while (self._waiting or self._is_writing) and time.monotonic() < end:
                self._changed.wait(max(0.0, end - time.monotonic()))

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                pieces = self._waiting.popleft()
                self._is_writing = True
            try:
                for piece in pieces:
                    self._write(memoryview(piece).cast("B"))
            except OSError as error:
                _log.info("nobody reads any more (%s): end", type(error).__name__)
                os._exit(0)

    def _write(self, data: memoryview) -> None:
        while len(data):
            data = data[os.write(self._descriptor, data[:_LARGEST_WRITE]) :]
