"""The DICOM series a segmentation was drawn on: what a SEG takes over from it, and refers to frame by frame.

Files of the wild lack what the standard asks for: de-identified ones their frame of reference or study,
converted ones the SOP class. What is missing is put in here, the same way every time, and told in a note, so
that what is written is valid whatever it was made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError
from medsam2_core.imaging import files
from medsam2_core.imaging.dicom import find_stack

if TYPE_CHECKING:
    from pydicom import Dataset

    from medsam2_core.imaging.dicom_frames import Frame
    from medsam2_core.imaging.geometry import Geometry

#: All that is read of the slices after the first: the rest is the same, and can be long.
_OF_A_SLICE = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("Modality", "Rows", "Columns", "SliceThickness", "SpecificCharacterSet", "InstanceNumber"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
#: Present in every SEG, if need be without a value (type 2 of the patient and study modules).
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
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
#: Groups of the attributes of patient and study.
_COPIED_GROUPS = (0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Source:
    """The DICOM series a segmentation lies on.

    Attributes
    ----------
    folder
        Where it was read from.
    geometry
        Its grid; slice k is what ``reference(k)`` names.
    datasets
        Headers without pixels, completed: one a slice, in slice order; or that of the one multi-frame file,
        with the groups of the frames of this grid only, in slice order.
    frame_numbers
        Of a multi-frame file: which of its frames (from 1) each slice is. None for files of one frame.
    is_placed
        Whether the images say where in the patient they are; if not, there is only one.
    notes
        What was missing and put in, a sentence each.
    """

    folder: Path
    geometry: Geometry
    datasets: tuple[Dataset, ...]
    frame_numbers: tuple[int, ...] | None = None
    is_placed: bool = True
    notes: tuple[str, ...] = ()

    @property
    def header(self) -> Dataset:
        """The first header: patient, study and series."""
        return self.datasets[0]

    @property
    def series_uid(self) -> str:
        """The series instance UID."""
        return str(self.header.SeriesInstanceUID)

    def reference(self, k: int) -> tuple[str, str, int | None]:
        """SOP class UID, SOP instance UID and frame number (None for a file of one frame) of slice ``k``."""
        dataset = self.datasets[0 if self.frame_numbers else k]
        number = self.frame_numbers[k] if self.frame_numbers else None
        return str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), number


def read_source(folder: str | Path, series: str | None = None) -> Source:
    """Find a series in a DICOM file or folder, and read all that a SEG needs of it but the pixels.

    Parameters
    ----------
    series
        Number or UID, where there are several.

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
    is_multi = int(frames[0].header.get("NumberOfFrames") or 1) > 1 or len(holders) < len(frames)
    if is_multi and len(holders) > 1:
        raise ExportError(
            f"{folder}: the series is spread over {len(holders)} files of several frames each, which a SEG "
            "made here cannot refer to: write .seg.nrrd or .nii.gz instead"
        )
    if not frames[0].is_placed and len(frames) > 1:
        raise ExportError(
            f"{folder}: {len(frames)} frames without a position in the patient (a clip): a SEG made here "
            "refers to a single image, or to images that have a position: write .seg.nrrd instead"
        )
    with files.reading(folder, "DICOM"):
        notes: dict[str, None] = {}
        headers = list(_headers(frames[:1] if is_multi else frames, notes))
        if is_multi:
            headers = [_multi_frame(headers[0], frames)]
    _check_uids(folder, headers)
    numbers = tuple(frame.index + 1 for frame in frames) if is_multi else None
    return Source(folder, geometry, tuple(headers), numbers, frames[0].is_placed, tuple(notes))


def _headers(frames: Sequence[Frame], notes: dict[str, None]) -> Iterator[Dataset]:
    """Completed headers: the first whole, of the others what tells them apart."""
    import pydicom

    first: Dataset | None = None
    for frame in frames:
        tags = None if first is None else list(_OF_A_SLICE)
        header = pydicom.dcmread(frame.path, stop_before_pixels=True, specific_tags=tags, force=True)
        if first is None:
            header.remove_private_tags()
            header.decode()  # texts become what they mean, for they are written in another encoding
            _drop_invalid(header, notes)
            first = header
        else:
            _join(header, first, notes)
        _complete(header, first, notes)
        _place(header, frame, frames[0])
        yield header


