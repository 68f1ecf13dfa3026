"""Everything that is wrong with training data, said before training begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medsam2_core.auto.fewshot.classes import ClassTable, ClassWish
from medsam2_core.auto.fewshot.images import LabelledImage, Reading, read_pair
from medsam2_core.auto.fewshot.pairs import Pair
from medsam2_core.auto.model_file import AutoClass
from medsam2_core.errors import MedSAM2Error, TrainingError
from medsam2_core.imaging.reading import read_labels

_MOST_CLASSES = 60
_MOST_BYTES = 4 << 30
_ALIKE_BITS = 12  # of 256, that may differ between two pictures of the same moment


@dataclass(frozen=True)
class Problem:
    """Something about the data the user should know.

    Attributes
    ----------
    where
        The image, or empty for the whole.
    what
        The problem, with the value and the way out.
    is_fatal
        Whether the image (or the whole) cannot be used.
    """

    where: str
    what: str
    is_fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


@dataclass
class Survey:
    """Training data that was looked through.

    Attributes
    ----------
    classes
        In order.
    images
        Those that can be used.
    problems
        In the order they were found.
    """

    classes: tuple[AutoClass, ...] = ()
    images: list[LabelledImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def fatal(self) -> list[Problem]:
        """Those that something has to be done about."""
        return [problem for problem in self.problems if problem.is_fatal]

    @property
    def groups(self) -> list[str]:
        """Of the images to train on: patients, volumes, or images, in order."""
        return list(dict.fromkeys(image.group for image in self.images if not image.held_aside))

    def refuse(self, *, skip_bad: bool = False) -> None:
        """TrainingError that lists what is wrong, when training must not begin."""
        whole = [problem for problem in self.fatal if not problem.where]
        bad = whole if skip_bad else self.fatal
        if bad:
            lines = "; ".join(f"({n}) {problem}" for n, problem in enumerate(bad[:20], start=1))
            more = f"; and {len(bad) - 20} more" if len(bad) > 20 else ""
            way_out = "" if whole else ". Mend them, or leave these images out with --skip-bad"
            raise TrainingError(
                f"{len(bad)} problem{'s' * (len(bad) != 1)} with the data: {lines}{more}{way_out}"
            )


def survey(
    pairs: Sequence[Pair],
    reading: Reading,
    wishes: Sequence[ClassWish] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Read all pairs and look for problems; never raises for what is wrong with a file.

    Parameters
    ----------
    pairs
        From :func:`find_pairs`.
    wishes
        Chosen classes; None: all.
    progress
        Called with (pairs read, pairs).
    """
    found, table = Survey(), ClassTable(wishes)
    usable = [pair for pair in pairs if _learn(pair, table, found)]
    found.classes = table.classes
    for name in table.missing:
        known = ", ".join(map(repr, table.seen)) or "none"
        found.problems.append(Problem("", f"no image has the class {name!r} (found: {known})"))
    if len(found.classes) > _MOST_CLASSES:
        found.problems.append(
            Problem("", f"{len(found.classes)} classes: at most {_MOST_CLASSES}; choose some with --classes")
        )
        return found
    held = 0
    for number, pair in enumerate(usable, start=1):
        images = _read(pair, table, reading, found)
        held += sum(image.square.nbytes + image.labels_hw.nbytes for image in images)
        if held > _MOST_BYTES:
            text = f"more than {_MOST_BYTES >> 30} GB of images: use fewer with --shots, or a smaller model"
            found.problems.append(Problem("", text))
            return found
        found.images += images
        progress(number, len(usable))
    _check_masks(found)
    _check_doubles(found)
    _check_whole(found, len(pairs))
    return found


def _learn(pair: Pair, table: ClassTable, found: Survey) -> bool:
    if not pair.image.is_file():
        found.problems.append(Problem(pair.name, f"there is no image {pair.image}"))
        return False
    try:
        table.learn(read_labels(pair.labels).labels)
    except (MedSAM2Error, MemoryError, OSError) as error:
        found.problems.append(Problem(pair.name, str(error) or type(error).__name__))
        return False
    return True


def _read(pair: Pair, table: ClassTable, reading: Reading, found: Survey) -> list[LabelledImage]:
    try:
        return read_pair(pair, table, reading)
    except (MedSAM2Error, MemoryError, OSError) as error:
        found.problems.append(Problem(pair.name, str(error) or type(error).__name__))
        return []


