"""Measurements as DICOM SR: a measurement report (PS3.16 TID 1500) that refers to the segments of a SEG.

Each segment is a group of TID 1411, volumetric ROI measurements, with the segment's own tracking UID, codes
and algorithm: volume (sum of its voxels), long axis and short axis (SNOMED CT, CID 7470). The two axes name
the image they are in. Of a follow-up, each object of the earlier scan is a group of TID 1501 with the same
tracking identifier and the time point "Baseline", and the groups of this scan have the change in per cent.
Comprehensive SR (PS3.3 A.35.3) is written: it holds no positions that would need the 3-D kind, and more
archives know it.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.errors import ExportError, Note
from medsam2_core.export import metadata
from medsam2_core.export.changes import Change, changes
from medsam2_core.export.metadata import LARGEST_IS, LONGEST_LO, MANUFACTURER
from medsam2_core.export.writing import Written
from medsam2_core.version import __version__

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

    from medsam2_core.export.dicom.source import Source
    from medsam2_core.export.measurements import Diameter, Measured

#: This version of the program as a device (TID 1004): the same wherever it is installed.
DEVICE_UID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, f'{MANUFACTURER} {__version__}').int}"

_SEGMENTATIONS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
}
_SERIES_OFFSET = 1000  # the report stands behind the SEG as that does behind its source
#: Of CID 100, by modality; what else there is becomes "Imaging procedure".
_PROCEDURES = {
    "CT": "CTUnspecifiedBodyRegion",
    "MR": "MRIUnspecifiedBodyRegion",
    "PT": "PETUnspecifiedBodyRegion",
    "NM": "NMUnspecifiedBodyRegion",
    **dict.fromkeys(("CR", "DX", "RF", "XA"), "XRUnspecifiedBodyRegion"),
}
#: What changes are about, by name in :mod:`medsam2_core.export.changes`.
_QUANTITIES = {
    "volume_ml": "Volume",
    "longest_diameter_mm": "Long axis",
    "perpendicular_diameter_mm": "Short axis",
}
_SIDES = {"7771000", "24028007", "51440002", "66459002"}  # SNOMED CT: left, right, both, unilateral


def write_report(
    measured: Sequence[Measured],
    seg: Dataset,
    source: Source,
    path: str | Path,
    *,
    prior: Sequence[Measured] = (),
    overwrite: bool = False,
) -> Written:
    """Write what was measured as a DICOM structured report, whole or not at all.

    The report is a series of its own in the study of ``seg``, with new UIDs each time; its number is 1000
    more than that of the SEG. The observer is this program, and a person only where the SEG names its content
    creator.

    Parameters
    ----------
    measured
        Of the segments of ``seg``, in its order, on the grid of ``source``; objects without voxels may be
        among them whether or not the SEG has them.
    seg
        The data set of the SEG; its pixels are not needed.
    prior
        The same objects, by name, in an earlier scan of the patient.

    Raises
    ------
    ExportError
        ``seg`` is not a segmentation of these segments; the images have no pixel size; or
        the file cannot be written there.
    """
    path = Path(path)
    with atomic.protect(*source.files):
        atomic.check_target(path, overwrite=overwrite)
    check_lengths(source, path)
    if str(seg.get("SOPClassUID")) not in _SEGMENTATIONS or not seg.get("SegmentSequence"):
        message = f"{path}: a report refers to the segments of a DICOM SEG, not to {seg.get('Modality')!r}"
        raise ExportError(message, code="report-needs-seg", path=str(path))
    pairs, notes = _paired(measured, seg, path)
    _check_slices(measured, source, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the patient's name, which is the source's
        document = _document(pairs, seg, source, prior)
    # highdicom takes the maker of the first evidence, ours, for that of the images; the SEG names the true.
    document.ContributingEquipmentSequence = seg.get("ContributingEquipmentSequence") or []
    if not document.ContributingEquipmentSequence:
        del document.ContributingEquipmentSequence
    with atomic.protect(*source.files), atomic.new_file(path, overwrite=overwrite) as stream:
        document.save_as(stream, enforce_file_format=True)
    if not source.has_depth:
        message = "the image does not give its thickness: the report has no volumes"
        notes.append(Note.warning("volume-not-reported", message))
    return Written(path, tuple(notes))


def check_lengths(source: Source, path: Path) -> None:
    """Raise ExportError when pixels have no known size, so that no length can be reported."""
    if not source.is_placed and source.geometry.spacing.tolist() == [1, 1, 1]:
        # What a picture without spacing gets; written down as mm in an archive it would be taken for true.
        message = (
            f"{path}: the images do not give the size of a pixel: no length can be reported. Write "
            "measurements as .json or .csv, and take their mm for pixels"
        )
        raise ExportError(message, code="no-pixel-spacing", path=str(path))


def _check_slices(measured: Sequence[Measured], source: Source, path: Path) -> None:
    depth = source.geometry.shape_ijk[2]
    for one in measured:
        if one.k is not None and not 0 <= one.k < depth:
            raise ExportError(
                f"{path}: {one.name!r} was measured in slice {one.k}, but the series has {depth}: measure "
                "the segmentation on the grid of the series",
                code="measured-on-another-grid",
                path=str(path),
                segment=one.name,
                k=one.k,
                slices=depth,
            )


def _paired(
    measured: Sequence[Measured], seg: Dataset, path: Path
) -> tuple[list[tuple[Measured, Dataset]], list[Note]]:
    """Pair measurements with the SEG's items of the same segments."""
    # 0 is the background of a label map.
    items = [item for item in seg.SegmentSequence if int(item.SegmentNumber) > 0]
    notes: list[Note] = []
    if len(items) != len(measured):
        for one in measured:
            if not one.voxel_count:
                message = f"{one.name!r} has no voxel: it is not in the report"
                notes.append(Note.info("empty-segment-not-reported", message, segment=one.name))
        measured = [one for one in measured if one.voxel_count]
    if len(items) != len(measured) or not measured:
        raise ExportError(
            f"{path}: the SEG has {len(items)} segments, but {len(measured)} were measured: measure what was "
            "written",
            code="report-of-other-segments",
            path=str(path),
            segments=len(items),
            measured=len(measured),
        )
    return list(zip(measured, items, strict=True)), notes


