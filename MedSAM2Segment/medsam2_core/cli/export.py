"""`medsam2 export`: a segmentation as the file another system takes, and what it measures beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsam2_core.cli import export_options as given
from medsam2_core.cli.report import peak_memory_mb, print_table, size
from medsam2_core.errors import ExportError, Note

if TYPE_CHECKING:
    from medsam2_core.export.dicom.source import Source
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation

_MEASUREMENTS = (".json", ".csv")


@dataclass(frozen=True)
class _Asked:
    """What was typed."""

    segmentation: Path
    out: Path
    dicom: Path | None
    series: str | None
    kind: given.KindName
    probabilities: Path | None
    compression: given.CompressionName
    segments: Path | None
    generic: bool
    series_description: str | None
    series_number: int | None
    creator: str | None
    most_lost: float
    measurements: list[Path]
    report: Path | None
    drawn_on: Path | None
    overwrite: bool

    @property
    def targets(self) -> list[Path]:
        """All that will be written."""
        return [self.out, *self.measurements, *([self.report] if self.report is not None else [])]

    @property
    def is_dicom(self) -> bool:
        """Whether a SEG is wanted."""
        return self.out.suffix.lower() == ".dcm"

    def of_dicom(self) -> Iterator[str]:
        """Options given that mean something for DICOM only."""
        defaults = {"kind": "binary", "compression": "none", "generic": False, "most_lost": 5.0}
        names = ("dicom", "series", "probabilities", "segments", "series_description", "series_number")
        for name in (*names, "creator", "report", "drawn_on", *defaults):
            if getattr(self, name) != defaults.get(name):
                yield f"--{name.replace('_', '-')}"


@dataclass
class _Done:
    """What was written, for the summary."""

    segmentation: Segmentation
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    header: Any = None  # of the SEG
    source: Source | None = None


def export(
    segmentation: given.SegmentationArgument = None,
    out: given.OutOption = None,
    dicom: given.DicomOption = None,
    series: given.SeriesOption = None,
    kind: given.KindOption = given.KindName.binary,
    probabilities: given.ProbabilitiesOption = None,
    compression: given.CompressionOption = given.CompressionName.none,
    segments: given.SegmentsOption = None,
    generic: given.GenericOption = False,
    list_terms: given.ListTermsOption = False,
    series_description: given.DescriptionOption = None,
    series_number: given.NumberOption = None,
    creator: given.CreatorOption = None,
    most_lost: given.MostLostOption = 5.0,
    drawn_on: given.DrawnOnOption = None,
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
    asked = _Asked(
        *(segmentation, out, dicom, series, kind, probabilities, compression, segments, generic),
        *(series_description, series_number, creator, most_lost, measurements or [], report, drawn_on),
        overwrite=overwrite,
    )
    from medsam2_core import atomic

    _check(asked)
    with atomic.protect(segmentation, segments, probabilities, drawn_on, dicom):
        _check_targets(asked)
        facts = _facts(asked, _write(asked))
    print(json.dumps(facts, indent=2)) if as_json else _print_for_people(facts)


def _write(asked: _Asked) -> _Done:
    """Read the segmentation and write all that is wanted, or nothing of it."""
    from medsam2_core import atomic
    from medsam2_core.imaging.segmentation_files import read_segmentation

    read = read_segmentation(asked.segmentation)
    with atomic.together():
        done = _to_dicom(asked, read) if asked.is_dicom else _to_file(asked, read)
        _measure(asked, done)
    return done


def _check(asked: _Asked) -> None:
    """Refuse what does not go together, before anything is read that takes long."""
    from medsam2_core.export import suffix_of

    if not asked.is_dicom:
        try:
            suffix_of(asked.out)
        except ExportError as error:
            raise ExportError(f"{error}, or .dcm for DICOM SEG") from error
        for option in asked.of_dicom():
            raise ExportError(
                f"{option} is for DICOM, which {asked.out.name} is not: leave it out, or --out X.dcm"
            )
    elif asked.dicom is None:
        raise ExportError(
            f"--out {asked.out}: a DICOM SEG refers to the images it was drawn on: give their series with "
            "--dicom FOLDER, or write .seg.nrrd or .nii.gz"
        )
    if asked.probabilities is not None and asked.kind is not given.KindName.fractional:
        raise ExportError(
            f"--probabilities goes with --kind fractional, a {asked.kind.value} SEG holds none: leave one out"
        )
    if asked.report is not None and asked.report.suffix.lower() != ".dcm":
        raise ExportError(f"--report {asked.report}: a DICOM report is written as .dcm")
    for path in asked.measurements:
        if path.suffix.lower() not in _MEASUREMENTS:
            raise ExportError(f"--measurements {path}: they are written as .json or .csv")
    if asked.segmentation.is_dir():
        raise ExportError(f"{asked.segmentation} is a folder: give the file of the segmentation")
    if asked.dicom is not None and not asked.dicom.exists():
        raise ExportError(f"--dicom {asked.dicom}: there is no such folder or file")


def _check_targets(asked: _Asked) -> None:
    """Refuse files that may not be written, or that are named for two things."""
    from medsam2_core import atomic

    names = []
    for path in asked.targets:
        if path.resolve() in names:
            raise ExportError(
                f"{path} is named for two outputs: one would replace the other",
                code="outputs-collide", path=str(path),
            )  # fmt: skip
        names.append(path.resolve())
        atomic.check_target(path, overwrite=asked.overwrite)


def _to_dicom(asked: _Asked, read: Segmentation) -> _Done:
    from medsam2_core import atomic
    from medsam2_core.export.dicom.options import Compression, Kind
    from medsam2_core.export.dicom.report import check_lengths
    from medsam2_core.export.dicom.seg import SegOptions, write_seg
    from medsam2_core.export.dicom.segment_metadata import read_metadata
    from medsam2_core.export.dicom.source import read_source
    from medsam2_core.export.probabilities import read_probabilities
    from medsam2_core.export.resampling import as_drawn

    requested = read_metadata(asked.segments).matched_to(read) if asked.segments is not None else None
    own = {}
    for name in ("series_description", "series_number", "creator"):
        typed = getattr(asked, name)
        own[name] = getattr(requested, name) if typed is None and requested is not None else typed
    kinds = Kind(asked.kind.value), Compression(asked.compression.value)
    options = SegOptions(*(*kinds, requested, asked.generic), **own, most_lost=asked.most_lost / 100)
    assert asked.dicom is not None
    source = read_source(asked.dicom, asked.series)
    with atomic.protect(*source.files):
        for path in asked.targets:
            atomic.check_target(path, overwrite=asked.overwrite)
    if asked.dicom.is_file() and len(source.files) == 1 and not source.frame_numbers and _is_deep(read):
        raise ExportError(
            f"--dicom {asked.dicom} is a single image, and the segmentation has several slices: give "
            "the folder of its series"
        )
    if asked.report is not None:
        check_lengths(source, asked.report)
    known = read_probabilities(asked.probabilities) if asked.probabilities is not None else None
    notes = [*read.notes, *(requested.notes if requested is not None else ())]
    if asked.drawn_on is not None:
        drawn = as_drawn(read, _grid_in(asked.drawn_on), source.geometry)
        read, notes = drawn.segmentation, [*notes, *drawn.notes]
    written = write_seg(read, source, asked.out, options, probabilities=known, overwrite=asked.overwrite)
    facts = {
        "kind": options.kind.value,
        "frames": written.frames,
        "series_uid": str(written.header.SeriesInstanceUID),
        "instance_uid": str(written.header.SOPInstanceUID),
        "source_series_uid": source.series_uid,
    }
    return _Done(written.segmentation, facts, [*notes, *written.notes], written.header, source)


def _is_deep(read: Segmentation) -> bool:
    return any(min(segment.part_kji.shape) > 1 for segment in read)


def _grid_in(path: Path) -> Geometry:
    """The grid a JSON file describes."""
    from medsam2_core.imaging.geometry import Geometry

    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Geometry(told["ijk_to_ras"], tuple(int(n) for n in told["shape_ijk"]))  # type: ignore[arg-type]
    except OSError as error:
        raise ExportError(f"--drawn-on {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ExportError(
            f"--drawn-on {path}: it must hold ijk_to_ras (4 x 4) and shape_ijk (3 sizes)"
        ) from error


def _to_file(asked: _Asked, read: Segmentation) -> _Done:
    from medsam2_core import export as writers

    written = writers.write(read, asked.out, overwrite=asked.overwrite)
    if asked.measurements:  # with the codes a SEG would have
        from medsam2_core.export.dicom.coding import coded_by_name

        read = coded_by_name(read)
    notes = [*read.notes, *written.notes]
    return _Done(read, {"kind": writers.suffix_of(asked.out).lstrip(".")}, notes)


def _measure(asked: _Asked, done: _Done) -> None:
    if not asked.measurements and asked.report is None:
        return
    from medsam2_core.export.measurement_files import write_measurements
    from medsam2_core.export.measurements import measure

    measured, overwrite = measure(done.segmentation), asked.overwrite
    for path in asked.measurements:
        done.notes += write_measurements(measured, done.segmentation, path, overwrite=overwrite).notes
    if asked.report is not None:
        from medsam2_core.export.dicom.report import write_report

        done.notes += write_report(
            measured, done.header, done.source, asked.report, overwrite=overwrite
        ).notes


def _facts(asked: _Asked, done: _Done) -> dict[str, Any]:
    from medsam2_core.export.dicom.coding import in_words

    return {
        "out": str(asked.out),
        **done.facts,
        "bytes": asked.out.stat().st_size,
        "segments": [
            {
                "name": segment.name,
                "code": str(segment.terminology.type),
                "says": in_words(segment.terminology),
                "millilitres": round(done.segmentation.volume_ml(segment.name), 3),
            }
            for segment in done.segmentation
        ],
        "notes": list(dict.fromkeys(map(str, done.notes))),
        "measurements": [str(path) for path in asked.measurements],
        "report": str(asked.report) if asked.report else None,
        "peak_memory_mb": peak_memory_mb(),
    }


def _list_terms() -> None:
    from medsam2_core.export.dicom.coding import known_terms

    rows = [(term.name, str(term.terminology.type), ", ".join(term.synonyms)) for term in known_terms()]
    print_table(rows, ("name", "code", "also"))


def _print_for_people(facts: dict[str, Any]) -> None:
    print_table([(one["name"], f"{one['millilitres']:g} ml", one["says"]) for one in facts["segments"]])
    frames = f", {facts['frames']} frames" if "frames" in facts else ""
    print(f"{facts['out']}: {facts['kind']}{frames}, {size(facts['bytes'])}")
    for path in facts["measurements"]:
        print(f"{path}: measurements")
    if facts["report"]:
        print(f"{facts['report']}: report (DICOM SR)")
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
