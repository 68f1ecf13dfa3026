"""What the base model is trained on: random anatomy, real anatomy labels, real labelled images; and its
splits.

A training folder holds one folder a data set: ``*_img.png`` with ``*_seg.png`` beside it (2-D, integer
labels), and ``*_seg.nii.gz`` (label volumes, with ``*_img.nii.gz`` when the scan itself may be used).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam2_core.errors import TrainingError
from medsam2_core.imaging.labels import read_labels
from medsam2_core.imaging.reading import read_volume

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
        If the folder does not exist, holds no case, or an image and its labels differ in size.
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
    from PIL import Image

    case = path.name.removesuffix("_seg.png")
    labels = np.asarray(Image.open(path))
    with Image.open(path.with_name(f"{case}_img.png")) as picture:
        image = np.array(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))
    if labels.shape != image.shape[:2]:
        raise TrainingError(
            f"{path}: labels are {labels.shape}, the image is {image.shape[:2]}: they must agree"
        )
    return LabelledStack(
        row, case, labels[None].astype(np.uint8), image[None], (1.0, 1.0, 1.0), complete=False
    )


def _read_volume(row: str, path: Path) -> LabelledStack:
    case = path.name.removesuffix("_seg.nii.gz")
    label_map = read_labels(path)
    labels = label_map.voxels_kji
    scan = path.with_name(f"{case}_img.nii.gz")
    image = None
    if scan.exists():
        voxels = read_volume(scan).voxels_kji.astype(np.float32)
        if voxels.shape != labels.shape:
            raise TrainingError(f"{scan}: shape {voxels.shape}, its labels {labels.shape}: they must agree")
        low, high = np.percentile(voxels[voxels > 0], (0.5, 99.5))
        image = (np.clip((voxels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    spacing = tuple(float(value) for value in label_map.geometry.spacing[::-1])
    return LabelledStack(row, case, _compact(labels), image, spacing, complete=image is None)


def _compact(labels: np.ndarray) -> np.ndarray:
    """Renumber to 0..n, 0 staying 0, so that any label volume fits uint8."""
    values = np.unique(labels)
    values = np.concatenate([[0], values[values != 0]])
    if len(values) > 256:
        raise TrainingError(f"{len(values)} labels in one volume: at most 255 can be used")
    return (
        np.searchsorted(values[1:], labels, side="right").astype(np.uint8) if len(values) > 1 else labels * 0
    )
