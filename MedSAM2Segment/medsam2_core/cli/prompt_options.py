"""What was typed after --box, --point, --mask, --object and --range, as prompts of the volume.

Numbers mean what ``--space`` and ``--axis`` say: ``ijk`` array indices (voxel centres at whole numbers), or
``ras`` and ``lps`` millimetres. ``@K`` and ``--range`` count along the axis the slices are stacked along.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam2_core.errors import GeometryError, PromptError
from medsam2_core.imaging.geometry import PLANE_NORMAL, Space
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet

#: Name of the object when none is given.
UNNAMED = "object"
_LETTERS = {Space.IJK: "ijk", Space.RAS: "RAS", Space.LPS: "LPS"}


@dataclass(frozen=True)
class Frame:
    """What three numbers of the command line mean: a space, and the slices of a stack."""

    stack: AxisStack
    space: Space

    @property
    def across(self) -> int:
        """Which of the three numbers runs from slice to slice."""
        return self.stack.array_axis if self.space is Space.IJK else PLANE_NORMAL[self.stack.plane]

    @property
    def in_plane(self) -> tuple[int, int]:
        """The other two, in their order."""
        first, second = (axis for axis in range(3) if axis != self.across)
        return first, second

    def describe_box(self) -> str:
        """The form of a box on one slice, with the letters of this frame: ``i0,j0,i1,j1@k``."""
        letters = _LETTERS[self.space]
        a, b = (letters[axis] for axis in self.in_plane)
        return f"{a}0,{b}0,{a}1,{b}1@{letters[self.across]}"

    def to_ijk(self, position: Iterable[float]) -> tuple[float, float, float]:
        """A position of the command line as continuous IJK."""
        i, j, k = self.stack.volume.geometry.ijk_from(np.array([list(position)]), self.space)[0].tolist()
        return i, j, k


def box(text: str, frame: Frame) -> Box:
    """``I0,J0,I1,J1@K`` (in-plane corners and slice), or two corners ``X0,Y0,Z0,X1,Y1,Z1``.

    Raises PromptError naming what could not be read, or why it is no box.
    """
    what = f"--box {text}"
    plane, at, slice_text = text.partition("@")
    if at:
        numbers = _numbers(plane, what, 4, f"write {frame.describe_box()}")
        across = _numbers(slice_text, what, 1, "one number follows the @")[0]
        corners = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        for corner, values in zip(corners, (numbers[:2], numbers[2:]), strict=True):
            corner[frame.across] = across
            for axis, value in zip(frame.in_plane, values, strict=True):
                corner[axis] = value
    else:
        numbers = _numbers(text, what, 6, f"write {frame.describe_box()}, or two corners X0,Y0,Z0,X1,Y1,Z1")
        corners = [numbers[:3], numbers[3:]]
    first, last = (frame.to_ijk(corner) for corner in corners)
    # In indices a corner that is given the wrong way round is a slip; in millimetres the axes of the array
    # may run the other way.
    return Box(first, last) if frame.space is Space.IJK else Box.between(first, last)


def point(text: str, frame: Frame) -> Point:
    """``X,Y,Z``, with ``,-`` behind it for a point that does not belong to the object."""
    position, _, sign = text.rpartition(",")
    if sign.strip() not in ("+", "-"):
        position, sign = text, "+"
    numbers = _numbers(position, f"--point {text}", 3, "write X,Y,Z and, if wanted, ,+ or ,-")
    return Point(frame.to_ijk(numbers), positive=sign.strip() == "+")


def mask(path: str | Path, object_name: str, frame: Frame) -> MaskPrompt:
    """The object's label in a label map on the volume's grid: the one of its name, or the only one."""
    from medsam2_core.imaging.reading import read_labels

    labels = read_labels(path)
    geometry = frame.stack.volume.geometry
    try:
        labels = labels.on_grid(geometry)
    except GeometryError as error:
        raise PromptError(f"--mask {path}: {error}") from error
    names = [label.name for label in labels.labels]
    if object_name not in names and len(names) != 1:
        raise PromptError(
            f"--mask {path} has {len(names)} labels ({', '.join(names) or 'none'}): "
            f"say which with --object; {object_name!r} is none of them"
        )
    return MaskPrompt.from_volume(labels.mask_kji(object_name if object_name in names else names[0]))


def slice_range(text: str | None, frame: Frame) -> tuple[int | None, int | None]:
    """``A:B`` as the first and last slice of the stack, both included; an end left out is the volume's."""
    if text is None:
        return None, None
    what = f"--range {text}"
    start, colon, stop = text.partition(":")
    if not colon:
        raise PromptError(f"{what}: write A:B, the first and the last slice")
    centre = np.array(frame.stack.volume.geometry.shape_ijk, dtype=float) / 2 - 0.5
    numbers = []
    for part in (start, stop):
        if not part.strip():
            continue
        position = frame.stack.volume.geometry.ijk_to(centre, frame.space)[0]
        position[frame.across] = _numbers(part, what, 1, "write A:B")[0]
        n = float(frame.stack.to_slice([frame.to_ijk(position)])[0, 2])
        if not -0.5 <= n < len(frame.stack) - 0.5:
            raise PromptError(
                f"{what}: {part} lies on slice {n:g} of {frame.stack.title}, which has 0 to "
                f"{len(frame.stack) - 1}"
            )
        numbers.append(round(n))
    if len(numbers) == 2:
        return min(numbers), max(numbers)
    if not numbers:
        return None, None
    # One end is open. The stack may run against the numbers: then the given end is the other one.
    ahead = _runs_with(frame)
    given_is_first = bool(start.strip()) == ahead
    return (numbers[0], None) if given_is_first else (None, numbers[0])


