"""All prompts of a volume, object by object, and their JSON form.

::

    {"version": 1, "space": "ras", "objects": [
      {"name": "liver", "prompts": [
        {"type": "point", "at": [-20.5, 13, 40], "positive": true},
        {"type": "box", "first": [-60, -10, 40], "last": [10, 55, 40]},
        {"type": "mask", "offset": [120, 88, 14], "shape": [30, 22, 1], "runs": [31, 5, 624]}]}]}

``space`` is ``ijk``, ``ras`` or ``lps`` and holds for points and boxes. In IJK the first corner of a box has
the smaller indices; in millimetres they are any two opposite corners, since patient axes may run against the
voxels'. A mask consists of voxels and is always in IJK: ``offset`` and ``shape`` count i, j, k, and ``runs``
are the lengths of alternating stretches of false and true, beginning with false, i fastest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, PromptError
from medsam2_core.imaging.geometry import Space
from medsam2_core.prompts.types import AXES, Box, MaskPrompt, Point, Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry

VERSION = 1
_LARGEST_MASK = 1 << 31  # voxels; eight times 512 x 512 x 1000
_LONGEST_NAME = 200


@dataclass
class PromptSet:
    """Objects by name, in order, each with its prompts in the order they were given."""

    objects: dict[str, list[Prompt]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objects, in order."""
        return tuple(self.objects)

    def add_object(self, name: str) -> None:
        """Add an object without prompts; nothing happens when it is there."""
        if not isinstance(name, str) or not name.strip():
            message = f"object name {repr(name)[:60]}: give a name that is not empty"
            raise PromptError(message, code="object-name", object=repr(name)[:60])
        if len(name) > _LONGEST_NAME:
            message = f"object name {name[:40]!r}... is longer than {_LONGEST_NAME} letters"
            raise PromptError(message, code="object-name", object=name[:40])
        self.objects.setdefault(name, [])

    def add(self, object_name: str, prompt: Prompt) -> None:
        """Append a prompt; a new name makes a new object."""
        if not isinstance(prompt, Point | Box | MaskPrompt):
            raise PromptError(f"{prompt!r} is not a point, a box or a mask", code="not-a-prompt")
        self.add_object(object_name)
        self.objects[object_name].append(prompt)

    def of(self, object_name: str) -> list[Prompt]:
        """Return the prompts of an object; PromptError names the known ones."""
        if object_name not in self.objects:
            known = ", ".join(map(repr, self.objects)) or "none yet"
            message = f"unknown object {object_name!r}: known objects are {known}"
            raise PromptError(message, code="unknown-object", object=object_name, known=list(self.objects))
        return self.objects[object_name]

    def remove_object(self, object_name: str) -> None:
        """Remove an object and its prompts."""
        self.of(object_name)
        del self.objects[object_name]

    def __iter__(self) -> Iterator[tuple[str, list[Prompt]]]:
        return iter(self.objects.items())

    def __len__(self) -> int:
        return len(self.objects)

    def implied_axis(self) -> str | None:
        """Return the array axis (``"i"``, ``"j"``, ``"k"``) all boxes are flat along; None for none.

        Raises PromptError when boxes lie on slices of different axes.
        """
        seen: dict[int, tuple[str, Box]] = {}
        for name, prompts in self:
            for box in (p for p in prompts if isinstance(p, Box)):
                if box.flat_axis is not None:
                    seen.setdefault(box.flat_axis, (name, box))
        if len(seen) > 1:
            listed = "; ".join(
                f"{box} of {name!r} lies on a slice along {AXES[axis]}" for axis, (name, box) in seen.items()
            )
            message = f"mixed axes: {listed}. All boxes must lie on slices of one axis"
            raise PromptError(message, code="mixed-axes", axes=[AXES[axis] for axis in seen])
        return AXES[next(iter(seen))] if seen else None

    def to_json(self, space: Space | str = "ijk", geometry: Geometry | None = None) -> str:
        """Return the prompts as JSON, positions in ``space``; RAS and LPS need the geometry."""
        space = _space(space, geometry)

        def position(ijk: Iterable[float]) -> list[float]:
            if space is Space.IJK or geometry is None:
                return [float(value) for value in ijk]
            return [round(float(value), 6) for value in geometry.ijk_to([list(ijk)], space)[0]]

        def entry(prompt: Prompt) -> dict[str, Any]:
            if isinstance(prompt, Point):
                return {"type": "point", "at": position(prompt.ijk), "positive": prompt.positive}
            if isinstance(prompt, Box):
                return {"type": "box", "first": position(prompt.first_ijk), "last": position(prompt.last_ijk)}
            return {
                "type": "mask",
                "offset": list(prompt.offset_ijk),
                "shape": list(prompt.mask_kji.shape[::-1]),
                "runs": _to_runs(prompt.mask_kji),
            }

        objects = [{"name": name, "prompts": [entry(p) for p in prompts]} for name, prompts in self]
        return json.dumps({"version": VERSION, "space": space.value, "objects": objects})

    @classmethod
    def from_json(cls, text: str | bytes, geometry: Geometry | None = None) -> PromptSet:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        PromptError
            When the text is not JSON, or a part is missing or wrong; the message names the place.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError covers JSONDecodeError and wrong UTF-8
            raise PromptError(f"prompts are not valid JSON: {error}", code="not-json") from error
        if not isinstance(data, dict):
            raise PromptError(
                f"prompts must be a JSON object, not {type(data).__name__}", code="bad-prompt-file"
            )
        if data.get("version") != VERSION or isinstance(data.get("version"), bool):
            version = _short(data.get("version"))
            message = f"prompts of version {version}: this program reads version {VERSION}"
            raise PromptError(message, code="prompt-file-version", version=version)
        space = _space(data.get("space", "ijk"), geometry)
        prompt_set = cls()
        for where, item in _items(data, "objects", "prompts"):
            name = _part(item, "name", str, where)
            if name in prompt_set.objects:
                raise _wrong(where, f"a second object named {name!r}", "duplicate-object", object=name)
            prompt_set.add_object(name)
            for at, prompt in _items(item, "prompts", f"object {name!r}"):
                prompt_set.add(name, _prompt(prompt, at, space, geometry))
        return prompt_set


