"""DICOM SEG (PS3.3 A.51), binary and fractional, into layers on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.dicom_frames import Frame, frames_of
from medsam2_core.imaging.geometry import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Name, value, layer, colour of a segment.
Segment = tuple[str, int, int, tuple[float, float, float] | None]


def read(path: Path) -> tuple[NDArray[np.uint16], list[Segment], Geometry]:
    """Layers (L, K, J, I), segments, and geometry; frames a SEG may leave out are empty slices."""
    import pydicom
    from pydicom.pixels import iter_pixels

    with files.reading(path, "DICOM SEG"):
        dataset = pydicom.dcmread(path)
        if str(dataset.get("Modality", "")) != "SEG" or "SegmentSequence" not in dataset:
            raise VolumeError(f"{path}: a DICOM image, not a segmentation (SEG)")
        kind = str(dataset.get("SegmentationType", ""))
        if kind not in ("BINARY", "FRACTIONAL"):
            raise VolumeError(f"{path}: segmentation of type {kind!r} is not read: binary and fractional are")
        frames = frames_of(path, dataset)
        slice_of, geometry = _grid(path, frames)
        numbers = [_segment_number(path, group) for group in dataset.PerFrameFunctionalGroupsSequence]
        depth = geometry.shape_ijk[2]
        size = (len(set(numbers)), depth, int(dataset.Rows), int(dataset.Columns))
        # One bit a voxel in the file and empty slices left out: its size says little, so only the absolute
        # limit holds.
        files.checked_bytes(path, size, 2, files.LARGEST_VOLUME)
        masks = {number: np.zeros(size[1:], dtype=bool) for number in sorted(set(numbers))}
        threshold = 0 if kind == "BINARY" else int(dataset.get("MaximumFractionalValue", 255)) / 2
        for number, k, pixels in zip(numbers, slice_of, iter_pixels(dataset), strict=True):
            masks[number][k] |= pixels > threshold
        layers, layer_of = _layers(masks)
        described = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
        segments: list[Segment] = []
        for number in masks:
            item = described.get(number, {})
            name = str(item.get("SegmentLabel", "")) or str(number)
            colour = _rgb(item.get("RecommendedDisplayCIELabValue"))
            segments.append((name, number, layer_of[number], colour))
        return layers, segments, geometry


def _grid(path: Path, frames: Sequence[Frame]) -> tuple[list[int], Geometry]:
    """Slice number of each frame, and the grid that holds them all."""
    first = frames[0]
    if any(not frame.is_placed for frame in frames):
        raise GeometryError(f"{path}: frames without a position in the patient")
    normal = first.normal_lps
    positions = np.array([frame.position_lps for frame in frames])
    heights = positions @ normal
    order = np.sort(heights)
    steps = np.diff(order)
    steps = steps[steps > 1e-3]
    spacing = float(steps.min()) if steps.size else first.thickness
    numbers = np.rint((heights - order[0]) / spacing).astype(int)
    lowest, highest = int(heights.argmin()), int(heights.argmax())
    count = int(numbers.max()) + 1
    step = normal * spacing if count == 1 else (positions[highest] - positions[lowest]) / (count - 1)
    wrong = np.linalg.norm(positions - (positions[lowest] + numbers[:, np.newaxis] * step), axis=1).max()
    if wrong > max(0.05, 0.02 * spacing):
        raise GeometryError(
            f"{path}: frames are not evenly spaced: one is {wrong:.3g} mm off a grid of {spacing:.4g} mm"
        )
    assert first.orientation_lps is not None
    matrix = np.eye(4)
    matrix[:3, 0] = first.orientation_lps[:3] * first.spacing[1]
    matrix[:3, 1] = first.orientation_lps[3:] * first.spacing[0]
    matrix[:3, 2] = step
    matrix[:3, 3] = positions[lowest]
    rows, columns, _ = first.size
    return numbers.tolist(), Geometry.from_lps(matrix, (columns, rows, count))


def _segment_number(path: Path, group: Any) -> int:
    found = group.get("SegmentIdentificationSequence")
    if not found or "ReferencedSegmentNumber" not in found[0]:
        raise VolumeError(f"{path}: a frame does not say which segment it belongs to")
    return int(found[0].ReferencedSegmentNumber)


def _layers(masks: dict[int, NDArray[np.bool_]]) -> tuple[NDArray[np.uint16], dict[int, int]]:
    """Put segments on as few layers as overlap allows."""
    layers: list[NDArray[np.uint16]] = []
    layer_of = {}
    for number, mask_kji in masks.items():
        index = next((n for n, layer in enumerate(layers) if not layer[mask_kji].any()), len(layers))
        if index == len(layers):
            layers.append(np.zeros(mask_kji.shape, dtype=np.uint16))
        layers[index][mask_kji] = number
        layer_of[number] = index
    return np.stack(layers), layer_of


def _rgb(lab: Any) -> tuple[float, float, float] | None:
    """DICOM's scaled CIELab (PS3.3 C.10.7.1.1, D50) to sRGB from 0 to 1."""
    if lab is None or len(lab) != 3:
        return None
    lightness, a, b = (float(value) for value in lab)
    lightness, a, b = lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128
    f_y = (lightness + 16) / 116
    f = np.array([f_y + a / 500, f_y, f_y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    to_linear = np.array(  # Bradford-adapted from D50 to the D65 of sRGB
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = np.clip(to_linear @ xyz, 0, 1)
    red, green, blue = np.where(
        linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear
    ).tolist()
    return red, green, blue