def _document(
    pairs: Sequence[tuple[Measured, Dataset]], seg: Dataset, source: Source, prior: Sequence[Measured]
) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    procedure = _PROCEDURES.get(str(source.header.get("Modality")), "ImagingProcedure")
    changed = {one.name: one for one in changes(prior, [one for one, _ in pairs])} if prior else {}
    groups = [_group(one, item, seg, source, changed.get(one.name)) for one, item in pairs]
    trackers = {one.name: _tracker(one.name, item) for one, item in pairs}
    groups += [_baseline(one, trackers.get(one.name), source) for one in prior if one.voxel_count]
    report = hd.sr.MeasurementReport(
        observation_context=_observers(seg),
        procedure_reported=getattr(codes.cid100, procedure),
        imaging_measurements=groups,
    )
    about = str(seg.get("SeriesDescription") or "")
    return hd.sr.ComprehensiveSR(
        evidence=[seg, *source.datasets],
        content=report,
        series_instance_uid=hd.UID(),
        series_number=min(int(seg.get("SeriesNumber") or 0) + _SERIES_OFFSET, LARGEST_IS),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=__version__,
        series_description=f"Measurements {about}"[:LONGEST_LO].strip(),
        is_complete=True,
        specific_character_set="ISO_IR 192",
    )


def _observers(seg: Dataset) -> hd.sr.ObservationContext:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=DEVICE_UID, name=metadata.SOFTWARE, manufacturer_name=MANUFACTURER, model_name=MANUFACTURER
        ),
    )
    creator = str(seg.get("ContentCreatorName") or "")
    if not creator:
        return hd.sr.ObservationContext(observer_device_context=device)
    person = hd.sr.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name=creator),
    )
    return hd.sr.ObservationContext(observer_person_context=person, observer_device_context=device)


def _tracker(name: str, item: Dataset) -> hd.sr.TrackingIdentifier:
    import highdicom as hd

    label = str(item.get("SegmentLabel") or name)
    return hd.sr.TrackingIdentifier(
        uid=str(item.get("TrackingUID") or hd.UID()), identifier=str(item.get("TrackingID") or label)
    )


def _baseline(one: Measured, tracker: hd.sr.TrackingIdentifier | None, source: Source) -> Any:
    """Return the measurement group of an object of the earlier scan (TID 1501)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracker or hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=one.name),
        time_point_context=hd.sr.TimePointContext("earlier scan", codes.cid6146.Baseline, 1),
        measurements=list(_measurements(one, None, has_depth=source.has_depth)),
    )


def _group(one: Measured, item: Dataset, seg: Dataset, source: Source, change: Change | None) -> Any:
    """Return the measurement group of one segment (TID 1411)."""
    import highdicom as hd

    number = int(item.SegmentNumber)
    measurements = list(_measurements(one, source, has_depth=source.has_depth))
    if change is not None:
        measurements += _changes(change, has_depth=source.has_depth)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracker(one.name, item),
        time_point_context=None if change is None else hd.sr.TimePointContext("this scan", None, 2),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(source.series_uid),
        ),
        finding_category=_coded(item, "SegmentedPropertyCategoryCodeSequence"),
        finding_type=_coded(item, "SegmentedPropertyTypeCodeSequence"),
        finding_sites=list(_sites(item)),
        algorithm_id=_algorithm(item),
        measurements=measurements,
    )


def _changes(change: Change, *, has_depth: bool) -> Iterator[hd.sr.Measurement]:
    """Yield by how many per cent volume and axes have grown; nothing for a new object."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    for quantity, name in _QUANTITIES.items():
        percent = change.percent(quantity)
        if percent is not None and (has_depth or quantity != "volume_ml"):
            yield hd.sr.Measurement(
                name=codes.DCM.FractionalChange,
                value=percent,
                unit=codes.UCUM.Percent,
                tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"{name}, change"),
            )


