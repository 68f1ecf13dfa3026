"""Few-shot training from images to a model: features, cross-validation folds, and the final fit.

The state is stored in a work folder, from which a training that was killed at any moment resumes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medsam2_core.auto.fewshot.features import FeatureBank, VariantPlan
from medsam2_core.auto.fewshot.fit import Fit, Progress
from medsam2_core.auto.fewshot.results import TrainingResult, least_piece, spread
from medsam2_core.auto.fewshot.settings import FewShotSettings, Stage, StageProgress, plan_stages
from medsam2_core.auto.fewshot.start import PretrainedStart, choose_queries, fit_class_weights, initialise
from medsam2_core.auto.fewshot.survey import Survey
from medsam2_core.auto.model import AutoModel, untrained_model
from medsam2_core.auto.model_file import AutoCard
from medsam2_core.auto.predictor import PredictorSettings
from medsam2_core.engine.checkpoint import DAMAGE
from medsam2_core.errors import TrainingError
from medsam2_core.version import __version__

if TYPE_CHECKING:
    from medsam2_core.engine.segmentation_model import SegmentationModel

_FEATURE_SHARE = 0.12  # of the time that goes into features
_FOLD_SHARE = 0.45  # of the time that goes into folds
_SAVE_EVERY_S = 20.0
# For writing model and report: a share of the time, or some seconds, but never more than a larger share.
_RESERVE, _RESERVE_S, _MOST_RESERVED = 0.03, 5.0, 0.2
_MEASURED_STEPS = 3  # for the time a step takes
_LEAST_STEPS, _MOST_STEPS = 20, 20_000


class FewShotTrainer:
    """Trains an Auto model on a few labelled images.

    Parameters
    ----------
    survey
        The data, without fatal problems (see :meth:`Survey.raise_for_problems`).
    start
        Pretrained weights; None for random ones.
    started
        When the time began to count, by that clock; now by default.
    """

    def __init__(
        self,
        settings: FewShotSettings,
        survey: Survey,
        model: SegmentationModel,
        work: str | Path,
        start: PretrainedStart | None = None,
        report: Callable[[StageProgress], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self.settings, self.model, self.work, self.start = settings, model, Path(work), start
        self._report, self._clock = report, clock
        self.images, self.classes = survey.images, survey.classes
        self.stages = plan_stages(self.images, settings)
        self._state: dict[str, Any] = {"seconds": 0.0, "done": {}, "steps": {}}
        self._since = self._clock() if started is None else started
        self._read_state()
        if self._state.get("no_folds"):
            self.stages = self.stages[-1:]

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> TrainingResult | None:
        """Train to the end; return None if it was stopped, which can be resumed.

        Raises
        ------
        TrainingError
            ``too-little-time`` when the minutes do not suffice for a model; the work folder is removed.
        """
        bank = self._bank()
        filled = bank.fill(
            lambda done, total: self._report(StageProgress("features", done, total)),
            lambda: should_stop() or self._left() <= 0,
        )
        self._write_state()
        if not filled and should_stop():
            return None
        if not filled:
            raise self._too_little_time(self._budget / 0.5)
        self._plan_time(bank)
        fit = None
        for stage in self.stages:
            if stage.name in self._state["done"] and stage is not self.stages[-1]:
                continue
            fit = self._fit(stage, bank)
            if not self._run_stage(stage, fit, should_stop):
                return None
        assert fit is not None
        outcome = self._outcome(fit.auto)
        bank.remove()
        return outcome

    def _bank(self) -> FeatureBank:
        auto, settings = self._blank(), self.settings
        if "variants" not in self._state:  # decided once: a resumed run needs the same
            each = FeatureBank.bytes_each(self.model)
            plan = VariantPlan.for_images(len(self.images), each, settings.augmentation, settings.seed)
            self._state["variants"] = min(plan.variants, self._affordable(auto))
            self._write_state()
        plan = VariantPlan(self._state["variants"], settings.augmentation, settings.seed)
        return FeatureBank(self.work / "features", self.images, auto, plan)

    def _affordable(self, auto: AutoModel) -> int:
        """Return how many variants of an image there is time for, or that the steps can use."""
        settings, count = self.settings, len(self.images)
        share = 1 - settings.fit.texture_share if settings.texture else 1.0
        if settings.steps is not None:
            return max(2, math.ceil(share * settings.steps * settings.fit.batch / count))
        side = self.model.image_size
        auto.encode(torch.zeros(1, 3, side, side))  # the first one is slow
        began = self._clock()
        auto.encode(torch.zeros(2, 3, side, side))
        each = max(1e-6, (self._clock() - began) / 2)
        if 2 * each * count > self._left():
            raise self._too_little_time((2 * each * count + self._seconds()) / 0.5)
        return max(2, int(share * _FEATURE_SHARE * settings.minutes * 60 / (each * count)))

    def _blank(self) -> AutoModel:
        torch.manual_seed(self.settings.seed)
        auto = untrained_model(self._card(), self.model)
        if self.start is not None:
            initialise(auto, self.start)
        return auto

    def _card(self, training: dict[str, Any] | None = None) -> AutoCard:
        settings = self.settings
        predictor = PredictorSettings.for_module(
            self.model.module, len(self.classes), settings.heads, settings.kind
        )
        parts = ["adapters"] if self.start is not None and self.start.adapters else []
        parts += ["texture"] if settings.texture else []
        return AutoCard(
            name=settings.name, classes=self.classes, base=self.model.name, base_key=self.model.weights_key,
            image_size=self.model.image_size, window=settings.window, axis=settings.axis,
            modality=settings.modality, predictor=predictor.to_dict(), decoder=settings.decoder,
            encoder="+".join(parts) or "frozen", training=training or {},
        )  # fmt: skip

    def _fit(self, stage: Stage, bank: FeatureBank) -> Fit:
        auto = self._blank()
        fit_class_weights(auto, bank, self.images, stage.training)
        if self.start is not None:
            choose_queries(auto, self.start, bank, self.images, stage.training)
        return Fit(
            auto, bank, self.images, stage.training, stage.validation, self.settings.fit, self.settings.seed,
            has_start=self.start is not None and bool(self.start.texture),
        )  # fmt: skip

    def _run_stage(self, stage: Stage, fit: Fit, should_stop: Callable[[], bool]) -> bool:
        saved, path = self._clock(), self.work / "fit.pt"
        self._restore(fit, path, stage)
        steps = self._steps(stage, fit)
        ends = self._seconds() + self._share(stage)

        def report(progress: Progress) -> None:
            nonlocal saved
            if self._clock() - saved > _SAVE_EVERY_S:
                self._save(fit, path, stage)
                saved = self._clock()
            dice = progress.best_dice if progress.best_dice >= 0 else None
            self._report(StageProgress(stage.name, progress.step, progress.total, dice))

        def seconds_left() -> float:
            return ends - self._seconds()

        if not fit.run(steps["total"], report, should_stop, steps["alone"], seconds_left):
            self._save(fit, path, stage)
            return False
        steps["total"], steps["alone"] = fit.progress.total, fit.progress.alone
        found = fit.measure(stage.validation)
        self._state["done"][stage.name] = {
            "dice": found,
            "best": fit.best_share(),
            "history": fit.progress.history,
            "skipped": fit.progress.skipped,
        }
        labels: dict[str, Any] = {str(n): fit.labels_of(n).astype(np.int16) for n in stage.validation[:4]}
        np.savez_compressed(self.work / f"{stage.name.replace(' ', '-')}.npz", **labels)
        # Kept whole until the model is written: the last stage may be asked for again.
        self._save(fit, path, stage)
        self._write_state()
        return True

    def _steps(self, stage: Stage, fit: Fit) -> dict[str, int]:
        """Return the steps of a stage: ``total``, of which ``alone`` train the texture adapter alone.

        They are planned once, by the time that is left and the speed of this machine; :meth:`Fit.run` lowers
        them when the machine becomes slower.
        """
        known = self._state["steps"]
        if stage.name not in known:
            if self.settings.steps is not None:
                steps = self.settings.steps if stage.is_final else max(1, self.settings.steps // 2)
            else:
                steps = int(min(self._share(stage) / self._state["seconds_a_step"], _MOST_STEPS))
            alone = fit.alone_of(steps)
            if stage.is_final and len(self.stages) > 1:
                # The predictor is trained about as long as was best on images it had not seen.
                best = [self._state["done"][one.name]["best"] for one in self.stages[:-1]]
                useful = float(np.clip(1.2 * np.mean(best), 0.4, 1.0))
                steps = alone + max(1, round((steps - alone) * useful))
            known[stage.name] = {"total": steps, "alone": alone}
            self._write_state()
        return known[stage.name]

    def _plan_time(self, bank: FeatureBank) -> None:
        """Measure a step; leave out folds there is no time for.

        Raises
        ------
        TrainingError
            ``too-little-time``: not even the final fit can be made.
        """
        if self.settings.steps is not None or "seconds_a_step" in self._state:
            return
        each = self._fit(self.stages[-1], bank).seconds_a_step(self._clock, _MEASURED_STEPS)
        self._state["seconds_a_step"] = max(each, 1e-6)
        least, folds = _LEAST_STEPS * each, len(self.stages) - 1
        if folds and self._left() * _FOLD_SHARE < folds * least and self.settings.folds is None:
            self._state["no_folds"] = True
            self.stages = self.stages[-1:]
        if min(map(self._share, self.stages)) < least:
            raise self._too_little_time(self._seconds() + (least * (folds + 1)) / (1 - _FOLD_SHARE))
        self._write_state()

    def _share(self, stage: Stage) -> float:
        """Return the seconds a stage may take: folds divide a part of what is left, the final fit has all."""
        if self.settings.steps is not None:
            return math.inf
        left, done = self._left(), self._state["done"]
        waiting = sum(one.name not in done for one in self.stages[:-1])
        if stage.is_final or not waiting:
            return left
        # So that every fold gets the same, as each takes its share of what the earlier ones left.
        gone = len(self.stages) - 1 - waiting
        return left * _FOLD_SHARE / (waiting + gone * (1 - _FOLD_SHARE))

    @property
    def _budget(self) -> float:
        """Seconds for everything but writing the results."""
        seconds = self.settings.minutes * 60
        reserved = min(max(_RESERVE * seconds, _RESERVE_S), _MOST_RESERVED * seconds)
        return seconds - reserved if self.settings.steps is None else math.inf

    def _left(self) -> float:
        return self._budget - self._seconds()

    def _too_little_time(self, needed: float) -> TrainingError:
        """Return the error that says how long it would take, about; the work folder is of no use any more."""
        shutil.rmtree(self.work, ignore_errors=True)
        minutes = max(math.ceil(needed / 60), math.ceil(self.settings.minutes * 1.5))
        return TrainingError(
            f"{self.settings.minutes:g} minutes are too little for a model of {len(self.images)} images on "
            f"this machine, as busy as it is: give about {minutes} minutes, fewer images, or no folds",
            code="too-little-time", minutes=self.settings.minutes, needed=minutes, images=len(self.images),
        )  # fmt: skip

    def _outcome(self, auto: AutoModel) -> TrainingResult:
        done = self._state["done"]
        rows = [row for result in done.values() for row in result["dice"]]
        dice = {one.name: spread([row[k] for row in rows]) for k, one in enumerate(self.classes) if rows}
        training = {
            "images": sum(not image.held_out for image in self.images),
            "groups": len({image.group for image in self.images if not image.held_out}),
            "images_by_class": {
                one.name: sum(image.has(k) and not image.held_out for image in self.images)
                for k, one in enumerate(self.classes, start=1)
            },
            "steps": self._state["steps"][self.stages[-1].name]["total"],
            "seconds": round(self._seconds()),
            "folds": len(self.stages) - 1,
            "dice": dice,
            "start": "none" if self.start is None else "packaged" if self.start.predictor else "texture",
            "software": f"MedSAM2Segment {__version__}",
        }
        samples = []
        for stage in self.stages:
            path = self.work / f"{stage.name.replace(' ', '-')}.npz"
            if path.exists():
                with np.load(path) as found:
                    samples += [(self.images[int(n)], found[n]) for n in found.files]
        card = self._card(training)
        kept = [image for image in self.images if not image.held_out]
        classes = [
            replace(one, least_piece=round(least_piece(kept, k), 6))
            for k, one in enumerate(card.classes, start=1)
        ]
        final = replace(auto, card=replace(card, classes=tuple(classes)))
        return TrainingResult(final, dice, {name: one["history"] for name, one in done.items()}, samples)

    # The work folder

    def _seconds(self) -> float:
        return self._state["seconds"] + self._clock() - self._since

    def _save(self, fit: Fit, path: Path, stage: Stage) -> None:
        partial = path.with_suffix(".partial")
        try:
            torch.save({"stage": stage.name, "fit": fit.state()}, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            message = f"{path} cannot be written: {error}"
            raise TrainingError(message, code="run-not-writable", path=str(path)) from error
        self._write_state()

    def _restore(self, fit: Fit, path: Path, stage: Stage) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["stage"] == stage.name:
                fit.restore(state["fit"])
        except DAMAGE as error:
            message = f"{path} is damaged ({str(error)[:100]}): remove the folder {self.work} to start again"
            raise TrainingError(message, code="run-damaged", path=str(path), folder=str(self.work)) from error

    def _write_state(self) -> None:
        now = self._clock()
        self._state["seconds"] += now - self._since
        self._since = now
        partial = self.work / "run.json.partial"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"key": self._key(), **self._state}), encoding="utf-8")
            partial.replace(self.work / "run.json")
        except OSError as error:
            message = f"{self.work} cannot be written: {error.strerror or error}"
            raise TrainingError(message, code="run-not-writable", path=str(self.work)) from error

    def _read_state(self) -> None:
        path = self.work / "run.json"
        if not path.exists():
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            key = state.pop("key")
            kept = ("seconds", "done", "steps", "variants", "seconds_a_step", "no_folds")
            self._state = {name: state[name] for name in kept if name in state}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path} is damaged: remove the folder {self.work} to start again"
            raise TrainingError(message, code="run-damaged", path=str(path), folder=str(self.work)) from error
        if key != self._key():
            raise TrainingError(
                f"{self.work} holds an unfinished training with other images or settings: finish it with "
                "those, remove that folder, or choose another one",
                code="run-of-other-data", folder=str(self.work),
            )  # fmt: skip

    def _key(self) -> str:
        import hashlib

        digest = hashlib.sha256(self.model.weights_key.encode())
        settings = asdict(self.settings)
        digest.update(json.dumps([settings, [asdict(one) for one in self.classes]], sort_keys=True).encode())
        groups = list(dict.fromkeys(image.group for image in self.images))
        for image in self.images:
            # Groups by their order: how the path was spelt does not matter.
            digest.update(f"{image.key}{groups.index(image.group)}{image.held_out}".encode())
            digest.update(np.ascontiguousarray(image.labels_hw).tobytes())
        return digest.hexdigest()
