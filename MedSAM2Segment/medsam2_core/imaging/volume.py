"""What was read: voxels with their place in the patient, never changed afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """An image of one, two or three dimensions in space.

    Parameters
    ----------
    voxels_kji : (K, J, I) real scalars, or (K, J, I, 3) uint8 for colour
        Shown read-only; the caller's array is neither copied nor locked.
    geometry : Geometry
        Its ``shape_ijk`` must be (I, J, K).
    modality : str
        DICOM modality (``"CT"``, ``"MR"``, ``"US"``, ``"OP"`` …) or ``""`` when it is unknown.
    name : str
        What to call it in lists and messages.
    source : Path or None
        The file or folder it came from.
    metadata : dict
        What else was learned while reading: JSON-like values by name.

    Raises
    ------
    VolumeError
        When voxels and geometry do not fit or the voxels are not real numbers.
    """

    voxels_kji: NDArray[Any]
    geometry: Geometry
    modality: str = ""
    name: str = ""
    source: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        voxels = np.asarray(self.voxels_kji).view()
        if voxels.dtype.kind not in "buif":
            message = f"voxels of type {voxels.dtype} are not supported: use integers or floats"
            raise VolumeError(message, code="unsupported-voxel-type", type=str(voxels.dtype))
        if voxels.ndim not in (3, 4) or voxels.shape[:3] != self.geometry.shape_ijk[::-1]:
            raise VolumeError(
                f"voxels of shape {voxels.shape} (k, j, i) do not fit "
                f"a grid of {self.geometry.shape_ijk} (i, j, k)",
                code="voxels-do-not-fit-grid",
                shape=list(voxels.shape),
                shape_ijk=list(self.geometry.shape_ijk),
            )
        if voxels.ndim == 4 and (voxels.shape[3] != 3 or voxels.dtype != np.uint8):
            message = f"colour voxels are (k, j, i, 3) of uint8, not {voxels.shape} of {voxels.dtype}"
            raise VolumeError(message, code="unsupported-voxel-type", type=str(voxels.dtype))
        voxels.flags.writeable = False
        object.__setattr__(self, "voxels_kji", voxels)
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        object.__setattr__(self, "source", None if self.source is None else Path(self.source))

    @property
    def is_colour(self) -> bool:
        """Whether each voxel is red, green, blue."""
        return self.voxels_kji.ndim == 4

    @property
    def is_picture(self) -> bool:
        """Whether this is one 2-D image without a place in the patient."""
        return self.voxels_kji.shape[0] == 1 and bool(self.metadata.get("picture", False))

    @property
    def known_spacing(self) -> str:
        """``"all"``; ``"in-plane"`` when nothing says how thick a slice is; ``"none"``: it is a placeholder.

        Without all of it there are no millilitres.
        """
        return str(self.metadata.get("known_spacing", "all"))

    @cached_property
    def content_key(self) -> str:
        """SHA-256 over voxels and geometry: equal volumes have equal keys, wherever they were read from."""
        digest = hashlib.sha256()
        digest.update(f"{self.voxels_kji.dtype.newbyteorder('=').str}{self.voxels_kji.shape}".encode())
        digest.update(np.ascontiguousarray(self.geometry.ijk_to_ras).tobytes())
        for (
            slice_ji
        ) in self.voxels_kji:  # one slice at a time: the array may be a view that a copy would double
            digest.update(
                np.ascontiguousarray(slice_ji).astype(slice_ji.dtype.newbyteorder("<"), copy=False).data
            )
        return digest.hexdigest()


def canonical_view(voxels_kji: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Return the voxels as a view whose axes run to Superior, Posterior, Left (colour stays last).

    Whatever the storage order of a file, equal anatomy gives an equal array here.
    """
    view = voxels_kji
    towards = [geometry.array_axis_towards(direction) for direction in "SPL"]
    for axis, sign in towards:
        if sign < 0:
            view = np.flip(view, 2 - axis)  # array axis i is the last of k, j, i
    return view.transpose([2 - axis for axis, _ in towards] + list(range(3, voxels_kji.ndim)))
