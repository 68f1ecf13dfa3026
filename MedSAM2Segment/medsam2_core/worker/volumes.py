"""Volumes on their way to the worker: in slabs, no faster than they arrive, compressed where that helps."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.client import Blame, Client
from medsam2_core.worker.frames import DTYPES, LARGEST_BODY

_SMALLEST_SLAB, _LARGEST_SLAB, _FIRST_SLAB = 64 << 10, 1 << 20, 256 << 10  # bytes
_SMALLEST_WINDOW, _LARGEST_WINDOW = 128 << 10, 4 << 20  # bytes
_FIRST_WINDOW = 1  # bytes: one slab after the other until the link's speed is known
_SECONDS_A_SLAB, _SECONDS_A_WINDOW = 0.125, 0.5
_LONG_ENOUGH = 0.02  # seconds: shorter times say nothing of a link's speed
_REMEMBERED = 16  # measurements
_SAMPLE = 64 << 10  # bytes that are compressed to see what it would bring
_TOO_FAST = 300e6  # bytes a second: nothing is compressed as fast as that
_WORTH_IT = 0.9


class RemoteVolume:
    """A volume the worker has, or will have; kept so that it can be sent again.

    Attributes
    ----------
    name
        What the worker knows it by.
    volume
        The volume itself.
    received, total
        Bytes of voxels the present worker has, and all of them.
    is_there
        Whether the present worker has all of it.
    """

    def __init__(self, name: str, volume: Volume) -> None:
        self.name = name
        self.volume = volume
        self.users = 0
        self.blame = Blame()
        self.received = 0
        self.is_there = False
        self._dtype = _dtype_on_the_wire(volume.voxels_kji.dtype)
        self._sent = 0  # slices handed to the present worker, and what was in them
        self._digest = hashlib.sha256()
        self.total = volume.voxels_kji.size * self._dtype.itemsize

    def is_same(self, volume: Volume) -> bool:
        """Whether the worker has, or will have, the same content.

        The voxels are a view of somebody else's, who may change them: what counts is what was sent. They are
        looked at only where all else is equal.
        """
        ours, theirs = self.volume.voxels_kji, volume.voxels_kji
        if (
            ours.shape != theirs.shape
            or ours.dtype != theirs.dtype
            or volume.modality != self.volume.modality
            or not np.array_equal(volume.geometry.ijk_to_ras, self.volume.geometry.ijk_to_ras)
        ):
            return False
        sent = self._content(theirs[: self._sent])
        return sent == self._digest.digest() and self._content(theirs[self._sent :]) == self._content(
            ours[self._sent :]
        )

    def note_sent(self, slab: NDArray[Any] | None) -> None:
        """A slab was sent, the next after the others; None: a worker comes that has nothing yet."""
        if slab is None:
            self._sent, self._digest = 0, hashlib.sha256()
        else:
            self._sent += len(slab)
            self._digest.update(slab.reshape(-1).view(np.uint8))

    def _content(self, voxels_kji: NDArray[Any]) -> bytes:
        """SHA-256 of slices as they are sent; made slice by slice, not copied as a whole."""
        digest = hashlib.sha256()
        for voxels in voxels_kji:
            digest.update(np.ascontiguousarray(voxels, dtype=self._dtype).reshape(-1).view(np.uint8))
        return digest.digest()

    def description(self) -> dict[str, Any]:
        """Fields of `open_volume`. Neither its name nor its source is told: they may name the patient."""
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
    def problem(self) -> str:
        """Why it cannot be sent; empty when it can."""
        nbytes = self.total // max(1, self.volume.voxels_kji.shape[0])
        if nbytes <= LARGEST_BODY:
            return ""
        return (
            f"a slice of the volume has {nbytes >> 20} MB, the worker takes at most {LARGEST_BODY >> 20} MB: "
            "crop or resample the volume"
        )

    def slab(self, first: int, nbytes: int) -> NDArray[Any]:
        """About so many bytes of whole slices from slice `first` on, one slice at least."""
        voxels = self.volume.voxels_kji
        a_slice = max(1, int(np.prod(voxels.shape[1:])) * self._dtype.itemsize)
        return np.ascontiguousarray(voxels[first : first + max(1, nbytes // a_slice)], dtype=self._dtype)


def _dtype_on_the_wire(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the protocol that holds all values of another."""
    if dtype.kind == "b":
        return np.dtype("|u1")
    little = dtype.newbyteorder("<")
    if little.str in DTYPES:
        return little
    return np.dtype("<f4" if dtype.itemsize < 4 else "<f8")


