"""Parse prompts written as text: the values of --box, --point, --mask, --line, --box3d, --object and --range.

Coordinates are in the space that ``--space`` names: ``ijk`` array indices (voxel centres at integers), or
``ras`` and ``lps`` millimetres. ``@K`` and ``--range`` count along the axis that slices are stacked along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import GeometryError, PromptError
from medsam2_core.imaging.geometry import PLANE_NORMAL, Space
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.prompts.prompt_set import PromptSet
from medsam2_core.prompts.shapes import Line, Position, of_box, of_line, of_segment
from medsam2_core.prompts.slice_prompts import resolve
from medsam2_core.prompts.types import ROUNDING, Box, MaskPrompt, Point, Prompt, position_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Name of the object when none is given.
UNNAMED = "object"
_MOST_NAMES = 12  # in a message
_LETTERS = {Space.IJK: "ijk", Space.RAS: "RAS", Space.LPS: "LPS"}


@dataclass(frozen=True)
class PromptSpace:
    """Coordinates of prompts on the command line: a space, and the stack of slices."""

    stack: AxisStack
    space: Space

    @property
    def across(self) -> int:
        """Index of the coordinate that runs from slice to slice."""
        return self.stack.array_axis if self.space is Space.IJK else PLANE_NORMAL[self.stack.plane]

    @property
    def in_plane(self) -> tuple[int, int]:
        """Indices of the other two coordinates, in order."""
        first, second = (axis for axis in range(3) if axis != self.across)
        return first, second

    @property
    def only_slice(self) -> float | None:
        """The coordinate across of the only slice, as of a picture; None where there are several."""
        if len(self.stack) > 1:
            return None
        return float(
            self.stack.volume.geometry.ijk_to(self.stack.to_ijk([[0, 0, 0]]), self.space)[0, self.across]
        )

    def describe_box(self) -> str:
        """Return the syntax of a box on one slice, for example ``i0,j0,i1,j1@k``."""
        letters = _LETTERS[self.space]
        a, b = (letters[axis] for axis in self.in_plane)
        return f"{a}0,{b}0,{a}1,{b}1@{letters[self.across]}"

    def to_ijk(self, position: Iterable[float]) -> tuple[float, float, float]:
        """Convert a position to continuous IJK."""
        i, j, k = self.stack.volume.geometry.ijk_from(np.array([list(position)]), self.space)[0].tolist()
        return i, j, k


@dataclass(frozen=True)
class GivenPrompts:
    """The prompts of a command line, and what else it says of objects.

    Attributes
    ----------
    slices
        First and last slice of ``--range``.
    limits
        The same of objects with a 3-D box.
    lines
        Lengths in mm of the lines drawn on objects.
    """

    prompts: PromptSet
    slices: tuple[int | None, int | None] = (None, None)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    lines: Mapping[str, Sequence[float]] = field(default_factory=dict)


def parse_box(text: str, space: PromptSpace) -> Box:
    """Parse ``I0,J0,I1,J1@K`` (corners within a slice, and the slice) or ``X0,Y0,Z0,X1,Y1,Z1`` (two corners).

    Raises
    ------
    PromptError
        Code ``prompt-syntax`` for what cannot be parsed; those of :class:`Box` for what is not a box.
    """
    what = f"--box {text}"
    plane, at, slice_text = text.partition("@")
    across = space.only_slice if plane.count(",") == 3 else None
    if at or across is not None:
        numbers = parse_numbers(plane, what, 4, f"write {space.describe_box()}")
        if across is None or at:
            across = parse_numbers(slice_text, what, 1, "one number follows the @")[0]
        corners = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        for corner, values in zip(corners, (numbers[:2], numbers[2:]), strict=True):
            corner[space.across] = across
            for axis, value in zip(space.in_plane, values, strict=True):
                corner[axis] = value
    else:
        numbers = parse_numbers(
            text, what, 6, f"write {space.describe_box()}, or two corners X0,Y0,Z0,X1,Y1,Z1"
        )
        corners = [numbers[:3], numbers[3:]]
    first, last = (space.to_ijk(corner) for corner in corners)
    return Box.between(first, last)


def parse_box3d(text: str, space: PromptSpace) -> Line:
    """Parse ``X0,Y0,Z0,X1,Y1,Z1``, any two opposite corners of a 3-D box, into IJK within the volume.

    The volume may be turned against the space: the box in IJK holds all eight corners, as far as they are in
    the volume.
    """
    numbers = parse_numbers(text, f"--box3d {text}", 6, "write two corners X0,Y0,Z0,X1,Y1,Z1")
    given = _inside(text, "--box3d", [space.to_ijk(numbers[:3]), space.to_ijk(numbers[3:])], space)[0]
    if space.space is Space.IJK:
        return given
    corners = np.array(
        [space.to_ijk(corner) for corner in product(*zip(numbers[:3], numbers[3:], strict=True))]
    )
    shape = np.array(space.stack.volume.geometry.shape_ijk)
    low, high = np.clip([corners.min(axis=0), corners.max(axis=0)], -0.5, shape - 0.5).tolist()
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def parse_line(text: str, space: PromptSpace) -> list[Line]:
    """Parse ``X0,Y0,X1,Y1@K``, or eight numbers for two lines, into the longest and the other, in IJK.

    Raises
    ------
    PromptError
        ``prompt-syntax``; ``outside-volume``; ``diameters-apart`` for two lines that do not cross.
    """
    what = f"--line {text}"
    plane, at, slice_text = text.partition("@")
    across = space.only_slice
    if not at and across is None:
        message = f"{what}: write {space.describe_box()}, the ends of a line"
        raise PromptError(message, code="prompt-syntax", text=text)
    count = 8 if plane.count(",") > 3 else 4
    numbers = parse_numbers(plane, what, count, f"write {space.describe_box()}, or both lines before the @")
    if across is None or at:
        across = parse_numbers(slice_text, what, 1, "one number follows the @")[0]
    points = []
    for values in zip(numbers[::2], numbers[1::2], strict=True):
        position = [across, across, across]
        for axis, value in zip(space.in_plane, values, strict=True):
            position[axis] = value
        points.append(space.to_ijk(position))
    lines = _inside(text, "--line", points, space)
    if len(lines) == 2 and not _cross(*(space.stack.to_slice(line)[:, :2] for line in lines)):
        raise PromptError(
            f"{what}: the two diameters do not cross: write the two ends of the longest, then those of "
            "the one across it",
            code="diameters-apart", text=text,
        )  # fmt: skip
    return sorted(lines, key=lambda line: -length_mm(line, space))


def _cross(line_xy: NDArray[np.float64], other_xy: NDArray[np.float64]) -> bool:
    """Return whether two lines (2, 2) of pixels cross, or would if each end were a pixel further out."""
    along, across = line_xy[1] - line_xy[0], other_xy[1] - other_xy[0]
    lengths = np.linalg.norm([along, across], axis=1)
    matrix = np.stack([along, -across], axis=1)
    if abs(np.linalg.det(matrix)) <= 1e-9 * lengths.prod():
        return False
    at = np.linalg.solve(matrix, other_xy[0] - line_xy[0])
    slack = 1 / lengths
    return bool(((at >= -slack) & (at <= 1 + slack)).all())


def length_mm(line: Line, space: PromptSpace) -> float:
    """Return the length of a line between two positions in IJK."""
    ends = space.stack.volume.geometry.to_ras(line)
    return float(np.linalg.norm(ends[1] - ends[0]))


def _inside(text: str, option: str, points: list[Position], space: PromptSpace) -> list[Line]:
    """Return pairs of positions; PromptError ``outside-volume`` when one is not in the volume."""
    shape = np.array(space.stack.volume.geometry.shape_ijk)
    for point in points:
        if (np.array(point) < -0.5 - ROUNDING).any() or (np.array(point) > shape - 0.5 + ROUNDING).any():
            raise PromptError(
                f"{option} {text}: {position_text(point)} in array indices is outside the volume of "
                f"{position_text(shape.tolist())} voxels",
                code="outside-volume", text=text, size=shape.tolist(),
            )  # fmt: skip
    return list(zip(points[::2], points[1::2], strict=True))


def parse_point(text: str, space: PromptSpace) -> Point:
    """Parse ``X,Y,Z``: a foreground point, or a background point with ``,-`` appended."""
    position, _, sign = text.rpartition(",")
    if sign.strip() not in ("+", "-"):
        position, sign = text, "+"
    what, how = f"--point {text}", "write X,Y,Z and, if wanted, ,+ or ,-"
    if position.count(",") == 1 and space.only_slice is not None:
        numbers = parse_numbers(position, what, 2, how)
        numbers.insert(space.across, space.only_slice)
    else:
        numbers = parse_numbers(position, what, 3, how)
    return Point(space.to_ijk(numbers), positive=sign.strip() == "+")


def read_mask(text: str | Path, object_name: str, space: PromptSpace) -> MaskPrompt:
    """Read the mask of ``FILE`` or ``FILE:LABEL``, a label map on the volume's grid.

    Without a label it is the one of the object's name, or the only one.
    """
    from medsam2_core.imaging.reading import read_segmentation

    path, label = mask_file(str(text))
    labels = read_segmentation(path)
    geometry = space.stack.volume.geometry
    try:
        labels = labels.on_grid(geometry)
    except GeometryError as error:
        raise PromptError(f"--mask {text}: {error}", code="mask-on-other-grid", path=str(path)) from error
    names = labels.names
    wanted = label or (object_name if object_name in names or len(names) != 1 else names[0])
    if wanted not in names:
        raise PromptError(
            f"--mask {text} has {len(names)} labels ({_listed(names)}), but not {wanted!r}: "
            "choose one with --mask FILE:LABEL, or by the name in --object",
            code="mask-label-ambiguous", path=str(path), object=wanted, labels=list(names),
        )  # fmt: skip
    return MaskPrompt.from_volume(labels[wanted].mask_kji)


def mask_file(text: str) -> tuple[Path, str]:
    """Return file and label of the value of ``--mask``; the label is empty when none is given."""
    path, colon, label = text.rpartition(":")
    # The colon may be part of the name, as after the drive's letter on Windows.
    if not colon or Path(text).exists() or not Path(path).exists():
        return Path(text), ""
    return Path(path), label


def parse_range(text: str | None, space: PromptSpace) -> tuple[int | None, int | None]:
    """Parse ``A:B``: the first and last slice of the stack, inclusive; None for an end that was left out."""
    if text is None:
        return None, None
    what = f"--range {text}"
    start, colon, stop = text.partition(":")
    if not colon:
        raise PromptError(f"{what}: write A:B, the first and the last slice", code="range-syntax", text=text)
    centre = np.array(space.stack.volume.geometry.shape_ijk, dtype=float) / 2 - 0.5
    numbers = []
    for part in (start, stop):
        if not part.strip():
            continue
        position = space.stack.volume.geometry.ijk_to(centre, space.space)[0]
        position[space.across] = parse_numbers(part, what, 1, "write A:B")[0]
        n = float(space.stack.to_slice([space.to_ijk(position)])[0, 2])
        if not -0.5 <= n < len(space.stack) - 0.5:
            raise PromptError(
                f"{what}: {part} lies on slice {n:g} of {space.stack.title}, which has 0 to "
                f"{len(space.stack) - 1}",
                code="range-outside-volume", text=text, slice=n, slices=len(space.stack),
            )  # fmt: skip
        numbers.append(round(n))
    if len(numbers) == 2:
        first, last = (float(part) for part in (start, stop))
        if first > last:
            message = f"{what} runs backwards, from {first:g} to {last:g}: write --range {stop}:{start}"
            raise PromptError(message, code="range-reversed", text=text)
        return min(numbers), max(numbers)
    if not numbers:
        return None, None
    # One end is open. The stack may run against the numbers: then the given end is the other one.
    ahead = _runs_with(space)
    given_is_first = bool(start.strip()) == ahead
    return (numbers[0], None) if given_is_first else (None, numbers[0])


def assigned(given: Iterable[tuple[str, str]], names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (object, option, value) of prompts on a command line; see :func:`collect_prompts`.

    ``names`` are the objects there are besides those named on it.
    """
    given = list(given)
    current = next((text for option, text in given if option == "object"), None)
    for option, text in given:
        if option == "object":
            current = text
        else:
            yield current or _only_object(names, f"--{option} {text}"), option, text


