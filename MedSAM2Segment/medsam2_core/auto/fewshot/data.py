"""Labelled data: which image belongs to which label map, and which label is which class."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medsam2_core.auto.model_file import AutoClass
from medsam2_core.errors import TrainingError
from medsam2_core.imaging import npz
from medsam2_core.imaging.segmentation import Label, Segment, Segmentation, default_colour

#: Endings of files that can be images, the longest first.
SUFFIXES = (
    ".seg.nrrd", ".nii.gz", ".nrrd", ".nhdr", ".nii", ".mha", ".mhd", ".png", ".tif", ".tiff", ".jpg",
    ".jpeg", ".bmp",
)  # fmt: skip
_LABEL_FOLDERS = ("labels", "label", "masks", "mask", "gts", "gt", "segmentations", "seg", "annotations")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "scans")
LABEL_ENDINGS = ("_seg", "_mask", "_label", "_labels", "_gt", "-seg", "-mask", "-label", "_segmentation")
_IMAGE_ENDINGS = ("_img", "_image", "-img", "-image", "_scan")
_NNUNET_CHANNEL = re.compile(r"_\d{4}$")
_MOST_FILES = 200_000
_SLICES = (".jpg", ".jpeg", ".png", ".npy")
#: What is between the name of an image and the rest in the name of a rater's mask: structure and rater.
RATED = r"_seg_([A-Za-z]+)_(\d+)"
_TERMINOLOGY = "TerminologyEntry"


@dataclass(frozen=True)
class Problem:
    """Something about the data that the user should know.

    Attributes
    ----------
    image
        Name of the image; empty for the whole data set.
    is_fatal
        Whether the image (or the data set) cannot be used.
    """

    code: str
    message: str
    image: str = ""
    is_fatal: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.image}: {self.message}" if self.image else self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as JSON-serialisable values, as :meth:`Note.to_dict` does for notes."""
        fields = {**self.fields, **({"image": self.image} if self.image else {})}
        severity = "error" if self.is_fatal else "warning"
        return {"code": self.code, "message": str(self), "severity": severity, "fields": fields}


