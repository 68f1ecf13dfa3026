"""Where tracking ends: the weights of a recipe's ``presence``, fitted to tracked training data.

The rule is fitted, and judged by the Dice of whole objects, on slices that were tracked without it
(:mod:`~medsam2_core.training.tracked`). One kind of data at a time is left out of the fit and judged.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from medsam2_core.atomic import make_folder, new_file
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import TrainingError
from medsam2_core.training.sources import data_key, load_sources
from medsam2_core.training.tracked import FEWEST_SLICES, Tracked, queue, read_evidence, track, write_evidence

_PENALTY = 1e-3
# What slices without the object count together, beside those with it: by Dice on kinds left out of the fit.
_ABSENT = 0.4
_TRIES = 4  # cases for each object that is wanted: some hold none with enough slices


def fit(tracked: Sequence[Tracked]) -> NDArray[np.float64]:
    """Return the (5,) weights of a logistic regression of an object's presence on the evidence of a slice.

    Every kind of data counts as much as any other, every object of a kind, and slices without the object 0.4
    times as much in all as those with it. A slight penalty keeps weights finite where evidence and truth
    agree everywhere.

    Raises
    ------
    TrainingError
        ``presence-one-sided``: every tracked slice with a mask shows its object, or none does.
    """
    with_mask = [one for one in tracked if one.has_mask.any()]
    present = np.concatenate([np.zeros(0, bool), *(one.present[one.has_mask] for one in with_mask)])
    if present.all() or not present.any():
        message = f"all of {len(present)} tracked slices show their object, or none does: track more objects"
        raise TrainingError(message, code="presence-one-sided", slices=len(present))
    objects = Counter(one.kind for one in with_mask)
    says = np.concatenate([one.evidence[one.has_mask] for one in with_mask])
    counts = np.concatenate(
        [np.full(n, 1 / (n * objects[one.kind])) for one in with_mask if (n := one.has_mask.sum())]
    )
    counts *= np.where(present, 1 / counts[present].sum(), _ABSENT / counts[~present].sum())
    mean, spread = says[:, 1:].mean(0), says[:, 1:].std(0) + 1e-9
    inputs = np.column_stack([np.ones(len(says)), (says[:, 1:] - mean) / spread])

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits, small = inputs @ weights, np.r_[0.0, weights[1:]]
        value = counts @ np.logaddexp(0, np.where(present, -logits, logits)) + _PENALTY * small @ small
        return float(value), inputs.T @ (counts * (expit(logits) - present)) + 2 * _PENALTY * small

    found = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    slopes = found[1:] / spread
    return np.r_[found[0] - slopes @ mean, slopes]


def kinds(tracked: Sequence[Tracked]) -> list[str]:
    """Return the kinds of data in the order in which they first appear."""
    return list(dict.fromkeys(one.kind for one in tracked))


@dataclass(frozen=True)
class Figures:
    """What the rule is worth on one kind of data.

    Attributes
    ----------
    auc
        Area under the ROC curve of presence on slices; None where all or none show their object, or nothing
        was fitted.
    none, recipe, fitted, true
        Mean Dice without the rule, with the recipe's weights (None if it has none), with the fitted ones
        (None if the other data cannot be fitted), and with the true ends.
    """

    objects: int
    auc: float | None
    none: float
    recipe: float | None
    fitted: float | None
    true: float

    @classmethod
    def of(
        cls, tracked: Sequence[Tracked], weights: NDArray[np.float64] | None, recipe: Sequence[float]
    ) -> "Figures":
        """Return those of some objects."""
        says = np.concatenate([one.evidence[one.has_mask] for one in tracked])
        present = np.concatenate([one.present[one.has_mask] for one in tracked])

        def dice(slices: Callable[[Tracked], NDArray[np.bool_]]) -> float:
            return float(np.mean([one.dice(slices(one)) for one in tracked]))

        return cls(
            len(tracked),
            None if weights is None else _auc(says @ weights, present),
            dice(lambda one: one.has_mask),
            dice(lambda one: one.shown(recipe)) if len(recipe) else None,
            None if weights is None else dice(lambda one: one.shown(weights)),
            dice(lambda one: one.has_mask & one.present),
        )  # fmt: skip


def judge(tracked: Sequence[Tracked], recipe: Sequence[float] = ()) -> dict[str, Figures]:
    """Return figures by kind of data, with weights fitted to the other kinds; of held-back cases, to all.

    The latter have the names of their kinds with ``, held back``. `recipe` are the weights a model has.

    Raises
    ------
    TrainingError
        ``presence-one-sided``: nothing can be fitted to all kinds. Where only the others cannot be fitted,
        a kind has no figures of a fit.
    """
    training = [one for one in tracked if not one.held_back]
    figures = {}
    for kind in kinds(training):
        weights = _fit_or_none([one for one in training if one.kind != kind])
        figures[kind] = Figures.of([one for one in training if one.kind == kind], weights, recipe)
    held_back, weights = [one for one in tracked if one.held_back], fit(training)
    for kind in kinds(held_back):
        of_kind = [one for one in held_back if one.kind == kind]
        figures[f"{kind}, held back"] = Figures.of(of_kind, weights, recipe)
    return figures


def _fit_or_none(tracked: Sequence[Tracked]) -> NDArray[np.float64] | None:
    try:
        return fit(tracked)
    except TrainingError:  # every slice shows its object, or none does
        return None


def _auc(values: NDArray[np.float64], present: NDArray[np.bool_]) -> float | None:
    count = int(present.sum())
    absent = len(present) - count
    if not count or not absent:
        return None
    return float((rankdata(values)[present].sum() - count * (count + 1) / 2) / (count * absent))


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it is worth."""

    weights: tuple[float, ...]
    figures: dict[str, Figures]


