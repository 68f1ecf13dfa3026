"""Sending of volumes: in slabs, at the speed of the link, compressed on a slow one."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.protocol import DTYPES, LARGEST_BODY
from medsam2_core.worker.requests import CrashCounter

_SMALLEST_SLAB, _LARGEST_SLAB, _FIRST_SLAB = 64 << 10, 1 << 20, 256 << 10  # bytes
_SMALLEST_WINDOW, _LARGEST_WINDOW = 128 << 10, 4 << 20  # bytes
_SLAB_S, _WINDOW_S = 0.125, 0.5  # seconds of the link
_SHORTEST_SAMPLE_S = 0.02  # shorter measurements are too noisy
_SAMPLES = 16
_WORTH_IT = 0.8  # largest ratio of compressed to raw bytes that is worthwhile
_COMPRESS_BELOW = 20e6  # bytes per second: about where deflating CT at level 1 pays, with a margin


class RemoteVolume:
    """A volume in the worker, kept here so that it can be sent to the next one.

    Attributes
    ----------
    received, total
        Bytes of voxels that the present worker has, and in total.
    """

    def __init__(self, name: str, volume: Volume) -> None:
        self.name, self.volume = name, volume
        self.received, self.is_there, self.users = 0, False, 0
        self.crashes = CrashCounter()
        self._dtype = _dtype_on_the_wire(volume.voxels_kji.dtype)
        self._sent, self._digest = 0, hashlib.sha256()  # slices sent to the present worker, and their content
        self.total = volume.voxels_kji.size * self._dtype.itemsize

    def is_same(self, volume: Volume) -> bool:
        """Return whether another volume equals what was, and will be, sent.

        The voxels may be a view of an array that has changed since, so those already sent are compared by
        their hash. They are compared only if everything else is equal.
        """
        ours, theirs = self.volume.voxels_kji, volume.voxels_kji
        if (
            ours.shape != theirs.shape
            or ours.dtype != theirs.dtype
            or volume.modality != self.volume.modality
            or not np.array_equal(volume.geometry.ijk_to_ras, self.volume.geometry.ijk_to_ras)
        ):
            return False
        sent, rest = self._content(theirs[: self._sent]), self._content(theirs[self._sent :])
        return sent == self._digest.digest() and rest == self._content(ours[self._sent :])

    def restart(self) -> None:
        """Mark everything as not sent, for a new worker."""
        self._sent, self._digest = 0, hashlib.sha256()
        self.received, self.is_there = 0, False

    def note_sent(self, slab: NDArray[Any]) -> None:
        """Mark the next slab as sent."""
        self._sent += len(slab)
        self._digest.update(slab.reshape(-1).view(np.uint8).data)

    def _content(self, voxels_kji: NDArray[Any]) -> bytes:
        """Return the SHA-256 of slices as they are sent, copying one slice at a time."""
        digest = hashlib.sha256()
        for voxels in voxels_kji:
            digest.update(np.ascontiguousarray(voxels, dtype=self._dtype).reshape(-1).view(np.uint8).data)
        return digest.digest()

    def description(self) -> dict[str, Any]:
        """Return the fields of `open_volume`, without the title, which may identify the patient."""
        voxels = self.volume.voxels_kji
        return {
            "volume": self.name,
            "shape_kji": list(voxels.shape[:3]),
            "dtype": self._dtype.str,
            "components": 3 if self.volume.is_colour else 1,
            "ijk_to_ras": self.volume.geometry.ijk_to_ras.tolist(),
            "modality": self.volume.modality,
            "title": "",
        }

    @property
    def bytes_per_slice(self) -> int:
        """Size of a slice as sent."""
        return max(1, self.total // max(1, len(self.volume.voxels_kji)))

    @property
    def is_too_large(self) -> bool:
        """Whether a single slice exceeds the limit of the protocol."""
        return self.bytes_per_slice > LARGEST_BODY

    def slab(self, first: int, nbytes: int) -> NDArray[Any]:
        """Return whole slices from `first` on: about this many bytes, at least one slice."""
        voxels = self.volume.voxels_kji
        count = max(1, nbytes // self.bytes_per_slice)
        return np.ascontiguousarray(voxels[first : first + count], dtype=self._dtype)


def _dtype_on_the_wire(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the protocol that represents the values of another."""
    if dtype.kind == "b":
        return np.dtype("|u1")
    little = dtype.newbyteorder("<")
    if little.str in DTYPES:
        return little
    return np.dtype("<f4" if dtype.itemsize < 4 else "<f8")


