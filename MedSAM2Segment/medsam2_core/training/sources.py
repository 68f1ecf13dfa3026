"""What the base model is trained on: random anatomy, real anatomy labels, real labelled images; and its
splits.

A training folder holds one folder a data set: ``*_img.png`` with ``*_seg.png`` beside it (2-D, integer
labels), and ``*_seg.nii.gz`` (label volumes, with ``*_img.nii.gz`` when the scan itself may be used).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from medsam2_core.errors import TrainingError, VolumeError
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.training.stacks import LabelledStack

_SHAPE_SIDE = 48
_FILES = ("*_img.png", "*_seg.png", "*_img.nii.gz", "*_seg.nii.gz")
# In int16.
MOST_LABELS = 32_766

# Every eighth case, or patient where patients are known, is for validation.
_VALIDATION_EVERY = 8
_PATIENT_SETS = {"sts3d_ct", "sts3d_mr_t1", "sts3d_pet"}  # the same case name is the same patient
# Single patients of sets that hold too few for the rule above; neighbouring gestational weeks share fetuses.
_VALIDATION_CASES = {
    ("tcia_hn_oar_labels", "hn11"), ("tcia_hn_oar_labels", "hn12"), ("spinegeneric_cord", "cord_09"),
    ("spinegeneric_cord", "cord_10"), ("fetal_sba_atlas", "fetal_ga33_operated"),
    ("fetal_sba_atlas", "fetal_ga34_operated"),
}  # fmt: skip
_SPLIT_BY_NAME = {row for row, _ in _VALIDATION_CASES}
# Slices of unnamed patients in order: the last eighth is held back, so that at most one patient is in both.
_LAST_EIGHTH = {
    "aorta_cta", "bus_uc", "cerebrum7t", "chd_cta", "cpaisd_stroke", "ispy1_breast_mr", "rop_ridge",
    "us_liver",
}  # fmt: skip
# One body, brain or template in several cases, or sets that share people: all in training, never split.
_NEVER_SPLIT = {
    "bigbrain_coreg", "bodyparts3d_bones", "brain_pd25", "breast_nact_dce", "elastix_lung_ct",
    "hubmap_ccf_organs", "hubmap_ccf_torso", "opensim_hand_bones", "spider_lumbar", "spider_t2",
    "spl_brain_atlas", "synthseg_brains", "synthsr_brains", "torchio_brain_gif", "vh_leg_msk",
}  # fmt: skip
# Lesions without the anatomy around them: no cases, but shapes to put into others.
# A scan with values so low is CT, for which a window is drawn anew in every view.
_AIR_HU = -500
SHAPE_SETS = {"soop_stroke_lesions"}


def load_sources(folder: str | Path) -> list[LabelledStack]:
    """Read every case of a training folder.

    Raises
    ------
    TrainingError
        If the folder does not exist, holds no case, or a case cannot be used: which, and why.
    """
    stacks: list[LabelledStack] = []
    for row in _rows(folder):
        if row.name in SHAPE_SETS:
            continue
        stacks += [_read_picture(row.name, path) for path in sorted(row.glob("*_seg.png"))]
        stacks += [_read_volume(row.name, path) for path in sorted(row.glob("*_seg.nii.gz"))]
    if not stacks:
        message = f"no *_seg.png or *_seg.nii.gz below {folder}: nothing to train on"
        raise TrainingError(message, code="training-folder-empty", folder=str(folder))
    return stacks


def data_key(folder: str | Path) -> str:
    """Return what tells the cases of a training folder from others, without reading them.

    It is the same for a copy, and another one when a file is added, removed, renamed or has another size.
    """
    files = (path for row in _rows(folder) for pattern in _FILES for path in sorted(row.glob(pattern)))
    found = [[path.parent.name, path.name, path.stat().st_size] for path in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def _rows(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        message = f"training folder {folder} does not exist: name the folder that holds the data sets"
        raise TrainingError(message, code="training-folder-missing", folder=str(folder))
    return sorted(path for path in folder.iterdir() if path.is_dir())


def split(stacks: list[LabelledStack]) -> tuple[list[LabelledStack], list[LabelledStack]]:
    """Training and validation cases, the same on every machine; no patient is in both where that is known."""
    training: list[LabelledStack] = []
    validation: list[LabelledStack] = []
    patients = sorted({stack.case for stack in stacks if stack.row in _PATIENT_SETS})
    held_patients = set(patients[5::_VALIDATION_EVERY])
    rows: dict[str, list[LabelledStack]] = {}
    for stack in stacks:
        rows.setdefault(stack.row, []).append(stack)
    for row, found in rows.items():
        for index, stack in enumerate(found):
            if row in _PATIENT_SETS:
                held = stack.case in held_patients
            elif row in _LAST_EIGHTH:
                held = index >= len(found) - len(found) // _VALIDATION_EVERY
            elif row in _NEVER_SPLIT or row in _SPLIT_BY_NAME:
                held = (row, stack.case) in _VALIDATION_CASES
            else:
                held = index % _VALIDATION_EVERY == 5 and stack.image_kji is not None
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
        message = f"{scan}: a colour volume: train on grey ones"
        raise TrainingError(message, code="colour-volume", path=str(scan))
    is_ct = voxels.min() <= _AIR_HU
    image = np.clip(voxels, -1024, 3071).astype(np.int16) if is_ct else _stretched(voxels)
    return LabelledStack(row, case, labels, image, spacing, complete=False)


def load_shapes(folder: str | Path) -> list[torch.Tensor]:
    """Shapes (48, 48, 48) float16 of the lesions in a training folder, each filling its cube."""
    shapes = []
    for name in sorted(SHAPE_SETS):
        for path in sorted((Path(folder) / name).glob("*_seg.nii.gz")):
            mask = torch.from_numpy(_labels(path)[0] > 0)
            where = mask.nonzero()
            low, high = where.amin(0), where.amax(0) + 1
            mask = mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]].float()
            cube = functional.interpolate(mask[None, None], size=(_SHAPE_SIDE,) * 3, mode="area")
            cube = functional.avg_pool3d(cube, 3, 1, 1)
            shapes.append(cube[0, 0].half())
    return shapes


def _labels(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(K, J, I) int16 labels and the voxel size along each axis."""
    try:
        found = read_segmentation(path)
        voxels = found.labels_kji()
    except VolumeError as error:
        message = f"labels cannot be used: {error}"
        raise TrainingError(message, code="labels-unusable", path=str(path), reason=error.code) from error
    along_k, along_j, along_i = (float(value) for value in found.geometry.spacing[::-1])
    return _compact(path, voxels), (along_k, along_j, along_i)


