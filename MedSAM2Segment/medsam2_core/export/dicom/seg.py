"""DICOM SEG: a segmentation as an object of the archive its images came from (PS3.3 A.51, label maps A.90).

highdicom makes the object: its modules, the positions of its frames and their references to the images. It
takes the pixels of all segments in one array, though: 10 overlapping segments of 512 x 512 x 60 voxels take
about twice the memory and time (443 MB instead of 229 MB, Testing/bench/export_seg.py --overlapping), 30 of
300 slices gigabytes. So it gets an image of one pixel a frame, from which it knows which segment is on which
slice. The frames themselves are streamed into the file.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medsam2_core import atomic
from medsam2_core.errors import ExportError, Note
from medsam2_core.export.dicom.descriptions import Descriptions, describe
from medsam2_core.export.dicom.frames import (
    TRANSFER_SYNTAXES,
    BinaryFrames,
    FrameSource,
    LabelFrames,
    PixelDataWriter,
    ProbabilityFrames,
    write_frames,
)
from medsam2_core.export.dicom.options import Compression, Kind, SegOptions
from medsam2_core.export.metadata import LARGEST_IS, MANUFACTURER
from medsam2_core.export.resampling import onto_grid
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

    from medsam2_core.export.dicom.source import Source
    from medsam2_core.imaging.probabilities import Probabilities

_SERIES_OFFSET = 1000  # our series comes after the source's in a list, at a number that no other series has
_LARGEST_NATIVE = 2**32 - 2  # bytes: the length of an element has 32 bits
_JPEG_LS = Note.warning(
    "jpeg-ls-not-widely-read",
    "dcmqi, and with it 3D Slicer, does not open a SEG packed as JPEG-LS: it does open RLE",
)
_SHEARED = Note.warning(
    "sheared-seg",
    "the series was taken with a tilted gantry: every frame lies where its image does, but programs that "
    "know upright blocks only (dcmqi, and with it 3D Slicer's import of SEG) do not open it",
)


@dataclass(frozen=True)
class WrittenSeg:
    """The SEG that was written.

    Attributes
    ----------
    segmentation
        What is in it, on the series' grid, with the names and codes it was written with.
    header
        Its data set without pixels, for what refers to it.
    """

    path: Path
    segmentation: Segmentation
    header: Dataset
    frames: int
    notes: tuple[Note, ...] = ()


def write_seg(
    segmentation: Segmentation,
    source: Source,
    path: str | Path,
    options: SegOptions | None = None,
    *,
    probabilities: Probabilities | None = None,
    overwrite: bool = False,
) -> WrittenSeg:
    """Write a segmentation as DICOM SEG, whole or not at all.

    Every frame refers to the image it lies on; slices without the object are left out. Patient, study and
    frame of reference are the source's; UIDs of series and instance are new each time.

    Parameters
    ----------
    source
        The series it was drawn on. On another grid than that it is resampled to it.
    probabilities
        Of the same objects, on the same volume: needed for FRACTIONAL.

    Raises
    ------
    ExportError
        No object has a voxel; one has no code; resampling would cost too much; overlapping objects in a label
        map; no probabilities for FRACTIONAL; or the file cannot be written there.
    """
    path, options = Path(path), options or SegOptions()
    with atomic.protect(*source.files):
        atomic.check_target(path, overwrite=overwrite)
    kept, notes = _with_voxels(segmentation, path)
    moved = onto_grid(kept, source.geometry, options.most_lost, resample=options.resample)
    described = describe(moved, options.metadata, generic=options.generic)
    pixels = _pixels(moved, options.kind, probabilities)
    dataset = _dataset(pixels, source, described, options)
    if options.kind is not Kind.FRACTIONAL:
        overlap = any(True for _ in moved.overlaps())
        dataset.SegmentsOverlap = "YES" if overlap else "NO"
    with (
        atomic.protect(*source.files),
        _scratch(path) as stream,
        atomic.new_file(path, overwrite=overwrite) as target,
    ):
        _fill(dataset, pixels, source, options, stream)
        dataset.save_as(target, enforce_file_format=True)
    del dataset.PixelData  # its file is closed
    result = Segmentation(source.geometry, described.apply_to(moved), moved.provenance)
    if isinstance(pixels, ProbabilityFrames):
        notes += pixels.notes()
    if options.compression is Compression.JPEG_LS:
        notes.append(_JPEG_LS)
    if source.geometry.is_sheared:
        notes.append(_SHEARED)
    notes += [*source.notes, *moved.notes, *described.notes]
    return WrittenSeg(path, result, dataset, int(dataset.NumberOfFrames), tuple(notes))


def _with_voxels(segmentation: Segmentation, path: Path) -> tuple[Segmentation, list[Note]]:
    """Leave out segments without voxels: they would have no frame."""
    there = tuple(segment for segment in segmentation if not segment.is_empty)
    if not there:
        message = f"{path}: there is no object to write: no segment has a voxel"
        raise ExportError(message, code="no-voxels", path=str(path))
    left_out = [segment.name for segment in segmentation if segment.is_empty]
    notes = [
        Note.info("empty-segment-left-out", f"{name!r} has no voxel and is left out", segment=name)
        for name in left_out
    ]
    return Segmentation(segmentation.geometry, there, segmentation.provenance), notes


def _pixels(segmentation: Segmentation, kind: Kind, probabilities: Probabilities | None) -> FrameSource:
    if kind is Kind.BINARY:
        return BinaryFrames(segmentation)
    if kind is Kind.LABELMAP:
        if pairs := list(segmentation.overlaps()):
            listed = "; ".join(
                f"{count} voxels belong to both {earlier.name!r} and {later.name!r}"
                for earlier, later, count in pairs[:3]
            )
            more = f"; and {len(pairs) - 3} more pairs overlap" if len(pairs) > 3 else ""
            raise ExportError(
                f"{listed}{more}: a label map holds one segment per voxel. Choose binary, or export to .nrrd "
                "first, which keeps the later segment",
                code="overlap-in-labelmap",
                pairs=[[a.name, b.name] for a, b, _ in pairs],
            )
        return LabelFrames(segmentation)
    if probabilities is None:
        raise ExportError(
            "a fractional SEG holds the model's probabilities, which a mask does not: keep them when "
            "segmenting and give them here, or choose binary",
            code="probabilities-needed",
        )
    return ProbabilityFrames(probabilities, segmentation)


def _dataset(pixels: FrameSource, source: Source, described: Descriptions, options: SegOptions) -> Any:
    """Return highdicom's SEG without its pixels, made from one pixel a frame."""
    from highdicom import UID
    from highdicom.seg import Segmentation as Seg

    occupancy = pixels.occupancy().astype(np.uint8)
    if not occupancy.any():
        message = "there is no object to write: its probabilities are zero everywhere"
        raise ExportError(message, code="no-voxels")
    thumbnail = np.moveaxis(occupancy, 0, -1)[:, np.newaxis, np.newaxis, :]  # (K, 1, 1, S)
    number = options.series_number
    if number is None:
        number = min(int(source.header.get("SeriesNumber") or 0) + _SERIES_OFFSET, LARGEST_IS)
    with _understood(source):
        return Seg(
            source_images=_thumbnails(source),
            pixel_array=thumbnail[..., 0] if options.kind is Kind.LABELMAP else thumbnail,
            segmentation_type=options.kind.value.upper(),
            segment_descriptions=described.items,
            series_instance_uid=UID(),
            series_number=number,
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number=__version__,
            content_label="SEGMENTATION",
            content_description=options.series_description or "Segmentation",
            content_creator_name=options.creator,
            series_description=options.series_description or "Segmentation",
            specific_character_set="ISO_IR 192",
            transfer_syntax_uid=TRANSFER_SYNTAXES[Compression.NONE],
        )