class SendWindow:
    """Flow control: limits the bytes in flight by the measured speed of the link.

    Half a second's worth keeps the link busy, and does not delay a click, which is sent after it, for long.

    Attributes
    ----------
    delay
        Shortest round trip of a small message in seconds; 0 before the first.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self.outstanding, self.delay = 0, 0.0
        self._mark, self._bytes, self._seconds = 0.0, 0, 0.0

    @property
    def rate(self) -> float | None:
        """Bytes per second: the maximum of the last samples, since the sender may have been idle."""
        return max(self._samples) if self._samples else None

    @property
    def size(self) -> int:
        """Number of bytes that may be outstanding; one slab at a time until the rate is known."""
        if self.rate is None:
            return 1
        seconds = _WINDOW_S + min(self.delay, 2 * _WINDOW_S)
        return int(min(max(self.rate * seconds, _SMALLEST_WINDOW), _LARGEST_WINDOW))

    @property
    def slab(self) -> int:
        """Number of bytes to send at once."""
        if self.rate is None:
            return _FIRST_SLAB
        return int(min(max(self.rate * _SLAB_S, _SMALLEST_SLAB), _LARGEST_SLAB))

    @property
    def is_slow(self) -> bool:
        """Whether compression is worthwhile."""
        return self.rate is not None and self.rate < _COMPRESS_BELOW

    def sent(self, nbytes: int) -> None:
        """Count bytes handed to the transport."""
        if self.outstanding == 0:
            self._mark = self._clock()
        self.outstanding += nbytes

    def acknowledged(self, nbytes: int) -> None:
        """Count bytes the worker has received."""
        now = self._clock()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        self._bytes += nbytes
        self.outstanding -= nbytes
        if self._seconds >= _SHORTEST_SAMPLE_S:
            self._samples.append(self._bytes / self._seconds)
            self._bytes, self._seconds = 0, 0.0


class Upload:
    """Sends one volume over one connection.

    Parameters
    ----------
    send
        Writes one ``volume_data`` message (fields, arrays, whether to compress) and returns its bytes.
    """

    def __init__(self, remote: RemoteVolume, window: SendWindow, send: Callable[..., int]) -> None:
        self.remote = remote
        self._window, self._send = window, send
        self._next = 0  # first slice not sent
        self._voxel_bytes = self._raw_slabs = 0
        self._unacknowledged: deque[tuple[int, int]] = deque()  # (bytes of voxels up to here, bytes as sent)
        remote.restart()

    @property
    def is_sent(self) -> bool:
        """Whether everything was sent."""
        return self._next >= len(self.remote.volume.voxels_kji)

    @property
    def may_send(self) -> bool:
        """Whether the next slab may be sent now."""
        return not self.is_sent and self._window.outstanding < self._window.size

    def send_slab(self) -> bool:
        """Send the next slab; return whether it was compressed, which takes time."""
        slab = self.remote.slab(self._next, self._window.slab)
        fields = {"volume": self.remote.name, "first": self._next}
        compress = self._window.is_slow and self._raw_slabs == 0
        nbytes = self._send(fields, {"voxels_kji": slab}, compress)
        self._raw_slabs = max(0, self._raw_slabs - 1)
        if compress and nbytes > _WORTH_IT * slab.nbytes:
            self._raw_slabs = _SAMPLES  # incompressible: try again later
        self.remote.note_sent(slab)
        self._next += len(slab)
        self._voxel_bytes += slab.nbytes
        self._unacknowledged.append((self._voxel_bytes, nbytes))
        self._window.sent(nbytes)
        return compress

    def acknowledge(self, what: str, done: int) -> None:
        """Handle a progress message, with the bytes of voxels received."""
        if what != "receiving":
            return
        self.remote.received = min(done, self.remote.total)
        nbytes = 0
        while self._unacknowledged and self._unacknowledged[0][0] <= done:
            nbytes += self._unacknowledged.popleft()[1]
        if nbytes:
            self._window.acknowledged(nbytes)

    def finish(self) -> None:
        """Handle the result: the worker has the whole volume."""
        self.acknowledge("receiving", self.remote.total)
        self.remote.is_there, self.remote.crashes.count = True, 0

    def stop(self) -> None:
        """Stop sending, and release the unacknowledged bytes from the window."""
        self._next = len(self.remote.volume.voxels_kji)
        if self._unacknowledged:
            self._window.acknowledged(sum(nbytes for _, nbytes in self._unacknowledged))
            self._unacknowledged.clear()
