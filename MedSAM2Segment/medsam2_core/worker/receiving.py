"""Volumes as they come in: slab after slab into one array, made once."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import GeometryError, MedSAM2Error, ProtocolError, VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.frames import DTYPES
from medsam2_core.worker.machine import memory
from medsam2_core.worker.masks import checked


@dataclass
class Incoming:
    """A volume of which not everything has come yet."""

    request: int
    voxels_kji: NDArray[Any]
    geometry: Geometry
    modality: str
    title: str
    has_come: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.has_come = np.zeros(len(self.voxels_kji), dtype=bool)

    @property
    def done(self) -> int:
        """Bytes that have come."""
        return int(self.has_come.sum()) * (self.voxels_kji.nbytes // len(self.voxels_kji))


class Volumes:
    """Volumes by the client's names; filled by the thread that reads, used by the one that computes."""

    def __init__(self) -> None:
        self._incoming: dict[str, Incoming] = {}
        self._complete: dict[str, Volume] = {}
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._complete) + len(self._incoming)

    def open(self, request: int, fields: Mapping[str, Any]) -> None:
        """Make room for a volume.

        Raises
        ------
        MedSAM2Error
            It is no volume.
        MemoryError
            There is not so much memory.
        """
        name = checked(fields, "volume", str)
        try:
            incoming = _prepared(request, name, fields)
        except (MedSAM2Error, MemoryError):
            self._refused.add(name)  # its slabs are on their way
            raise
        with self._lock:
            if name in self._incoming or name in self._complete:
                raise ProtocolError(f"there is a volume {name[:60]!r} already: close it first")
            self._refused.discard(name)
            self._incoming[name] = incoming

    def fill(self, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Incoming | None:
        """Put a slab where it belongs; the volume as far as it has come, None when nobody waits for it.

        Raises
        ------
        SlabError
            The slab does not fit; its volume is given up.
        """
        name = checked(fields, "volume", str)
        incoming = self._incoming.get(name)
        if incoming is None:
            if name in self._refused:
                return None
            raise ProtocolError(f"voxels came for {name[:60]!r}, which is not being opened")
        try:
            first, slab = checked(fields, "first", int), arrays.get("voxels_kji")
            voxels = incoming.voxels_kji
            if slab is None or slab.dtype != voxels.dtype or slab.shape[1:] != voxels.shape[1:]:
                got = "no voxels_kji" if slab is None else f"{slab.shape} of {slab.dtype}"
                raise ProtocolError(f"a slab must be (k, {voxels.shape[1:]}) of {voxels.dtype}, not {got}")
            if not 0 < len(slab) <= len(voxels) - first:
                raise ProtocolError(f"slices {first} to {first + len(slab) - 1} are not in the volume")
            voxels[first : first + len(slab)] = slab
            incoming.has_come[first : first + len(slab)] = True
            if incoming.has_come.all() and not self._complete_one(name, incoming):
                return None
        except MedSAM2Error as error:
            self._incoming.pop(name, None)
            self._refused.add(name)
            raise SlabError(incoming.request, error) from error
        return incoming

    def _complete_one(self, name: str, incoming: Incoming) -> bool:
        """Whether the volume is still wanted: the thread that computes may have closed it in this moment."""
        volume = Volume(incoming.voxels_kji, incoming.geometry, incoming.modality, incoming.title)
        with self._lock:
            if self._incoming.get(name) is not incoming:
                return False
            self._complete[name] = volume
            del self._incoming[name]
            return True

    def get(self, name: str) -> Volume:
        """A volume that has come completely, else VolumeError."""
        with self._lock:
            if name in self._complete:
                return self._complete[name]
            if name in self._incoming:
                raise VolumeError("the volume has not come completely yet: wait for its result")
        raise VolumeError(f"there is no volume {name[:60]!r}: open it first")

    def close(self, name: str) -> int | None:
        """Forget a volume; the request that was opening it, if it still was."""
        with self._lock:
            self._complete.pop(name, None)
            incoming = self._incoming.pop(name, None)
            if incoming is None:
                return None
            self._refused.add(name)
            return incoming.request

    def give_up(self, request: int | None) -> list[int]:
        """Stop receiving what a request was opening (None: everything); the requests that ended."""
        with self._lock:
            ended = {n: i.request for n, i in self._incoming.items() if request in (None, i.request)}
            for name in ended:
                del self._incoming[name]
                self._refused.add(name)
            return list(ended.values())


class SlabError(Exception):
    """A slab that does not fit: the request that opened the volume fails.

    Attributes
    ----------
    request
        That request.
    reason
        What is wrong.
    """

    def __init__(self, request: int, reason: MedSAM2Error) -> None:
        super().__init__(str(reason))
        self.request, self.reason = request, reason


def _prepared(request: int, name: str, fields: Mapping[str, Any]) -> Incoming:
    shape, dtype = checked(fields, "shape_kji", list), checked(fields, "dtype", str)
    components = fields.get("components", 1)
    if len(shape) != 3 or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
        raise ProtocolError(f"shape_kji must be three positive numbers, not {repr(shape)[:60]}")
    if dtype not in DTYPES:
        raise ProtocolError(f"voxels of type {dtype[:20]!r} cannot come: use {', '.join(DTYPES)}")
    if components not in (1, 3) or (components == 3 and dtype != "|u1"):
        raise ProtocolError(f"{components!r} components of {dtype}: use 1, or 3 of |u1")
    if not name:
        raise ProtocolError("a volume needs a name")
    try:
        matrix = np.array(fields.get("ijk_to_ras"), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"ijk_to_ras must be 4 x 4 numbers: {error}") from error
    geometry = Geometry(matrix, tuple(shape[::-1]))
    wanted = math.prod(shape) * components * np.dtype(dtype).itemsize
    _, total = memory()
    if wanted > total:
        raise MemoryError(f"a volume of {wanted >> 20} MB is larger than the memory of {total >> 20} MB")
    whole = tuple(shape) if components == 1 else (*shape, 3)
    texts = [str(fields.get(part) or "") for part in ("modality", "title")]
    return Incoming(request, np.empty(whole, dtype), geometry, texts[0], texts[1])
