"""Section of the page for the user's own models: listed, removed, trained from a folder or the scene."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medsam2_core.errors import Cancelled, MedSAM2Error, ProtocolError
from medsam2_core.worker.client import WorkerClient
from medsam2_core.worker.job_messages import AutoModelInfo, auto_models_from_json

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.ModelsSection import ModelsSection
from MedSAM2SegmentLib.Page.MyModelRows import diceOf, problemsText, rowOfAuto, rowOfFineTuned
from MedSAM2SegmentLib.Page.PageState import Level, MyModelsView, StatusLine, sizeText
from MedSAM2SegmentLib.Page.WorkerSection import ask

#: Kinds of models that can be trained: those that need no prompt, and those that answer prompts.
AUTO, FINE_TUNED = "auto", "finetune"
SCENE, FOLDER = "scene", "folder"
ENOUGH = 10  # labelled images needed for a useful model
_FEWEST_CORRECTIONS = 2  # slices; with fewer, training refuses
_FEWEST_FIGURE = 0.005  # less is no difference
_EMBEDDED = "embedded"
_IMPROVED = " improved"
_STOPPED = _("The training was stopped.")


class MyModelsSection:
    """Lists, removes and trains the user's models, one at a time.

    A training holds a worker itself, so it continues when the page is left.

    Parameters
    ----------
    cases
        Labelled volumes of the scene (SceneCases); None without a scene.
    models
        The section that lists fine-tuned models among all others.
    corrections
        Slices the user has corrected (Corrections); None without.
    """

    def __init__(
        self, settings, workers, cases, changed: Callable[[], None], models: ModelsSection, corrections=None
    ) -> None:
        self._settings, self._workers, self._cases = settings, workers, cases
        self._changed, self._prompted, self._corrections = changed, models, corrections
        self.client: WorkerClient | None = None  # of the page
        self._models: tuple[AutoModelInfo, ...] = ()
        self._damaged: tuple[str, ...] = ()
        self._line = StatusLine()
        self._isRemoving = False
        self._training: Any = None
        self._folder: Path | None = None  # with the volumes of the scene
        self._names: dict[str, str] = {}  # of the volumes, by file
        self._fraction = -1.0
        self._stopped: tuple[str, dict[str, Any]] | None = None  # request that can be continued
        self._learned = 0, 0  # number and bytes of the corrections that were trained on last

    def view(self) -> MyModelsView:
        """Return what to show."""
        isThere, isTraining = self.client is not None, self._training is not None
        count, size = self._corrections.size() if self._corrections is not None else (0, 0)
        isLocal = not self._settings.remoteCommand  # a worker elsewhere cannot read files of this computer
        prompted = (rowOfFineTuned(entry) for entry in self._prompted.own)
        return MyModelsView(
            rows=(*(rowOfAuto(model) for model in self._models), *prompted),
            line=self._line if self._line.text else self._idleLine(),
            sources=self._sources(),
            fraction=self._fraction if isTraining else None,
            canChange=isThere and not self._isRemoving,
            canTrain=isThere and not isTraining,
            canCancel=isTraining,
            corrections=self._correctionsText(count, size),
            canImprove=isThere and not isTraining and isLocal and count >= _FEWEST_CORRECTIONS,
            canForget=count > 0 and not isTraining,
        )

    def setClient(self, client: WorkerClient | None) -> None:
        """List the models of this worker; None if there is no worker."""
        self.client, self._isRemoving = client, False
        if client is not None:
            self._requestList()

    def stop(self) -> None:
        """Stop a training at once and release its worker, because the runtime is being changed."""
        if self._training is not None:
            self._training.cancel()
            self._release()
            self._line = StatusLine(_STOPPED)

    def cleanup(self) -> None:
        """Stop everything before the page is destroyed."""
        self._changed = lambda: None
        self.stop()

    # The list

    def remove(self, file: str, isPrompted: bool = False) -> None:
        """Delete a model and its report."""
        if self.client is None:
            text = _("No worker is running: a model can be removed as soon as one is connected.")
            self._setLine(text, Level.WARNING)
        if self.client is None or self._isRemoving:
            return

        def end(text: str, level: Level) -> None:
            self._isRemoving = False
            self._setLine(text, level)

        def done(result: Mapping[str, Any]) -> None:
            text = _("{name} is removed; {size} are free again.")
            if isPrompted and self._settings.defaultModel == file:
                self._settings.defaultModel = _EMBEDDED
            self._refresh()
            end(text.format(name=file, size=sizeText(result.get("bytes", 0))), Level.OK)

        def failed(error: MedSAM2Error) -> None:
            end(str(error), Level.ERROR)

        self._isRemoving = True
        request = ("remove_model", {"name": file}) if isPrompted else ("remove_auto_model", {"model": file})
        ask(self, *request, done=done, failed=failed)
        self._changed()

    def _refresh(self) -> None:
        self._requestList()
        self._prompted.refresh()

    def _requestList(self) -> None:
        # Workers of earlier versions do not know the request, which is not an error.
        ask(self, "auto_models", {}, done=self._setList, failed=lambda error: None)

    def _setList(self, result: Mapping[str, Any]) -> None:
        try:
            self._models = auto_models_from_json(result)
        except ProtocolError as error:
            self._models, self._line = (), StatusLine(str(error), Level.ERROR)
        damaged = [one.get("reason") for one in result.get("damaged") or () if isinstance(one, Mapping)]
        self._damaged = tuple(str(reason) for reason in damaged)
        self._changed()

    def _idleLine(self) -> StatusLine:
        """Return a problem with the files, or how to start."""
        if self._damaged:
            return StatusLine(self._damaged[0], Level.WARNING)
        if self.client is not None and not self._models and not self._prompted.own:
            text = _("No model of your own yet: train one from {count} labelled images.")
            return StatusLine(text.format(count=ENOUGH))
        return StatusLine()

    # Corrections

    def improve(self, minutes: int) -> None:
        """Fine-tune low-rank updates of the default model on the user's corrections; it stays as it is."""
        if self._training is not None or self._corrections is None:
            return
        corrections = self._corrections.size()
        if corrections != self._learned:
            self._stopped = None  # a stopped training does not continue on other data
        self._learned = corrections
        base = self._settings.defaultModel
        fields = {
            "data": str(self._corrections.folder),
            "name": base.partition(_IMPROVED)[0] + _IMPROVED,
            "minutes": float(minutes),
            "base": base,
            "train": "lora",
        }
        self._begin(FINE_TUNED, fields, FOLDER)

    def forget(self) -> None:
        """Delete the user's corrections; models trained on them stay."""
        try:
            self._corrections.remove()
            self._setLine(_("The corrections are deleted; models trained on them stay."), Level.OK)
        except OSError as error:
            text = _("The corrections could not be deleted: {reason}")
            self._setLine(text.format(reason=error), Level.ERROR)

    def _correctionsText(self, count: int, size: int) -> str:
        if self._corrections is None:
            return ""
        if not count:
            return _("No corrections are kept. The effect keeps them with Learn from corrections.")
        one, several = (
            _("1 corrected slice, {size}, in {folder}"),
            _("{count} corrected slices, {size}, in {folder}"),
        )
        return (one if count == 1 else several).format(
            count=count, size=sizeText(size), folder=self._corrections.folder
        )

    # Training

    def train(
        self,
        kind: str,
        source: str,
        folder: str,
        name: str,
        minutes: int,
        classes: str = "",
        skipBad: bool = False,
    ) -> None:
        """Train a model of this name, for this many minutes.

        Parameters
        ----------
        kind
            "auto": one that needs no prompt; "finetune": one that answers prompts, from the default model.
        source
            "scene" or "folder".
        folder
            Of images and labels, on the worker's machine.
        classes
            Names separated by commas; empty for all.
        skipBad
            Whether to leave out images with problems.
        """
        if self._training is not None:
            return
        folder, name = folder.strip(), name.strip()
        if source == FOLDER and not folder:
            self._setLine(_("Choose a folder of images and labels first"), Level.ERROR)
            return
        name = name or (Path(folder).name if source == FOLDER else SCENE)
        fields: dict[str, Any] = {"data": folder, "name": name, "minutes": float(minutes)}
        if names := [one.strip() for one in classes.split(",") if one.strip()]:
            fields["classes"] = names
        if self._settings.defaultModel != _EMBEDDED:
            fields["base"] = self._settings.defaultModel
        fields.update({"skip_bad": True} if skipBad else {})
        self._begin(kind, fields, source)

    def cancel(self) -> None:
        """Cancel a training after its present step."""
        if self._training is not None:
            self._training.cancel()
            self._setLine(_("The training is being stopped…"), Level.BUSY)

    def _begin(self, kind: str, fields: dict[str, Any], source: str) -> None:
        try:
            self._start(kind, fields, source)
        except (MedSAM2Error, OSError) as error:
            self._release()
            self._line = StatusLine(str(error), Level.ERROR)
        self._changed()

    def _start(self, kind: str, fields: dict[str, Any], source: str) -> None:
        if source == SCENE:
            self._folder = Path(tempfile.mkdtemp(prefix="medsam2-train-"))
            self._names = self._cases.write(self._folder) if self._cases is not None else {}
            fields = {**fields, "data": str(self._folder)}
        elif (kind, fields) == self._stopped:
            fields = {**fields, "resume": True}
        client = self._workers.acquire(self)
        self._fraction = -1.0
        self._line = StatusLine(_("Training {name}…").format(name=fields["name"]), Level.BUSY)
        self._stopped = None

        def failed(error: MedSAM2Error) -> None:
            if not isinstance(error, Cancelled):
                self._end(StatusLine(self._errorText(error), Level.ERROR))
            elif source == SCENE:
                # The files of the scene are deleted, and the scene may change.
                self._end(StatusLine(_STOPPED))
            else:
                self._stopped = kind, {name: value for name, value in fields.items() if name != "resume"}
                self._end(
                    StatusLine(_("The training was stopped; started again with the same data, it continues."))
                )

        self._training = client.request(
            f"train_{kind}",
            fields,
            done=self._onTrained if kind == AUTO else self._onFineTuned,
            failed=failed,
            progress=self._onProgress,
            note=self._onNote,
        )

    def _onProgress(self, _what: str, done: int, total: int | None) -> None:
        self._fraction = min(1.0, done / total) if total else -1.0
        self._changed()

    def _onNote(self, text: str) -> None:
        self._setLine(_("Training: {step}").format(step=self._withVolumeNames(text)), Level.BUSY)

    def _onTrained(self, result: Mapping[str, Any]) -> None:
        try:
            model = AutoModelInfo.from_json(result.get("model"))
        except ProtocolError as error:
            self._end(StatusLine(str(error), Level.ERROR))
            return
        dice = _(", Dice {dice:.2f}").format(dice=model.dice) if model.dice is not None else ""
        text = _("{name} is trained on {images} images{dice}: choose it at Auto in the effect.")
        text = text.format(name=model.name, images=model.images, dice=dice)
        if 0 < model.images < ENOUGH:
            text += " " + _("More than {images} would make it better.").format(images=model.images)
        self._end(StatusLine(text, Level.OK))

    def _onFineTuned(self, result: Mapping[str, Any]) -> None:
        """Tell what a fine-tuned model is worth, and warn when it is not better than the one before."""
        row, level = rowOfFineTuned(result.get("model") or {}), Level.OK
        text = _("{name} is fine-tuned on {images} images or volumes: choose it under Model in the effect.")
        text = text.format(name=row.name, images=row.images)
        before, after = (diceOf(result.get("model") or {}, when) for when in ("before", "after"))
        if before is None or after is None:
            text += " " + _("Nothing was held aside to measure it on: give five patients or more.")
        else:
            text += " " + _("One box: Dice {dice}.").format(dice=row.dice)
            if after < before + _FEWEST_FIGURE:
                level = Level.WARNING
                text += " " + _("It is not better: keep the earlier model, or give more cases.")
        self._end(StatusLine(text, level))

    def _setLine(self, text: str, level: Level) -> None:
        self._line = StatusLine(text, level)
        self._changed()

    def _end(self, line: StatusLine) -> None:
        self._release()
        self._line = line
        if self.client is not None:
            self._refresh()
        self._changed()

    def _release(self) -> None:
        """Release the worker, and delete the files written for it."""
        self._training = None
        self._workers.release(self)
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _errorText(self, error: MedSAM2Error) -> str:
        text = problemsText(error.fields) if error.code in ("bad-data", "bad-images") else str(error)
        if error.code == "training-memory":  # the page has no such options
            text = _("The memory is full: choose a smaller default model, or close other programs")
        text = self._withVolumeNames(text)
        # Capitalized, unless it begins with the name of a file.
        return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text

    def _withVolumeNames(self, text: str) -> str:
        """Replace names of temporary files by those of their volumes."""
        for file, name in self._names.items():
            text = text.replace(file, repr(name))
        return text

    def _sources(self) -> tuple[tuple[str, str], ...]:
        folder = (FOLDER, _("A folder"))
        if self._cases is None or self._settings.remoteCommand:
            return (folder,)  # the worker cannot read files of this computer
        count = len(self._cases.names())
        one, several = (
            _("This scene (1 volume with segments)"),
            _("This scene ({count} volumes with segments)"),
        )
        scene = (SCENE, one if count == 1 else several.format(count=count))
        return (scene, folder) if count else (folder, scene)
