"""Volumes being received: slab by slab into an array that is allocated once."""

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
from medsam2_core.worker.protocol import DTYPES, checked, field_error
from medsam2_core.worker.system import memory


@dataclass
class IncomingVolume:
    """A volume that is not complete yet; `error` is set by a slab that does not fit."""

    request: int
    voxels_kji: NDArray[Any]
    geometry: Geometry
    modality: str
    title: str
    received: NDArray[np.bool_] = field(init=False)  # by slice
    error: MedSAM2Error | None = None

    def __post_init__(self) -> None:
        self.received = np.zeros(len(self.voxels_kji), dtype=bool)

    @property
    def done(self) -> int:
        """Bytes received."""
        return int(self.received.sum()) * (self.voxels_kji.nbytes // len(self.voxels_kji))

    @classmethod
    def from_json(cls, request: int, fields: Mapping[str, Any]) -> IncomingVolume:
        """Allocate the volume that `open_volume` describes. MemoryError if it is too large."""
        shape, dtype = checked(fields, "shape_kji", list), checked(fields, "dtype", str)
        components = fields.get("components", 1)
        if len(shape) != 3 or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
            raise field_error("shape_kji", shape, "must be three positive numbers")
        if dtype not in DTYPES:
            raise field_error("dtype", dtype, f"must be one of {', '.join(DTYPES)}")
        if components not in (1, 3) or (components == 3 and dtype != "|u1"):
            raise field_error("components", components, "must be 1, or 3 of |u1")
        try:
            matrix = np.array(fields.get("ijk_to_ras"), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise GeometryError(f"ijk_to_ras must be 4 x 4 numbers: {error}", code="ijk-to-ras") from error
        geometry = Geometry(matrix, tuple(shape[::-1]))
        wanted, (_, total) = math.prod(shape) * components * np.dtype(dtype).itemsize, memory()
        if wanted > total:
            raise MemoryError(f"a volume of {wanted >> 20} MB is larger than the memory of {total >> 20} MB")
        whole = tuple(shape) if components == 1 else (*shape, 3)
        modality, title = (str(fields.get(part) or "") for part in ("modality", "title"))
        return cls(request, np.empty(whole, dtype), geometry, modality, title)

    def put(self, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy a slab into the volume. ProtocolError when it does not fit."""
        first, slab, voxels = checked(fields, "first", int), arrays.get("voxels_kji"), self.voxels_kji
        if slab is None or slab.dtype != voxels.dtype or slab.shape[1:] != voxels.shape[1:]:
            got = None if slab is None else f"{slab.shape} of {slab.dtype}"
            raise field_error("voxels_kji", got, f"must be (k, {voxels.shape[1:]}) of {voxels.dtype}")
        if not 0 < len(slab) <= len(voxels) - first:
            raise field_error("first", first, f"must be so that {len(slab)} slices are in the volume")
        voxels[first : first + len(slab)] = slab
        self.received[first : first + len(slab)] = True


class IncomingVolumes:
    """Volumes by the client's names: filled by the reading thread, used by the computing thread."""

    def __init__(self) -> None:
        self._incoming: dict[str, IncomingVolume] = {}
        self._complete: dict[str, Volume] = {}
        self._refused: set[str] = set()  # slabs of these may still arrive
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._complete) + len(self._incoming)

    def open(self, request: int, fields: Mapping[str, Any]) -> None:
        """Allocate a volume. MedSAM2Error for an invalid description, MemoryError when it is too large."""
        name = checked(fields, "volume", str)
        if not name:
            raise field_error("volume", name, "must be a name")
        try:
            incoming = IncomingVolume.from_json(request, fields)
        except (MedSAM2Error, MemoryError):
            self._refused.add(name)
            raise
        with self._lock:
            if name in self._incoming or name in self._complete:
                raise ProtocolError(
                    f"there is a volume {name[:60]!r} already: close it first", code="volume-exists"
                )
            self._refused.discard(name)
            self._incoming[name] = incoming

    def fill(self, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> IncomingVolume | None:
        """Store a slab; return its volume, or None when the volume is no longer wanted.

        A volume with a slab that does not fit is dropped, and returned with its `error`.
        """
        name = checked(fields, "volume", str)
        incoming = self._incoming.get(name)
        if incoming is None:
            if name in self._refused:
                return None
            raise ProtocolError(f"voxels of {name[:60]!r}, which is not being opened", code="unknown-volume")
        try:
            incoming.put(fields, arrays)
            if incoming.received.all() and not self._complete_one(name, incoming):
                return None
        except MedSAM2Error as error:
            self._incoming.pop(name, None)
            self._refused.add(name)
            incoming.error = error
        return incoming

    def _complete_one(self, name: str, incoming: IncomingVolume) -> bool:
        """Mark a volume as complete; return False if the other thread has closed it meanwhile."""
        volume = Volume(incoming.voxels_kji, incoming.geometry, incoming.modality, incoming.title)
        with self._lock:
            if self._incoming.get(name) is not incoming:
                return False
            self._complete[name] = volume
            del self._incoming[name]
            return True

    def get(self, name: str) -> Volume:
        """Return a complete volume. VolumeError if it is unknown or incomplete."""
        with self._lock:
            if name in self._complete:
                return self._complete[name]
            if name in self._incoming:
                raise VolumeError(
                    "not all of the volume has come yet: wait for its result", code="volume-incomplete"
                )
        raise VolumeError(f"there is no volume {name[:60]!r}: open it first", code="unknown-volume")

    def close(self, name: str) -> int | None:
        """Free a volume; return the request that was still opening it, if any."""
        with self._lock:
            self._complete.pop(name, None)
            incoming = self._incoming.pop(name, None)
            if incoming is None:
                return None
            self._refused.add(name)
            return incoming.request

    def cancel(self, request: int | None) -> list[int]:
        """Stop receiving the volume of a request (None: all volumes); return the requests that ended."""
        with self._lock:
            ended = {n: i.request for n, i in self._incoming.items() if request in (None, i.request)}
            for name in ended:
                del self._incoming[name]
                self._refused.add(name)
            return list(ended.values())