@dataclass(frozen=True)
class Pair:
    """An image and its label map.

    Attributes
    ----------
    held_out
        Whether it is for testing only: in a folder ``Test``, or so marked in a CSV.
    group
        Images of one group (a patient) stay together when data is split; empty for the image alone.
    series
        UID of the DICOM series, where the image is a folder with several.
    raters
        The masks of several raters, instead of `labels`.
    """

    image: Path
    labels: Path
    held_out: bool = False
    group: str = ""
    series: str = ""
    raters: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Name of the image, for messages."""
        return stem_of(self.image)


def find_pairs(data: str | Path, every_rater: bool = False) -> list[Pair]:
    """Find all pairs of a folder or a CSV, sorted.

    Parameters
    ----------
    data
        A CSV with the columns ``image`` and ``label``, and perhaps ``split`` (``train``, ``test``), ``group``
        and ``series``, paths relative to it; or a folder in one of these shapes:

        - ``NAME_img.png`` beside ``NAME_seg.png`` (also ``_image``, ``_label``, ``_mask``, ``_gt`` …);
        - ``NAME.nrrd`` beside ``NAME.seg.nrrd`` or ``NAME_seg.nii.gz``;
        - ``images/NAME.png`` and ``labels/NAME.png`` (also ``imgs`` and ``gts``, ``masks`` …), with or
          without ``Train`` and ``Test`` above them;
        - nnU-Net's ``imagesTr/NAME_0000.nii.gz`` and ``labelsTr/NAME.nii.gz``;
        - ``NAME.npz`` with the arrays ``imgs`` and ``gts`` (MedSAM2), and perhaps ``group``;
        - ``image/CASE/N.jpg`` and ``mask/CASE/N.npy``, slice by slice, below ``Training`` and ``Test``
          (Medical SAM 2);
        - ``ID_cropped.jpg`` beside ``ID_seg_cup_1_cropped.jpg`` … of several raters (REFUGE);
        - DICOM series, and DICOM segmentations that refer to them.
    every_rater
        Make a pair of each rater's masks; otherwise they vote.

    Raises
    ------
    TrainingError
        ``data-not-found``, ``data-unreadable``, ``no-pairs``, ``too-many-files``, or ``csv-…``.
    """
    data = Path(data).expanduser()
    if data.is_file() and data.suffix.lower() == ".csv":
        return _from_csv(data)
    if not data.is_dir():
        message = f"{data}: no such folder, nor a CSV: name the folder of your images and labels"
        raise TrainingError(message, code="data-not-found", path=str(data))
    if pairs := _slice_by_slice(data):
        return pairs
    files = sorted(_image_files(data))
    pairs = _by_raters(data, files, every_rater) or _by_folders(data, files) or _by_names(files)
    pairs = pairs or [Pair(path, path, group=npz.read_group(path)) for path in _walk(data, ".npz")]
    pairs = pairs or _by_reference(data)
    if not pairs:
        raise TrainingError(
            f"{data}: {len(files)} images, but no labels that belong to them by name. Name them "
            "NAME_img.png and NAME_seg.png, or NAME.nrrd and NAME.seg.nrrd, put them into images/ and "
            "labels/ under the same name, or list them in a CSV with the columns image,label",
            code="no-pairs", path=str(data), images=len(files),
        )  # fmt: skip
    return pairs


def unpaired(data: str | Path, pairs: Sequence[Pair]) -> list[Path]:
    """Return the files of a folder that belong to no pair, sorted; none for a CSV."""
    data = Path(data).expanduser()
    if not data.is_dir():
        return []
    used = {path for pair in pairs for path in (pair.image, pair.labels, *pair.raters)}
    folders = {path for path in used if path.is_dir()}
    return sorted(
        path for path in _image_files(data) if path not in used and folders.isdisjoint(path.parents)
    )


def draw_shots(pairs: Sequence[Pair], shots: int, seed: int) -> list[Pair]:
    """Draw pairs to train on at random, in their order; held-out pairs are kept.

    Raises
    ------
    TrainingError
        Code ``too-few-images`` when there are fewer than `shots`.
    """
    training = [pair for pair in pairs if not pair.held_out]
    if shots > len(training):
        message = f"{shots} shots: there are only {len(training)} images to train on"
        raise TrainingError(message, code="too-few-images", shots=shots, images=len(training))
    chosen = set(np.random.default_rng(seed).permutation(len(training))[:shots].tolist())
    kept = {id(pair) for n, pair in enumerate(training) if n in chosen}
    return [pair for pair in pairs if pair.held_out or id(pair) in kept]


def stem_of(path: Path) -> str:
    """Return the name of a file without the suffix of its format."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def slice_files(folder: Path) -> list[Path]:
    """Return the numbered slices of a folder in order: pictures or arrays; none if it is something else."""
    try:
        if not folder.is_dir():
            return []
        found = [path for path in folder.iterdir() if path.suffix.lower() in _SLICES and path.is_file()]
    except OSError:
        return []
    if not found or not all(path.stem.isdecimal() for path in found):
        return []
    return sorted(found, key=lambda path: (int(path.stem), path.name))


def _slice_by_slice(root: Path) -> list[Pair]:
    """Pair folders of numbered pictures with folders of numbered arrays."""
    pairs = []
    for folder in sorted(_folders(root)):
        if folder.name.lower() not in _IMAGE_FOLDERS:
            continue
        beside = [folder.with_name(name) for name in _LABEL_FOLDERS]
        for case in sorted(_folders(folder)):
            masks = next((one / case.name for one in beside if (one / case.name).is_dir()), None)
            if masks is not None and slice_files(case) and slice_files(masks):
                pairs.append(Pair(case, masks, _is_test(case.relative_to(root).parts)))
    return pairs


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders below a folder, two levels down: more would be those of cases."""
    try:
        for path in root.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield path
                yield from (inner for inner in path.iterdir() if inner.is_dir())
    except OSError as error:
        message = f"{root} cannot be read: {error.strerror or error}"
        raise TrainingError(message, code="data-unreadable", path=str(root)) from error


def _by_raters(root: Path, files: Sequence[Path], every_rater: bool) -> list[Pair]:
    """Pair pictures with the masks of several raters beside them, as those of REFUGE."""
    rated: dict[Path, dict[str, list[Path]]] = {}
    for path in files:
        if found := re.search(RATED, path.name):
            stem, rest = path.name[: found.start()], path.name[found.end() :]
            image = next(
                (one for end in (rest, Path(rest).stem + ".jpg", ".jpg", ".png")
                 if (one := path.with_name(stem + end)).is_file()), None,
            )  # fmt: skip
            if image is not None:
                rated.setdefault(image, {}).setdefault(found[2], []).append(path)
    pairs = []
    for image, by_rater in sorted(rated.items()):
        held_out = _is_test(image.relative_to(root).parts)
        groups = list(by_rater.values())
        if not every_rater:
            groups = [[path for paths in groups for path in paths]]
        pairs += [Pair(image, paths[0], held_out, str(image), raters=tuple(paths)) for paths in groups]
    return pairs


def _by_reference(root: Path) -> list[Pair]:
    """Pair DICOM series with the segmentations that refer to them."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    tags = ["Modality", "SeriesInstanceUID", "ReferencedSeriesSequence", "PatientID"]
    folders: dict[str, set[Path]] = {}
    segmentations = []
    for path in sorted(_walk(root, "", ".dcm", ".ima", ".dicom")):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except (InvalidDicomError, OSError, ValueError, LookupError, AttributeError, TypeError, EOFError):
            continue
        if str(header.get("Modality", "")) == "SEG":
            segmentations.append((path, header))
        elif uid := str(header.get("SeriesInstanceUID", "")):
            folders.setdefault(uid, set()).add(path.parent)
    pairs = []
    for path, header in segmentations:
        for one in header.get("ReferencedSeriesSequence") or []:
            uid = str(one.get("SeriesInstanceUID", ""))
            if len(folders.get(uid, ())) == 1:
                (folder,) = folders[uid]
                series = uid if sum(folder in places for places in folders.values()) > 1 else ""
                group = str(header.get("PatientID", "") or "")
                pairs.append(Pair(folder, path, _is_test(path.relative_to(root).parts), group, series))
                break
    return pairs