def _scan(path: Path, shape_kji: tuple[int, ...]) -> np.ndarray:
    """(K, J, I) or (K, J, I, 3) voxels of the image that belongs to labels of a shape."""
    try:
        voxels = read_volume(path).voxels_kji
    except VolumeError as error:
        message = f"image cannot be used: {error}"
        raise TrainingError(message, code="image-unusable", path=str(path), reason=error.code) from error
    if voxels.shape[:3] != shape_kji:
        raise TrainingError(
            f"{path} has {_size(voxels.shape[:3])} voxels, its labels {_size(shape_kji)}: they must agree",
            code="image-does-not-fit-labels", path=str(path),
            found=list(voxels.shape[:3]), expected=list(shape_kji),
        )  # fmt: skip
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
    """Renumber to 0..n in the same order, 0 staying 0, so that labels fit int16."""
    values = np.unique(labels)
    if len(values) and values[0] < 0:
        message = f"{path}: label {values[0]} is negative: 0 is background, objects are above it"
        raise TrainingError(message, code="negative-label", path=str(path), label=int(values[0]))
    values = values[values != 0]
    if len(values) > MOST_LABELS:
        raise TrainingError(
            f"{path} has {len(values)} labels: at most {MOST_LABELS} can be used",
            code="too-many-labels", path=str(path), found=len(values), most=MOST_LABELS,
        )  # fmt: skip
    return np.searchsorted(values, labels, side="right").astype(np.int16)


def _size(shape_kji: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in reversed(shape_kji))
