"""Objects put slice by slice onto as few layers as their overlap allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.imaging import files

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Layers:
    """Label maps of one grid that grow as overlapping objects come in, in any order of slices.

    An object is on the first layer where none of its voxels is another's; when a later slice proves that
    wrong, it moves.

    Parameters
    ----------
    path : the file that is read, for messages
    shape_kji : slices, rows, columns

    Raises
    ------
    VolumeError
        In any method, when the layers would become larger than what is read.
    """

    def __init__(self, path: Path, shape_kji: tuple[int, int, int]) -> None:
        self._path = path
        self._shape = shape_kji
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._layers: list[NDArray[Any]] = []
        self._slices: dict[int, set[int]] = {}  # of each object
        self._touched: set[int] = set()  # others are never written, so the system need not provide them
        #: Layer of each object that has a voxel.
        self.layer_of: dict[int, int] = {}
        self._add()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the objects that have a voxel."""
        return tuple(self.layer_of)

    def put(self, number: int, k: int, mask_ji: NDArray[np.bool_]) -> None:
        """Add the voxels of ``mask_ji`` (J, I) on slice ``k`` to an object (1 to 65535)."""
        places = np.flatnonzero(mask_ji)
        if places.size == 0:
            return
        self._widen(number)
        now = self.layer_of.get(number)
        layer = 0 if now is None else now
        while not self._is_free(number, layer, k, places) or (layer != now and not self._fits(number, layer)):
            layer += 1
            if layer == len(self._layers):
                self._add()
        if now is not None and layer != now:
            self._move(number, layer)
        self.layer_of[number] = layer
        self._slices.setdefault(number, set()).add(k)
        self._touched.add(k)
        self._layers[layer][k].reshape(-1)[places] = number

    def put_labels(self, k: int, labels_ji: NDArray[Any], background: int = 0) -> None:
        """Write a slice of a label map (J, I): each value but 0 and ``background`` is an object's number."""
        values = np.unique(labels_ji)
        numbers = [int(value) for value in values if value not in (0, background)]
        if not numbers:
            return
        self._widen(max(numbers))
        seen = labels_ji != 0
        if background:
            seen &= labels_ji != background
        self._layers[0][k][seen] = labels_ji[seen]
        self._touched.add(k)
        self.layer_of.update(dict.fromkeys(numbers, 0))

    def stacked(self) -> NDArray[Any]:
        """(L, K, J, I) uint8, or uint16 where numbers need it; at least one layer. This object is spent."""
        if len(self._layers) == 1:
            return self._layers.pop()[np.newaxis]
        result = np.zeros((len(self._layers), *self._shape), dtype=self._dtype)
        for n in reversed(range(len(result))):
            self._copy(self._layers.pop(), result[n])  # gone at once: only one layer is ever held twice
        return result

    def _copy(self, source: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
        for k in self._touched:
            target[k] = source[k]
        return target

    def _add(self) -> None:
        size = (len(self._layers) + 1, *self._shape)
        # One bit a voxel in the file and empty slices left out: its size says little, so only the absolute
        # limit holds.
        files.checked_bytes(self._path, size, self._dtype.itemsize, files.LARGEST_VOLUME)
        self._layers.append(np.zeros(self._shape, dtype=self._dtype))

    def _widen(self, number: int) -> None:
        if number > 255 and self._dtype.itemsize == 1:
            self._dtype = np.dtype(np.uint16)
            size = (len(self._layers), *self._shape)
            files.checked_bytes(self._path, size, self._dtype.itemsize, files.LARGEST_VOLUME)
            for n, layer in enumerate(self._layers):
                self._layers[n] = self._copy(layer, np.zeros(self._shape, dtype=self._dtype))

    def _is_free(self, number: int, layer: int, k: int, places: NDArray[np.intp]) -> bool:
        there = self._layers[layer][k].reshape(-1)[places]
        return not ((there != 0) & (there != number)).any()

    def _fits(self, number: int, layer: int) -> bool:
        """Whether what an object has so far could be on that layer."""
        slices = self._slices.get(number, ())
        return all(self._is_free(number, layer, k, self._places(number, k)) for k in slices)

    def _move(self, number: int, layer: int) -> None:
        for k in self._slices[number]:
            places = self._places(number, k)
            self._layers[self.layer_of[number]][k].reshape(-1)[places] = 0
            self._layers[layer][k].reshape(-1)[places] = number

    def _places(self, number: int, k: int) -> NDArray[np.intp]:
        return np.flatnonzero(self._layers[self.layer_of[number]][k] == number)