def _measurements(one: Measured, source: Source | None, *, has_depth: bool) -> Iterator[hd.sr.Measurement]:
    """Yield volume and axes; without a source these refer to no image."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if has_depth and one.volume_ml is not None:
        yield hd.sr.Measurement(
            name=codes.SCT.Volume,
            value=one.volume_ml * 1000,
            unit=codes.UCUM.CubicMillimeter,
            method=codes.cid7474.SumOfSegmentedVoxelMethodForVolume,
        )
    for name, diameter in ((codes.SCT.LongAxis, one.longest), (codes.SCT.ShortAxis, one.perpendicular)):
        if diameter is not None:
            yield hd.sr.Measurement(
                name=name,
                value=diameter.length_mm,
                unit=codes.UCUM.Millimeter,
                referenced_images=None if source is None else [_image(diameter, source)],
            )


def _image(diameter: Diameter, source: Source) -> hd.sr.SourceImageForMeasurement:
    import highdicom as hd

    sop_class, instance, frame = source.reference(round(diameter.ends_ijk[0][2]))
    return hd.sr.SourceImageForMeasurement(sop_class, instance, None if frame is None else [frame])


def _sites(item: Dataset) -> Iterator[hd.sr.FindingSite]:
    """Yield finding sites: anatomic regions, or the organ itself where only a modifier gives its side."""
    import highdicom as hd

    sites = [(site, "AnatomicRegionModifierSequence") for site in item.get("AnatomicRegionSequence") or ()]
    if not sites:
        keyword = "SegmentedPropertyTypeModifierCodeSequence"
        sites = [
            (organ, keyword)
            for organ in item.SegmentedPropertyTypeCodeSequence
            if _is_side(_code(next(iter(organ.get(keyword) or ()), None)))
        ]
    for item_of_site, keyword in sites:
        site, modifier = _code(item_of_site), _code(next(iter(item_of_site.get(keyword) or ()), None))
        if site is not None:
            which = "laterality" if _is_side(modifier) else "topographical_modifier"
            yield hd.sr.FindingSite(site, **{which: modifier})


def _is_side(code: hd.sr.CodedConcept | None) -> bool:
    return code is not None and code.value in _SIDES


def _algorithm(item: Dataset) -> hd.sr.AlgorithmIdentification | None:
    """Return the algorithm (TID 4019), where the SEG has all that is mandatory."""
    import highdicom as hd

    found = item.get("SegmentationAlgorithmIdentificationSequence")
    if not found or not found[0].get("AlgorithmName") or not found[0].get("AlgorithmVersion"):
        return None
    parameters = str(found[0].get("AlgorithmParameters") or "")
    families = found[0].get("AlgorithmFamilyCodeSequence") or ()
    return hd.sr.AlgorithmIdentification(
        name=str(found[0].AlgorithmName),
        version=str(found[0].AlgorithmVersion),
        parameters=[parameters] if parameters else None,
        family=_code(next(iter(families), None)),
        manufacturer=str(found[0].get("AlgorithmSource") or "") or None,
    )


def _coded(item: Dataset, keyword: str) -> hd.sr.CodedConcept:
    code = _code(next(iter(item.get(keyword) or ()), None))
    if code is None:
        message = (
            f"segment {item.SegmentNumber} of the SEG ({item.get('SegmentLabel')!r}) has no {keyword}, which "
            "every segment must have: write the SEG again"
        )
        raise ExportError(message, code="seg-lacks-code", segment=int(item.SegmentNumber), keyword=keyword)
    return code


def _code(item: Dataset | None) -> hd.sr.CodedConcept | None:
    """Return a code without nested sequences; None where it is not complete."""
    import highdicom as hd

    if item is None:
        return None
    values = (item.get(keyword) for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue"))
    value = next((str(value) for value in values if value), "")
    scheme, meaning = str(item.get("CodingSchemeDesignator") or ""), str(item.get("CodeMeaning") or "")
    if not (value and meaning and (scheme or "URNCodeValue" in item)):
        return None
    version = item.get("CodingSchemeVersion")
    return hd.sr.CodedConcept(value, scheme, meaning[:LONGEST_LO], str(version) if version else None)