def _check_masks(found: Survey) -> None:
    """Images of which every pixel is of one class, and pictures that have none."""
    kept, empty = [], []
    for image in found.images:
        first = int(image.labels_hw.flat[0])
        if first and bool((image.labels_hw == first).all()):
            name = found.classes[first - 1].name
            found.problems.append(
                Problem(image.name, f"every pixel is {name!r}: is 0 the background in this file?")
            )
            continue
        if not image.labels_hw.any() and not image.is_slice:
            empty.append(image.name)
        kept.append(image)
    found.images = kept
    if empty:
        text = f"{len(empty)} images without any class ({', '.join(empty[:3])}{' …' * (len(empty) > 3)})"
        found.problems.append(Problem("", f"{text}: they teach only where nothing is", is_fatal=False))


def _check_doubles(found: Survey) -> None:
    """Equal and nearly equal images: never on both sides of a split."""
    training = [image for image in found.images if not image.held_aside]
    aside = [image for image in found.images if image.held_aside]
    known = {image.key: image for image in training if not _is_plain(image)}
    for image in aside:
        if image.key in known:
            other = known[image.key].name
            text = f"held aside, but equal to {other!r} that is trained on: take one of them out"
            found.problems.append(Problem(image.name, text))
    aside = [image for image in aside if image.key not in known]
    training, joined = _joined(training)
    if joined:
        text = f"{joined} images look like others of another name: they are kept on one side of the split"
        found.problems.append(Problem("", text, is_fatal=False))
    prints, others = fingerprints(training), fingerprints(aside)
    alike = [image.name for image, one in zip(aside, others, strict=True) if _alike(one, prints).any()]
    if alike:
        text = f"{len(alike)} images held aside look like ones trained on ({', '.join(alike[:3])})"
        found.problems.append(Problem("", f"{text}: Dice on them flatters", is_fatal=False))
    found.images = [*training, *aside]


def _check_whole(found: Survey, pairs: int) -> None:
    training = [image for image in found.images if not image.held_aside]
    for number, one in enumerate(found.classes, start=1):
        count = sum(image.has(number) for image in training)
        if count == 0:
            found.problems.append(Problem("", f"no image to train on has the class {one.name!r}"))
        elif count < 3:
            text = f"only {count} image{'s' * (count > 1)} to train on with the class {one.name!r}"
            found.problems.append(Problem("", text, is_fatal=False))
    if not found.classes:
        found.problems.append(
            Problem("", f"no class in the labels of {pairs} images: all of it is background")
        )
    elif len(training) < 2:
        found.problems.append(
            Problem("", f"{len(training)} image to train on: give 2 at least, 10 for good results")
        )


def fingerprints(images: Sequence[LabelledImage]) -> NDArray[np.bool_]:
    """(N, 256) whether a coarse picture grows brighter to the right: equal for the same scene.

    The difference hash, see http://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html.
    """
    from PIL import Image

    rows = []
    for image in images:
        height, width = image.frame.inner_hw
        inner = Image.fromarray(image.square[:height, :width].mean(-1).astype(np.uint8))
        small = np.asarray(inner.resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
        rows.append((small[:, 1:] > small[:, :-1]).ravel())
    return np.array(rows, dtype=bool).reshape(-1, 256)


def _is_plain(image: LabelledImage) -> bool:
    """Whether nothing is on it: the first and last slices of many volumes."""
    height, width = image.frame.inner_hw
    return int(np.ptp(image.square[:height, :width])) == 0


def _alike(one: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) which fingerprints are of the same scene. Nearly empty pictures are all alike and tell nothing."""
    if int(one.sum()) <= 2 * _ALIKE_BITS:
        return np.zeros(len(others), dtype=bool)
    return (others != one).sum(1) <= _ALIKE_BITS


def _joined(images: list[LabelledImage]) -> tuple[list[LabelledImage], int]:
    """The images with one group for those that look alike, and how many got another one."""
    prints, groups, joined = fingerprints(images), [image.group for image in images], 0
    for n in range(1, len(images)):
        near = np.flatnonzero(_alike(prints[n], prints[:n]))
        other = next((groups[m] for m in near if groups[m] != groups[n]), None)
        if other is not None:
            mine, joined = groups[n], joined + 1
            groups = [other if group == mine else group for group in groups]
    return [replace(image, group=group) for image, group in zip(images, groups, strict=True)], joined