def _image_files(folder: Path) -> Iterator[Path]:
    return _walk(folder, *SUFFIXES)


def _walk(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Yield the files below a folder with one of these endings; the empty one is for names without a dot."""
    endings = tuple(suffix for suffix in suffixes if suffix)
    count = 0
    try:
        for path in folder.rglob("*"):
            fits = path.name.lower().endswith(endings) or ("" in suffixes and "." not in path.name)
            if path.name.startswith(".") or not fits or not path.is_file():
                continue
            count += 1
            if count > _MOST_FILES:
                message = f"{folder}: more than {_MOST_FILES} images: name the folder of one data set"
                raise TrainingError(message, code="too-many-files", path=str(folder), most=_MOST_FILES)
            yield path
    except OSError as error:
        message = f"{folder} cannot be read: {error.strerror or error}"
        raise TrainingError(message, code="data-unreadable", path=str(folder)) from error


def _by_folders(root: Path, files: Sequence[Path]) -> list[Pair]:
    """Pair files of the same name in a folder of images and a folder of labels beside it."""
    images: dict[tuple[Path, str, str], Path] = {}
    labels: dict[tuple[Path, str, str], Path] = {}
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
        Pair(images[key], labels[key], held_out=_is_test(images[key].relative_to(root).parts))
        for key in sorted(images, key=str)
        if key in labels
    ]


def _kind_of(parts: Sequence[str]) -> tuple[str, str]:
    """Return ``image``, ``label`` or an empty string by the last folder, and its nnU-Net suffix (tr, ts)."""
    if not parts:
        return "", ""
    name = parts[-1].lower()
    split = name[-2:] if name[-2:] in ("tr", "ts") and name[:-2] in ("images", "labels") else ""
    name = name[: len(name) - len(split)]
    kind = "image" if name in _IMAGE_FOLDERS else "label" if name in _LABEL_FOLDERS else ""
    return kind, split


def _is_test(parts: Sequence[str]) -> bool:
    folders = {part.lower() for part in parts[:-1]}
    return bool(folders & {"test", "val", "validation", "imagests", "test-400", "validation-400"})


def _by_names(files: Sequence[Path]) -> list[Pair]:
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
        message = f"{path} cannot be read as a CSV: {error}"
        raise TrainingError(message, code="csv-unreadable", path=str(path)) from error
    columns = set(rows[0]) if rows else set()
    label = next((name for name in ("label", "labels", "mask", "seg") if name in columns), None)
    if "image" not in columns or label is None:
        raise TrainingError(
            f"{path}: the first line must name the columns image and label (and perhaps split and group)",
            code="csv-without-columns", path=str(path),
        )  # fmt: skip
    pairs = []
    for number, row in enumerate(rows, start=2):
        image, labels = (row.get("image") or "").strip(), (row.get(label) or "").strip()
        if not image or not labels or "\0" in image + labels:
            message = f"{path}, line {number}: image or label is missing"
            raise TrainingError(message, code="csv-line-incomplete", path=str(path), line=number)
        split, group = ((row.get(name) or "").strip() for name in ("split", "group"))
        if split.lower() not in ("", "train", "test", "val", "validation"):
            message = f"{path}, line {number}: split {split!r}: use train or test"
            raise TrainingError(message, code="csv-unknown-split", path=str(path), line=number, split=split)
        held_out = split.lower() in ("test", "val", "validation")
        series = (row.get("series") or "").strip()
        pairs.append(Pair(path.parent / image, path.parent / labels, held_out, group, series))
    if not pairs:
        message = f"{path}: no line after the first: list your images"
        raise TrainingError(message, code="csv-empty", path=str(path))
    return pairs


@dataclass(frozen=True)
class ClassChoice:
    """A class the user chose: its name, and its label value in files without names."""

    name: str
    value: int | None = None


def parse_classes(text: str | None) -> list[ClassChoice] | None:
    """Parse ``"nerve,vessel"`` (names) or ``"1=nerve,2=vessel"`` (names for label values); None for all.

    Raises
    ------
    TrainingError
        Code ``classes-syntax``.
    """
    if text is None or not text.strip():
        return None
    choices = []
    for part in text.split(","):
        value, equals, name = part.strip().partition("=")
        if not equals:
            choices.append(ClassChoice(value.strip(), int(value) if value.strip().isdecimal() else None))
        elif value.strip().isdecimal() and name.strip():
            choices.append(ClassChoice(name.strip(), int(value)))
        else:
            raise _classes_error(f"{part.strip()!r}: give NAME, or NUMBER=NAME", text)
    names = [choice.name for choice in choices]
    if "" in names or len(set(names)) != len(names):
        raise _classes_error(f"{text!r}: every class needs a name of its own", text)
    if any(choice.value == 0 for choice in choices):
        raise _classes_error(f"{text!r}: 0 is background", text)
    return choices


def _classes_error(reason: str, text: str) -> TrainingError:
    return TrainingError(f"classes {reason}", code="classes-syntax", text=text)


class ClassTable:
    """Collects the classes of label maps: names, values and colours.

    A label belongs to the class of its name, or of its value if it has no name: files may number the same
    names differently.

    Parameters
    ----------
    choices
        The classes to use; None makes a class of every label.
    """

    def __init__(self, choices: Sequence[ClassChoice] | None = None) -> None:
        self._choices = choices
        self._found: dict[str, AutoClass] = {}

    def add_labels(self, labels: Sequence[Label]) -> None:
        """Add the labels of a file."""
        for label in labels:
            name = self._name_of(label)
            if name is not None and name not in self._found:
                colour = label.colour or default_colour(len(self._found))
                self._found[name] = AutoClass(name, label.value, colour, label.tags.get(_TERMINOLOGY, ""))

    @property
    def classes(self) -> tuple[AutoClass, ...]:
        """Classes that were found, in the order chosen, else by value and name."""
        if self._choices is not None:
            return tuple(self._found[choice.name] for choice in self._choices if choice.name in self._found)
        return tuple(sorted(self._found.values(), key=lambda one: (one.value, one.name)))

    @property
    def missing(self) -> list[str]:
        """Names of chosen classes that were not found."""
        return [choice.name for choice in self._choices or () if choice.name not in self._found]

    @property
    def seen(self) -> list[str]:
        """Names of all classes that were found."""
        return list(self._found)

    def numbers(self, labels: Sequence[Label]) -> Mapping[tuple[int, int], int]:
        """Return class numbers, from 1, by (layer, value) of a file's labels; other labels are background."""
        order = {one.name: number for number, one in enumerate(self.classes, start=1)}
        named = {(label.layer, label.value): self._name_of(label) for label in labels}
        return {key: order[name] for key, name in named.items() if name in order}

    def numbered(self, segmentation: Segmentation) -> list[tuple[int, Segment]]:
        """Return the segments that belong to a class, each with the class number."""
        numbers = self.numbers(segmentation.labels)
        keys = [(label.layer, label.value) for label in segmentation.labels]
        return [(numbers[key], one) for key, one in zip(keys, segmentation, strict=True) if key in numbers]

    def _name_of(self, label: Label) -> str | None:
        """Return the name of a label's class; None if it was not chosen."""
        name = label.name.strip() or str(label.value)  # files may have empty names
        if self._choices is None:
            return name
        for choice in self._choices:
            if name == choice.name:
                return choice.name
        # The value identifies only labels without a name.
        if name == str(label.value):
            for choice in self._choices:
                if choice.value == label.value:
                    return choice.name
        return None
