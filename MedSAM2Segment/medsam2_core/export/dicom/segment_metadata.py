"""Metadata of segments and series that the user gives in a file: codes, labels, colours, descriptions.

Two forms of JSON are read. One is that of dcmqi, which 3D Slicer and others write as well
(https://qiicr.gitbook.io/dcmqi-guide: ``segmentAttributes``, and the series beside it). The other is short,
for writing by hand: keys are names of segments, values a code, a known term, or an object of
:data:`SHORT_KEYS`::

    {
      "liver": "SCT^10200004^Liver",
      "thing in it": {"type": "SCT^4147007^Mass", "region": "SCT^10200004^Liver", "colour": [255, 0, 0]},
      "SeriesDescription": "Second reading"
    }

Values are checked as PS3.5 asks of the attributes they become, by hand rather than by dcmqi's JSON schema:
that one accepts what DICOM does not (texts of any length), does not know the short form, and jsonschema would
be five more packages in the runtime for about forty lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsam2_core.errors import ExportError, Note
from medsam2_core.export.dicom import coding
from medsam2_core.export.metadata import LARGEST_IS
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.terminology import NO_CODE, Code, Terminology

_DCMQI_KEYS = {
    "SegmentedPropertyCategoryCodeSequence": "category",
    "SegmentedPropertyTypeCodeSequence": "type",
    "SegmentedPropertyTypeModifierCodeSequence": "modifier",
    "AnatomicRegionSequence": "region",
    "AnatomicRegionModifierSequence": "region_modifier",
    "SegmentLabel": "label",
    "SegmentDescription": "description",
    "recommendedDisplayRGBValue": "colour",
    "RecommendedDisplayCIELabValue": "cielab",
    "SegmentAlgorithmType": "algorithm_type",
    "SegmentAlgorithmName": "algorithm_name",
    "TrackingIdentifier": "tracking_id",
    "TrackingUniqueIdentifier": "tracking_uid",
}
#: Keys of a segment in the short form.
SHORT_KEYS = ("name", *(key for key in _DCMQI_KEYS.values() if key != "cielab"))
# Keys of dcmqi's JSON about the series: taken over; passed over in silence; passed over with a note.
_SERIES_KEYS = ("SeriesDescription", "SeriesNumber", "ContentCreatorName")
_SILENT_KEYS = ("@schema", "segmentAttributes", "segmentAttributesFileMapping")
_IGNORED_KEYS = (
    "InstanceNumber",
    "ContentLabel",
    "ContentDescription",
    "BodyPartExamined",
    "ClinicalTrialSeriesID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialCoordinatingCenterName",
)
_NOT_SEGMENTS = {*_SERIES_KEYS, *_SILENT_KEYS, *_IGNORED_KEYS}
_MOST_LISTED = 30  # segments a message lists
_LARGEST_FILE = 16 << 20  # bytes: room for thousands of segments; a volume given by mistake has more
_CODE_PARTS = {"CodingSchemeDesignator": 16, "CodeValue": 1024, "CodeMeaning": 64}  # and their longest text


@dataclass(frozen=True)
class SegmentMetadata:
    """What is requested for one segment; None where nothing is.

    Attributes
    ----------
    name, number
        Which segment it is about: its name, its label value in the file that is described.
    colour
        Red, green and blue from 0 to 1.
    algorithm_type, algorithm_name
        MANUAL, SEMIAUTOMATIC or AUTOMATIC, and what it is called.
    tracking_id, tracking_uid
        By which the segment is known again in other files.
    """

    name: str | None = None
    number: int | None = None
    terminology: Terminology | None = None
    label: str | None = None
    description: str | None = None
    colour: tuple[float, float, float] | None = None
    algorithm_type: str | None = None
    algorithm_name: str | None = None
    tracking_id: str | None = None
    tracking_uid: str | None = None

    def __str__(self) -> str:
        return repr(self.name) if self.name is not None else f"label value {self.number}"


@dataclass(frozen=True)
class ExportMetadata:
    """What is requested for the segments and the series; None where the user left it open.

    ``notes`` list what was passed over in the file.
    """

    segments: tuple[SegmentMetadata, ...] = ()
    series_description: str | None = None
    series_number: int | None = None
    creator: str | None = None
    notes: tuple[Note, ...] = ()

    def of(self, name: str, number: int | None = None) -> SegmentMetadata | None:
        """Return the entry for the segment of that name; for that label value when no entry has the name."""
        named = [entry for entry in self.segments if entry.name is not None]
        found = [entry for entry in named if entry.name == name]
        found += [entry for entry in named if _plain(entry.name or "") == _plain(name)]
        found += [entry for entry in self.segments if number is not None and entry.number == number]
        return found[0] if found else None

    def matched_to(self, segmentation: Segmentation) -> ExportMetadata:
        """Return the same with each entry matched to one segment, by that segment's name.

        Names come first, whatever the order; only entries that fit none go by their label value. So a list
        made for another order does not call the spleen a liver. Segments that were read from no file have
        the values 1, 2, ….

        Raises
        ------
        ExportError
            No entry is for a segment that is there, or one is for a label value that several have.
        """
        value_of = _label_values(segmentation)
        by_name = {_plain(name): name for name in value_of}
        matched: dict[str, SegmentMetadata] = {}
        left: list[SegmentMetadata] = []
        for entry in self.segments:
            name = entry.name if entry.name in value_of else by_name.get(_plain(entry.name or ""))
            if name is None or name in matched:
                left.append(entry)
            else:
                matched[name] = entry
        absent = [entry for entry in left if not _has_value(entry, value_of)]
        for entry in left:
            if entry not in absent or not (matched or len(left) > len(absent)):
                matched[_name_by_value(entry, value_of, matched)] = entry
        notes = list(self.notes)
        if absent:
            # One file may serve many scans, of which not all have every organ.
            message = f"the metadata describes {_listed(absent)}, which this segmentation does not have"
            notes.append(Note.warning("metadata-unmatched", message, segments=list(map(str, absent))))
        ordered = (replace(matched[name], name=name, number=None) for name in value_of if name in matched)
        return replace(self, segments=tuple(ordered), notes=tuple(notes))


def _label_values(segmentation: Segmentation) -> dict[str, int | None]:
    if all(segment.value is None for segment in segmentation):
        return {name: number for number, name in enumerate(segmentation.names, start=1)}
    return {segment.name: segment.value for segment in segmentation}


def _has_value(entry: SegmentMetadata, value_of: Mapping[str, int | None]) -> bool:
    """Return whether a segment has the label value of an entry; a name already matched counts as there."""
    return entry.name in value_of or (entry.number is not None and entry.number in value_of.values())


def _listed(entries: Sequence[SegmentMetadata]) -> str:
    more = f" and {len(entries) - 4} more" if len(entries) > 4 else ""
    return ", ".join(map(str, entries[:4])) + more


def _name_by_value(
    entry: SegmentMetadata, value_of: Mapping[str, int | None], matched: Mapping[str, SegmentMetadata]
) -> str:
    """Return the name of the one segment that has an entry's label value."""
    found = [name for name, value in value_of.items() if value is not None and value == entry.number]
    if len(found) == 1 and found[0] not in matched:
        return found[0]
    called = [repr(entry.name)] if entry.name is not None else []
    called += [f"label value {entry.number}"] if entry.number is not None else []
    code, reason = "metadata-for-no-segment", "there is no such segment"
    if len(found) > 1:
        code = "metadata-ambiguous"
        reason = f"{' and '.join(map(repr, found[:4]))} have that value, each on its layer: give their names"
    elif found:
        code, reason = "metadata-duplicate", f"there is another entry for {found[0]!r}"
    known = [repr(name) if value is None else f"{name!r} ({value})" for name, value in value_of.items()]
    more = [f"{len(known) - _MOST_LISTED} more"] if len(known) > _MOST_LISTED else []
    listed = ", ".join([*known[:_MOST_LISTED], *more]) or "none"
    message = f"the metadata describes {', '.join(called)}, but {reason}: segments (with values) are {listed}"
    raise ExportError(message, code=code, name=entry.name, number=entry.number, segments=dict(value_of))


