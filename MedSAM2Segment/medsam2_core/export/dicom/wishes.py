"""What the user asks for in a file: codes, labels and colours of segments, and words about the series.

Two forms of JSON are read. The one is that of dcmqi, which 3D Slicer and others write as well
(https://qiicr.gitbook.io/dcmqi-guide: ``segmentAttributes``, and the series beside it). The other is short,
for people to write: keys are names of segments, values a code, a name of our table, or an object of
:data:`SHORT_KEYS`::

    {
      "liver": "SCT^10200004^Liver",
      "thing in it": {"type": "SCT^4147007^Mass", "region": "SCT^10200004^Liver", "colour": [255, 0, 0]},
      "SeriesDescription": "Second reading"
    }

Values are checked as PS3.5 asks of the attributes they become.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsam2_core.errors import ExportError, Note
from medsam2_core.export.dicom import coding
from medsam2_core.export.dicom.places import Place, shown
from medsam2_core.imaging.cielab import cielab_to_rgb
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.terminology import NO_CODE, Terminology

#: Keys of a segment in the short form.
SHORT_KEYS = (
    *("name", "category", "type", "modifier", "region", "region_modifier", "label", "description", "colour"),
    *("algorithm_type", "algorithm_name", "tracking_id", "tracking_uid"),
)
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
# dcmqi's words about the series that we take over, and those that say nothing to us.
_SERIES_KEYS = ("SeriesDescription", "SeriesNumber", "ContentCreatorName")
_SILENT_KEYS = ("@schema", "segmentAttributes", "segmentAttributesFileMapping")
_OTHER_KEYS = (
    *("InstanceNumber", "ContentLabel", "ContentDescription", "BodyPartExamined", "ClinicalTrialSeriesID"),
    *("ClinicalTrialTimePointID", "ClinicalTrialCoordinatingCenterName"),
)
_NOT_SEGMENTS = {*_SERIES_KEYS, *_SILENT_KEYS, *_OTHER_KEYS}
_MOST_TOLD = 30  # segments a message lists
_LARGEST_FILE = 16 << 20  # bytes: room for thousands of segments; a volume given by mistake has more


@dataclass(frozen=True)
class Wish:
    """What is asked for one segment; None where nothing is.

    Attributes
    ----------
    name, number
        Which segment it is about: its name, its label value in the file that is described.
    terminology
        Its codes.
    label, description
        Segment Label and Segment Description of the SEG.
    colour
        Red, green and blue from 0 to 1.
    algorithm_type, algorithm_name
        MANUAL, SEMIAUTOMATIC or AUTOMATIC, and what it is called.
    tracking_id, tracking_uid
        By which the object is known again in other files.
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


@dataclass(frozen=True)
class Wishes:
    """What is asked for the segments and of the series; None where the user left it open.

    ``notes`` says what of the file was passed over, one sentence each.
    """

    segments: tuple[Wish, ...] = ()
    series_description: str | None = None
    series_number: int | None = None
    creator: str | None = None
    notes: tuple[Note, ...] = ()

    def of(self, name: str, number: int | None = None) -> Wish | None:
        """The wish for the segment of that name; for that label value when no wish has the name."""
        named = [wish for wish in self.segments if wish.name is not None]
        found = [wish for wish in named if wish.name == name]
        found += [wish for wish in named if _plain(wish.name or "") == _plain(name)]
        found += [wish for wish in self.segments if number is not None and wish.number == number]
        return found[0] if found else None

    def bound_to(self, segments: Segmentation | Mapping[str, int | None] | Iterable[str]) -> Wishes:
        """The same, each wish for one segment, by that segment's name.

        Names come first, whatever the order; only wishes that fit none go by their label value. So a list
        made for another order does not call the spleen a liver.

        Parameters
        ----------
        segments
            A segmentation, whose segments have the values of the file they were read from, or 1, 2, … when
            they are from none; label values by name; or names alone, of values 1, 2, …

        Raises
        ------
        ExportError
            No wish is for a segment that is there, or one is for a label value that several have.
        """
        value_of = _label_values(segments)
        by_name = {_plain(name): name for name in value_of}
        bound: dict[str, Wish] = {}
        left: list[Wish] = []
        for wish in self.segments:
            asked = wish.name or ""
            name = asked if asked in value_of else by_name.get(_plain(asked))
            if name is None or name in bound:
                left.append(wish)
            else:
                bound[name] = wish
        absent = [wish for wish in left if not _has_value(wish, value_of)]
        for wish in left:
            if wish not in absent or not (bound or len(left) > len(absent)):
                bound[_of_value(wish, value_of, bound)] = wish
        notes = list(self.notes)
        if absent:
            # One file may serve many scans, of which not all have every organ.
            message = f"--segments describes {_listed(absent)}, which this segmentation does not have"
            notes.append(Note.warning("metadata-unmatched", message))
        ordered = (replace(bound[name], name=name, number=None) for name in value_of if name in bound)
        return replace(self, segments=tuple(ordered), notes=tuple(notes))


