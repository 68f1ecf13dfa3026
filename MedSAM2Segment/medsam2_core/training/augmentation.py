"""How views of training differ from what was acquired."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsam2_core.errors import TrainingError

FLIPS = ("all", "mirror", "none")


@dataclass(frozen=True)
class Augmentation:
    """What is varied, and how much; the defaults are those of base training.

    Attributes
    ----------
    turn, stretch, shear
        Standard deviations of the angle (radians), of the logarithm of the stretch, and of the shear.
    bend
        Largest shift of an elastic deformation, as a share of the view.
    shift
        How far the object may lie from the middle of the view: 0 in the middle, 1 at its border.
    wide
        Share of views that show much more than the object's neighbourhood.
    thin
        Whether clips may leave out slices, so that the object ends in them.
    flips
        ``all``: mirrored and turned by quarters; ``mirror``: left and right exchanged; or ``none``.
    invert, contrast, degrade, tint
        Shares of views with inverted grey values, another gamma and brightness, a scanner's imperfections
        (noise, blur, bias field, speckle), and a tint.
    lesions
        Share of views into which a lesion is drawn.
    unions
        Share of views with two objects taken as one.
    transforms
        Transforms of MONAI by name, with their arguments: ``{"name": "RandGaussianNoise", "prob": 0.2}``.
    """

    turn: float = 0.3
    stretch: float = 0.12
    shear: float = 0.1
    bend: float = 0.07
    shift: float = 0.8
    wide: float = 0.2
    thin: bool = True
    flips: str = "all"
    invert: float = 0.1
    contrast: float = 0.45
    degrade: float = 0.35
    tint: float = 0.05
    lesions: float = 0.3
    unions: float = 0.25
    transforms: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values, as a file has it."""
        return {**asdict(self), "transforms": [dict(one) for one in self.transforms]}


#: For base training.
BASE = Augmentation()

#: For views of real cases with few of each kind: milder, and nothing that is not there.
FINE_TUNING = Augmentation(
    turn=0.15, stretch=0.08, shear=0.05, bend=0.04, shift=0.6, wide=0.1, flips="mirror", invert=0.0,
    contrast=0.5, degrade=0.15, tint=0.0, lesions=0.0, unions=0.0,
)  # fmt: skip

#: For validation: as acquired.
NONE = Augmentation(
    turn=0.0, stretch=0.0, shear=0.0, bend=0.0, shift=0.0, wide=0.0, thin=False, flips="none", invert=0.0,
    contrast=0.0, degrade=0.0, tint=0.0, lesions=0.0, unions=0.0,
)  # fmt: skip


def read_augmentation(path: str | Path, default: Augmentation = FINE_TUNING) -> Augmentation:
    """Read the fields that a JSON or YAML file has; the others are the default's.

    Raises
    ------
    TrainingError
        ``augmentation-unreadable``, ``augmentation-unknown``, ``augmentation-value``.
    """
    path = Path(path)
    import yaml  # type: ignore[import-untyped]

    try:
        text = path.read_text(encoding="utf-8")
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        content = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path, "it must be an object with the names of augmentations")
    known = {field.name: getattr(default, field.name) for field in fields(default)}
    for name, value in content.items():
        if name not in known:
            raise TrainingError(
                f"{path}: there is no augmentation {name!r}; known are {', '.join(known)}",
                code="augmentation-unknown", path=str(path), name=str(name), known=list(known),
            )  # fmt: skip
        known[name] = _checked(path, name, value, known[name])
    return Augmentation(**known)


def _checked(path: Path, name: str, value: Any, default: Any) -> Any:
    if name == "transforms":
        if isinstance(value, list) and all(isinstance(one, dict) and _is_random(one) for one in value):
            made = tuple(value)
            _composed(json.dumps(made, default=str))
            return made
        rule = "a list of objects, each with the name of one of MONAI's random transforms (Rand…)"
    elif name == "flips":
        if value in FLIPS:
            return value
        rule = " or ".join(FLIPS)
    elif isinstance(default, bool):
        if isinstance(value, bool):
            return value
        rule = "true or false"
    else:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        rule = "a number from 0 to 1"
    message = f"{path}: {name} is {value!r}: give {rule}"
    raise TrainingError(message, code="augmentation-value", path=str(path), name=name, value=repr(value))


def _is_random(one: Mapping[str, Any]) -> bool:
    name = one.get("name")
    return isinstance(name, str) and name.startswith("Rand") and name.isalnum()


def _unreadable(path: Path, reason: object) -> TrainingError:
    message = f"{path} cannot be read as augmentations: {' '.join(str(reason).split())[:200]}"
    return TrainingError(message, code="augmentation-unreadable", path=str(path))


def transformed(
    image: torch.Tensor, labels: torch.Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply MONAI's transforms to a view: all slices alike, labels by the nearest neighbour.

    Parameters
    ----------
    image
        (T, C, S, S) in 0..1.
    labels
        (T, S, S).
    """
    if not augmentation.transforms:
        return image, labels
    steps = _composed(json.dumps(augmentation.transforms, default=str))
    steps.set_random_state(seed=int(rng.integers(2**31)))
    frames, channels, side = image.shape[:3]
    # MONAI wants channels first, and treats all alike: slices and colours become channels.
    done = steps({"image": image.reshape(frames * channels, side, side).clone(), "labels": labels.float()})
    changed = torch.as_tensor(done["image"]).reshape(frames, channels, side, side)
    return changed.float().clamp(0, 1), torch.as_tensor(done["labels"]).round().to(labels.dtype)


@lru_cache(maxsize=4)
def _composed(content: str) -> Any:
    """Build MONAI's dictionary transforms from their JSON."""
    try:
        from monai import transforms as library
    except ImportError as error:
        raise TrainingError(
            "transforms of MONAI are asked for, which is not installed: pip install 'medsam2-core[metrics]', "
            "or use the other augmentations",
            code="monai-missing",
        ) from error
    steps: list[Any] = []
    for one in json.loads(content):
        arguments = {key: value for key, value in one.items() if key != "name"}
        made = getattr(library, f"{one['name']}d", None)
        try:
            if made is None:
                raise TypeError("MONAI has no such transform of dictionaries")
            steps.append(made(**_keys(made), **arguments))
        except (TypeError, ValueError) as error:
            raise TrainingError(
                f"transform {one['name']!r} of MONAI: {error}",
                code="transform-unusable", name=one["name"], arguments=arguments,
            ) from error  # fmt: skip
    return library.Compose(steps)


def _keys(made: Any) -> dict[str, Sequence[str]]:
    """Return which entries a transform changes: labels, too, where it moves anything."""
    import inspect

    moves = "mode" in inspect.signature(made).parameters
    if not moves:
        moves = any(word in made.__name__ for word in ("Flip", "Rotate90", "Zoom", "Axis"))
        return {"keys": ("image", "labels") if moves else ("image",)}
    return {"keys": ("image", "labels"), "mode": ("bilinear", "nearest")}
