"""The DICOM series a segmentation was drawn on: what a SEG takes from it, and refers to frame by frame."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError, Note
from medsam2_core.imaging import files
from medsam2_core.imaging.dicom import find_stack

if TYPE_CHECKING:
    from pydicom import Dataset

    from medsam2_core.imaging.dicom_frames import Frame
    from medsam2_core.imaging.geometry import Geometry


@dataclass(frozen=True)
class Source:
    """The DICOM series a segmentation lies on.

    Attributes
    ----------
    geometry
        Its grid; slice k is what ``reference(k)`` names.
    datasets
        Headers without pixels, completed: one a slice, in slice order; or that of the one multi-frame file,
        with the groups of the frames of this grid only, in slice order.
    frame_numbers
        Of a multi-frame file: which of its frames (from 1) each slice is. None for files of one frame.
    is_placed
        Whether the images have a position in the patient; if not, there is only one.
    has_depth
        Whether a volume can be determined: slices have a distance, or a single one its thickness.
    files
        The files of the series: nothing may be written over them.
    """

    folder: Path
    geometry: Geometry
    datasets: tuple[Dataset, ...]
    frame_numbers: tuple[int, ...] | None = None
    is_placed: bool = True
    has_depth: bool = True
    files: tuple[Path, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def header(self) -> Dataset:
        """The first header: patient, study and series."""
        return self.datasets[0]

    @property
    def series_uid(self) -> str:
        """The series instance UID."""
        return str(self.header.SeriesInstanceUID)

    def reference(self, k: int) -> tuple[str, str, int | None]:
        """Return SOP class UID, SOP instance UID and frame number (None for single frames) of slice ``k``."""
        dataset = self.datasets[0 if self.frame_numbers else k]
        number = self.frame_numbers[k] if self.frame_numbers else None
        return str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), number


def read_source(folder: str | Path, series: str | None = None) -> Source:
    """Find a series in a DICOM file or folder, and read all that a SEG needs of it but the pixels.

    Raises
    ------
    VolumeError
        There is no such series, or a file is damaged.
    GeometryError
        Slices are missing, doubled or unevenly spaced; the message names them.
    ExportError
        Nothing can refer to its images.
    """
    folder = Path(folder).expanduser()
    frames, geometry = find_stack(folder, series)
    holders = list(dict.fromkeys(frame.path for frame in frames))
    is_multi = "PerFrameFunctionalGroupsSequence" in frames[0].header or len(holders) < len(frames)
    if is_multi and len(holders) > 1:
        raise ExportError(
            f"{folder}: the series is spread over {len(holders)} multi-frame files, and a SEG made here "
            "refers to one: write .seg.nrrd or .nii.gz instead",
            code="series-in-several-multi-frame-files",
            path=str(folder),
            files=len(holders),
        )
    if not frames[0].is_placed and len(frames) > 1:
        message = (
            f"{folder}: {len(frames)} frames without a position in the patient (a clip): a SEG made here "
            "refers to a single image, or to images that have a position: write .seg.nrrd instead"
        )
        raise ExportError(message, code="clip-without-positions", path=str(folder), frames=len(frames))
    with files.reading(folder, "DICOM"):
        notes: dict[Note, None] = {}
        depth = _depth(frames, geometry, notes)
        headers = list(_headers(frames[:1] if is_multi else frames, depth, notes))
        if is_multi:
            headers = [_multi_frame(headers[0], frames, depth)]
    _check_uids(folder, headers)
    is_placed = frames[0].is_placed
    has_depth = is_placed and (len(frames) > 1 or _told(frames[0]) is not None)
    numbers = tuple(frame.index + 1 for frame in frames) if is_multi else None
    return Source(
        *(folder, geometry, tuple(headers), numbers, is_placed, has_depth),
        files=tuple(holders),
        notes=tuple(notes),
    )


def _headers(frames: Sequence[Frame], depth: float, notes: dict[Note, None]) -> Iterator[Dataset]:
    """Yield completed headers: the first whole, of the others what differs between slices."""
    import pydicom

    first: Dataset | None = None
    for frame in frames:
        tags = None if first is None else list(OF_A_SLICE)
        header = pydicom.dcmread(frame.path, stop_before_pixels=True, specific_tags=tags, force=True)
        if first is None:
            header.remove_private_tags()
            header.decode()  # texts become what they mean, for they are written in another encoding
            drop_invalid(header, notes)
            first = header
        else:
            join(header, first, notes)
        complete(header, first, notes)
        _place(header, frame, frames[0], depth)
        yield header


def _place(header: Dataset, frame: Frame, first: Frame, depth: float) -> None:
    """Set position, orientation and spacing as they were read when the slices were ordered.

    The orientation of all is that of the first: scanners write it with noise in the last digits.
    """
    if not frame.is_placed:
        for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"):
            if keyword in header:
                delattr(header, keyword)
        return
    header.ImagePositionPatient = _decimals(frame.position_lps)
    header.ImageOrientationPatient = _decimals(first.orientation_lps)
    header.PixelSpacing = _decimals(first.spacing)
    header.SliceThickness = _decimals([_thickness(frame) or depth])[0]


def _multi_frame(header: Dataset, frames: Sequence[Frame], depth: float) -> Dataset:
    """Return the header of a multi-frame file with the frames of one stack only."""
    from pydicom import Dataset

    whole = Dataset()
    whole.update(header)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        if keyword in whole:
            del whole[keyword]
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _decimals(frames[0].orientation_lps)
    measures.PixelSpacing = _decimals(frames[0].spacing)
    measures.SliceThickness = _decimals([_thickness(frames[0]) or depth])[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    groups = []
    for frame in frames:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _decimals(frame.position_lps)
        group.PlanePositionSequence = [position]
        groups.append(group)
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], groups
    whole.NumberOfFrames = len(frames)
    return whole


def _depth(frames: Sequence[Frame], geometry: Geometry, notes: dict[Note, None]) -> float:
    """Return the slice thickness in mm, assumed with a note where the images lack it."""
    if not frames[0].is_placed or _thickness(frames[0]) is not None:
        return frames[0].thickness
    if len(frames) > 1:
        message = "the images give no slice thickness: their spacing is used"
        notes[Note.warning("slice-thickness-assumed", message)] = None
        return geometry.distance_between_planes()
    distance = _told(frames[0])
    if distance is None:
        message = (
            "the image does not give the thickness of its slice: 1 mm is assumed, and volumes depend on it"
        )
        notes[Note.warning("slice-thickness-assumed", message, thickness_mm=1.0)] = None
        return 1.0
    message = "the image gives no slice thickness: the spacing of slices is used"
    notes[Note.warning("slice-thickness-assumed", message, thickness_mm=distance)] = None
    return distance


def _told(frame: Frame) -> float | None:
    """Return the thickness, or else the distance of slices, in mm from the header of a frame."""
    return _thickness(frame) or _thickness(frame, "SpacingBetweenSlices")


def _thickness(frame: Frame, keyword: str = "SliceThickness") -> float | None:
    """Return the nominal slice thickness in mm, which is not the distance of slices; None if unknown."""
    header = frame.header
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])[frame.index : frame.index + 1]
    groups += list(header.get("SharedFunctionalGroupsSequence") or [])
    items = [item for group in groups for item in group.get("PixelMeasuresSequence") or []]
    for item in (*items, header):
        value = item.get(keyword)
        if value not in (None, "") and float(value) != 0:
            return abs(float(value))
    return None


def _check_uids(folder: Path, headers: Sequence[Dataset]) -> None:
    seen: set[str] = set()
    for header in headers:
        uid = str(header.SOPInstanceUID)
        if not is_uid(uid) or uid in seen:
            words = "share" if uid in seen else "have"
            what = f"{words} the SOP instance UID {uid!r}"
            message = f"{folder}: images {what}: nothing can refer to them. Use the original files"
            raise ExportError(message, code="invalid-instance-uid", path=str(folder), uid=uid)
        seen.add(uid)


def _decimals(values: Any) -> list[Any]:
    """Return numbers as decimal strings of at most 16 characters (PS3.5, value representation DS)."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