class LinkSpeed:
    """How fast bytes arrive at the worker, measured by what it says has come.

    Attributes
    ----------
    rate
        Bytes a second of the best of the last measurements; None before the first. The best, because time in
        which this side had nothing ready to send says nothing of the link.
    outstanding
        Bytes sent and not yet said to have come.
    delay
        The shortest time in which a small message was answered, in seconds: so long bytes and the word that
        they have come are under way, however fast the link is.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[float] = deque(maxlen=_REMEMBERED)
        self.outstanding = 0
        self.delay = 0.0
        self._mark = 0.0
        self._bytes, self._seconds = 0, 0.0

    @property
    def rate(self) -> float | None:
        """See above."""
        return max(self._samples) if self._samples else None

    @property
    def window(self) -> int:
        """How many bytes may be outstanding."""
        if self.rate is None:
            return _FIRST_WINDOW
        seconds = _SECONDS_A_WINDOW + min(self.delay, 2 * _SECONDS_A_WINDOW)
        return int(min(max(self.rate * seconds, _SMALLEST_WINDOW), _LARGEST_WINDOW))

    @property
    def slab(self) -> int:
        """How many bytes to send at once."""
        if self.rate is None:
            return _FIRST_SLAB
        return int(min(max(self.rate * _SECONDS_A_SLAB, _SMALLEST_SLAB), _LARGEST_SLAB))

    def sent(self, nbytes: int) -> None:
        """Bytes were handed to the transport."""
        if self.outstanding == 0:
            self._mark = self._clock()
        self.outstanding += nbytes

    def came(self, nbytes: int) -> None:
        """The worker says that so many more of them have come."""
        now = self._clock()
        self._seconds += now - self._mark
        self._mark = now
        self._bytes += nbytes
        self.outstanding -= nbytes
        if self._seconds >= _LONG_ENOUGH:
            self._samples.append(self._bytes / self._seconds)
            self._bytes, self._seconds = 0, 0.0

    def is_compressing_faster(self, slab: NDArray[Any]) -> bool:
        """Whether compressing and sending takes less time than only sending, judged by a part of the slab."""
        if self.rate is None or self.rate > _TOO_FAST:
            return False
        sample = slab.reshape(-1).view(np.uint8)[:_SAMPLE]
        if not sample.size:
            return False
        before = time.perf_counter()
        ratio = len(zlib.compress(sample, 1)) / sample.size
        seconds = (time.perf_counter() - before) / sample.size
        return seconds + ratio / self.rate < _WORTH_IT / self.rate


class VolumeStream:
    """Sends one volume over one connection."""

    def __init__(self, remote: RemoteVolume, client: Client, speed: LinkSpeed) -> None:
        self.remote = remote
        self._client = client
        self._speed = speed
        self._next = 0  # the first slice not sent
        self._sent = 0  # slabs
        self._on_the_way: deque[tuple[int, int]] = deque()  # bytes of voxels up to here, and bytes as sent
        self._voxel_bytes = 0
        remote.received = 0
        remote.is_there = False
        remote.note_sent(None)

    @property
    def is_all_sent(self) -> bool:
        """Whether nothing is left to send."""
        return self._next >= self.remote.volume.voxels_kji.shape[0]

    @property
    def may_send(self) -> bool:
        """Whether the next slab may go now."""
        return not self.is_all_sent and self._speed.outstanding < self._speed.window

    def send_slab(self) -> bool:
        """Send the next slab; whether it was compressed, which takes time."""
        slab = self.remote.slab(self._next, self._speed.slab)
        # Now and then one goes as it is: only then the link is as busy as it can be, and its speed is seen.
        is_probe = self._sent % _REMEMBERED == 0
        compress = not is_probe and self._speed.is_compressing_faster(slab)
        fields = {"volume": self.remote.name, "first": self._next}
        nbytes = self._client.tell("volume_data", fields, {"voxels_kji": slab}, compress=compress)
        self.remote.note_sent(slab)
        self._next += len(slab)
        self._sent += 1
        self._voxel_bytes += slab.nbytes
        self._on_the_way.append((self._voxel_bytes, nbytes))
        self._speed.sent(nbytes)
        return compress

    def came(self, what: str, done: int) -> None:
        """The worker told how many bytes of voxels it has."""
        if what != "receiving":
            return
        self.remote.received = min(done, self.remote.total)
        nbytes = 0
        while self._on_the_way and self._on_the_way[0][0] <= done:
            nbytes += self._on_the_way.popleft()[1]
        if nbytes:
            self._speed.came(nbytes)

    def finish(self) -> None:
        """The worker has answered: nothing is on the way any more."""
        self.came("receiving", self.remote.total)
        self.remote.is_there = True
        self.remote.blame.deaths = 0

    def give_up(self) -> None:
        """The worker does not want the rest."""
        self._next = self.remote.volume.voxels_kji.shape[0]
        if self._on_the_way:
            self._speed.came(sum(nbytes for _, nbytes in self._on_the_way))
            self._on_the_way.clear()