def read_metadata(path: str | Path) -> ExportMetadata:
    """Read a file of metadata, in either form.

    Raises
    ------
    ExportError
        Naming the file, the entry and the value that cannot be used.
    """
    path = Path(path)
    location = _Location(path.name)
    content = _json_object(path, location)
    entries, notes = (
        _dcmqi(location, content) if "segmentAttributes" in content else _short(location, content)
    )
    _check_different(location, entries)
    ignored = (
        Note.warning("metadata-key-ignored", f"{location}: {key} is not taken over", key=key)
        for key in content
        if key in _IGNORED_KEYS
    )
    return ExportMetadata(
        tuple(entries),
        location.read(content, "SeriesDescription", _text_or_none),
        location.read(content, "SeriesNumber", _number),
        location.read(content, "ContentCreatorName", _text_or_none),
        notes=(*ignored, *notes),
    )


def _json_object(path: Path, location: _Location) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object, no key of any object twice."""

    def once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise location.error("has a key twice", f" in {_shown([key for key, _ in pairs])}")
        return content

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise location.error("is too large", f": more than {_LARGEST_FILE >> 20} MB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise location.error("cannot be read", f": {error.strerror or error}") from error
    except ValueError as error:  # bytes that are no text, or a path no file can have
        raise location.error("is not a text file in UTF-8") from error
    try:
        content = json.loads(text, object_pairs_hook=once_each)
    except RecursionError as error:
        raise location.error("is nested too deeply to be a list of segments") from error
    except ValueError as error:
        raise location.error("is not JSON", f": {error}") from error
    if not isinstance(content, dict):
        raise location.unexpected("an object {…}", content)
    return content


def _short(location: _Location, content: Mapping[str, Any]) -> tuple[list[SegmentMetadata], list[Note]]:
    entries = []
    for name, value in content.items():
        if name in _NOT_SEGMENTS:
            continue
        here = location.at(f"segment {_shown(name)}")
        given = {"type" if "^" in value else "name": value} if isinstance(value, str) else value
        if not isinstance(given, dict):
            expected = "a code scheme^value^meaning, a name that has a code, or an object {…}"
            raise here.unexpected(expected, value)
        is_value = name.isdecimal()
        if is_value and "label" not in given and given.get("name"):
            given = {**given, "label": given["name"]}  # better than a number
        for key in given:
            if key not in SHORT_KEYS:
                raise here.error(f"unknown key {_shown(key)}", f"; known are {', '.join(SHORT_KEYS)}")
        entries.append(replace(_entry(here, given), name=name, number=int(name) if is_value else None))
    return entries, []


def _dcmqi(location: _Location, content: Mapping[str, Any]) -> tuple[list[SegmentMetadata], list[Note]]:
    """Read a list of segments for each file of labels; their numbers may start again in the next."""
    lists = content["segmentAttributes"]
    if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        raise location.at("segmentAttributes").unexpected("a list of lists of segments", lists)
    notes = [_unknown_key(location, key) for key in content if key not in _NOT_SEGMENTS]
    entries = []
    for count, given in enumerate((given for one in lists for given in one), start=1):
        here = location.at(f"segment {count} of segmentAttributes")
        if not isinstance(given, dict):
            raise here.unexpected("an object {…}", given)
        notes += [_unknown_key(here, key) for key in given if key not in {*_DCMQI_KEYS, "labelID"}]
        entry = _entry(here, given, {short: long for long, short in _DCMQI_KEYS.items()})
        number = here.read(given, "labelID", _number)
        if number is None and entry.label is None:
            raise here.error("has neither labelID nor SegmentLabel to say which segment it is")
        entries.append(replace(entry, name=entry.label, number=number))
    labels = [entry.label for entry in entries]
    # Two tumours may have the same label: then their numbers distinguish them.
    unnamed = [
        replace(entry, name=None) if entry.number and labels.count(entry.label) > 1 else entry
        for entry in entries
    ]
    return unnamed, notes


def _unknown_key(location: _Location, key: str) -> Note:
    return Note.warning("metadata-key-unknown", f"{location}: {_shown(key)} is not known", key=key)


def _entry(
    location: _Location, given: Mapping[str, Any], long_keys: Mapping[str, str] | None = None
) -> SegmentMetadata:
    """Read an object with the keys of the short form, or with the ``long_keys`` in their place."""

    def read(key: str, reader: Callable[..., Any], *limits: Any) -> Any:
        return location.read(given, long_keys.get(key, key) if long_keys else key, reader, *limits)

    colour = read("colour", _three_integers, 255)
    cielab = read("cielab", _three_integers, 65535)
    if cielab and not colour:
        from highdicom.color import CIELabColor

        colour = CIELabColor.from_dicom_value(cielab).to_rgb(clip=True)
    return SegmentMetadata(
        terminology=_terminology(location, read),
        label=read("label", _text),
        description=read("description", _text_or_none, 1024),
        colour=tuple(part / 255 for part in colour) if colour else None,
        algorithm_type=read("algorithm_type", _one_of, ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")),
        algorithm_name=read("algorithm_name", _text_or_none),
        tracking_id=read("tracking_id", _text_or_none),
        tracking_uid=read("tracking_uid", _uid),
    )


def _terminology(location: _Location, read: Callable[..., Any]) -> Terminology | None:
    name = read("name", _text)
    keys = ("category", "type", "modifier", "region", "region_modifier")
    category, kind, modifier, region, region_modifier = (read(key, _code) or NO_CODE for key in keys)
    if {category, kind, modifier, region, region_modifier} == {NO_CODE}:
        named = coding.term_for(name) if name is not None else None
        if name is not None and named is None:
            raise location.unexpected("a code scheme^value^meaning, or a name that has a code", name)
        return named
    if name is not None:
        raise location.error("has both a name and codes; give one of them")
    if kind == NO_CODE or (region_modifier != NO_CODE and region == NO_CODE):
        lacking, there = ("a region", "its modifier") if kind != NO_CODE else ("a type", "other codes")
        raise location.error(f"has no code for {lacking}, only for {there}")
    if category == NO_CODE:
        category = coding.category_of(kind) or NO_CODE
    if category == NO_CODE:
        examples = "SCT^123037004^Anatomical Structure or SCT^49755003^Morphologically Altered Structure"
        raise location.error(f"the type {str(kind)!r} needs a category", f", such as {examples}")
    return Terminology(category, kind, modifier, region, region_modifier)


def _check_different(location: _Location, entries: Sequence[SegmentMetadata]) -> None:
    names: list[str | int | None] = [entry.name for entry in entries if entry.name is not None]
    numbers: list[str | int | None] = [entry.number for entry in entries if entry.name is None]
    for kind, seen in (("segment", names), ("labelID", numbers)):
        twice = next((one for one in seen if seen.count(one) > 1), None)
        if twice is not None:
            raise location.error(f"has two entries for {kind} {_shown(twice)}")


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


# Values and where they stand --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Location:
    text: str

    def __str__(self) -> str:
        return self.text

    def at(self, further: str) -> _Location:
        """Return a location within this one."""
        return _Location(f"{self.text}: {further}")

    def error(self, problem: str, more: str = "", **fields: Any) -> ExportError:
        """Return what to raise for a problem at this location."""
        facts = {"location": self.text, "problem": problem, **fields}
        return ExportError(f"{self}: {problem}{more}", code="invalid-metadata", **facts)

    def unexpected(self, expected: str, value: Any) -> ExportError:
        """Return what to raise for a value that is not what it must be."""
        return self.error(f"expected {expected}", f", not {_shown(value)}", expected=expected)

    def read(self, content: Mapping[str, Any], key: str, reader: Callable[..., Any], *limits: Any) -> Any:
        """Return the value of a key as ``reader`` reads it; None where there is no such key."""
        return reader(self.at(key), content[key], *limits) if key in content else None


def _shown(value: Any) -> str:
    """Return a value as messages show it: not all of it when it is long."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(location: _Location, value: Any, longest: int = 64) -> str:
    """Return text on one line, as DICOM stores it."""
    if not isinstance(value, str) or not value.strip():
        raise location.unexpected("text that is not empty", value)
    value = value.strip()
    if "\\" in value or not value.isprintable():  # a backslash divides values in DICOM
        raise location.unexpected("text on one line, without backslash", value)
    if len(value) > longest:
        raise location.unexpected(f"at most {longest} characters", value)
    return value


