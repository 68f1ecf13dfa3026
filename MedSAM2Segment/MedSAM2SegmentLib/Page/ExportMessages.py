"""Messages about an export: results, notes and errors of the worker.

Messages of the worker refer to its Python interface. Codes whose remedy is different in Slicer have a text
here; all other messages are shown unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from medsam2_core.errors import MedSAM2Error, Note

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import Level, StatusLine, sizeText

# By error code, with its fields; lists are joined.
ERRORS = {
    "output-exists": _("{path} exists already: choose another name, or tick 'Replace existing files'"),
    "no-segment-code": _(
        "segment {segments}: no code says what it is: double click its colour in the Segment Editor and "
        "choose what it is, or tick 'Tissue for segments without a code'"
    ),
    "resampling-loss-too-large": _(
        "'{segment}': {lost:.1%} of it would be lost on the series' grid, more than the {most_lost:.1%} "
        "allowed: choose the source volume it was drawn on, or another format"
    ),
    "series-needed": _(
        "the files of the volume hold {count} series: take the volume as Slicer's DICOM database loads it: "
        "import the series again"
    ),
    "volume-turned": _(
        "the volume was turned after it was read from DICOM, so that its voxels cannot be matched with those "
        "of the series: undo that, or choose another format"
    ),
    "volume-not-of-series": _(
        "the volume is not that of the series, and lies elsewhere: draw on the volume as it was read from "
        "DICOM, or choose another format"
    ),
    "seg-too-large": _(
        "{frames} frames are more than DICOM can hold without compression: choose the compression RLE, or "
        "another kind"
    ),
}
# Codes of notes that are not shown: they are about choices on the page, or always apply here.
EXPECTED_NOTES = {"assumed-manual", "coded-as-tissue", "placed-on-series-grid"}


def errorText(error: MedSAM2Error) -> str:
    """Return the message of an error, with the remedy in Slicer."""
    text = ERRORS.get(error.code)
    if text is None:
        return str(error)
    fields = {
        name: ", ".join(map(repr, value)) if isinstance(value, list) else value
        for name, value in error.fields.items()
    }
    try:
        return text.format(**fields)
    except (KeyError, ValueError):  # a worker of another version may have other fields
        return str(error)


def resultLine(result: Mapping[str, Any], notes: Iterable[Note] = ()) -> StatusLine:
    """Describe what was written, with notes of the worker and earlier ``notes``."""
    segments, frames, size = (result.get(name) for name in ("segments", "frames", "bytes"))
    facts = (
        [_count(len(segments), _("1 segment"), _("{count} segments"))] if isinstance(segments, list) else []
    )
    facts += [_count(frames, _("1 frame"), _("{count} frames"))] if isinstance(frames, int) else []
    facts += [_size(size)] if isinstance(size, int) else []
    text = _("{path} is written").format(path=result.get("out", _("The file")))
    text += f": {', '.join(facts)}." if facts else "."
    measurements = result.get("measurements")
    beside = [*(measurements if isinstance(measurements, list) else []), result.get("report")]
    for path in filter(None, beside):
        text += " " + _("{file} is beside it.").format(file=os.path.basename(str(path)))
    shown = [note for note in (*notes, *_notesIn(result)) if note.code not in EXPECTED_NOTES]
    for note in shown:
        text += " " + _("Note: {text}.").format(text=str(note).rstrip("."))
    isUsual = all(note.severity == "info" for note in shown)
    return StatusLine(text, Level.OK if isUsual else Level.WARNING)


def _notesIn(result: Mapping[str, Any]) -> list[Note]:
    """Return the notes of a result, ignoring invalid ones."""
    items = result.get("notes")
    items = [one for one in items if isinstance(one, Mapping)] if isinstance(items, list) else []
    values = [[one.get(name) for name in ("code", "message", "severity", "fields")] for one in items]
    return [
        Note(code, message, "info" if severity == "info" else "warning", fields or {})
        for code, message, severity, fields in values
        if isinstance(code, str) and isinstance(message, str) and isinstance(fields or {}, Mapping)
    ]


def _count(number: int, one: str, several: str) -> str:
    return one if number == 1 else several.format(count=number)


def _size(size: int) -> str:
    return sizeText(size) if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
