"""The files of a pair: an image, and its labels on the same grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam2_core.auto.fewshot.data import RATED, Pair, slice_files
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.imaging.segment_builder import from_layers
from medsam2_core.imaging.segmentation import Label, Segmentation
from medsam2_core.imaging.volume import Volume

_ALIGNED = 0.05  # voxels


@dataclass(frozen=True, eq=False)
class LabelledCase:
    """An image and the labels on its grid."""

    pair: Pair
    volume: Volume
    labels: Segmentation


def read_case(pair: Pair) -> LabelledCase:
    """Read image and labels of a pair.

    Raises
    ------
    VolumeError
        A file cannot be read, or ``sizes-differ``.
    """
    volume, labels = read_image(pair), read_label_map(pair)
    if not (labels.kind and _is_part(labels.geometry, volume.geometry)):
        check_sizes(volume, labels)
    return LabelledCase(pair, volume, _on_grid(labels, volume))


def read_image(pair: Pair) -> Volume:
    """Read the image of a pair: a file, a DICOM series, or a folder of numbered slices."""
    slices = slice_files(pair.image)
    if not slices:
        return read_volume(pair.image, pair.series or None)
    voxels = [_grey(read_volume(path).voxels_kji) for path in slices]
    return Volume(_stacked(pair.image, slices, voxels), _geometry(voxels), name=pair.name, source=pair.image)


def read_label_map(pair: Pair) -> Segmentation:
    """Read the labels of a pair: a file, a folder of numbered arrays, or the majority of several raters."""
    if pair.raters:
        return _majority(pair)
    if not pair.labels.is_dir():
        return read_segmentation(pair.labels)
    known = {path.stem: path for path in slice_files(pair.labels)}
    slices = slice_files(pair.image)
    if missing := [path.name for path in slices if path.stem not in known]:
        raise VolumeError(
            f"{pair.labels} has no mask for {', '.join(missing[:3])}: every slice needs one, empty where "
            "nothing is",
            code="slice-without-mask", path=str(pair.labels), slices=missing,
        )  # fmt: skip
    paths = [known[path.stem] for path in slices]
    masks = [_array(path) for path in paths]
    voxels_kji = _stacked(pair.labels, paths, masks)
    values = [int(value) for value in np.unique(voxels_kji) if value]
    labels = tuple(Label(str(value), value) for value in values)
    return from_layers(labels, voxels_kji[:, np.newaxis], _geometry(masks))


def check_sizes(volume: Volume, labels: Segmentation) -> None:
    """Raise VolumeError if image and labels differ in size; axes may be stored in another order."""
    ours, theirs = volume.geometry.shape_ijk, labels.geometry.shape_ijk
    if sorted(ours) != sorted(theirs):
        message = f"the image has {_size(ours)} pixels, its labels {_size(theirs)}: they must be of one size"
        raise VolumeError(message, code="sizes-differ", image_shape=list(ours), labels_shape=list(theirs))


def _on_grid(labels: Segmentation, volume: Volume) -> Segmentation:
    ours, theirs = volume.geometry, labels.geometry
    if volume.is_picture and theirs.shape_ijk == ours.shape_ijk:
        return replace(labels, geometry=ours)  # pictures have no position in space
    if labels.kind and theirs.shape_ijk != ours.shape_ijk and _is_part(theirs, ours):
        return _placed(labels, ours)
    return labels.on_grid(ours)


def _steps(part: Geometry, whole: Geometry) -> NDArray[np.float64]:
    """Return (4, 4) from positions in a part's array to those in the whole's."""
    return np.linalg.inv(whole.ijk_to_ras) @ part.ijk_to_ras


def _is_part(part: Geometry, whole: Geometry) -> bool:
    """Return whether a grid is a block of another one, its axes in the same order."""
    steps = _steps(part, whole)
    first = np.rint(steps[:3, 3])
    last = first + np.array(part.shape_ijk)
    return bool(
        np.abs(steps[:3, :3] * np.array(part.shape_ijk) - np.diag(part.shape_ijk)).max() < _ALIGNED * 2
        and np.abs(steps[:3, 3] - first).max() < _ALIGNED
        and (first >= 0).all()
        and (last <= whole.shape_ijk).all()
    )


def _placed(labels: Segmentation, whole: Geometry) -> Segmentation:
    """Return the labels of a DICOM SEG that leaves out slices on the grid of its series."""
    mapping = np.rint(_steps(labels.geometry, whole))
    segments = tuple(segment.reordered(mapping, whole.shape_ijk) for segment in labels)
    return replace(labels, geometry=whole, segments=segments)


def _majority(pair: Pair) -> Segmentation:
    """Return every structure by majority vote of its raters, each on a layer of its own."""
    by_structure: dict[str, list[Path]] = {}
    for path in pair.raters:
        found = re.search(RATED, path.name)
        by_structure.setdefault(found[1] if found else "object", []).append(path)
    layers, labels = [], []
    for layer, (name, paths) in enumerate(sorted(by_structure.items())):
        masks = [_grey(read_volume(path).voxels_kji) for path in paths]
        stacked = _stacked(pair.labels, paths, masks)
        # Lossy compression blurs borders: what is brighter than half belongs to the object.
        inside = stacked > np.maximum(stacked.max((1, 2), keepdims=True), 1) / 2
        layers.append((inside.mean(0) >= 0.5)[None] * np.uint8(layer + 1))
        labels.append(Label(name, layer + 1, layer))
    kji = np.stack(layers)
    return from_layers(tuple(labels), np.moveaxis(kji, 1, 0), Geometry.for_picture(*kji.shape[2:]))


def _grey(voxels: NDArray) -> NDArray:
    """Return (H, W) of a picture (1, H, W) or (1, H, W, 3)."""
    image = voxels[0]
    return image if image.ndim == 2 else np.rint(image.mean(-1)).astype(np.uint8)


def _array(path: Path) -> NDArray[np.int32]:
    """Read (H, W) whole numbers from a NumPy file."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        values = np.asarray(found)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:120]
        message = f"{path} is no array of NumPy ({reason})"
        raise VolumeError(message, code="array-unreadable", path=str(path)) from error
    flat = values.reshape([n for n in values.shape if n != 1] or [1])
    whole = flat.dtype.kind in "bui" or (
        flat.dtype.kind == "f" and bool(np.isfinite(flat).all()) and bool((flat == np.rint(flat)).all())
    )
    if flat.ndim != 2 or not whole or np.abs(flat).max(initial=0) >= 2**15:
        raise VolumeError(
            f"{path} holds {flat.dtype} of {values.shape}: a mask is (H, W) of whole numbers, 0 outside",
            code="array-not-a-mask", path=str(path), shape=list(values.shape), dtype=str(values.dtype),
        )  # fmt: skip
    return flat.astype(np.int32)


def _stacked(folder: Path, paths: Sequence[Path], slices: Sequence[NDArray]) -> NDArray:
    for path, one in zip(paths, slices, strict=True):
        if one.shape != slices[0].shape:
            raise VolumeError(
                f"{path.name} has {_size(one.shape[::-1])} pixels, {paths[0].name} "
                f"{_size(slices[0].shape[::-1])}: all slices of {folder} must be of one size",
                code="slices-of-several-sizes", path=str(path),
                found=list(one.shape), expected=list(slices[0].shape),
            )  # fmt: skip
    return np.stack(slices)


def _geometry(slices: Sequence[NDArray]) -> Geometry:
    height, width = slices[0].shape
    return Geometry.for_picture(height, width, frames=len(slices))


def _size(shape_ijk: Sequence[int]) -> str:
    shape = [n for n in shape_ijk if n > 1] or list(shape_ijk)
    return " x ".join(map(str, shape))
