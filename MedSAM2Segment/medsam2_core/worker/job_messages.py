"""Requests for Auto models, exports and trainings, and their results, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from medsam2_core.auto import library
from medsam2_core.auto.predictions import AutoPrediction
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.messages import example_to_json, prompt_from_json, segmentation_to_json
from medsam2_core.worker.protocol import Arrays, checked, field_error


class _JobRequest:
    """Base of dataclasses that are sent as the fields of a request, without those that are None."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the request."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }


@dataclass(frozen=True)
class AutoRequest(_JobRequest):
    """Request to an Auto model.

    Attributes
    ----------
    model
        Name of its file, or a path on the worker's machine.
    classes
        Names of the wanted classes; None for all.
    first, last
        Slices, inclusive; None for the first or last of the volume.
    method
        ``memory`` or ``slices``; None for the default.
    """

    model: str
    classes: tuple[str, ...] | None = None
    first: int | None = None
    last: int | None = None
    method: str | None = None
    flips: bool = False


@dataclass(frozen=True)
class SearchRequest:
    """Search for objects of another scan.

    Attributes
    ----------
    examples
        Scans of the same kind, or some of their slices, with segmentations on the same grids, and windows.
    prior
        An earlier segmentation of the same patient, where it lies in the new scan.
    """

    examples: Sequence[tuple[Volume, Segmentation, str]] = ()
    prior: Segmentation | None = None
    first: int | None = None
    last: int | None = None

    def to_json(self, arrays: Arrays) -> dict[str, Any]:
        """Return the fields of the request; voxels are added to `arrays`."""
        fields: dict[str, Any] = {"first": self.first, "last": self.last}
        if self.prior is not None:
            return {**fields, "prior": segmentation_to_json(self.prior, arrays)}
        return {**fields, "examples": [example_to_json(*one, arrays) for one in self.examples]}


@dataclass(frozen=True)
class TrainRequest(_JobRequest):
    """Training of a model; the fields are options of `medsam2 train auto` and `medsam2 train finetune`.

    Attributes
    ----------
    data
        A folder or CSV of images and labels on the worker's machine.
    resume
        Whether to continue an earlier training of this name, if there is one.
    """

    data: str
    name: str
    base: str | None = None
    classes: tuple[str, ...] | None = None
    minutes: float | None = None
    axis: str | None = None
    window: str | None = None
    device: str | None = None
    steps: int | None = None
    threads: int | None = None
    image_size: int | None = None
    seed: int | None = None
    skip_bad: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        for name in self.classes or ():
            if not name.strip() or "," in name:
                raise field_error("classes", self.classes, "must be names without commas")

    def arguments(self, out: str) -> list[str]:
        """Return the arguments of the command, without ``--resume``."""
        arguments = [self.data, "--out", out, "--json-progress"]
        for name, value in self.to_json().items():
            if name in ("data", "name", "resume") or value is False:
                continue
            arguments.append("--" + name.replace("_", "-"))
            if value is not True:
                text = ",".join(value) if isinstance(value, list) else value
                arguments.append(f"{text:g}" if isinstance(text, float) else str(text))
        return arguments


@dataclass(frozen=True)
class TrainAutoRequest(TrainRequest):
    """Training of an Auto model."""

    shots: int | None = None
    decoder: str | None = None
    folds: int | None = None


@dataclass(frozen=True)
class FineTuneRequest(TrainRequest):
    """Fine-tuning of a prompted model."""

    train: str | None = None
    dimension: str | None = None
    clip: int | None = None
    prompts: str | None = None
    batch: int | None = None
    learning_rate: float | None = None
    measure: int | None = None


