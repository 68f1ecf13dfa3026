"""Measuring a model with a simulated user who draws a box and corrects: what all protocols share, and ours.

By the standard protocol, a 3-D object gets a box on the slice where it is largest, and propagation to all
slices; then, three times, a click at the middle of the largest error of the worst slice, and propagation
again. Beside it stand one click alone and a baseline. For a picture the same without propagation. Every
object gets a session of its own; features are shared.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.evaluation.cases import Case, MeasuredObject, objects_of
from medsam2_core.evaluation.metrics import Scores, dice, scores
from medsam2_core.evaluation.simulated_user import centre_of, correction, jittered_box, tight_box
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point
from medsam2_core.session.session import Session

OBJECT = "object"


def inscribed_ellipse(box_xyxy: tuple[float, ...], shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) the ellipse inscribed in a box given in pixel positions."""
    left, top, right, bottom = box_xyxy
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]]
    across = (x - (left + right) / 2) / max((right - left) / 2, 1e-6)
    down = (y - (top + bottom) / 2) / max((bottom - top) / 2, 1e-6)
    return across**2 + down**2 <= 1


def copied_key_mask(truth_kji: NDArray[np.bool_], stack: SliceStack, key: int) -> NDArray[np.bool_]:
    """(K, J, I) the true mask of the key slice, copied through exactly the slices the object occupies."""
    key_mask = stack.mask_of(truth_kji, key)
    occupied = [n for n in range(len(stack)) if stack.mask_of(truth_kji, n).any()]
    return stack.volume_mask({n: key_mask for n in occupied})


@dataclass(frozen=True)
class Measurement:
    """What one object gave.

    Attributes
    ----------
    stages
        Scores after the box, and after each correction; the last is repeated when nothing was left to
        correct.
    seconds
        For everything after reading the image: box, propagations and corrections.
    baseline
        Dice of the inscribed ellipse (2-D) or of the copied key mask (3-D); None where it is not measured.
    click
        Dice of one click alone; None where it is not measured.
    """

    row: str
    name: str
    slices: int
    stages: tuple[Scores, ...]
    seconds: float
    baseline: float | None = None
    click: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values of what was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def areas_under_curves(self) -> dict[str, float]:
        """Return the areas under Dice and surface Dice of the corrections, one apart (trapezoids)."""
        names = {"dice_auc": "dice", "surface_dice_auc": "surface_dice"}
        return {
            area: float(trapezoid([getattr(stage, name) for stage in self.stages[1:]]))
            for area, name in names.items()
        }