def _prompt(item: dict[str, Any], where: str, space: Space, geometry: Geometry | None) -> Prompt:
    kind = _part(item, "type", str, where)
    try:
        if kind == "point":
            positive = item.get("positive", True)
            if not isinstance(positive, bool):
                raise _wrong(
                    where, f"positive must be true or false, not {_short(positive)}", part="positive"
                )
            return Point(_position(item, "at", space, geometry, where), positive)
        if kind == "box":
            first, last = (_position(item, part, space, geometry, where) for part in ("first", "last"))
            return Box(first, last) if space is Space.IJK else Box.between(first, last)
        if kind == "mask":
            return _mask(item, where, geometry)
    except PromptError as error:
        if "where" in error.fields:
            raise
        raise _wrong(where, str(error), error.code, **error.fields) from error
    raise _wrong(where, f"unknown type {_short(kind)}, use point, box or mask")


def _mask(item: dict[str, Any], where: str, geometry: Geometry | None) -> MaskPrompt:
    offset, shape, runs = (_whole_numbers(item, part, where) for part in ("offset", "shape", "runs"))
    if len(offset) != 3 or len(shape) != 3:
        given = f"offset {_short(offset)} and shape {_short(shape)}"
        raise _wrong(where, f"{given} need three whole numbers each")
    if min(shape) < 1 or min(runs, default=0) < 0:
        raise _wrong(where, f"shape {shape} must be positive and no run negative")
    voxels = shape[0] * shape[1] * shape[2]
    if voxels > _LARGEST_MASK:
        large = f"mask of {shape} voxels is larger than {_LARGEST_MASK} voxels"
        raise _wrong(where, large, "mask-too-large", shape=shape)
    last = [start + size for start, size in zip(offset, shape, strict=True)]
    if min(offset) < 0 or (geometry is not None and np.greater(last, geometry.shape_ijk).any()):
        outside = f"mask of {shape} voxels at {offset} is outside the volume"
        raise _wrong(where, outside, "outside-volume", offset=offset, shape=shape)
    if sum(runs) != voxels:
        raise _wrong(where, f"runs add up to {sum(runs)}, but shape {shape} has {voxels} voxels")
    values = np.arange(len(runs)) % 2 == 1
    mask_kji = np.repeat(values, np.array(runs, dtype=np.int64)).reshape(shape[::-1])
    return MaskPrompt(mask_kji, (offset[0], offset[1], offset[2]))


def _to_runs(mask_kji: NDArray[np.bool_]) -> list[int]:
    flat = mask_kji.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


def _position(
    item: dict[str, Any], part: str, space: Space, geometry: Geometry | None, where: str
) -> tuple[float, float, float]:
    values = _part(item, part, list, where)
    if len(values) != 3 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise _wrong(where, f"{part} must be three numbers, not {_short(values)}", part=part)
    try:
        numbers = np.array(values, dtype=np.float64)
    except OverflowError:
        numbers = np.array([np.inf])
    if not np.isfinite(numbers).all():
        raise _wrong(where, f"{part} {_short(values)} must be finite", "not-finite", part=part)
    if geometry is not None:
        numbers = geometry.ijk_from(numbers, space)[0]
    i, j, k = numbers.tolist()
    return i, j, k


def _whole_numbers(item: dict[str, Any], part: str, where: str) -> list[int]:
    values = _part(item, part, list, where)
    if not all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 1 << 62 for v in values):
        raise _wrong(where, f"{part} must be whole numbers, not {_short(values)}", part=part)
    return values


def _items(item: dict[str, Any], part: str, where: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, entry in enumerate(_part(item, part, list, where)):
        at = f"{where}, {part}[{number}]"
        if not isinstance(entry, dict):
            raise _wrong(at, f"expected a JSON object, not {_short(entry)}")
        yield at, entry


def _part(item: dict[str, Any], part: str, kind: type, where: str) -> Any:
    if part not in item:
        raise _wrong(where, f"{part!r} is missing", "missing-part", part=part)
    if not isinstance(item[part], kind):
        expected = "a text" if kind is str else "a list"
        raise _wrong(where, f"{part!r} must be {expected}, not {_short(item[part])}", part=part)
    return item[part]


def _wrong(where: str, problem: str, code: str = "bad-prompt-file", **fields: Any) -> PromptError:
    return PromptError(f"{where}: {problem}", code=code, where=where, **fields)


def _space(space: Space | str, geometry: Geometry | None) -> Space:
    try:
        named = Space.named(space)
    except GeometryError as error:
        known = ", ".join(one.value for one in Space)
        message = f"unknown space {_short(space)}: use one of {known}"
        raise PromptError(message, code="unknown-space", space=_short(space)) from error
    if named is not Space.IJK and geometry is None:
        message = f"prompts in {named.value.upper()} millimetres need the volume they belong to"
        raise PromptError(message, code="needs-geometry", space=named.value)
    return named


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
