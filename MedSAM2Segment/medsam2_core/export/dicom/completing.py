"""Headers as they are found, made into headers a SEG can be built on.

Files of the wild lack what the standard asks for: de-identified ones their frame of reference or study,
converted ones the SOP class. What is missing is put in here, the same way every time, and told in a note.
What says whose images they are is never changed: archives look for the very same text.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError, Note

if TYPE_CHECKING:
    from pydicom import Dataset

#: All that is read of the slices after the first: the rest is the same, and can be long.
OF_A_SLICE = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "Rows", "Columns", "SliceThickness", "SpecificCharacterSet", "InstanceNumber"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
#: Present in every SEG, if need be without a value (type 2 of the patient and study modules).
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
#: What ties a SEG to its patient and study: kept as it is, even where it breaks a rule.
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
#: In the order in which one is made of the other.
_NAMED = {
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "FrameOfReferenceUID": "frame of reference",
}
_IDENTIFYING = (
    *_UIDS,
    "SOPInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "AccessionNumber",
    "StudyID",
)
#: SOP class of the images of a modality, for files that do not say.
_SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "OP": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: Groups of the attributes of patient and study.
_COPIED_GROUPS = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040)
_UID = re.compile(r"[0-9.]{1,64}")  # looser than the standard: old scanners write zeros in front


def drop_invalid(header: Dataset, notes: dict[Note, None]) -> None:
    """Leave out what a SEG would take over and may not say: values that break PS3.5 6.2.

    What identifies patient and study stays as it is.
    """
    from pydicom.datadict import keyword_for_tag

    dropped, kept = [], []
    for tag in [tag for tag in header.keys() if tag.group in _COPIED_GROUPS]:  # noqa: SIM118 - not parsed yet
        keyword = keyword_for_tag(tag) or str(tag)
        if not _breaks_rules(header, tag):
            continue
        if keyword in _IDENTIFYING and (not keyword.endswith("UID") or is_uid(header.get(keyword))):
            kept.append(keyword)
        else:
            dropped.append(keyword)
            del header[tag]
    for code, what, keywords in (
        ("invalid-values-dropped", "are left out", dropped),
        ("invalid-identifiers-kept", "identify patient, study or images and are kept", kept),
    ):
        if keywords:
            listed = ", ".join(sorted(keywords))
            message = f"values of the images that DICOM does not allow {what}: {listed}"
            notes[Note.warning(code, message, keywords=sorted(keywords))] = None


def _breaks_rules(header: Dataset, tag: Any) -> bool:
    """Whether a value is none of its value representation."""
    from pydicom import config
    from pydicom.valuerep import validate_value

    try:
        element = header[tag]
        if element.VR in ("SQ", "UN"):
            return False
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            if value not in (None, ""):
                text = str(value) if element.VR in ("IS", "DS") else value  # as it is written
                validate_value(element.VR, text, config.RAISE)
        if element.keyword == "PatientSex":
            return element.value not in ("", None, "M", "F", "O")
        return element.keyword in _IDENTIFYING and element.VM > 1
    except (ValueError, TypeError, AttributeError, NotImplementedError, OverflowError):
        return True


def is_uid(value: Any) -> bool:
    """Whether this can stand for a UID, be it one of an old scanner."""
    return isinstance(value, str) and _UID.fullmatch(value) is not None


def join(header: Dataset, first: Dataset, notes: dict[Note, None]) -> None:
    """What the slices of a series share, where a file says otherwise or nothing: that of the first."""
    for keyword in _UIDS:
        own = header.get(keyword)
        if is_uid(own) and own != first.get(keyword):
            message = f"the images disagree about their {keyword}: that of the first slice is kept"
            notes[Note.warning("uid-disagreement", message, keyword=keyword)] = None
        if keyword in first:
            setattr(header, keyword, first.get(keyword))


def complete(header: Dataset, first: Dataset, notes: dict[Note, None]) -> None:
    """Put in what every file should say and this one does not; ``notes`` gets a sentence for each."""
    if not header.get("SOPClassUID"):
        named = getattr(getattr(header, "file_meta", None), "MediaStorageSOPClassUID", None)
        header.SOPClassUID = named or _SOP_CLASSES.get(str(header.get("Modality")), _SECONDARY_CAPTURE)
        message = "the images do not say what they are (SOP class): taken from their modality"
        notes[Note.warning("sop-class-assumed", message)] = None
    if not header.get("SOPInstanceUID"):
        named = getattr(getattr(header, "file_meta", None), "MediaStorageSOPInstanceUID", None)
        header.SOPInstanceUID = named or ""
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, first.get(keyword, ""))
    for keyword, what in _NAMED.items():
        if not header.get(keyword):
            setattr(header, keyword, _derived(first, what))
            basis = "the first of them" if what == "series" else "their series"
            message = f"the images name no valid {what} ({keyword}): one was made from {basis}"
            notes[Note.warning("uid-made", message, keyword=keyword)] = None


def _derived(first: Dataset, what: str) -> str:
    """A UID of the series' own (PS3.5 B.2), the same for every export of it."""
    named = str(first.get("SeriesInstanceUID") or first.get("SOPInstanceUID") or "")
    if not named:
        raise ExportError(
            f"the images have neither series nor instance UID: no {what} can be named. Use the original files"
        )
    digest = hashlib.sha256(f"{named} {what}".encode()).digest()[:16]
    return f"2.25.{int.from_bytes(digest, 'big')}"
