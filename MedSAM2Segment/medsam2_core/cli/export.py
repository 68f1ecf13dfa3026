"""`medsam2 export`: a segmentation as the file another system takes, and what it measures beside it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsam2_core.cli import export_options as given
from medsam2_core.cli.report import peak_memory_mb, print_table, size
from medsam2_core.errors import ExportError
from medsam2_core.export.dicom.kinds import Compression, Kind

if TYPE_CHECKING:
    from medsam2_core.export.dicom.source import Source
    from medsam2_core.imaging.segmentation import Segmentation

_MEASUREMENTS = (".json", ".csv")


@dataclass
class _Done:
    """What was written, for the summary."""

    segmentation: Segmentation
    facts: dict[str, Any] = field(default_factory=dict)
    codes: list[str | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    header: Any = None  # of the SEG
    source: Source | None = None


def export(
    segmentation: given.SegmentationArgument = None,
    out: given.OutOption = None,
    dicom: given.DicomOption = None,
    series: given.SeriesOption = None,
    kind: given.KindOption = Kind.BINARY,
    probabilities: given.ProbabilitiesOption = None,
    compression: given.CompressionOption = Compression.NONE,
    segments: given.SegmentsOption = None,
    generic: given.GenericOption = False,
    list_terms: given.ListTermsOption = False,
    series_description: given.DescriptionOption = None,
    series_number: given.NumberOption = None,
    creator: given.CreatorOption = None,
    most_lost: given.MostLostOption = 5.0,
    measurements: given.MeasurementsOption = None,
    report: given.ReportOption = None,
    overwrite: given.OverwriteOption = False,
    as_json: given.JsonOption = False,
) -> None:
    """Write a segmentation as DICOM SEG, .seg.nrrd, NIfTI or another label map, with measurements beside."""
    if list_terms:
        _list_terms()
        return
    if segmentation is None or out is None:
        raise typer.BadParameter("give a segmentation, and --out FILE")
    from medsam2_core.imaging.segmentation_files import read_segmentation

    also = [*(measurements or []), *([report] if report else [])]
    as_dicom = out.suffix.lower() == ".dcm"
    _check(segmentation, out, dicom if as_dicom else None, also, report, overwrite)
    read = read_segmentation(segmentation)
    if as_dicom:
        assert dicom is not None
        wanted = {
            "kind": kind,
            "compression": compression,
            "generic": generic,
            "series_description": series_description,
            "series_number": series_number,
            "creator": creator,
            "most_lost": most_lost / 100,
        }
        done = _to_dicom(read, out, dicom, series, segments, probabilities, report, wanted, overwrite)
    else:
        done = _to_file(read, out, overwrite)
    _measure(done, measurements or [], report, overwrite)
    facts = {
        "out": str(out),
        **done.facts,
        "bytes": out.stat().st_size,
        "segments": [
            {"name": name, "code": code, "millilitres": round(done.segmentation.volume_ml(name), 3)}
            for name, code in zip(done.segmentation.names, done.codes, strict=True)
        ],
        "notes": done.notes,
        "measurements": [str(path) for path in measurements or []],
        "report": str(report) if report else None,
        "peak_memory_mb": peak_memory_mb(),
    }
    print(json.dumps(facts, indent=2)) if as_json else _print_for_people(facts)


def _check(
    segmentation: Path,
    out: Path,
    dicom: Path | None,
    also: list[Path],
    report: Path | None,
    overwrite: bool,
) -> None:
    """Refuse what could not be written before anything is, so that no part of it is left."""
    from medsam2_core import atomic
    from medsam2_core.export import suffix_of

    is_dicom = out.suffix.lower() == ".dcm"
    if not is_dicom:
        suffix_of(out)
    elif dicom is None:
        raise ExportError(
            f"--out {out}: a DICOM SEG refers to the images it was drawn on: give their series with "
            "--dicom FOLDER, or write .seg.nrrd or .nii.gz"
        )
    if report is not None and not is_dicom:
        raise ExportError(f"--report {report}: the report refers to a DICOM SEG: write one (--out X.dcm)")
    for path in also:
        if path != report and path.suffix.lower() not in _MEASUREMENTS:
            raise ExportError(f"--measurements {path}: they are written as .json or .csv")
    targets = [out, *also]
    names = [path.resolve() for path in (segmentation, *targets)]
    for n, path in enumerate(targets, start=1):
        if names[n] in names[:n]:
            raise ExportError(f"{path} is named twice: the one would replace the other")
        atomic.check_target(path, overwrite=overwrite)


def _to_dicom(
    read: Segmentation,
    out: Path,
    dicom: Path,
    series: str | None,
    segments: Path | None,
    probabilities: Path | None,
    report: Path | None,
    wanted: dict[str, Any],
    overwrite: bool,
) -> _Done:
    from medsam2_core.export.dicom.report import check_lengths
    from medsam2_core.export.dicom.seg import SegOptions, write_seg
    from medsam2_core.export.dicom.source import read_source
    from medsam2_core.export.dicom.wishes import read_wishes
    from medsam2_core.export.probabilities import read_probabilities

    wishes = read_wishes(segments).bound_to(read.names) if segments is not None else None
    if wishes is not None:
        for name in ("series_description", "series_number", "creator"):
            wanted[name] = getattr(wishes, name) if wanted[name] is None else wanted[name]
    options = SegOptions(wishes=wishes, **wanted)
    source = read_source(dicom, series)
    if report is not None:
        check_lengths(source, report)
    known = read_probabilities(probabilities) if probabilities is not None else None
    written = write_seg(read, source, out, options, probabilities=known, overwrite=overwrite)
    header = written.header
    facts = {
        "kind": options.kind.value,
        "frames": written.frames,
        "series_uid": str(header.SeriesInstanceUID),
        "instance_uid": str(header.SOPInstanceUID),
        "source_series_uid": source.series_uid,
    }
    items = [item for item in header.SegmentSequence if int(item.SegmentNumber) > 0]
    codes = [_code(item.SegmentedPropertyTypeCodeSequence[0]) for item in items]
    notes = [*(wishes.notes if wishes else ()), *written.notes]
    return _Done(written.segmentation, facts, codes, notes, header, source)


def _code(item: Any) -> str:
    return f"{item.CodingSchemeDesignator}^{item.CodeValue}^{item.CodeMeaning}"


def _to_file(read: Segmentation, out: Path, overwrite: bool) -> _Done:
    from medsam2_core import export as writers

    written = writers.write(read, out, overwrite=overwrite)
    facts = {"kind": writers.suffix_of(out).lstrip(".")}
    codes = [str(segment.terminology.type) for segment in read]
    return _Done(read, facts, codes, list(written.notes))


def _measure(done: _Done, measurements: list[Path], report: Path | None, overwrite: bool) -> None:
    if not measurements and report is None:
        return
    from medsam2_core.export.measurement_files import write_measurements
    from medsam2_core.export.measurements import measure

    measured = measure(done.segmentation)
    for path in measurements:
        done.notes += write_measurements(measured, done.segmentation, path, overwrite=overwrite).notes
    if report is not None:
        from medsam2_core.export.dicom.report import write_report

        done.notes += write_report(measured, done.header, done.source, report, overwrite=overwrite).notes


def _list_terms() -> None:
    from medsam2_core.export.dicom.coding import known_terms

    print_table([(term.name, str(term.terminology.type), ", ".join(term.synonyms)) for term in known_terms()])


def _print_for_people(facts: dict[str, Any]) -> None:
    print_table([(one["name"], f"{one['millilitres']:g} ml", one["code"] or "") for one in facts["segments"]])
    frames = f", {facts['frames']} frames" if "frames" in facts else ""
    print(f"{facts['out']}: {facts['kind']}{frames}, {size(facts['bytes'])}")
    for path in facts["measurements"]:
        print(f"{path}: measurements")
    if facts["report"]:
        print(f"{facts['report']}: report (DICOM SR)")
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
