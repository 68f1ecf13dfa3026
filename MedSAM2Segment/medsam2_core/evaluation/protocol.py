"""The protocol: one box, propagate, up to three corrections, beside one click alone and a baseline.

For a 3-D object: a box on the slice where it is largest, propagation to all slices; then, three times, a
click at the middle of the largest error of the worst slice, and propagation again. For a picture the same
without propagation. Every object gets a session of its own; features are shared.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.model import SegmentationModel
from medsam2_core.evaluation.baselines import copied_key_mask, inscribed_ellipse
from medsam2_core.evaluation.cases import Case, MeasuredObject, objects_of, read_case
from medsam2_core.evaluation.metrics import Scores, dice, scores
from medsam2_core.evaluation.simulated_user import centre_of, correction, jittered_box, tight_box
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session

OBJECT = "object"


@dataclass(frozen=True)
class Protocol:
    """How the simulated user behaves.

    Attributes
    ----------
    corrections
        Clicks after the box, at most.
    jitter
        Share of the box's size by which each side is off, at most.
    zoom, memory
        As in :meth:`Session.open`.
    """

    corrections: int = 3
    jitter: float = 0.05
    seed: int = 0
    zoom: str = "auto"
    memory: str = "recent"


@dataclass(frozen=True)
class Measurement:
    """What one object gave.

    Attributes
    ----------
    baseline
        Dice of the inscribed ellipse (2-D) or of the copied key mask (3-D).
    click
        Dice of one click alone.
    stages
        Scores after the box, and after each correction; the last is repeated when nothing was left to
        correct.
    seconds
        For everything after reading the image: box, propagations and corrections.
    """

    row: str
    name: str
    slices: int
    baseline: float
    click: float
    stages: tuple[Scores, ...]
    seconds: float

    def to_dict(self) -> dict:
        """JSON-ready values."""
        return asdict(self)


def measure_case(
    case: Case, model: SegmentationModel, protocol: Protocol, cache: FeatureCache | None = None
) -> Iterator[Measurement]:
    """Measure every object of a case.

    Raises
    ------
    MedSAM2Error
        If image or labels cannot be read or do not fit each other.
    """
    volume = read_case(case)
    cache = cache if cache is not None else FeatureCache()
    for measured in objects_of(case, volume):
        yield measure_object(measured, volume, model, protocol, cache)


def measure_object(
    measured: MeasuredObject,
    volume: Volume,
    model: SegmentationModel,
    protocol: Protocol,
    cache: FeatureCache,
) -> Measurement:
    """Let the simulated user segment one object."""
    user = _User(measured, volume, model, protocol, cache)
    click = user.click_alone()
    started = time.perf_counter()
    masks = list(user.box_and_corrections())
    seconds = time.perf_counter() - started
    spacing = tuple(float(value) for value in volume.geometry.spacing[::-1])
    stages = [scores(mask, measured.truth_kji, spacing) for mask in masks]
    stages += [stages[-1]] * (protocol.corrections + 1 - len(stages))
    return Measurement(
        measured.case.row,
        measured.name,
        len(user.session.stack),
        user.baseline(),
        click,
        tuple(stages),
        seconds,
    )


def generator_for(measured: MeasuredObject, seed: int) -> np.random.Generator:
    """Random numbers of the simulated user: others for every object, the same in every run."""
    return np.random.default_rng([seed, crc32(f"{measured.case.row} {measured.name}".encode())])


class _User:
    """The simulated user in front of one object."""

    def __init__(
        self,
        measured: MeasuredObject,
        volume: Volume,
        model: SegmentationModel,
        protocol: Protocol,
        cache: FeatureCache,
    ) -> None:
        self._truth_kji, self._protocol = measured.truth_kji, protocol

        def fresh() -> Session:
            return Session.open(
                volume,
                model,
                axis=measured.case.axis,
                window=measured.case.window,
                zoom=protocol.zoom,
                memory=protocol.memory,
                cache=cache,
            )

        self.session, self._second_session = fresh(), fresh()
        self._stack = self.session.stack
        areas = [int(self._truth_hw(n).sum()) for n in range(len(self._stack))]
        self._key = int(np.argmax(areas))
        generator = generator_for(measured, protocol.seed)
        self._box = jittered_box(self._truth_hw(self._key), generator, protocol.jitter)

    def click_alone(self) -> float:
        """Dice after one click in the middle of the object, propagated."""
        x, y = centre_of(self._truth_hw(self._key))
        self._second_session.prompt(OBJECT, Point(self._ijk(x, y, self._key)))
        return dice(self._propagated(self._second_session), self._truth_kji)

    def box_and_corrections(self) -> Iterator[NDArray[np.bool_]]:
        """(K, J, I) masks: after the box, then after each correction."""
        left, top, right, bottom = self._box
        corners = self._ijk(left, top, self._key), self._ijk(right, bottom, self._key)
        self.session.prompt(OBJECT, Box.between(*corners))
        mask = self._propagated(self.session)
        yield mask
        for _ in range(self._protocol.corrections):
            worst = self._worst_slice(mask)
            if worst is None:
                return
            click = correction(self._stack.mask_of(mask, worst), self._truth_hw(worst))
            assert click is not None  # the slice is not right yet
            (x, y), positive = click
            self.session.prompt(OBJECT, Point(self._ijk(x, y, worst), positive))
            mask = self._propagated(self.session)
            yield mask

    def baseline(self) -> float:
        """Dice of the baseline, which does not use the image."""
        if len(self._stack) == 1:
            truth = self._truth_hw(self._key)
            ellipse = inscribed_ellipse(tight_box(truth), self._stack.shape_hw)
            return dice(self._stack.volume_mask({0: ellipse}), self._truth_kji)
        return dice(copied_key_mask(self._truth_kji, self._stack, self._key), self._truth_kji)

    def _propagated(self, session: Session) -> NDArray[np.bool_]:
        if len(self._stack) > 1:
            for _ in session.propagate():
                pass
        return session.mask_kji(OBJECT)

    def _worst_slice(self, mask_kji: NDArray[np.bool_]) -> int | None:
        """The slice with most wrong pixels; None when all are right."""
        wrong = [
            int((self._stack.mask_of(mask_kji, n) ^ self._truth_hw(n)).sum()) for n in range(len(self._stack))
        ]
        return int(np.argmax(wrong)) if any(wrong) else None

    def _truth_hw(self, n: int) -> NDArray[np.bool_]:
        return self._stack.mask_of(self._truth_kji, n)

    def _ijk(self, x: float, y: float, n: int) -> tuple[float, float, float]:
        i, j, k = self._stack.to_ijk([[x, y, n]])[0]
        return float(i), float(j), float(k)