def _label_values(segments: Segmentation | Mapping[str, int | None] | Iterable[str]) -> dict[str, int | None]:
    """Label values by name, in order."""
    if isinstance(segments, Mapping):
        return dict(segments)
    if not isinstance(segments, Segmentation):
        return {name: number for number, name in enumerate(segments, start=1)}
    if all(segment.value is None for segment in segments):
        return _label_values(segments.names)
    return {segment.name: segment.value for segment in segments}


def _has_value(wish: Wish, value_of: Mapping[str, int | None]) -> bool:
    """Whether a segment has the label value a wish is for; a name that was already taken counts as there."""
    return wish.name in value_of or any(
        value is not None and value == wish.number for value in value_of.values()
    )


def _listed(wishes: Sequence[Wish]) -> str:
    """What some wishes are for, and how many more there are."""
    told = [repr(wish.name) if wish.name is not None else f"label value {wish.number}" for wish in wishes]
    more = f" and {len(told) - 4} more" if len(told) > 4 else ""
    return ", ".join(told[:4]) + more


def _of_value(wish: Wish, value_of: Mapping[str, int | None], bound: Mapping[str, Wish]) -> str:
    """Name of the one segment that has a wish's label value; ExportError tells the values there are."""
    found = [name for name, value in value_of.items() if value is not None and value == wish.number]
    if len(found) == 1 and found[0] not in bound:
        return found[0]
    called = [repr(wish.name)] if wish.name is not None else []
    called += [f"label value {wish.number}"] if wish.number is not None else []
    reason = "there is no such segment"
    if len(found) > 1:
        reason = f"{' and '.join(map(repr, found[:4]))} have that value, each on its layer: give their names"
    elif found:
        reason = f"there is another entry for {found[0]!r}"
    known = [repr(name) if value is None else f"{name!r} ({value})" for name, value in value_of.items()]
    more = [f"{len(known) - _MOST_TOLD} more"] if len(known) > _MOST_TOLD else []
    told = ", ".join([*known[:_MOST_TOLD], *more]) or "none"
    raise ExportError(
        f"--segments describes {', '.join(called)}, but {reason}: segments (with label values) are {told}"
    )


