"""Label maps: integer arrays whose values name objects, as training and evaluation want them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, Note, VolumeError
from medsam2_core.imaging.terminology import parse_tags
from medsam2_core.imaging.volume import canonical_affine, canonical_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.terminology import Terminology


@dataclass(frozen=True)
class Label:
    """One object: its voxels are those of ``layer`` that have ``value``.

    ``colour`` is RGB from 0 to 1. ``tags`` is text in 3D Slicer's form, ``name:value|name:value|``; ``facts``
    has them by name. ``terminology`` is None where the file gives no codes.
    """

    name: str
    value: int
    layer: int = 0
    colour: tuple[float, float, float] | None = None
    tags: str = ""
    terminology: Terminology | None = None

    @property
    def facts(self) -> dict[str, str]:
        """The tags by name, such as ``DICOM.SegmentAlgorithmType``; values may hold colons."""
        return parse_tags(self.tags)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Objects on a grid. Objects that overlap are on different layers; most files have one.

    ``layers_lkji`` is (L, K, J, I) of an integer type, shown read-only; 0 is background. ``kind`` is the
    Segmentation Type of a DICOM SEG, ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``, else empty. ``notes``
    are what the user should know of how the file was read.
    """

    layers_lkji: NDArray[Any]
    labels: tuple[Label, ...]
    geometry: Geometry
    name: str = ""
    source: Path | None = None
    kind: str = ""
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        layers_lkji = np.asarray(self.layers_lkji).view()
        fits = layers_lkji.ndim == 4 and layers_lkji.shape[1:] == self.geometry.shape_ijk[::-1]
        if not fits or layers_lkji.dtype.kind not in "ui":
            raise VolumeError(
                f"labels {layers_lkji.shape} of {layers_lkji.dtype} do not fit a grid of "
                f"{self.geometry.shape_ijk}",
                code="label-map-shape",
                shape=list(layers_lkji.shape),
                dtype=str(layers_lkji.dtype),
                shape_ijk=list(self.geometry.shape_ijk),
            )
        layers_lkji.flags.writeable = False
        object.__setattr__(self, "layers_lkji", layers_lkji)
        object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def voxels_kji(self) -> NDArray[Any]:
        """(K, J, I) values, when no objects overlap; else use :meth:`mask_kji`."""
        self._check_one_layer()
        return self.layers_lkji[0]

    @property
    def names(self) -> dict[int, str]:
        """Name by value, when no objects overlap."""
        self._check_one_layer()
        return {label.value: label.name for label in self.labels}

    @property
    def colours(self) -> dict[int, tuple[float, float, float]]:
        """Colour (RGB from 0 to 1) by value for those that have one, when no objects overlap."""
        self._check_one_layer()
        return {label.value: label.colour for label in self.labels if label.colour is not None}

    def find(self, name_or_value: str | int) -> Label:
        """Return an object by its name or, without overlap, by its value; VolumeError lists those known."""
        for label in self.labels:
            if name_or_value == label.name:
                return label
            by_value = not isinstance(name_or_value, str) and len(self.layers_lkji) == 1
            if by_value and name_or_value == label.value:
                return label
        known = ", ".join(f"{label.name!r} ({label.value})" for label in self.labels) or "none"
        raise VolumeError(
            f"no object {name_or_value!r} in {self.name!r}: it holds {known}",
            code="unknown-label",
            label=name_or_value,
            known=[label.name for label in self.labels],
        )

    def mask_kji(self, name_or_value: str | int) -> NDArray[np.bool_]:
        """Return the (K, J, I) mask of one object."""
        label = self.find(name_or_value)
        return self.layers_lkji[label.layer] == label.value

    def on_grid(self, geometry: Geometry, tolerance_mm: float = 0.05) -> LabelMap:
        """Return the labels stored as an image of that geometry is: axes turned and flipped, never resampled.

        Raises
        ------
        GeometryError
            When the voxels are not in the same positions, in whatever order they are stored.
        """
        if self.geometry.same_grid(geometry, tolerance_mm):
            return self
        shape_lkji = (len(self.layers_lkji), *geometry.shape_ijk[::-1])
        layers_lkji = np.zeros(shape_lkji, dtype=self.layers_lkji.dtype)
        if not _same_positions(self.geometry, geometry, tolerance_mm):
            differing = _differences(self.geometry, geometry)
            listed = "; ".join(f"{what} {ours}, the image's {theirs}" for what, (ours, theirs) in differing)
            raise GeometryError(
                f"labels {self.name!r} do not lie on the image's grid: {listed}. Resample them to the image",
                code="label-map-on-another-grid",
                shape_ijk=list(self.geometry.shape_ijk),
                image_shape_ijk=list(geometry.shape_ijk),
                differing=[what for what, _ in differing],
            )
        for ours_kji, theirs_kji in zip(self.layers_lkji, layers_lkji, strict=True):
            canonical_view(theirs_kji, geometry)[...] = canonical_view(ours_kji, self.geometry)
        return LabelMap(layers_lkji, self.labels, geometry, self.name, self.source, self.kind, self.notes)

    def _check_one_layer(self) -> None:
        if len(self.layers_lkji) != 1:
            raise VolumeError(
                f"{self.name!r} has overlapping objects on {len(self.layers_lkji)} layers, on which values "
                "repeat: use 'labels' and mask_kji()",
                code="overlapping-labels",
                layers=len(self.layers_lkji),
            )


def _differences(one: Geometry, other: Geometry) -> list[tuple[str, list[str]]]:
    """Return what differs between two grids, each with its text for both: size, spacing, axes, origin."""
    texts = []
    for grid in (one, other):
        axes = np.round(grid.directions, 3).tolist()
        texts.append(
            {
                "size": " x ".join(map(str, grid.shape_ijk)),
                "spacing": " x ".join(f"{mm:.4g}" for mm in grid.spacing) + " mm",
                "axes": f"{grid.axis_codes} {axes}" if not _is_upright(axes) else grid.axis_codes,
                "origin": "(" + ", ".join(f"{mm:.2f}" for mm in grid.origin_ras) + ") mm RAS",
            }
        )
    return [(what, [texts[0][what], texts[1][what]]) for what in texts[0] if texts[0][what] != texts[1][what]]


def _is_upright(axes: list[list[float]]) -> bool:
    return all(abs(part) in (0, 1) for row in axes for part in row)


def _same_positions(one: Geometry, other: Geometry, tolerance_mm: float) -> bool:
    """Return whether two grids hold voxels in the same positions, whatever their storage order."""
    shapes = [
        canonical_view(np.broadcast_to(np.False_, grid.shape_ijk[::-1]), grid).shape for grid in (one, other)
    ]
    if shapes[0] != shapes[1]:
        return False
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*shapes[0], 1]
    difference = (canonical_affine(one) - canonical_affine(other)) @ corners.T
    return bool(np.abs(difference).max() <= tolerance_mm)
