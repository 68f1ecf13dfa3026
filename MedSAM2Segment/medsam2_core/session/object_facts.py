"""What is reported of the objects of a session of a volume: extent and confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medsam2_core.export.measurements import measure
from medsam2_core.imaging.slices import AxisStack

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segment, Segmentation
    from medsam2_core.session.session import Session


def axis_stack(session: Session) -> AxisStack:
    """Return the stack of a session that was opened along an axis."""
    assert isinstance(session.stack, AxisStack)  # oblique slices are not offered on the command line
    return session.stack


def object_facts(segmentation: Segmentation, name: str, session: Session) -> dict[str, Any]:
    """Return voxels, first and last slice, mean confidence and least confident slice of an object.

    Slices are array indices, as the K of ``--box``; the confidence is that of slices with a mask.
    """
    segment = segmentation[name]
    confidence = {result.n: result.confidence for result in session.results(name) if result.mask_hw.any()}
    least = min(confidence, key=lambda n: confidence[n], default=None)
    return {
        "name": name,
        "voxels": segment.voxel_count,
        "slices": [] if segment.is_empty else _extent(segment, session),
        "confidence": round(sum(confidence.values()) / len(confidence), 3) if confidence else None,
        "least_confident_slice": None if least is None else _array_index(least, session),
    }


def diameter_facts(
    segmentation: Segmentation, name: str, lines: Mapping[str, Sequence[float]], stack: AxisStack
) -> dict[str, list[float] | None]:
    """Return, of an object with a line, the drawn lengths and the diameters of its result in mm, both in the
    plane of the slices; for others empty lists. Where nothing says how large a pixel is, they are in pixels,
    and those in mm are None."""
    if name not in lines:
        return {"drawn_mm": [], "diameters_mm": []}
    (found,) = measure(replace(segmentation, segments=(segmentation[name],)), stack.array_axis)
    diameters = [one.length_mm for one in (found.longest, found.perpendicular) if one is not None]
    both = {
        "drawn": [round(length, 2) for length in lines[name]],
        "diameters": [round(length, 2) for length in diameters],
    }
    facts: dict[str, list[float] | None] = {}
    for what, lengths in both.items():
        in_pixels = segmentation.known_spacing == "none"
        facts |= {f"{what}_mm": None, f"{what}_pixels": lengths} if in_pixels else {f"{what}_mm": lengths}
    return facts


def _extent(segment: Segment, session: Session) -> list[int]:
    """Return the first and last array index of an object along the stack."""
    axis = _array_axis(session)
    start = segment.offset_ijk[axis]
    return [start, start + segment.part_kji.shape[2 - axis] - 1]


def _array_index(n: int, session: Session) -> int:
    """Return the array index of a slice of the stack: the K of ``--box``."""
    return round(float(session.stack.to_ijk([[0, 0, n]])[0, _array_axis(session)]))


def _array_axis(session: Session) -> int:
    return axis_stack(session).array_axis