def by_row(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """Return what was measured by row, in the order rows first appear."""
    rows: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        rows.setdefault(measurement.row, []).append(measurement)
    return rows


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = ["| " + " | ".join(cells) + " |" for cells in (heads, *lines)]
    return "\n".join([rows[0], "|---" * len(heads) + "|", *rows[1:]])


def generator_for(measured: MeasuredObject, seed: int) -> np.random.Generator:
    """Return random numbers of the simulated user: others for every object, the same in every run."""
    return np.random.default_rng([seed, crc32(f"{measured.case.row} {measured.name}".encode())])


class Attempt:
    """An object in front of the simulated user.

    Attributes
    ----------
    areas
        Pixels of the object on each slice.
    """

    def __init__(
        self,
        measured: MeasuredObject,
        volume: Volume,
        model: SegmentationModel,
        protocol: "Protocol",
        cache: FeatureCache | None,
    ) -> None:
        case, self.truth_kji = measured.case, measured.truth_kji
        self.open = partial(
            Session.open, volume, model, axis=case.axis, window=case.window,
            zoom=protocol.zoom, memory=protocol.memory, cache=cache,
        )  # fmt: skip
        self.session = self.open()
        self.stack = self.session.stack
        self.areas = [int(self.truth_hw(n).sum()) for n in range(len(self.stack))]
        self.rng = generator_for(measured, protocol.seed)

    def truth_hw(self, n: int) -> NDArray[np.bool_]:
        """Return the true mask (H, W) of a slice."""
        return self.stack.mask_of(self.truth_kji, n)

    def ijk(self, x: float, y: float, n: int) -> tuple[float, float, float]:
        """Return the position of a pixel in the volume."""
        i, j, k = self.stack.to_ijk([[x, y, n]])[0]
        return float(i), float(j), float(k)

    def segmented(
        self, session: Session, prompt: Box | Point, limits: dict[str, Any] | None
    ) -> NDArray[np.bool_]:
        """Return the mask (K, J, I) after a prompt, propagated within limits if they are not None."""
        session.prompt(OBJECT, prompt)
        if limits is not None:
            for _ in session.propagate(**limits):
                pass
        return session.mask_kji(OBJECT)


@dataclass(frozen=True)
class Protocol(ABC):
    """How the simulated user behaves, and what is measured.

    Attributes
    ----------
    tolerance_mm
        Of the surface Dice; None for a voxel.
    objects
        Arguments of :func:`objects_of`: which objects are measured.
    """

    corrections: int = 3
    seed: int = 0
    zoom: str = "auto"
    memory: str = "recent"
    tolerance_mm: ClassVar[float | None] = None
    objects: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def box(self, attempt: Attempt) -> Box:
        """Return the first prompt."""

    @abstractmethod
    def next_click(self, attempt: Attempt, mask_kji: NDArray[np.bool_]) -> Point | None:
        """Return the click that corrects a mask; None when nothing is wrong."""

    def limits(self, attempt: Attempt) -> dict[str, Any] | None:
        """Return arguments of :meth:`Session.propagate`; None where there is nothing to propagate to."""
        return {} if len(attempt.stack) > 1 else None

    def compared(self, attempt: Attempt) -> dict[str, float]:
        """Return what else a :class:`Measurement` holds: ``baseline`` and ``click``."""
        return {}


@dataclass(frozen=True)
class StandardProtocol(Protocol):
    """The protocol of this module; each side of the box is off by at most ``jitter`` of the box's size."""

    jitter: float = 0.05

    def box(self, attempt: Attempt) -> Box:
        """Return a box on the slice where the object is largest."""
        key = int(np.argmax(attempt.areas))
        left, top, right, bottom = jittered_box(attempt.truth_hw(key), attempt.rng, self.jitter)
        return Box.between(attempt.ijk(left, top, key), attempt.ijk(right, bottom, key))

    def next_click(self, attempt: Attempt, mask_kji: NDArray[np.bool_]) -> Point | None:
        """Return a click at the middle of the largest error of the worst slice."""
        masks = [attempt.stack.mask_of(mask_kji, n) for n in range(len(attempt.stack))]
        worst = int(np.argmax([(mask_hw ^ attempt.truth_hw(n)).sum() for n, mask_hw in enumerate(masks)]))
        click = correction(masks[worst], attempt.truth_hw(worst))
        return None if click is None else Point(attempt.ijk(*click[0], worst), click[1])

    def compared(self, attempt: Attempt) -> dict[str, float]:
        """Return the Dice of a baseline that does not use the image, and of one click, propagated."""
        truth, key = attempt.truth_kji, int(np.argmax(attempt.areas))
        if len(attempt.stack) == 1:
            ellipse = inscribed_ellipse(tight_box(attempt.truth_hw(key)), attempt.stack.shape_hw)
            baseline = attempt.stack.volume_mask({0: ellipse})
        else:
            baseline = copied_key_mask(truth, attempt.stack, key)
        click = Point(attempt.ijk(*centre_of(attempt.truth_hw(key)), key))
        clicked = attempt.segmented(attempt.open(), click, self.limits(attempt))
        return {"baseline": dice(baseline, truth), "click": dice(clicked, truth)}


def measure_case(
    case: Case, model: SegmentationModel, protocol: Protocol, cache: FeatureCache | None = None
) -> Iterator[Measurement]:
    """Measure every object of a case.

    Raises
    ------
    MedSAM2Error
        If image or labels cannot be read or do not fit each other.
    """
    volume = read_volume(case.image)
    cache = cache if cache is not None else FeatureCache()
    for measured in objects_of(case, volume, **protocol.objects):
        yield measure_object(measured, volume, model, protocol, cache)


def measure_object(
    measured: MeasuredObject,
    volume: Volume,
    model: SegmentationModel,
    protocol: Protocol,
    cache: FeatureCache | None,
) -> Measurement:
    """Let the simulated user segment one object."""
    attempt = Attempt(measured, volume, model, protocol, cache)
    compared = protocol.compared(attempt)
    started = time.perf_counter()
    masks = list(_masks(attempt, protocol))
    seconds = time.perf_counter() - started
    i, j, k = (float(value) for value in volume.geometry.spacing)
    stages = [scores(mask, measured.truth_kji, (k, j, i), protocol.tolerance_mm) for mask in masks]
    stages += [stages[-1]] * (protocol.corrections + 1 - len(stages))
    row, name = measured.case.row, measured.name
    return Measurement(row, name, len(attempt.stack), tuple(stages), seconds, **compared)


def _masks(attempt: Attempt, protocol: Protocol) -> Iterator[NDArray[np.bool_]]:
    """Yield the mask (K, J, I) after the box, then after each correction until nothing is wrong."""
    limits = protocol.limits(attempt)
    mask_kji = attempt.segmented(attempt.session, protocol.box(attempt), limits)
    yield mask_kji
    for _ in range(protocol.corrections):
        click = protocol.next_click(attempt, mask_kji)
        if click is None:
            return
        mask_kji = attempt.segmented(attempt.session, click, limits)
        yield mask_kji
