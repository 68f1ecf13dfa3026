"""Descriptions of segments in a SEG: label, codes, colour and algorithm (PS3.3 C.8.20.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError, Note
from medsam2_core.export import metadata
from medsam2_core.export.dicom.coding import code_item, current_codes, terminology_of, usual_meaning
from medsam2_core.export.dicom.segment_metadata import ExportMetadata, SegmentMetadata
from medsam2_core.export.metadata import LONGEST_LO, LONGEST_ST, MANUFACTURER
from medsam2_core.version import __version__

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription

    from medsam2_core.imaging.segmentation import Segment, Segmentation
    from medsam2_core.imaging.terminology import Terminology

TYPES = ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")
TYPE_TAG, NAME_TAG = "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"
_TRACKING_TAG, _TRACKING_ID_TAG = f"{metadata.PREFIX}tracking_uid", f"{metadata.PREFIX}tracking_id"
_DESCRIPTION_TAG = f"{metadata.PREFIX}description"
_OF_ALGORITHM = f"{metadata.PREFIX}algorithm_"
#: What may be true of many segments, by the code of its note.
_OF_MANY = {
    "coded-by-name": "coded by name",
    "coded-as-tissue": "coded as Tissue, which describes nothing",
    "assumed-manual": "made in an unknown way, written as MANUAL (algorithm_type in metadata overrides it)",
}


@dataclass(frozen=True)
class Descriptions:
    """Descriptions of all segments, numbered from 1, and what the user should know."""

    items: tuple[SegmentDescription, ...]
    terminologies: tuple[Terminology, ...]
    notes: tuple[Note, ...] = ()

    def apply_to(self, segmentation: Segmentation) -> tuple[Segment, ...]:
        """Return the segments with their codes and labels; equal labels get numbers."""
        labels = [str(item.SegmentLabel) for item in self.items]
        names: list[str] = []
        for label, segment in zip(labels, segmentation, strict=True):
            name, count = label or segment.name, 1
            while name in names:
                count += 1
                name = f"{label or segment.name} ({count})"
            names.append(name)
        return tuple(
            segment.described_as(terminology, name)
            for segment, terminology, name in zip(segmentation, self.terminologies, names, strict=True)
        )


def describe(
    segmentation: Segmentation, requested: ExportMetadata | None = None, *, generic: bool = False
) -> Descriptions:
    """Describe each segment: what it is and how it was made.

    Parameters
    ----------
    requested
        What the user gives, before anything the segments have themselves.

    Raises
    ------
    ExportError
        A segment has no code, or a value that DICOM cannot hold.
    """
    items, terms, notes = [], [], []
    lacking: dict[str, ExportError] = {}
    affected: dict[str, list[str]] = {code: [] for code in _OF_MANY}
    for number, segment in enumerate(segmentation, start=1):
        given = (requested.of(segment.name, segment.value) if requested else None) or SegmentMetadata()
        try:
            terminology, note = terminology_of(segment, given.terminology, allow_generic=generic)
        except ExportError as error:
            lacking[segment.name] = error
            continue
        if note is not None:
            affected[note.code].append(segment.name)
        terminology = current_codes(terminology)
        made = _made(segmentation, segment, given, affected["assumed-manual"])
        described = given.label or (given.description if segment.name.isdecimal() else None)
        label = _clean(described or segment.name)
        if len(label) > LONGEST_LO:
            message = f"{label!r} is cut to {LONGEST_LO} characters"
            notes.append(Note.warning("label-shortened", message, segment=segment.name, label=label))
        items.append(_item(number, label[:LONGEST_LO].strip(), terminology, made, segment, given))
        terms.append(terminology)
        code, usual = terminology.type, usual_meaning(terminology.type) if given.terminology else None
        if usual is not None:
            message = (
                f"{segment.name!r}: {code.scheme} {code.value} stands for {usual!r}, not {code.meaning!r}"
            )
            facts = {"segment": segment.name, "value": str(code), "usual_meaning": usual}
            notes.append(Note.warning("code-meaning-differs", message, **facts))
    if lacking:
        names, first = list(lacking), next(iter(lacking.values()))
        more = f". The same is true of {_listed(names[1:])}" if names[1:] else ""
        raise ExportError(f"{first}{more}", code="no-segment-code", segments=names) from first
    for note_code, names in affected.items():
        if names:
            notes.append(Note.info(note_code, f"{_listed(names)}: {_OF_MANY[note_code]}", segments=names))
    return Descriptions(tuple(items), tuple(terms), tuple(notes))


def _listed(names: list[str]) -> str:
    """Return some of the names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(repr, names[:4])) + more


