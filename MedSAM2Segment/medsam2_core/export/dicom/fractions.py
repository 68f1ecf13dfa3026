"""Pixels of a fractional SEG: the model's probabilities on the series' grid, from 0 to 255."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import ExportError, Note
from medsam2_core.export.dicom.frames import Masks
from medsam2_core.export.regridding import SAME_PLACE_MM
from medsam2_core.imaging.probabilities import INSIDE, MAXIMUM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.probabilities import Probabilities
    from medsam2_core.imaging.segmentation import Segmentation


class Fractions:
    """Probabilities of some objects, slice by slice.

    Parameters
    ----------
    probabilities
        As kept by `medsam2 segment --probabilities`.
    segmentation
        The objects on the series' grid: the probabilities' voxels must be in the same places.

    Raises
    ------
    ExportError
        Another grid, or an object without probabilities.
    """

    bits = 8

    def __init__(self, probabilities: Probabilities, segmentation: Segmentation) -> None:
        names, geometry = segmentation.names, segmentation.geometry
        lacking = [name for name in names if name not in probabilities.names]
        if lacking:
            known = ", ".join(map(repr, probabilities.names)) or "none"
            raise ExportError(
                f"there are no probabilities of {lacking[0]!r}: the file has those of {known}. Segment with "
                "--probabilities again, or choose binary"
            )
        if not probabilities.geometry.same_grid(geometry, SAME_PLACE_MM):
            sizes = [" x ".join(map(str, grid.shape_ijk)) for grid in (probabilities.geometry, geometry)]
            raise ExportError(
                f"the probabilities ({sizes[0]} voxels) are not on the series' grid ({sizes[1]}): segment "
                "the DICOM series itself, or choose binary"
            )
        self._probabilities, self._segmentation = probabilities, segmentation

    def occupancy(self) -> NDArray[np.bool_]:
        """(S, K) where anything is likely at all."""
        found = np.zeros((len(self._segmentation), self._segmentation.geometry.shape_ijk[2]), dtype=bool)
        for n, name in enumerate(self._segmentation.names):
            found[n, list(self._probabilities.slices[name])] = True
        changed = Masks(self._segmentation).occupancy() & ~found  # painted where nothing was likely
        return found | changed

    def frame(self, n: int, k: int) -> NDArray[np.uint8]:
        """(J, I) probability times 255; certain where the mask was changed after it was kept."""
        segment = self._segmentation.segments[n]
        values = self._probabilities.slice_ji(segment.name, k)
        mask = np.zeros(values.shape, dtype=bool)
        touched = segment.on_slice(mask, k)
        if touched is not None:
            touched[0][...] = touched[1]
        values[mask & (values < INSIDE)] = MAXIMUM
        values[~mask & (values >= INSIDE)] = 0
        return values

    def notes(self) -> Iterator[Note]:
        """Where masks were changed after the probabilities were kept."""
        for segment in self._segmentation:
            count = self._probabilities.count_differing(segment)
            if count:
                yield Note.warning(
                    "probabilities-changed",
                    f"{segment.name!r}: {count} voxels were changed after its probabilities were kept: they "
                    "are written as certain",
                    segment=segment.name,
                    voxels=count,
                )