@contextlib.contextmanager
def _understood(source: Source) -> Iterator[None]:
    """Turn what highdicom does not accept of a source into an ExportError with a way out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the patient's name, which is the source's
            yield
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"{source.folder}: a SEG cannot refer to these images: {reason}. "
            "Write .seg.nrrd or .nii.gz instead",
            code="source-not-accepted",
            path=str(source.folder),
            reason=reason,
        ) from error


def _thumbnails(source: Source) -> Sequence[Dataset]:
    """Return the source's headers as those of images of one pixel."""
    from pydicom import Dataset

    small = []
    for header in source.datasets:
        thumbnail = Dataset()
        thumbnail.update(header)
        for keyword in ("Rows", "Columns"):  # new elements: those there are the header's own
            thumbnail.add_new(keyword, "US", 1)
        small.append(thumbnail)
    return small


def _fill(dataset: Any, pixels: FrameSource, source: Source, options: SegOptions, stream: BinaryIO) -> None:
    """Give the data set its true size and its pixels, in the order of its frames."""
    from pydicom.valuerep import DSfloat

    columns, rows, slices = source.geometry.shape_ijk
    size = int(dataset.NumberOfFrames) * rows * columns * pixels.bits // 8
    if options.compression is Compression.NONE and size > _LARGEST_NATIVE:
        message = (
            f"{dataset.NumberOfFrames} frames take {size / 2**30:.1f} GB, more than the 4 GB that pixels "
            "without compression may have: choose the compression rle, or another kind"
        )
        raise ExportError(message, code="seg-too-large", frames=int(dataset.NumberOfFrames), bytes=size)
    dataset.Rows, dataset.Columns = rows, columns
    if source.is_placed and slices > 1:
        # highdicom writes it for even stacks only. Without it a reader must infer it from the frames.
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = DSfloat(source.geometry.distance_between_planes(), auto_format=True)
    if "ContentCreatorName" not in dataset:
        dataset.ContentCreatorName = ""  # of type 2: present and empty
    if not source.is_placed:
        dataset.PatientOrientation = source.header.get("PatientOrientation", "")  # of type 2 without a place
    order = list(_order(dataset, source))
    file = PixelDataWriter(stream, pixels.bits, options.compression, len(order), rows * columns)
    write_frames(pixels, order, file)
    dataset.PixelData = file.finish()
    dataset.BitsAllocated = dataset.BitsStored = pixels.bits
    dataset.HighBit = pixels.bits - 1
    dataset.file_meta.TransferSyntaxUID = TRANSFER_SYNTAXES[options.compression]
    dataset["PixelData"].VR = (
        "OB" if pixels.bits < 16 or options.compression is not Compression.NONE else "OW"
    )
    dataset["PixelData"].is_undefined_length = options.compression is not Compression.NONE


