"""Check training data for problems before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.auto.fewshot.cases import LabelledCase, read_case, read_label_map
from medsam2_core.auto.fewshot.data import ClassChoice, ClassTable, Pair, Problem
from medsam2_core.auto.fewshot.images import LabelledImage, ReadingOptions, images_of
from medsam2_core.auto.model_file import AutoClass
from medsam2_core.errors import MedSAM2Error, TrainingError

_MOST_CLASSES = 60
_MOST_BYTES = 4 << 30
_ALIKE_BITS = 12  # of 256, that may differ between two pictures of the same moment


@dataclass
class Survey:
    """Training data that was read and checked.

    Attributes
    ----------
    cases
        The cases that can be used, as they were read, if they were asked for.
    """

    classes: tuple[AutoClass, ...] = ()
    images: list[LabelledImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    cases: list[LabelledCase] = field(default_factory=list)
    groups_of_cases: list[str] = field(default_factory=list)
    table: ClassTable = field(default_factory=ClassTable)

    @property
    def fatal(self) -> list[Problem]:
        """Problems that must be resolved."""
        return [problem for problem in self.problems if problem.is_fatal]

    @property
    def groups(self) -> list[str]:
        """Groups of the images to train on (patients, volumes or images), in order."""
        return list(dict.fromkeys(image.group for image in self.images if not image.held_out))

    def add(self, code: str, message: str, image: str = "", *, is_fatal: bool = True, **fields: Any) -> None:
        """Add a problem, see :class:`Problem`."""
        self.problems.append(Problem(code, message, image, is_fatal, fields))

    def raise_for_problems(self, *, skip_bad: bool = False) -> None:
        """Raise TrainingError if there are fatal problems.

        Parameters
        ----------
        skip_bad
            Ignore those of single images, which are left out.

        Raises
        ------
        TrainingError
            ``bad-images`` if it is enough to leave images out, else ``bad-data``; both list the problems.
        """
        whole = [problem for problem in self.fatal if not problem.image]
        bad = whole if skip_bad else self.fatal
        if bad:
            lines = "; ".join(f"({n}) {problem}" for n, problem in enumerate(bad[:20], start=1))
            more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
            way_out = "" if whole else ". Correct them, or leave these images out"
            raise TrainingError(
                f"{len(bad)} problem{'s' * (len(bad) != 1)} with the data: {lines}{more}{way_out}",
                code="bad-data" if whole else "bad-images",
                problems=[problem.to_dict() for problem in bad],
            )  # fmt: skip


def survey(
    pairs: Sequence[Pair],
    reading: ReadingOptions,
    choices: Sequence[ClassChoice] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    keeps_cases: bool = False,
) -> Survey:
    """Read all pairs and check them; what is wrong with a file becomes a problem, not an error.

    Parameters
    ----------
    choices
        Classes to use; None for all.
    progress
        Called with (pairs read, pairs).
    keeps_cases
        Keep images and labels as they were read, for training on whole volumes.
    """
    table = ClassTable(choices)
    found = Survey(table=table)
    usable = [pair for pair in pairs if _add_classes(pair, table, found)]
    found.classes = table.classes
    for name in table.missing:
        known = ", ".join(map(repr, table.seen)) or "none"
        text = f"no image has the class {name!r} (found: {known})"
        found.add("class-not-found", text, name=name, known=table.seen)
    if len(found.classes) > _MOST_CLASSES:
        text = f"{len(found.classes)} classes: at most {_MOST_CLASSES}; choose some"
        found.add("too-many-classes", text, classes=len(found.classes))
        return found
    held = 0
    read: dict[int, LabelledCase] = {}
    for number, pair in enumerate(usable, start=1):
        case, images = _read(pair, table, reading, found)
        held += sum(image.square.nbytes + image.labels_hw.nbytes for image in images)
        if keeps_cases and case is not None:
            read[number] = case
            held += case.volume.voxels_kji.nbytes + sum(one.part_kji.nbytes for one in case.labels)
        if held > _MOST_BYTES:
            text = f"more than {_MOST_BYTES >> 30} GB of images: use fewer, or a smaller model"
            found.add("too-many-images", text)
            return found
        found.images += [replace(image, case=number) for image in images]
        progress(number, len(usable))
    _check_masks(found)
    _check_doubles(found)
    _check_whole(found, len(pairs))
    groups = {image.case: image.group for image in found.images}
    found.cases = [case for number, case in read.items() if number in groups]
    found.groups_of_cases = [groups[number] for number in read if number in groups]
    return found


def _add_classes(pair: Pair, table: ClassTable, found: Survey) -> bool:
    if not pair.image.exists():
        found.add("image-missing", f"there is no image {pair.image}", pair.name, path=str(pair.image))
        return False
    try:
        table.add_labels(read_label_map(pair).labels)
    except (MedSAM2Error, MemoryError, OSError) as error:
        found.problems.append(_unreadable(pair, error))
        return False
    return True


def _read(
    pair: Pair, table: ClassTable, reading: ReadingOptions, found: Survey
) -> tuple[LabelledCase | None, list[LabelledImage]]:
    try:
        case = read_case(pair)
        return case, images_of(case, table, reading)
    except (MedSAM2Error, MemoryError, OSError) as error:
        found.problems.append(_unreadable(pair, error))
        return None, []


def _unreadable(pair: Pair, error: Exception) -> Problem:
    known = error if isinstance(error, MedSAM2Error) else MedSAM2Error(code="image-unreadable")
    return Problem(known.code, str(error) or type(error).__name__, pair.name, fields=known.fields)


def _check_masks(found: Survey) -> None:
    """Report images of which every pixel is of one class, and pictures without any class."""
    kept, empty = [], []
    for image in found.images:
        first = int(image.labels_hw.flat[0])
        if first and bool((image.labels_hw == first).all()):
            name = found.classes[first - 1].name
            text = f"every pixel is {name!r}: is 0 the background in this file?"
            found.add("no-background", text, image.name, name=name)
            continue
        if not image.labels_hw.any() and not image.is_slice:
            empty.append(image.name)
        kept.append(image)
    found.images = kept
    if empty:
        text = f"{len(empty)} images without any class ({', '.join(empty[:3])}{' …' * (len(empty) > 3)})"
        text = f"{text}: they teach only what background looks like"
        found.add("images-without-class", text, is_fatal=False, images=empty)


def _check_doubles(found: Survey) -> None:
    """Keep equal and nearly equal images on one side of a split, and report those that are not."""
    training = [image for image in found.images if not image.held_out]
    held_out_images = [image for image in found.images if image.held_out]
    known = {image.key: image for image in training if not _is_plain(image)}
    for image in held_out_images:
        if image.key in known:
            other = known[image.key].name
            text = f"held out, but equal to {other!r} that is trained on: remove one of them"
            found.add("test-image-in-training", text, image.name, other=other)
    held_out_images = [image for image in held_out_images if image.key not in known]
    training, joined = _joined(training)
    if joined:
        text = f"{joined} images look like others of another name: they stay on one side of the split"
        found.add("images-alike", text, is_fatal=False, images=joined)
    prints, others = fingerprints(training), fingerprints(held_out_images)
    alike = [
        image.name for image, one in zip(held_out_images, others, strict=True) if _alike(one, prints).any()
    ]
    if alike:
        text = f"{len(alike)} held-out images look like ones trained on ({', '.join(alike[:3])})"
        text = f"{text}: Dice on them is too high"
        found.add("test-images-alike", text, is_fatal=False, images=alike)
    found.images = [*training, *held_out_images]


def _check_whole(found: Survey, pairs: int) -> None:
    training = [image for image in found.images if not image.held_out]
    for number, one in enumerate(found.classes, start=1):
        count = sum(image.has(number) for image in training)
        if count == 0:
            found.add(
                "class-without-image", f"no image to train on has the class {one.name!r}", name=one.name
            )
        elif count < 3:
            text = f"only {count} image{'s' * (count > 1)} to train on with the class {one.name!r}"
            found.add("few-images-of-class", text, is_fatal=False, name=one.name, images=count)
    if not found.classes:
        found.add(
            "no-class", f"no class in the labels of {pairs} images: all of it is background", images=pairs
        )
    elif len(training) < 2:
        text = f"{len(training)} image to train on: give 2 at least, 10 for good results"
        found.add("too-few-images", text, images=len(training))


def fingerprints(images: Sequence[LabelledImage]) -> NDArray[np.bool_]:
    """Compute difference hashes (N, 256): whether a coarse image grows brighter to the right.

    See http://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html.
    """
    from PIL import Image

    rows = []
    for image in images:
        height, width = image.letterbox.content_hw
        inner = Image.fromarray(image.square[:height, :width].mean(-1).astype(np.uint8))
        small = np.asarray(inner.resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
        rows.append((small[:, 1:] > small[:, :-1]).ravel())
    return np.array(rows, dtype=bool).reshape(-1, 256)


def _is_plain(image: LabelledImage) -> bool:
    """Whether an image is of one value, as the first and last slices of many volumes."""
    height, width = image.letterbox.content_hw
    return int(np.ptp(image.square[:height, :width])) == 0


def _alike(one: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (N,) whether fingerprints are of the same scene; nearly empty images are never alike."""
    if int(one.sum()) <= 2 * _ALIKE_BITS:
        return np.zeros(len(others), dtype=bool)
    return (others != one).sum(1) <= _ALIKE_BITS


def _joined(images: list[LabelledImage]) -> tuple[list[LabelledImage], int]:
    """Put images that look alike into one group; return the images, and how many changed their group."""
    prints, groups, joined = fingerprints(images), [image.group for image in images], 0
    for n in range(1, len(images)):
        near = np.flatnonzero(_alike(prints[n], prints[:n]))
        other = next((groups[m] for m in near if groups[m] != groups[n]), None)
        if other is not None:
            mine, joined = groups[n], joined + 1
            groups = [other if group == mine else group for group in groups]
    return [replace(image, group=group) for image, group in zip(images, groups, strict=True)], joined