def _text_or_none(location: _Location, value: Any, longest: int = 64) -> str | None:
    """Return the same, or None for empty text: so some programs leave a field open."""
    return None if value == "" else _text(location, value, longest)


def _number(location: _Location, value: Any) -> int:
    """Return a whole number that DICOM's IS holds, also from text."""
    if isinstance(value, str) and re.fullmatch(r" *[0-9]{1,12} *", value):  # as dcmqi writes them
        value = int(value)
    if type(value) is not int or not 0 <= value <= LARGEST_IS:
        raise location.unexpected(f"a whole number from 0 to {LARGEST_IS}", value)
    return value


def _one_of(location: _Location, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise location.unexpected("one of " + ", ".join(known), value)
    return str(value)


def _three_integers(location: _Location, value: Any, largest: int) -> tuple[int, int, int]:
    good = isinstance(value, list) and len(value) == 3
    if not good or not all(type(part) is int and 0 <= part <= largest for part in value):
        raise location.unexpected(f"a list of three whole numbers from 0 to {largest}", value)
    return value[0], value[1], value[2]


def _uid(location: _Location, value: Any) -> str:
    text = _text(location, value)
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+", text):
        raise location.unexpected("a UID of numbers and dots", value)
    return text


def _code(location: _Location, value: Any) -> Code:
    """Return a code from ``scheme^value^meaning``, or an object (or list of one) with DICOM's attributes."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.count("^") == 2:
        value = dict(zip(_CODE_PARTS, value.split("^"), strict=True))
    if not isinstance(value, dict) or set(value) != set(_CODE_PARTS):
        raise location.unexpected(f"scheme^value^meaning, or an object of {', '.join(_CODE_PARTS)}", value)
    texts = [_text(location.at(part), value[part], longest) for part, longest in _CODE_PARTS.items()]
    if any(divider in text for text in texts for divider in "^~|"):
        raise location.unexpected("parts without ^, ~ and |, which divide codes", value)
    return Code(*texts)