def read_wishes(path: str | Path) -> Wishes:
    """Read a file for ``--segments``, in either form.

    Raises
    ------
    ExportError
        Naming the file, the entry and the value that cannot be used.
    """
    place = Place(Path(path).name)
    try:
        if Path(path).stat().st_size > _LARGEST_FILE:
            raise ExportError(f"{place}: has more than {_LARGEST_FILE >> 20} MB; that is no list of segments")
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ExportError(f"{place}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # bytes that are no text, or a path no file can have
        raise ExportError(f"{place}: is not a text file in UTF-8") from error
    try:
        content = json.loads(text, object_pairs_hook=place.once_each)
    except RecursionError as error:
        raise ExportError(f"{place}: is nested too deeply to be a list of segments") from error
    except ValueError as error:
        raise ExportError(f"{place}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise place.error("an object {…}", content)
    wishes, notes = _dcmqi(place, content) if "segmentAttributes" in content else _short(place, content)
    _check_different(place, wishes)
    return Wishes(
        tuple(wishes),
        place.read(content, "SeriesDescription", Place.text_or_none),
        place.read(content, "SeriesNumber", Place.number),
        place.read(content, "ContentCreatorName", Place.text_or_none),
        notes=(
            *(
                Note.warning("metadata-key-ignored", f"{place}: {key} is not taken over", key=key)
                for key in content
                if key in _OTHER_KEYS
            ),
            *notes,
        ),
    )


def _short(place: Place, content: Mapping[str, Any]) -> tuple[list[Wish], list[Note]]:
    wishes = []
    for name, value in content.items():
        if name in _NOT_SEGMENTS:
            continue
        here = place.at(f"segment {shown(name)}")
        if isinstance(value, str):
            value = {"type" if "^" in value else "name": value}  # noqa: PLW2901
        is_value = name.isdecimal()
        if is_value and isinstance(value, dict) and "label" not in value and value.get("name"):
            value = {**value, "label": value["name"]}  # noqa: PLW2901 - better than a number
        if not isinstance(value, dict):
            raise here.error(
                "a code scheme^value^meaning, a name that --list-terms shows, or an object {…}", value
            )
        for key in value:
            if key not in SHORT_KEYS:
                raise ExportError(f"{here}: unknown key {shown(key)}; known are {', '.join(SHORT_KEYS)}")
        wishes.append(replace(_wish(here, value), name=name, number=int(name) if is_value else None))
    return wishes, []


def _dcmqi(place: Place, content: Mapping[str, Any]) -> tuple[list[Wish], list[Note]]:
    """A list of segments for each file of labels; their numbers may start again in the next."""
    lists = content["segmentAttributes"]
    if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        raise place.at("segmentAttributes").error("a list of lists of segments", lists)
    notes = [_unknown(place, key) for key in content if key not in _NOT_SEGMENTS]
    wishes = []
    for count, entry in enumerate((entry for one in lists for entry in one), start=1):
        here = place.at(f"segment {count} of segmentAttributes")
        if not isinstance(entry, dict):
            raise here.error("an object {…}", entry)
        notes += [_unknown(here, key) for key in entry if key not in {*_DCMQI_KEYS, "labelID"}]
        wish = _wish(here, entry, {short: long for long, short in _DCMQI_KEYS.items()})
        number = here.read(entry, "labelID", Place.number)
        if number is None and wish.label is None:
            raise ExportError(f"{here}: has neither labelID nor SegmentLabel to say which segment it is")
        wishes.append(replace(wish, name=wish.label, number=number))
    labels = [wish.label for wish in wishes]
    # Two tumours may both be labelled so: then their numbers tell them apart.
    unnamed = [replace(w, name=None) if w.number and labels.count(w.label) > 1 else w for w in wishes]
    return unnamed, notes


def _unknown(place: Place, key: str) -> Note:
    return Note.warning("metadata-key-unknown", f"{place}: {shown(key)} is not known", key=key)


def _wish(place: Place, value: Mapping[str, Any], called: Mapping[str, str] | None = None) -> Wish:
    """From an object with the keys of the short form, or with those that ``called`` puts in their place."""

    def read(key: str, kind: Callable[..., Any], *more: Any) -> Any:
        return place.read(value, called.get(key, key) if called else key, kind, *more)

    colour = read("colour", Place.integers, 255)
    cielab = read("cielab", Place.integers, 65535)
    return Wish(
        terminology=_terminology(place, read),
        label=read("label", Place.text),
        description=read("description", Place.text_or_none, 1024),
        colour=tuple(part / 255 for part in colour) if colour else cielab_to_rgb(cielab) if cielab else None,
        algorithm_type=read("algorithm_type", Place.one_of, ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")),
        algorithm_name=read("algorithm_name", Place.text_or_none),
        tracking_id=read("tracking_id", Place.text_or_none),
        tracking_uid=read("tracking_uid", Place.uid),
    )


def _terminology(place: Place, read: Callable[..., Any]) -> Terminology | None:
    name = read("name", Place.text)
    keys = ("category", "type", "modifier", "region", "region_modifier")
    category, kind, modifier, region, region_modifier = (read(key, Place.code) or NO_CODE for key in keys)
    if {category, kind, modifier, region, region_modifier} == {NO_CODE}:
        named = coding.term_for(name) if name is not None else None
        if name is not None and named is None:
            raise place.error("a code scheme^value^meaning, or a name that --list-terms shows", name)
        return named
    if name is not None:
        raise ExportError(f"{place}: has both a name and codes; give one of them")
    if kind == NO_CODE or (region_modifier != NO_CODE and region == NO_CODE):
        lacking, there = ("a region", "its modifier") if kind != NO_CODE else ("a type", "other codes")
        raise ExportError(f"{place}: has no code for {lacking}, only for {there}")
    if category == NO_CODE:
        category = coding.category_of(kind) or NO_CODE
    if category == NO_CODE:
        raise ExportError(
            f"{place}: the type {str(kind)!r} needs a category, such as "
            "SCT^123037004^Anatomical Structure or SCT^49755003^Morphologically Altered Structure"
        )
    return Terminology(category, kind, modifier, region, region_modifier)


def _check_different(place: Place, wishes: Sequence[Wish]) -> None:
    names = [wish.name for wish in wishes if wish.name is not None]
    numbers = [wish.number for wish in wishes if wish.name is None]
    for kind, seen in (("segment", names), ("labelID", numbers)):
        twice = next((one for one in seen if seen.count(one) > 1), None)
        if twice is not None:
            raise ExportError(f"{place}: has two entries for {kind} {shown(twice)}")


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