def _drop_invalid(header: Dataset, notes: dict[str, None]) -> None:
    """Leave out what a SEG would take over and may not say: values that break PS3.5 6.2."""
    from pydicom import config
    from pydicom.datadict import keyword_for_tag
    from pydicom.valuerep import validate_value

    dropped = []
    for tag in [tag for tag in header.keys() if tag.group in _COPIED_GROUPS]:  # noqa: SIM118 - not parsed yet
        try:
            element = header[tag]
            if element.VR in ("SQ", "UN"):
                continue
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                if value in (None, ""):
                    continue
                text = str(value) if element.VR in ("IS", "DS") else value  # as it is written
                validate_value(element.VR, text, config.RAISE)
            if element.keyword == "PatientSex" and element.value not in ("", None, "M", "F", "O"):
                raise ValueError(element.value)
        except (ValueError, TypeError, AttributeError, NotImplementedError, OverflowError):
            dropped.append(keyword_for_tag(tag) or str(tag))
            del header[tag]
    if dropped:
        notes[
            f"values of the images that DICOM does not allow are left out: {', '.join(sorted(dropped))}"
        ] = None


def _join(header: Dataset, first: Dataset, notes: dict[str, None]) -> None:
    """What the slices of a series share, where a file says otherwise or nothing: that of the first."""
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        if header.get(keyword) and header.get(keyword) != first.get(keyword):
            notes[f"the images disagree about their {keyword}: that of the first slice is kept"] = None
        if keyword in first:
            setattr(header, keyword, first.get(keyword))


def _complete(header: Dataset, first: Dataset, notes: dict[str, None]) -> None:
    """Put in what every file should say and this one does not; ``notes`` gets a sentence for each."""
    if not header.get("SOPClassUID"):
        named = getattr(getattr(header, "file_meta", None), "MediaStorageSOPClassUID", None)
        header.SOPClassUID = named or _SOP_CLASSES.get(str(header.get("Modality")), _SECONDARY_CAPTURE)
        notes["the images do not say what they are (SOP class): taken from their modality"] = None
    if not header.get("SOPInstanceUID"):
        named = getattr(getattr(header, "file_meta", None), "MediaStorageSOPInstanceUID", None)
        header.SOPInstanceUID = named or ""
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, first.get(keyword, ""))
    if not header.get("SeriesInstanceUID"):
        header.SeriesInstanceUID = _derived(first, "series")
        notes["the images name no series (Series Instance UID): one was made from the first of them"] = None
    if not header.get("StudyInstanceUID"):
        header.StudyInstanceUID = _derived(first, "study")
        notes["the images name no study (Study Instance UID): one was made from their series"] = None
    if not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = _derived(first, "frame of reference")
        notes["the images name no frame of reference: one was made from their series"] = None


def _place(header: Dataset, frame: Frame, first: Frame) -> None:
    """Position, orientation and spacing as they were understood when the slices were put in order.

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
    header.SliceThickness = header.get("SliceThickness") or _decimals([frame.thickness])[0]


def _multi_frame(header: Dataset, frames: Sequence[Frame]) -> Dataset:
    """The header of a multi-frame file with the frames of one stack, place and spacing where all share it."""
    from pydicom import Dataset

    whole = Dataset()
    whole.update(header)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        if keyword in whole:
            del whole[keyword]
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _decimals(frames[0].orientation_lps)
    measures.PixelSpacing = _decimals(frames[0].spacing)
    measures.SliceThickness = _decimals([frames[0].thickness])[0]
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


def _check_uids(folder: Path, headers: Sequence[Dataset]) -> None:
    from pydicom.uid import UID

    seen: set[str] = set()
    for header in headers:
        uid = UID(str(header.SOPInstanceUID))
        if not uid.is_valid or uid in seen:
            what = f"share the SOP instance UID {uid}" if uid in seen else f"have {str(uid)!r} for a UID"
            raise ExportError(f"{folder}: images {what}: nothing can refer to them. Use the original files")
        seen.add(uid)


def _derived(first: Dataset, what: str) -> str:
    """A UID of the series' own (PS3.5 B.2), the same for every export of it."""
    named = str(first.get("SeriesInstanceUID") or first.get("SOPInstanceUID") or "")
    if not named:
        raise ExportError(
            f"the images have neither series nor instance UID: no {what} can be named. Use the original files"
        )
    digest = hashlib.sha256(f"{named} {what}".encode()).digest()[:16]
    return f"2.25.{int.from_bytes(digest, 'big')}"


def _decimals(values: Any) -> list[Any]:
    """Numbers as decimal strings of at most 16 characters (PS3.5, value representation DS)."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]