def _order(dataset: Any, source: Source) -> Sequence[tuple[int, int]]:
    """Return segment (from 0) and slice of each frame in the data set; correct their references."""
    if not source.is_placed:
        numbers = [_number(dataset, group) for group in dataset.PerFrameFunctionalGroupsSequence]
        return [(number - 1, 0) for number in numbers]
    places = source.datasets
    if source.frame_numbers is not None:
        groups = source.header.PerFrameFunctionalGroupsSequence
        places = tuple(group.PlanePositionSequence[0] for group in groups)
    slice_at = {tuple(map(float, place.ImagePositionPatient)): k for k, place in enumerate(places)}
    order = []
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0].ImagePositionPatient
        k = slice_at[tuple(map(float, position))]
        if source.frame_numbers is not None:
            # highdicom counts the frames it was shown, which may be one stack of several in the file
            image = group.DerivationImageSequence[0].SourceImageSequence[0]
            image.ReferencedFrameNumber = source.frame_numbers[k]
        order.append((_number(dataset, group) - 1, k))
    return order


def _number(dataset: Any, group: Any) -> int:
    """Return the number of the segment a frame shows; 1 for a label map, whose frames show all."""
    if dataset.SegmentationType == "LABELMAP":
        return 1
    shared = dataset.SharedFunctionalGroupsSequence[0]
    item = group if "SegmentIdentificationSequence" in group else shared
    return int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for the pixels, on the disk that must have room for them anyway."""
    try:
        stream = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed below, whatever happens
    except OSError as error:
        message = f"{path} cannot be written: {atomic.reason(error)}"
        raise ExportError(message, code="output-not-writable", path=str(path)) from error
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):  # a full disk has already been reported
            stream.close()
