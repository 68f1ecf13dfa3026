"""How sure the model is of every voxel: probabilities of named objects on the grid of a volume, in 8 bits.

Slices are kept packed, so that an organ of a 512 x 512 x 300 scan takes some megabytes; nothing is ever held
as floating point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging.slice_mask import INSIDE, PackedValues

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segment
    from medsam2_core.imaging.slices import SliceStack


@dataclass(frozen=True, eq=False)
class Probabilities:
    """Probabilities of objects on one grid; objects may overlap.

    Attributes
    ----------
    slices
        By name, in order, and by index along k: (J, I) values. Slices that are left out are 0 everywhere.

    Raises
    ------
    VolumeError
        For a slice that does not lie on the grid.
    """

    geometry: Geometry
    slices: Mapping[str, Mapping[int, PackedValues]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {
            name: {int(k): packed for k, packed in sorted(of_name.items()) if not packed.is_empty}
            for name, of_name in self.slices.items()
        }
        width, height, depth = self.geometry.shape_ijk
        for name, of_name in kept.items():
            for k, packed in of_name.items():
                if packed.shape_hw != (height, width) or not 0 <= k < depth:
                    message = (
                        f"probabilities of {name!r}: slice {k} of {packed.shape_hw} does not fit the grid "
                        f"{self.geometry.shape_ijk}"
                    )
                    raise VolumeError(message, code="probabilities-on-another-grid", segment=name, k=k)
        object.__setattr__(self, "slices", MappingProxyType(kept))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @classmethod
    def of_stack(
        cls,
        stack: SliceStack,
        maps: Mapping[str, Mapping[int, PackedValues]],
        provenance: Mapping[str, Any] | None = None,
    ) -> Probabilities:
        """Create from slices of a stack, by object and slice, on the grid of its volume.

        Every voxel gets the value of the pixel it also gets its mask from. One object after the other is
        unpacked.
        """
        geometry = stack.volume.geometry
        slices = {}
        for name, of_name in maps.items():
            there = ((n, packed.values_hw()) for n, packed in of_name.items() if not packed.is_empty)
            slices[name] = _packed(stack.volume_values(there))
        return cls(geometry, slices, provenance or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objects, in order."""
        return tuple(self.slices)

    @property
    def nbytes(self) -> int:
        """Bytes of what is packed."""
        return sum(packed.nbytes for of_name in self.slices.values() for packed in of_name.values())

    def slice_ji(self, name: str, k: int) -> NDArray[np.uint8]:
        """Return (J, I) values 0 to 255 of one object on slice ``k``, in a new array.

        Raises
        ------
        VolumeError
            No such object, or no such slice.
        """
        of_name = self._of(name)
        if not 0 <= k < self.geometry.shape_ijk[2]:
            message = f"there is no slice {k}: slices are 0 to {self.geometry.shape_ijk[2] - 1}"
            raise VolumeError(message, code="no-such-slice", k=k, slices=self.geometry.shape_ijk[2])
        packed = of_name.get(k)
        return np.zeros(self.geometry.shape_ijk[1::-1], np.uint8) if packed is None else packed.values_hw()

    def slices_of(self, name: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Return (k, (J, I) values) of the slices that are not all 0, ascending."""
        return ((k, packed.values_hw()) for k, packed in self._of(name).items())

    def values_kji(self, name: str) -> NDArray[np.uint8]:
        """Return (K, J, I) values of one object: a byte a voxel."""
        values_kji = np.zeros(self.geometry.shape_ijk[::-1], np.uint8)
        for k, values_ji in self.slices_of(name):
            values_kji[k] = values_ji
        return values_kji

    def count_differing(self, segment: Segment) -> int:
        """Count voxels of a segment of the same name that are on the other side of 0.5.

        0 for the mask that was made together with them. VolumeError for another grid.
        """
        if segment.shape_ijk != self.geometry.shape_ijk:
            message = (
                f"{segment.name!r} has {segment.shape_ijk} voxels, its probabilities "
                f"{self.geometry.shape_ijk}: they do not belong together"
            )
            raise VolumeError(message, code="probabilities-on-another-grid", segment=segment.name)
        count = 0
        for k in range(self.geometry.shape_ijk[2]):
            inside_ji = self.slice_ji(segment.name, k) >= INSIDE
            touched = segment.on_slice(inside_ji, k)
            if touched is not None:
                view, mask = touched
                view ^= mask
            count += int(np.count_nonzero(inside_ji))
        return count

    def _of(self, name: str) -> Mapping[int, PackedValues]:
        if name not in self.slices:
            known = ", ".join(map(repr, self.names)) or "none"
            message = f"there are no probabilities of {name!r}: they are known of {known}"
            raise VolumeError(
                message, code="no-probabilities-of-segment", segment=name, known=list(self.names)
            )
        return self.slices[name]


def _packed(values_kji: NDArray[np.uint8]) -> dict[int, PackedValues]:
    return {k: PackedValues.of(values_ji) for k, values_ji in enumerate(values_kji)}