def calibrate(
    data: str | Path,
    folder: str | Path,
    model: SegmentationModel,
    objects: int = 69,
    seed: int = 1,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> Calibration:
    """Track objects of a training folder, fit the rule and judge it.

    The tracked evidence is kept in ``evidence.npz`` of the folder; the same call goes on with it. Weights and
    figures are written to ``presence.json``; the model stays as it is.

    Parameters
    ----------
    data
        As for :func:`~medsam2_core.training.sources.load_sources`; pictures are left out.
    objects
        How many to track, shared equally between kinds of data; held-back cases of a kind are one, too.
    progress
        Called with objects tracked so far, and what comes next.

    Raises
    ------
    TrainingError
        The data cannot be used, the folder's evidence is damaged or of another model, seed or data, or
        nothing can be fitted.
    """
    folder = Path(folder)
    about = {"model": model.weights_key, "seed": seed, "data": data_key(data)}
    tracked, tried = read_evidence(folder / "evidence.npz", about)
    if len(tracked) < objects:
        cases = islice(queue(load_sources(data), seed), tried, _TRIES * objects)
        make_folder(folder)
        for stack, held_back in cases:
            progress(len(tracked), f"{stack.row} {stack.case}")
            one = track(stack, held_back, model, np.random.default_rng([seed, tried]))
            tried += 1
            if one is not None:
                tracked.append(one)
                write_evidence(folder / "evidence.npz", tracked, about, tried)
            if len(tracked) == objects:
                break
    tracked = tracked[:objects]
    training = [one for one in tracked if not one.held_back]
    if (found := len(kinds(training))) < 2:
        message = (
            f"{data}: objects of {found} kinds of data with {FEWEST_SLICES} slices or more, two are needed: "
            "one at a time is left out to judge the fit to the others"
        )
        raise TrainingError(message, code="too-few-kinds", folder=str(data), found=found)
    result = Calibration(
        tuple(round(float(w), 2) for w in fit(training)), judge(tracked, model.recipe.presence)
    )
    with new_file(folder / "presence.json", overwrite=True) as stream:
        stream.write((json.dumps({**about, **asdict(result)}, indent=1) + "\n").encode())
    return result
