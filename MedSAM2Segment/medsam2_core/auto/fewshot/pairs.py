"""Which image belongs to which labels: found by the usual patterns of folders and names, or told by a CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam2_core.errors import TrainingError

#: Endings of files that can be images, the longest first.
SUFFIXES = (
    *(".seg.nrrd", ".nii.gz", ".nrrd", ".nhdr", ".nii", ".mha", ".mhd"),
    *(".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"),
)
_LABEL_FOLDERS = ("labels", "label", "masks", "mask", "gts", "gt", "segmentations", "seg", "annotations")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "scans")
LABEL_ENDINGS = ("_seg", "_mask", "_label", "_labels", "_gt", "-seg", "-mask", "-label", "_segmentation")
_IMAGE_ENDINGS = ("_img", "_image", "-img", "-image", "_scan")
_NNUNET_CHANNEL = re.compile(r"_\d{4}$")
_MOST_FILES = 200_000


@dataclass(frozen=True)
class Pair:
    """An image, and the labels of its pixels or voxels.

    Attributes
    ----------
    held_aside
        Whether it is only measured on, not trained on: from a folder ``Test`` or a CSV that says so.
    group
        What must not be divided between training and validation (a patient); empty: the image itself.
    """

    image: Path
    labels: Path
    held_aside: bool = False
    group: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return stem_of(self.image)


def find_pairs(data: str | Path) -> list[Pair]:
    """All pairs of a folder or a CSV, sorted.

    Parameters
    ----------
    data
        A CSV with the columns ``image`` and ``label``, and perhaps ``split`` (``train``, ``test``) and
        ``group``, paths relative to it; or a folder in one of these shapes:

        - ``NAME_img.png`` beside ``NAME_seg.png`` (also ``_image``, ``_label``, ``_mask``, ``_gt`` …);
        - ``NAME.nrrd`` beside ``NAME.seg.nrrd`` or ``NAME_seg.nii.gz``;
        - ``images/NAME.png`` and ``labels/NAME.png`` (also ``imgs`` and ``gts``, ``masks`` …), with or
          without ``Train`` and ``Test`` above them;
        - nnU-Net's ``imagesTr/NAME_0000.nii.gz`` and ``labelsTr/NAME.nii.gz``.

    Raises
    ------
    TrainingError
        Nothing there, or nothing that fits: with the patterns that would.
    """
    data = Path(data).expanduser()
    if data.is_file() and data.suffix.lower() == ".csv":
        return _from_csv(data)
    if not data.is_dir():
        raise TrainingError(f"{data}: no such folder, nor a CSV: name the folder of your images and labels")
    files = sorted(_image_files(data))
    pairs = _by_folders(data, files) or _by_names(files)
    if not pairs:
        raise TrainingError(
            f"{data}: {len(files)} images, but no labels that belong to them by name. Name them "
            "NAME_img.png and NAME_seg.png, or NAME.nrrd and NAME.seg.nrrd, put them into images/ and "
            "labels/ under the same name, or list them in a CSV with the columns image,label"
        )
    return pairs


def unpaired(data: str | Path, pairs: Sequence[Pair]) -> list[Path]:
    """Images and labels of a folder that belong to no pair, sorted; none for a CSV."""
    data = Path(data).expanduser()
    if not data.is_dir():
        return []
    used = {path for pair in pairs for path in (pair.image, pair.labels)}
    return sorted(path for path in _image_files(data) if path not in used)


def stem_of(path: Path) -> str:
    """A file's name without the ending that tells its format."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def _image_files(folder: Path) -> Iterator[Path]:
    count = 0
    try:
        for path in folder.rglob("*"):
            if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES) or not path.is_file():
                continue
            count += 1
            if count > _MOST_FILES:
                raise TrainingError(
                    f"{folder}: more than {_MOST_FILES} images: name the folder of one data set"
                )
            yield path
    except OSError as error:
        raise TrainingError(f"{folder} cannot be read: {error.strerror or error}") from error


def _by_folders(root: Path, files: Sequence[Path]) -> list[Pair]:
    """Same names in a folder of images and one of labels beside it."""
    images = {}
    labels = {}
    for path in files:
        kind, split = _kind_of(path.parent.relative_to(root).parts)
        if kind:
            stem = _bare(stem_of(path))
            # Elsewhere four digits number the images themselves (IMG_0001, IMG_0002).
            if kind == "image" and split:
                stem = _NNUNET_CHANNEL.sub("", stem)
            key = (path.parent.parent, split, stem)
            (images if kind == "image" else labels).setdefault(key, path)
    return [
        Pair(images[key], labels[key], held_aside=_is_test(images[key].relative_to(root).parts))
        for key in sorted(images, key=str)
        if key in labels
    ]


def _kind_of(parts: Sequence[str]) -> tuple[str, str]:
    """``image``, ``label`` or nothing, by the last folder; and what nnU-Net appends to it (Tr, Ts)."""
    if not parts:
        return "", ""
    name = parts[-1].lower()
    split = name[-2:] if name[-2:] in ("tr", "ts") and name[:-2] in ("images", "labels") else ""
    name = name[: len(name) - len(split)]
    kind = "image" if name in _IMAGE_FOLDERS else "label" if name in _LABEL_FOLDERS else ""
    return kind, split


def _is_test(parts: Sequence[str]) -> bool:
    folders = {part.lower() for part in parts[:-1]}
    return bool(folders & {"test", "val", "validation", "imagests"})


def _by_names(files: Sequence[Path]) -> list[Pair]:
    """An ending tells what is an image and what its labels."""
    labels: dict[tuple[Path, str], Path] = {}
    images: dict[tuple[Path, str], Path] = {}
    for path in files:
        stem = stem_of(path)
        bare = _without(stem, LABEL_ENDINGS)
        if path.name.lower().endswith(".seg.nrrd") or bare != stem:
            labels.setdefault((path.parent, bare), path)
        else:
            images.setdefault((path.parent, _without(stem, _IMAGE_ENDINGS)), path)
    return [Pair(images[key], labels[key]) for key in sorted(images, key=str) if key in labels]


def _bare(stem: str) -> str:
    return _without(_without(stem, LABEL_ENDINGS), _IMAGE_ENDINGS)


def _without(stem: str, endings: Sequence[str]) -> str:
    lower = stem.lower()
    for ending in endings:
        if lower.endswith(ending) and len(stem) > len(ending):
            return stem[: -len(ending)]
    return stem


def _from_csv(path: Path) -> list[Pair]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path} cannot be read as a CSV: {error}") from error
    columns = set(rows[0]) if rows else set()
    label = next((name for name in ("label", "labels", "mask", "seg") if name in columns), None)
    if "image" not in columns or label is None:
        raise TrainingError(
            f"{path}: the first line must name the columns image and label (and perhaps split and group)"
        )
    pairs = []
    for number, row in enumerate(rows, start=2):
        image, labels = (row.get("image") or "").strip(), (row.get(label) or "").strip()
        if not image or not labels or "\0" in image + labels:
            raise TrainingError(f"{path}, line {number}: image or label is missing")
        split, group = ((row.get(name) or "").strip() for name in ("split", "group"))
        if split.lower() not in ("", "train", "test", "val", "validation"):
            raise TrainingError(f"{path}, line {number}: split {split!r}: use train or test")
        held_aside = split.lower() in ("test", "val", "validation")
        pairs.append(Pair(path.parent / image, path.parent / labels, held_aside, group))
    if not pairs:
        raise TrainingError(f"{path}: no line after the first: list your images")
    return pairs