def limits_of(
    given: Iterable[tuple[str, str]], names: Sequence[str], space: PromptSpace
) -> dict[str, tuple[int, int]]:
    """Return the first and last slice of each object that has a 3-D box.

    PromptError ``two-boxes`` when one has two.
    """
    limits: dict[str, tuple[int, int]] = {}
    for name, option, text in assigned(given, names):
        if option != "box3d":
            continue
        if name in limits:
            message = f"--box3d {text}: object {name!r} has a 3-D box already"
            raise PromptError(message, code="two-boxes", object=name)
        limits[name] = of_box(*parse_box3d(text, space), space.stack)[1]
    return limits


def lines_of(
    given: Iterable[tuple[str, str]], names: Sequence[str], space: PromptSpace
) -> dict[str, list[float]]:
    """Return the lengths in mm of the lines drawn on each object, of its first slice with any."""
    found: dict[str, list[float]] = {}
    for name, option, text in assigned(given, names):
        if option == "line":
            found.setdefault(name, [length_mm(line, space) for line in parse_line(text, space)])
    return found


def collect_prompts(
    given: Iterable[tuple[str, str]],
    from_file: PromptSet | None,
    space: PromptSpace,
    known: Sequence[str] = (),
    keep: str = "all",
) -> PromptSet:
    """Collect all prompts of a command line.

    A prompt belongs to the ``--object`` before it; prompts before the first ``--object`` belong to that.
    Without any ``--object`` they belong to the only object of the prompts file, or to an object called
    :data:`UNNAMED`. ``known`` are the objects of an earlier result, which have a mask already. ``keep`` says
    which slices of masks are prompts, see :func:`kept_slices`. Of a 3-D box and a line whose boxes are on the
    same slice, the line's box is taken: it fits the object more closely.

    Raises
    ------
    PromptError
        ``no-prompt``, ``object-without-prompt``, ``object-ambiguous``, ``only-background-points``, or
        what is wrong with a prompt.
    """
    given = list(given)
    prompts = from_file or PromptSet()
    for option, text in given:
        if option == "object":
            prompts.add_object(text)
    belonging = list(assigned(given, known or prompts.names))
    lined = {
        (name, n)
        for name, option, text in belonging if option == "line"
        for n in resolve(_prompts(option, text, name, space, keep), space.stack)
    }  # fmt: skip
    for name, option, text in belonging:
        for prompt in _prompts(option, text, name, space, keep):
            if option != "box3d" or (name, *resolve([prompt], space.stack)) not in lined:
                prompts.add(name, prompt)
    check_complete(prompts, "--box, --point, --mask, --line, --box3d or --prompts", known)
    return prompts