#: All that is read of the slices after the first: the rest is the same, and can be long.
OF_A_SLICE = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "Modality", "Rows", "Columns", "SliceThickness", "SpecificCharacterSet", "InstanceNumber",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
#: Present in every SEG, if need be without a value (type 2 of the patient and study modules).
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
#: What ties a SEG to its series, study and place, in the order in which one is made of the other: kept as it
#: is, even where it breaks a rule.
_UIDS = {
    "SeriesInstanceUID": "series", "StudyInstanceUID": "study", "FrameOfReferenceUID": "frame of reference",
}  # fmt: skip
_IDENTIFYING = (
    *_UIDS, "SOPInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber", "StudyID",
)  # fmt: skip
#: SOP class of the images of a modality, for files that have none.
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
    """Drop values that a SEG would take over and that PS3.5 6.2 does not allow.

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
    """Return whether a value is not allowed by its value representation."""
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
    """Return whether a value can stand for a UID, be it one of an old scanner."""
    return isinstance(value, str) and _UID.fullmatch(value) is not None


def join(header: Dataset, first: Dataset, notes: dict[Note, None]) -> None:
    """Set what slices of a series share to that of the first, where a file differs or lacks it."""
    for keyword in _UIDS:
        own = header.get(keyword)
        if is_uid(own) and own != first.get(keyword):
            message = f"the images disagree about their {keyword}: that of the first slice is kept"
            notes[Note.warning("uid-disagreement", message, keyword=keyword)] = None
        if keyword in first:
            setattr(header, keyword, first.get(keyword))


def complete(header: Dataset, first: Dataset, notes: dict[Note, None]) -> None:
    """Add mandatory attributes that are missing; ``notes`` gets a note for each."""
    if not header.get("SOPClassUID"):
        named = getattr(getattr(header, "file_meta", None), "MediaStorageSOPClassUID", None)
        header.SOPClassUID = named or _SOP_CLASSES.get(str(header.get("Modality")), _SECONDARY_CAPTURE)
        message = "the images have no SOP class: it is derived from their modality"
        notes[Note.warning("sop-class-assumed", message)] = None
    if not header.get("SOPInstanceUID"):
        named = getattr(getattr(header, "file_meta", None), "MediaStorageSOPInstanceUID", None)
        header.SOPInstanceUID = named or ""
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, first.get(keyword, ""))
    for keyword, what in _UIDS.items():
        if not header.get(keyword):
            setattr(header, keyword, _derived(first, what))
            basis = "the first of them" if what == "series" else "their series"
            message = f"the images name no valid {what} ({keyword}): one was made from {basis}"
            notes[Note.warning("uid-made", message, keyword=keyword)] = None


def _derived(first: Dataset, what: str) -> str:
    """Return a UID derived from the series' own (PS3.5 B.2), the same for every export of it."""
    named = str(first.get("SeriesInstanceUID") or first.get("SOPInstanceUID") or "")
    if not named:
        message = (
            f"the images have neither series nor instance UID: no {what} can be named. Use the original files"
        )
        raise ExportError(message, code="no-uids")
    digest = hashlib.sha256(f"{named} {what}".encode()).digest()[:16]
    return f"2.25.{int.from_bytes(digest, 'big')}"
