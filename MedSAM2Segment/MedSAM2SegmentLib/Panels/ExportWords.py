"""What the page says about an export: the command's words, with the ways out that there are on the page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from MedSAM2SegmentLib.Panels.ModulePageState import Kind, Line, sizeWords

_NO_CODE = "no code says what it is"  # the core's words; what it advises is for the command line
_CODE_IT = (
    "double click its colour in the Segment Editor and choose what it is, or tick 'Tissue for segments "
    "without a code'"
)
_SERIES = "take the volume as Slicer's DICOM database loads it: import the series again"
_OPTION = r"(?<![\w'\"-])--[a-z]"
# What the command advises, and what can be done here instead; in this order.
_ADVICE = tuple(
    (re.compile(pattern, re.DOTALL), instead)
    for pattern, instead in (
        (rf"\s*\([^()]*{_OPTION}[^()]*\)", ""),
        (r"choose one by number.*", _SERIES),
        (r"choose the series it was drawn on, allow more,? or write \.seg\.nrrd",
         "choose the source volume it was drawn on, or another format"),
        (r"choose the series it was drawn on", "choose the source volume it was drawn on"),
        (r"or (?:add --overwrite|allow it to be overwritten)", "or tick 'Replace existing files'"),
        (r"choose --compression rle", "choose the compression RLE"),
        (r"\bWrite \.seg\.nrrd(?: or \.nii\.gz)?(?: instead)?", "Choose another format"),
        (r"\bwrite \.seg\.nrrd(?: or \.nii\.gz)?(?: instead)?", "choose another format"),
        (rf"^{_OPTION}[a-z-]* (?=['\"/]|the series)", ""),
        # Of all else, the part of the sentence that speaks of options; and what is left round it.
        (rf"(?:[^,;:.()]|\.(?=\w))*(?:{_OPTION}|`medsam2)(?:[^,;:.()]|\.(?=\w))*", ""),
        (r"\(\s*\)", ""),
        (r"(?<=[:,])\s*,\s*(?:or\s+)?(?=\w)", " "),
        (r",\s*(?=[;:.,])", ""),
        (r"^[\s,;:.]+|[\s,;:]+(?=\.?\s*$)", ""),
    )
)  # fmt: skip
_CUT_SENTENCE = re.compile(r"\.\s*,\s*(?:or\s+)?(\w)")
# What is so by the user's own wish, or as it always is: the page hands over what is filled alone.
_ORDINARY = re.compile(
    r"nothing says how .*written as MANUAL|coded as Tissue|were put into their places among the series'"
)
# What is good to know, and no reason to look again.
_HARMLESS = re.compile(r"coded by name|has no voxel|: coded as ")


def inWords(text: str) -> str:
    """A message of the command, with the ways out that there are on the page."""
    what, found, _ = text.partition(_NO_CODE)
    if found:
        return f"{what}{found}: {_CODE_IT}"
    for pattern, instead in _ADVICE:
        text = pattern.sub(instead, text)
    return _CUT_SENTENCE.sub(lambda found: f". {found[1].upper()}", text)


def lineOf(result: Mapping[str, Any], notes: Iterable[str] = ()) -> Line:
    """What was written, and what there is to know about it; ``notes`` are those made before."""
    segments, frames, size = (result.get(name) for name in ("segments", "frames", "bytes"))
    facts = [_count(len(segments), "segment")] if isinstance(segments, list) else []
    facts += [_count(frames, "frame")] if isinstance(frames, int) else []
    facts += [_sizeOf(size)] if isinstance(size, int) else []
    measurements = result.get("measurements")
    beside = [*(measurements if isinstance(measurements, list) else []), result.get("report")]
    out = result.get("out", "The file")
    words = f"{out} is written: {', '.join(facts)}." if facts else f"{out} is written."
    words += "".join(f" {os.path.basename(str(path))} is beside it." for path in beside if path)
    said = result.get("notes")
    told = [*notes, *(said if isinstance(said, list) else ())]
    told = [str(note.get("message", "")) if isinstance(note, Mapping) else str(note) for note in told]
    told = [note for note in told if not _ORDINARY.search(note)]
    words += "".join(f" Note: {inWords(note).rstrip('.')}." for note in told)
    isUsual = all(_HARMLESS.search(note) for note in told)
    return Line(words, Kind.GOOD if isUsual else Kind.WARNING)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _sizeOf(size: int) -> str:
    return sizeWords(size) if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