def check_complete(prompts: PromptSet, options: str, known: Sequence[str] = ()) -> None:
    """Raise PromptError where there is no prompt, an object without any, or with background points only.

    Parameters
    ----------
    options
        Which give prompts, for the message.
    known
        Objects that have a mask already.
    """
    if not len(prompts):
        raise PromptError(f"no prompt: give {options}", code="no-prompt")
    for name, of_object in prompts:
        if not of_object:
            message = f"object {name!r} has no prompt: give --box, --point or another one after --object"
            raise PromptError(message, code="object-without-prompt", object=name)
        has_mask = name in known
        if not has_mask and all(isinstance(prompt, Point) and not prompt.positive for prompt in of_object):
            message = f"object {name!r} has background points only: add a box, a mask or a foreground point"
            raise PromptError(message, code="only-background-points", object=name)


def check_in_range(
    prompts: PromptSet,
    slices: tuple[int | None, int | None],
    stack: AxisStack,
    limits: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Raise PromptError ``prompt-outside-range`` for a prompt on a slice that ``--range`` leaves out.

    ``limits`` are those of objects with a 3-D box.
    """
    first, last = slices
    for name, of_object in prompts:
        low, high = (limits or {}).get(name, (None, None))
        for n in resolve(of_object, stack):
            if any(a is not None and n < a for a in (first, low)) or any(
                a is not None and n > a for a in (last, high)
            ):
                at = round(float(stack.to_ijk([[0, 0, n]])[0, stack.array_axis]))
                message = f"object {name!r} has a prompt on slice {at}, which --range or --box3d leaves out"
                raise PromptError(message, code="prompt-outside-range", object=name, slice=at)


def _prompts(option: str, text: str, object_name: str, space: PromptSpace, keep: str) -> list[Prompt]:
    if option == "box":
        return [parse_box(text, space)]
    if option == "point":
        return [parse_point(text, space)]
    if option == "box3d":
        return [of_box(*parse_box3d(text, space), space.stack)[0]]
    if option == "line":
        longest, *across = parse_line(text, space)
        return [of_line(longest, space.stack, *across)]
    mask = read_mask(text, object_name, space)
    return [mask] if keep == "all" else of_segment(mask, space.stack, keep)


def _listed(names: Sequence[str]) -> str:
    """Return names as text; of many, the first ones."""
    shown = [*names[:_MOST_NAMES], "…"] if len(names) > _MOST_NAMES else names
    return ", ".join(shown) or "none"


def _only_object(names: Sequence[str], what: str) -> str:
    if len(names) > 1:
        message = f"{what}: the file has the objects {', '.join(names)}: choose one with --object"
        raise PromptError(message, code="object-ambiguous", objects=list(names))
    return names[0] if names else UNNAMED


def _runs_with(space: PromptSpace) -> bool:
    """Whether slices of the stack are in the order of the coordinate."""
    zero, step = np.zeros(3), np.eye(3)[space.across]
    n = space.stack.to_slice([space.to_ijk(zero), space.to_ijk(step)])[:, 2]
    return bool(n[1] > n[0])


def check_syntax(option: str, text: str) -> None:
    """Check a prompt as far as that is possible without the scan: how many numbers it has.

    Raises
    ------
    PromptError
        ``prompt-syntax``.
    """
    if option == "mask":
        return
    plane, at, slice_text = text.partition("@")
    if option == "point":
        position, _, sign = text.rpartition(",")
        plane, at = (position, "") if sign.strip() in ("+", "-") else (text, "")
    counts = {"box": (4,) if at else (4, 6), "point": (2, 3), "line": (4, 8), "box3d": (6,)}[option]
    given = plane.count(",") + 1
    how = f"write {' or '.join(map(str, counts))} numbers" + ("" if option == "point" else " and perhaps @K")
    parse_numbers(plane, f"--{option} {text}", given if given in counts else counts[-1], how)
    if at:
        parse_numbers(slice_text, f"--{option} {text}", 1, "one number follows the @")


def parse_numbers(text: str, what: str, count: int, how: str) -> list[float]:
    """Parse finite numbers between commas; ``what`` and ``how`` are for the message of PromptError."""
    parts = text.split(",")
    if len(parts) != count:
        message = f"{what}: {len(parts)} numbers instead of {count}: {how}"
        raise PromptError(message, code="prompt-syntax", text=text)
    numbers = []
    for part in parts:
        try:
            numbers.append(float(part))
        except ValueError as error:
            message = f"{what}: {part.strip()!r} is not a number: {how}"
            raise PromptError(message, code="prompt-syntax", text=text) from error
    if not np.isfinite(numbers).all():
        raise PromptError(f"{what}: every number must be finite", code="prompt-syntax", text=text)
    return numbers