@dataclass(frozen=True)
class ExportRequest(_JobRequest):
    """Export of a segmentation; the fields are options of `medsam2 export`. Paths are absolute.

    Attributes
    ----------
    dicom
        The files of the series; for DICOM SEG.
    measurements, report
        Additional files to write; None for none.
    drawn_on
        Grid of the volume the user drew on: ``{"ijk_to_ras": 4 x 4, "shape_ijk": 3 sizes}``.
    scratch
        Folder for temporary files, which the client removes should the worker be killed.
    """

    segmentation: str
    out: str
    dicom: tuple[str, ...] | None = None
    kind: str | None = None
    compression: str | None = None
    generic: bool = False
    series_description: str | None = None
    creator: str | None = None
    measurements: str | None = None
    report: str | None = None
    overwrite: bool = False
    drawn_on: dict[str, Any] | None = None
    scratch: str | None = None


def prediction_from_json(
    item: Any, arrays: Mapping[str, NDArray[Any]], received: Mapping[tuple[str, int], SliceMask]
) -> AutoPrediction:
    """Read an item of ``classes``, whose masks were received before. ProtocolError when it is invalid."""
    if not isinstance(item, dict):
        raise field_error("classes", item, "must be a list of JSON objects")
    name, slices = checked(item, "name", str), checked(item, "slices", list)
    for n in slices:
        if type(n) is not int or (name, n) not in received:
            raise field_error("slices", n, f"must be slices of {name[:60]!r} that came before")
    prompts = {}
    for n, listed in checked(item, "prompts", dict).items():
        if not n.isdecimal() or not isinstance(listed, list):
            raise field_error("prompts", n, "must be lists by slice number")
        prompts[int(n)] = tuple(prompt_from_json(one, arrays) for one in listed)
    colour = checked(item, "colour_rgb", list)
    if len(colour) != 3 or not all(isinstance(part, int | float) and 0 <= part <= 1 for part in colour):
        raise field_error("colour_rgb", colour, "must be three numbers from 0 to 1")
    return AutoPrediction(
        name,
        (float(colour[0]), float(colour[1]), float(colour[2])),
        checked(item, "terminology", str),
        checked(item, "confidence", float),
        prompts,
        {n: dataclasses.replace(received[name, n], prompted=n in prompts) for n in slices},
    )


@dataclass(frozen=True)
class AutoModelInfo:
    """Auto model in a worker's library.

    Attributes
    ----------
    file
        Name of its file without suffix, which requests use.
    dice
        Mean Dice over classes, as measured during training; None if unknown.
    """

    file: str
    path: str
    name: str
    classes: tuple[str, ...] = ()
    base: str = ""
    axis: str = "picture"
    modality: str = ""
    images: int = 0
    dice: float | None = None

    def fits(self, *, is_picture: bool, modality: str = "") -> bool:
        """Return whether it suits an image (see :func:`medsam2_core.auto.library.fits`)."""
        return library.fits(self, is_picture=is_picture, modality=modality)

    @property
    def is_for_pictures(self) -> bool:
        """Whether it was trained on pictures, not on slices of volumes."""
        return self.axis == "picture"

    @classmethod
    def from_json(cls, item: Any) -> AutoModelInfo:
        """Read an item of `auto_models`. ProtocolError when it is invalid."""
        if not isinstance(item, dict):
            raise field_error("models", item, "must be a list of JSON objects")
        texts = {
            name: checked(item, name, str) for name in ("file", "path", "name", "base", "axis", "modality")
        }
        classes = tuple(checked(one, "name", str) for one in checked(item, "classes", list))
        training = item.get("training")
        training = training if isinstance(training, dict) else {}
        images = training.get("images")
        images = images if type(images) is int else 0
        return cls(**texts, classes=classes, images=images, dice=_mean(training.get("dice")))


def auto_models_from_json(result: Mapping[str, Any]) -> tuple[AutoModelInfo, ...]:
    """Read the result of `auto_models`. ProtocolError when it is invalid."""
    return tuple(AutoModelInfo.from_json(item) for item in checked(result, "models", list))


def _mean(dice: Any) -> float | None:
    """Return the mean of a number, of numbers by class, or of the statistics of each class."""
    if isinstance(dice, dict):
        means = [_mean(one.get("mean") if isinstance(one, dict) else one) for one in dice.values()]
        known = [one for one in means if one is not None]
        return sum(known) / len(known) if known else None
    return float(dice) if isinstance(dice, int | float) and not isinstance(dice, bool) else None
