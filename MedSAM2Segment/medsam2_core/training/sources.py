"""What the base model is trained on: random anatomy, real anatomy labels, real labelled images; and its
splits.

A training folder holds one folder a data set: ``*_img.png`` with ``*_seg.png`` beside it (2-D, integer
labels), and ``*_seg.nii.gz`` (label volumes, with ``*_img.nii.gz`` when the scan itself may be used).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam2_core.errors import TrainingError, VolumeError
from medsam2_core.imaging.reading import read_labels, read_volume

# In uint8 with background, one lesion that may be drawn into a view, and 255 for "unknown".
MOST_LABELS = 253

# Every eighth case is for validation. Whole patients are held back where one patient gave several cases.
_VALIDATION_EVERY = 8
_VALIDATION_CASES = {"hn11", "hn12"}
# Several cases of one body or one brain: all in training, never split.
_NEVER_SPLIT = {"hubmap_ccf_organs", "hubmap_ccf_torso", "opensim_hand_bones", "torchio_brain_gif"}


@dataclass(frozen=True)
class LabelledStack:
    """Labels, and the scan they belong to if it may be used.

    Attributes
    ----------
    labels_kji
        (K, J, I) uint8.
    image_kji
        (K, J, I) or (K, J, I, 3) uint8, or None: then an appearance is made up.
    spacing_kji
        Voxel size in mm along each axis; 1 where unknown.
    complete
        Whether every pixel is labelled: only then does label 0 mean one region.
    """

    row: str
    case: str
    labels_kji: np.ndarray
    image_kji: np.ndarray | None
    spacing_kji: tuple[float, float, float]
    complete: bool


def load_sources(folder: str | Path, progress: Callable[[str], None] = lambda _: None) -> list[LabelledStack]:
    """Read every case of a training folder.

    Raises
    ------
    TrainingError
        If the folder does not exist, holds no case, or a case cannot be used: which, and why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TrainingError(
            f"training folder {folder} does not exist: name the folder that holds the data sets"
        )
    stacks: list[LabelledStack] = []
    for row in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = [_read_picture(row.name, path) for path in sorted(row.glob("*_seg.png"))]
        found += [_read_volume(row.name, path) for path in sorted(row.glob("*_seg.nii.gz"))]
        progress(f"{row.name}: {len(found)} cases")
        stacks += found
    if not stacks:
        raise TrainingError(f"no *_seg.png or *_seg.nii.gz below {folder}: nothing to train on")
    return stacks


def split(stacks: list[LabelledStack]) -> tuple[list[LabelledStack], list[LabelledStack]]:
    """Training and validation cases, the same on every machine."""
    training, validation = [], []
    place: dict[str, int] = {}
    for stack in stacks:
        index = place[stack.row] = place.get(stack.row, -1) + 1
        periodic = index % _VALIDATION_EVERY == 5 and stack.image_kji is not None
        held = stack.row not in _NEVER_SPLIT and (periodic or stack.case in _VALIDATION_CASES)
        (validation if held else training).append(stack)
    return training, validation


def _read_picture(row: str, path: Path) -> LabelledStack:
    case = path.name.removesuffix("_seg.png")
    labels, _ = _labels(path)
    image = _eight_bits(_scan(path.with_name(f"{case}_img.png"), labels.shape))
    return LabelledStack(row, case, labels, image, (1.0, 1.0, 1.0), complete=False)


def _read_volume(row: str, path: Path) -> LabelledStack:
    case = path.name.removesuffix("_seg.nii.gz")
    labels, spacing = _labels(path)
    scan = path.with_name(f"{case}_img.nii.gz")
    if not scan.exists():
        return LabelledStack(row, case, labels, None, spacing, complete=True)
    voxels = _scan(scan, labels.shape)
    if voxels.ndim != 3:
        raise TrainingError(f"{scan}: a colour volume: train on grey ones")
    return LabelledStack(row, case, labels, _stretched(voxels), spacing, complete=False)


def _labels(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(K, J, I) uint8 labels and the voxel size along each axis."""
    try:
        found = read_labels(path)
        voxels = found.voxels_kji
    except VolumeError as error:
        raise TrainingError(f"labels cannot be used: {error}") from error
    along_k, along_j, along_i = (float(value) for value in found.geometry.spacing[::-1])
    return _compact(path, voxels), (along_k, along_j, along_i)


def _scan(path: Path, shape_kji: tuple[int, ...]) -> np.ndarray:
    """(K, J, I) or (K, J, I, 3) voxels of the image that belongs to labels of a shape."""
    try:
        voxels = read_volume(path).voxels_kji
    except VolumeError as error:
        raise TrainingError(f"image cannot be used: {error}") from error
    if voxels.shape[:3] != shape_kji:
        raise TrainingError(
            f"{path} has {_size(voxels.shape[:3])} voxels, its labels {_size(shape_kji)}: they must agree"
        )
    return voxels


def _eight_bits(voxels: np.ndarray) -> np.ndarray:
    return np.array(voxels) if voxels.dtype == np.uint8 else _stretched(voxels)


def _stretched(voxels: np.ndarray) -> np.ndarray:
    """uint8, from the 0.5 to the 99.5 percentile of what is above 0; black when that is nothing."""
    voxels = np.nan_to_num(voxels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    bright = voxels[voxels > 0]
    low, high = np.percentile(bright, (0.5, 99.5)) if bright.size else (0.0, 1.0)
    if high <= low:  # one brightness only, as in a mask
        low = 0.0
    return (np.clip((voxels - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _compact(path: Path, labels: np.ndarray) -> np.ndarray:
    """Renumber to 0..n in the same order, 0 staying 0, so that labels fit uint8."""
    values = np.unique(labels)
    if len(values) and values[0] < 0:
        raise TrainingError(f"{path}: label {values[0]} is negative: 0 is background, objects are above it")
    values = values[values != 0]
    if len(values) > MOST_LABELS:
        raise TrainingError(f"{path} has {len(values)} labels: at most {MOST_LABELS} can be used")
    return np.searchsorted(values, labels, side="right").astype(np.uint8)


def _size(shape_kji: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in reversed(shape_kji))