def collect(given: Iterable[tuple[str, str]], from_file: PromptSet | None, frame: Frame) -> PromptSet:
    """All prompts of a command line.

    A prompt belongs to the ``--object`` typed before it; one typed before the first ``--object`` belongs to
    that first one. Without any ``--object`` it belongs to the only object of the prompts file, or to an
    object called :data:`UNNAMED`.

    Raises PromptError when there is none, when an object has none, or when it is not clear whose it is.
    """
    given = list(given)
    prompts = from_file or PromptSet()
    named = [text for option, text in given if option == "object"]
    current = named[0] if named else None
    for option, text in given:
        if option == "object":
            current = text
            prompts.add_object(text)
            continue
        if current is None:
            current = _only_object(prompts, f"--{option} {text}")
        prompts.add(current, _prompt(option, text, current, frame))
    if not len(prompts):
        raise PromptError("nothing says what to segment: give --box, --point, --mask or --prompts")
    for name, of_object in prompts:
        if not of_object:
            raise PromptError(f"object {name!r} has no prompt: put a --box, --point or --mask behind it")
    return prompts


def _prompt(option: str, text: str, object_name: str, frame: Frame) -> Box | Point | MaskPrompt:
    if option == "box":
        return box(text, frame)
    return point(text, frame) if option == "point" else mask(text, object_name, frame)


def _only_object(prompts: PromptSet, what: str) -> str:
    if len(prompts) > 1:
        raise PromptError(
            f"{what}: the prompts file has the objects {', '.join(prompts.names)}; say whose with --object"
        )
    return prompts.names[0] if len(prompts) else UNNAMED


def _runs_with(frame: Frame) -> bool:
    """Whether slice numbers of the stack grow with the number of the command line."""
    zero, step = np.zeros(3), np.eye(3)[frame.across]
    n = frame.stack.to_slice([frame.to_ijk(zero), frame.to_ijk(step)])[:, 2]
    return bool(n[1] > n[0])


def _numbers(text: str, what: str, count: int, how: str) -> list[float]:
    parts = text.split(",")
    if len(parts) != count:
        raise PromptError(f"{what}: {len(parts)} numbers instead of {count}: {how}")
    numbers = []
    for part in parts:
        try:
            numbers.append(float(part))
        except ValueError as error:
            raise PromptError(f"{what}: {part.strip()!r} is not a number: {how}") from error
    if not np.isfinite(numbers).all():
        raise PromptError(f"{what}: every number must be finite")
    return numbers