def _item(
    number: int,
    label: str,
    terminology: Terminology,
    made: tuple[str, AlgorithmIdentificationSequence | None],
    segment: Segment,
    given: SegmentMetadata,
) -> SegmentDescription:
    from highdicom import UID
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    tracked = given.tracking_uid or segment.tags.get(_TRACKING_TAG)
    if tracked and not UID(tracked).is_valid:
        tracked = None  # it would not be found by that
    tracking_id = given.tracking_id or segment.tags.get(_TRACKING_ID_TAG)
    description = given.description or segment.tags.get(_DESCRIPTION_TAG)
    colour = given.colour or segment.colour_rgb
    region = terminology.region
    item = SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=code_item(terminology.category),
        segmented_property_type=code_item(terminology.type),
        algorithm_type=made[0],
        algorithm_identification=made[1],
        tracking_uid=tracked or UID(),
        tracking_id=_clean(tracking_id or label)[:LONGEST_LO].strip(),
        anatomic_regions=[code_item(region)] if region.value else None,
        display_color=CIELabColor.from_rgb(*(255 * part for part in colour)),
    )
    if terminology.type_modifier.value:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(terminology.type_modifier)]
    if region.value and terminology.region_modifier.value:
        item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [
            code_item(terminology.region_modifier)
        ]
    if description:
        item.SegmentDescription = description[:LONGEST_ST]
    if made[1] is not None and not made[1][0].AlgorithmFamilyCodeSequence:
        # Of a program only its name is known: nothing is added to it.
        del item.SegmentationAlgorithmIdentificationSequence
    return item


def _made(
    segmentation: Segmentation, segment: Segment, given: SegmentMetadata, unsure: list[str]
) -> tuple[str, AlgorithmIdentificationSequence | None]:
    """Return algorithm type and identification; append the name to ``unsure`` when neither is known."""
    facts = _facts(segmentation, segment)
    name = given.algorithm_name or segment.tags.get(NAME_TAG)
    kind = given.algorithm_type or segment.tags.get(TYPE_TAG)
    if kind not in TYPES:
        known = not kind and (name or "model" in facts)
        kind = "SEMIAUTOMATIC" if known else "MANUAL"
        if not known:
            unsure.append(segment.name)
    if kind == "MANUAL":
        return kind, None
    return kind, _identification(segment, facts, name)


def _identification(
    segment: Segment, facts: dict[str, str], name: str | None
) -> AlgorithmIdentificationSequence:
    """Return the algorithm. The family of another program is left empty rather than invented."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    tags = segment.tags
    name = name or (metadata.algorithm_name(facts) if "model" in facts else "unknown")
    ours = re.match(rf"{MANUFACTURER} (\S+)", name)
    by_us = bool(ours) or "model" in facts
    identification = AlgorithmIdentificationSequence(
        name=_clean(name)[:LONGEST_LO].strip(),
        family=codes.DCM.ArtificialIntelligence,
        version=_clean(
            tags.get(f"{_OF_ALGORITHM}version")
            or (ours.group(1) if ours else __version__ if by_us else "unknown")
        )[:LONGEST_LO],
        source=_clean(tags.get(f"{_OF_ALGORITHM}source") or (MANUFACTURER if by_us else ""))[:LONGEST_LO]
        or None,
        parameters=facts or None,
    )
    if others := tags.get(f"{_OF_ALGORITHM}parameters"):
        own = identification[0].get("AlgorithmParameters", "")
        identification[0].AlgorithmParameters = f"{own},{others}".lstrip(",")
    if not by_us and f"{_OF_ALGORITHM}version" not in tags:
        identification[0].AlgorithmFamilyCodeSequence = []
    return identification


def _facts(segmentation: Segmentation, segment: Segment) -> dict[str, str]:
    """Return model and hash of its weights, as far as they are known; no paths."""
    known: Mapping[str, Any] = metadata.without_paths(segmentation.provenance)
    found = {}
    for key in ("model", "weights_sha256"):
        value = segment.tags.get(metadata.PREFIX + key) or known.get(key)
        if value:
            # commas divide the parameters
            found[key] = str(metadata.without_paths(value)).replace(",", ";").replace("\n", " ")
    return found


def _clean(text: str) -> str:
    """Return text as a value of DICOM: on one line, without what divides values or cannot be seen."""
    return "".join(one for one in " ".join(text.split()).replace("\\", "/") if one.isprintable())
