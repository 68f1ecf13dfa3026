"""Objects gathered slice by slice, each in the smallest box that holds it.

A file of a hundred overlapping objects would need a hundred layers of the whole grid; what the objects fill
of them is a fraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Part:
    """The voxels of one object.

    Attributes
    ----------
    mask_kji : (k, j, i) bool, the part of the grid that holds the object; of size 0 when it is empty
    offset_ijk : index in the grid of the first voxel of ``mask_kji``
    """

    mask_kji: NDArray[np.bool_]
    offset_ijk: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, eq=False)
class _Piece:
    """An object on one slice, in bits: a file may come with every object before the first is put together."""

    k: int
    start_ji: tuple[int, int]
    shape_ji: tuple[int, int]
    bits: NDArray[np.uint8]

    def mask_ji(self) -> NDArray[np.bool_]:
        rows, columns = self.shape_ji
        return np.unpackbits(self.bits, count=rows * columns).reshape(rows, columns).view(bool)


class Parts:
    """What :class:`~medsam2_core.imaging.layers.Layers` gathers, without layers: objects may overlap.

    Slices may come in any order, a slice of an object also in several pieces.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, list[_Piece]] = {}

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the objects that have a voxel."""
        return tuple(self._pieces)

    def put(self, number: int, k: int, mask_ji: NDArray[np.bool_]) -> None:
        """Add the voxels of ``mask_ji`` (J, I) on slice ``k`` to an object."""
        rows = np.flatnonzero(mask_ji.any(axis=1))
        if rows.size == 0:
            return
        inside = mask_ji[rows[0] : rows[-1] + 1]
        columns = np.flatnonzero(inside.any(axis=0))
        inside = inside[:, columns[0] : columns[-1] + 1]
        start, shape = (int(rows[0]), int(columns[0])), (inside.shape[0], inside.shape[1])
        self._pieces.setdefault(number, []).append(_Piece(k, start, shape, np.packbits(inside)))

    def put_labels(self, k: int, labels_ji: NDArray[Any], background: int = 0) -> None:
        """Add a slice of a label map (J, I): each value but 0 and ``background`` is an object's number."""
        for value in np.unique(labels_ji).tolist():
            if value not in (0, background):
                self.put(value, k, labels_ji == value)

    def take(self, number: int) -> Part:
        """The object put together; what was kept for that is gone. One nobody has put is empty."""
        pieces = self._pieces.pop(number, [])
        if not pieces:
            return Part(np.zeros((0, 0, 0), dtype=bool))
        first = [min(found) for found in zip(*(_start(piece) for piece in pieces), strict=True)]
        last = [max(found) for found in zip(*(_stop(piece) for piece in pieces), strict=True)]
        mask_kji = np.zeros([b - a for a, b in zip(first, last, strict=True)], dtype=bool)
        for (k, j, i), piece in _from(first, pieces):
            rows, columns = piece.shape_ji
            mask_kji[k, j : j + rows, i : i + columns] |= piece.mask_ji()
        return Part(mask_kji, (first[2], first[1], first[0]))


def _start(piece: _Piece) -> tuple[int, int, int]:
    return piece.k, *piece.start_ji


def _stop(piece: _Piece) -> tuple[int, int, int]:
    return piece.k + 1, piece.start_ji[0] + piece.shape_ji[0], piece.start_ji[1] + piece.shape_ji[1]


def _from(first: list[int], pieces: list[_Piece]) -> Iterator[tuple[tuple[int, int, int], _Piece]]:
    """Where each piece is, counted from the first voxel of all."""
    for piece in pieces:
        k, j, i = _start(piece)
        yield (k - first[0], j - first[1], i - first[2]), piece
