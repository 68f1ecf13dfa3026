"""What a SEG says of each segment: name, codes, colour, and by what it was made (PS3.3 C.8.20.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError
from medsam2_core.export import metadata
from medsam2_core.export.dicom.coding import code_item, terminology_of
from medsam2_core.imaging.cielab import rgb_to_cielab
from medsam2_core.version import __version__

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription

    from medsam2_core.export.dicom.wishes import Wish, Wishes
    from medsam2_core.imaging.segmentation import Segment, Segmentation
    from medsam2_core.imaging.terminology import Terminology

MANUFACTURER = "MedSAM2Segment"
TYPES = ("MANUAL", "SEMIAUTOMATIC", "AUTOMATIC")
TYPE_TAG, NAME_TAG = "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"
_TRACKING_TAG = f"{metadata.PREFIX}tracking_uid"
_LONGEST_LO = 64  # characters of the value representation LO


@dataclass(frozen=True)
class Described:
    """Descriptions of all segments, numbered from 1, and what the user should know: one sentence each."""

    items: tuple[SegmentDescription, ...]
    terminologies: tuple[Terminology, ...]
    notes: tuple[str, ...] = ()


def describe(segmentation: Segmentation, wishes: Wishes | None = None, *, generic: bool = False) -> Described:
    """Say of each segment what it is and how it came about.

    Parameters
    ----------
    wishes
        What the user wants said, before anything the segments say themselves.
    generic
        Write segments nobody has given a code as "Tissue" instead of refusing them.

    Raises
    ------
    ExportError
        A segment has no code, or a value that DICOM cannot hold.
    """
    items, terms, notes = [], [], []
    for number, segment in enumerate(segmentation, start=1):
        wish = wishes.of(segment.name, number) if wishes is not None else None
        terminology, note = terminology_of(segment, wishes, number=number, allow_generic=generic)
        made, unsure = _made(segmentation, segment, wish)
        label = (wish.label if wish and wish.label else segment.name).replace("\\", "/")
        if len(label) > _LONGEST_LO:
            notes.append(f"{label!r} is cut to {_LONGEST_LO} characters")
        items.append(_item(number, label[:_LONGEST_LO], terminology, made, segment, wish))
        terms.append(terminology)
        notes += [text for text in (note, unsure) if text]
    return Described(tuple(items), tuple(terms), tuple(notes))


def _item(
    number: int,
    label: str,
    terminology: Terminology,
    made: tuple[str, AlgorithmIdentificationSequence | None],
    segment: Segment,
    wish: Wish | None,
) -> SegmentDescription:
    from highdicom import UID
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    tracked = (wish.tracking_uid if wish else None) or segment.tags.get(_TRACKING_TAG)
    colour = wish.colour if wish and wish.colour else segment.colour_rgb
    region = terminology.region
    item = SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=code_item(terminology.category),
        segmented_property_type=code_item(terminology.type),
        algorithm_type=made[0],
        algorithm_identification=made[1],
        tracking_uid=tracked or UID(),
        tracking_id=((wish.tracking_id if wish else None) or label)[:_LONGEST_LO],
        anatomic_regions=[code_item(region)] if region.value else None,
        display_color=CIELabColor.from_dicom_value(rgb_to_cielab(colour)),
    )
    if terminology.type_modifier.value:
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(terminology.type_modifier)]
    if region.value and terminology.region_modifier.value:
        item.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [
            code_item(terminology.region_modifier)
        ]
    if wish and wish.description:
        item.SegmentDescription = wish.description
    return item


def _made(
    segmentation: Segmentation, segment: Segment, wish: Wish | None
) -> tuple[tuple[str, AlgorithmIdentificationSequence | None], str | None]:
    """Algorithm type and identification, and a note when nobody says how the segment was made."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    facts = _facts(segmentation, segment)
    name = (wish.algorithm_name if wish else None) or segment.tags.get(NAME_TAG)
    kind = (wish.algorithm_type if wish else None) or segment.tags.get(TYPE_TAG)
    unsure = None
    if not kind:
        kind = "SEMIAUTOMATIC" if name or "model" in facts else "MANUAL"
        if kind == "MANUAL":
            unsure = (
                f"{segment.name!r}: nothing says how it was made: written as MANUAL (--segments can say "
                "otherwise)"
            )
    if kind not in TYPES:
        raise ExportError(f"{segment.name!r}: algorithm type {kind!r} is none of {', '.join(TYPES)}")
    if kind == "MANUAL":
        return (kind, None), unsure
    name = name or metadata.algorithm_name(facts)
    ours = re.match(rf"{MANUFACTURER} (\S+)", name)
    identification = AlgorithmIdentificationSequence(
        name=name.replace("\\", "/")[:_LONGEST_LO],
        family=codes.DCM.ArtificialIntelligence,
        version=ours.group(1) if ours else __version__ if "model" in facts else "unknown",
        source=MANUFACTURER if ours or "model" in facts else None,
        parameters=facts or None,
    )
    return (kind, identification), unsure


def _facts(segmentation: Segmentation, segment: Segment) -> dict[str, str]:
    """Model and hash of its weights, as far as they are known; no paths."""
    known: Mapping[str, Any] = metadata.without_paths(segmentation.provenance)
    found = {}
    for key in ("model", "weights_sha256"):
        value = segment.tags.get(metadata.PREFIX + key) or known.get(key)
        if value:
            # commas divide the parameters
            found[key] = str(metadata.without_paths(value)).replace(",", ";").replace("\n", " ")
    return found
