"""Measurements as a file: JSON for programs, CSV for spreadsheets.

Both hold the same numbers, with the unit in every name: millimetres, millilitres, and voxels counted from 0.
Positions are RAS millimetres, and indices on the grid of the segmentation.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.errors import ExportError, Note
from medsam2_core.export import metadata
from medsam2_core.export.writing import Written

if TYPE_CHECKING:
    from medsam2_core.export.measurements import Diameter, Measured
    from medsam2_core.imaging.segmentation import Segment, Segmentation

_DIGITS = 9  # significant ones: a nanometre in a metre
_ENDS = ("start", "end")
# With these at its beginning a cell is a formula, half and full width (OWASP, CSV Injection).
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001

_DEFINITION = (
    "diameters in slices of constant k, between outlines half-way to the neighbouring pixels; longest: the "
    "greatest distance within one piece; perpendicular: the longest line within its outline at right angles"
)


def write_measurements(
    measured: Sequence[Measured], segmentation: Segmentation, path: str | Path, *, overwrite: bool = False
) -> Written:
    """Write what was measured as ``.json`` or ``.csv``, whole or not at all.

    Parameters
    ----------
    measured
        What :func:`medsam2_core.export.measurements.measure` made of ``segmentation``.
    segmentation
        Says what the objects are in coded terms, and which model drew them.
    path
        Its ending decides the format. CSV (RFC 4180, UTF-8) has one row a segment; what was not measured is
        empty, and a text that a spreadsheet would take for a formula gets an apostrophe in front.

    Raises
    ------
    ExportError
        For another ending, an existing file without ``overwrite``, a missing folder, or a disk that refuses.
    VolumeError
        When something was measured that is no segment of ``segmentation``.
    """
    path = Path(path)
    to_text = _writer(path)
    text = to_text(measured, segmentation)
    with atomic.new_file(path, overwrite=overwrite) as stream:
        # The mark at the beginning is what spreadsheets know UTF-8 by.
        stream.write(text.encode("utf-8-sig" if to_text is _as_csv else "utf-8", "replace"))
    empty = [one.name for one in measured if one.voxel_count == 0]
    notes = [
        Note.info("empty-segment-not-measured", f"{name!r} has no voxel: it has no diameters", segment=name)
        for name in empty
    ]
    return Written(path, tuple(notes))


def _writer(path: Path) -> Callable[[Sequence[Measured], Segmentation], str]:
    for suffix, writer in ((".json", _as_json), (".csv", _as_csv)):
        if path.name.lower().endswith(suffix) and path.name.lower() != suffix:
            return writer
    message = f"{path}: measurements are written as .json or .csv: end the name with one of them"
    raise ExportError(message, code="unknown-format", path=str(path))


def _as_json(measured: Sequence[Measured], segmentation: Segmentation) -> str:
    provenance = metadata.without_paths(segmentation.provenance)
    known = {key: provenance[key] for key in ("model", "weights_sha256") if provenance.get(key)}
    content = {
        "software": metadata.SOFTWARE,
        **known,
        "definition": _DEFINITION,
        "segments": [_described(one, segmentation[one.name]) for one in in_mm(measured, segmentation)],
    }
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False, default=str) + "\n"


def in_mm(measured: Sequence[Measured], segmentation: Segmentation) -> list[Measured]:
    """Return what was measured, without volumes and lengths that a spacing which is not known would give."""
    known = segmentation.known_spacing
    if known == "in-plane":
        return [replace(one, volume_ml=None) for one in measured]
    if known == "none":
        return [replace(one, volume_ml=None, longest=None, perpendicular=None) for one in measured]
    return list(measured)


def _described(one: Measured, segment: Segment) -> dict[str, Any]:
    code = segment.terminology.type
    return {
        "name": one.name,
        "code": {"scheme": code.scheme, "value": code.value, "meaning": code.meaning},
        "modifier": segment.terminology.type_modifier.meaning or None,
        "region": _place(segment) or None,
        "voxels": one.voxel_count,
        "volume_ml": None if one.volume_ml is None else _rounded(one.volume_ml),
        "slice_k": one.k,
        "longest_diameter": _line(one.longest),
        "perpendicular_diameter": _line(one.perpendicular),
    }


def _line(diameter: Diameter | None) -> dict[str, Any] | None:
    if diameter is None:
        return None
    return {
        "length_mm": _rounded(diameter.length_mm),
        "ends_ras_mm": [[_rounded(x) for x in end] for end in diameter.ends_ras],
        "ends_ijk": [[_rounded(x) for x in end] for end in diameter.ends_ijk],
    }


def _as_csv(measured: Sequence[Measured], segmentation: Segmentation) -> str:
    rows = [dict(_cells(one, segmentation[one.name])) for one in in_mm(measured, segmentation)]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)  # lines end with CR LF
    writer.writerow(_columns())
    writer.writerows([row.get(column, "") for column in _columns()] for row in rows)
    return stream.getvalue()


def _columns() -> list[str]:
    columns = ["segment", "code_scheme", "code_value", "code_meaning", "modifier", "region"]
    columns += ["voxels", "volume_ml", "slice_k"]
    columns += ["longest_diameter_mm", "perpendicular_diameter_mm"]
    for which in ("longest", "perpendicular"):
        for end in _ENDS:
            columns += [f"{which}_{end}_{axis}_mm" for axis in "ras"]
            columns += [f"{which}_{end}_{axis}_index" for axis in "ij"]
    return columns


def _cells(one: Measured, segment: Segment) -> Iterator[tuple[str, Any]]:
    """Yield column and value; a column that is not among them stays empty."""
    code = segment.terminology.type
    yield "segment", harmless(one.name)
    for part in ("scheme", "value", "meaning"):
        yield f"code_{part}", harmless(getattr(code, part))
    yield "modifier", harmless(segment.terminology.type_modifier.meaning)
    yield "region", harmless(_place(segment))
    yield "voxels", one.voxel_count
    if one.volume_ml is not None:
        yield "volume_ml", _rounded(one.volume_ml)
    if one.k is not None:
        yield "slice_k", one.k
    for which, diameter in (("longest", one.longest), ("perpendicular", one.perpendicular)):
        if diameter is None:
            continue
        yield f"{which}_diameter_mm", _rounded(diameter.length_mm)
        for end, ras, ijk in zip(_ENDS, diameter.ends_ras, diameter.ends_ijk, strict=True):
            yield from ((f"{which}_{end}_{a}_mm", _rounded(x)) for a, x in zip("ras", ras, strict=True))
            yield from ((f"{which}_{end}_{a}_index", _rounded(x)) for a, x in zip("ij", ijk[:2], strict=True))


def _place(segment: Segment) -> str:
    """Return the anatomic region with its side, as "Kidney, Left"."""
    codes = segment.terminology
    return ", ".join(code.meaning for code in (codes.region, codes.region_modifier) if code.meaning)


def harmless(text: str) -> str:
    """Return a text for a cell of a CSV; what spreadsheets would take for a formula gets an apostrophe."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _rounded(value: float) -> float:
    """Round away the digits that are rounding errors of the computation."""
    return float(f"{value:.{_DIGITS}g}") + 0.0
