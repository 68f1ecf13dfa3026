"""`medsam2 export`: a segmentation as DICOM SEG or a label map, with its measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core.cli.console import (
    millilitres,
    peak_memory_mb,
    print_table,
    report,
    size_text,
    volume_text,
)
from medsam2_core.cli.options import AsJson, described
from medsam2_core.cli.outputs import check_distinct, check_targets
from medsam2_core.errors import ExportError, Note

if TYPE_CHECKING:
    from medsam2_core.export.dicom.source import Source
    from medsam2_core.imaging.segmentation import Segmentation

_DICOM = "DICOM (--out X.dcm)"


@dataclass
class _Written:
    """What was written, for the report."""

    segmentation: Segmentation
    facts: dict[str, Any]
    notes: list[Note] = field(default_factory=list)
    header: Any = None  # of the SEG
    source: Source | None = None


@dataclass(frozen=True)
class Export:
    """Write a segmentation as DICOM SEG, .seg.nrrd, NIfTI or another label map, and its measurements.

    Options
    -------
    segmentation: .seg.nrrd, or any label map: NIfTI, NRRD, MetaImage, DICOM SEG, PNG.

    Output
    ------
    out: File to write: .dcm for DICOM SEG; .seg.nrrd (keeps everything), .nii.gz, .nrrd, .mha.
    measurements FILE: Also write volumes and diameters (RECIST): .json or .csv.
    report X_SR.dcm: Also write them as DICOM SR (TID 1500) that refers to the SEG.
    prior SEGMENTATION: With --report: an earlier segmentation of the patient; its objects are reported beside
        those of the same name, with the change in per cent.

    DICOM (--out X.dcm)
    -------------------
    dicom FOLDER: Source series: a folder, a file, or a .txt file that lists files, one a line.
    series: Number or UID of the source series, if there are several.
    kind: Segmentation type. binary: most widely read; fractional: probabilities; labelmap: smallest, read by
        recent programs only.
    probabilities FILE: From `medsam2 segment --probabilities`, for fractional.
    compression: Lossless compression of fractional and labelmap. 3D Slicer reads rle, but not jpeg-ls.
    segments META.json: Codes of the segments: dcmqi's JSON, or {name: 'SCT^10200004^Liver'}.
    generic: Code segments without a code as 'Tissue'.
    list_terms: List the names that have a code, and exit.
    series_description TEXT: Series Description of the SEG.
    series_number N: Series Number of the SEG; by default that of the source plus 1000.
    creator NAME: Content Creator's Name, as Family^Given; empty by default.
    resample: Accept a segmentation on another grid than the series', if you know that it belongs to it.
    most_lost PERCENT: Refuse when resampling to the grid of the series changes an object by more than this.
    drawn_on FILE.json: Grid of the volume, if it was moved since it was read: {ijk_to_ras, shape_ijk}.
    """

    segmentation: Annotated[Path | None, typer.Argument()] = None
    out: Annotated[Path | None, typer.Option("--out", "-o")] = None
    dicom: Path | None = None
    series: str | None = None
    kind: Literal["binary", "fractional", "labelmap"] = "binary"
    probabilities: Path | None = None
    compression: Literal["none", "rle", "jpeg-ls"] = "none"
    segments: Path | None = None
    generic: bool = False
    list_terms: bool = False
    series_description: str | None = None
    series_number: int | None = None
    creator: str | None = None
    resample: bool = False
    most_lost: Annotated[float, typer.Option(min=0.0, max=100.0)] = 5.0
    drawn_on: Path | None = None
    measurements: list[Path] | None = None
    report: Path | None = None
    prior: Path | None = None
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Check the options, write all files or none, and report."""
        if self.list_terms:
            _list_terms()
            return
        if self.segmentation is None or self.out is None:
            raise typer.BadParameter("give a segmentation, and --out FILE")
        from medsam2_core import atomic
        from medsam2_core.imaging.segmentation_files import read_segmentation

        self._check(self.segmentation, self.out)
        inputs = (self.segmentation, self.segments, self.probabilities, self.drawn_on, self.dicom, self.prior)
        with atomic.protect(*inputs):
            check_targets(*self._targets, overwrite=self.overwrite)
            read = read_segmentation(self.segmentation)
            with atomic.together():
                is_dicom = self.out.suffix.lower() == ".dcm"
                written = self._write_dicom(read, self.out) if is_dicom else self._write_file(read, self.out)
                written.notes += self._write_measurements(written)
        notes, facts = list(dict.fromkeys(written.notes)), self._facts(self.out, written)
        report(facts, notes, show, as_json=self.as_json)

    @property
    def _targets(self) -> list[Path]:
        return [path for path in (self.out, *(self.measurements or ()), self.report) if path is not None]

    def _check(self, segmentation: Path, out: Path) -> None:
        """Raise ExportError for options that do not go together, before anything slow."""
        from medsam2_core.export import suffix_of

        if out.suffix.lower() != ".dcm":
            try:
                suffix_of(out)
            except ExportError as error:
                text = f"{error}, or .dcm for DICOM SEG"
                raise ExportError(text, code=error.code, **error.fields) from error
            for option in self._dicom_options():
                message = f"{option} is for DICOM, which {out.name} is not: leave it out, or use --out X.dcm"
                raise ExportError(message, code="option-needs-dicom", option=option)
        elif self.dicom is None:
            raise ExportError(
                f"--out {out}: a DICOM SEG refers to its source images: give their series with "
                "--dicom FOLDER, or write .seg.nrrd or .nii.gz",
                code="source-missing",
            )
        if self.probabilities is not None and self.kind != "fractional":
            message = f"--probabilities is for --kind fractional, a {self.kind} SEG holds none: leave one out"
            raise ExportError(message, code="probabilities-need-fractional", kind=self.kind)
        if self.report is not None and self.report.suffix.lower() != ".dcm":
            message = f"--report {self.report}: a DICOM report is written as .dcm"
            raise ExportError(message, code="report-not-dcm", path=str(self.report))
        if self.prior is not None and self.report is None:
            message = f"--prior {self.prior} is of use with --report only"
            raise ExportError(message, code="prior-needs-report", path=str(self.prior))
        for path in self.measurements or ():
            if path.suffix.lower() not in (".json", ".csv"):
                message = f"--measurements {path}: they are written as .json or .csv"
                raise ExportError(message, code="measurements-format", path=str(path))
        check_is_file(segmentation)
        if self.dicom is not None and not self.dicom.exists():
            message = f"--dicom {self.dicom}: no such folder or file"
            raise ExportError(message, code="source-not-found", path=str(self.dicom))
        measurements = [("--measurements", path) for path in self.measurements or ()]
        check_distinct(("--out", out), *measurements, ("--report", self.report))

    def _dicom_options(self) -> list[str]:
        """Return the options given that apply to DICOM only."""
        return [
            "--" + name.replace("_", "-")
            for name, known in described(type(self).__doc__ or "")[1].items()
            if known["rich_help_panel"] == _DICOM or name == "report"
            if getattr(self, name) != getattr(type(self), name)
        ]

    def _write_dicom(self, read: Segmentation, out: Path) -> _Written:
        from medsam2_core import atomic
        from medsam2_core.export.dicom.options import Compression, Kind
        from medsam2_core.export.dicom.report import check_lengths
        from medsam2_core.export.dicom.seg import SegOptions, write_seg
        from medsam2_core.export.dicom.segment_metadata import read_metadata
        from medsam2_core.export.dicom.source import read_source
        from medsam2_core.export.probabilities import read_probabilities
        from medsam2_core.export.resampling import read_grid, undo_volume_move

        metadata = read_metadata(self.segments).matched_to(read) if self.segments is not None else None
        of_series = {}
        for name in ("series_description", "series_number", "creator"):
            value = getattr(self, name)
            of_series[name] = getattr(metadata, name) if value is None and metadata is not None else value
        options = SegOptions(
            Kind(self.kind), Compression(self.compression), metadata, self.generic, **of_series,
            most_lost=self.most_lost / 100, resample=self.resample or self.drawn_on is not None,
        )  # fmt: skip
        assert self.dicom is not None
        source = read_source(self.dicom, self.series)
        with atomic.protect(*source.files):
            for path in self._targets:
                atomic.check_target(path, overwrite=self.overwrite)
        is_deep = any(min(segment.part_kji.shape) > 1 for segment in read)
        if self.dicom.is_file() and len(source.files) == 1 and not source.frame_numbers and is_deep:
            raise ExportError(
                f"--dicom {self.dicom} is a single image, and the segmentation has several slices: give the "
                "folder of its series",
                code="source-is-single-image", path=str(self.dicom),
            )  # fmt: skip
        if self.report is not None:
            check_lengths(source, self.report)
        known = read_probabilities(self.probabilities) if self.probabilities is not None else None
        if self.drawn_on is not None:
            read = undo_volume_move(read, read_grid(self.drawn_on), source.geometry)
        notes = [*read.notes, *(metadata.notes if metadata is not None else ())]
        written = write_seg(read, source, out, options, probabilities=known, overwrite=self.overwrite)
        facts = {
            "kind": options.kind.value,
            "frames": written.frames,
            "series_uid": str(written.header.SeriesInstanceUID),
            "instance_uid": str(written.header.SOPInstanceUID),
            "source_series_uid": source.series_uid,
        }
        return _Written(written.segmentation, facts, [*notes, *written.notes], written.header, source)

    def _write_file(self, read: Segmentation, out: Path) -> _Written:
        from medsam2_core import export as writers

        written = writers.write(read, out, overwrite=self.overwrite)
        if self.measurements:  # with the codes a SEG would have
            from medsam2_core.export.dicom.coding import coded_by_name

            read = coded_by_name(read)
        return _Written(read, {"kind": writers.suffix_of(out).lstrip(".")}, [*read.notes, *written.notes])

    def _write_measurements(self, written: _Written) -> list[Note]:
        if not self.measurements and self.report is None:
            return []
        from medsam2_core.export.measurement_files import write_measurements
        from medsam2_core.export.measurements import measure

        measured = measure(written.segmentation)
        notes: list[Note] = []
        for path in self.measurements or ():
            notes += write_measurements(measured, written.segmentation, path, overwrite=self.overwrite).notes
        if self.report is not None:
            from medsam2_core.export.dicom.report import write_report
            from medsam2_core.imaging.segmentation_files import read_segmentation

            prior = measure(read_segmentation(self.prior)) if self.prior is not None else ()
            assert written.source is not None
            notes += write_report(
                measured, written.header, written.source, self.report, prior=prior, overwrite=self.overwrite
            ).notes
        return notes

    def _facts(self, out: Path, written: _Written) -> dict[str, Any]:
        return {
            "out": str(out),
            **written.facts,
            "bytes": out.stat().st_size,
            "segments": segment_facts(written.segmentation),
            "measurements": [str(path) for path in self.measurements or ()],
            "report": str(self.report) if self.report else None,
            "peak_memory_mb": peak_memory_mb(),
        }


def check_is_file(segmentation: Path) -> None:
    """Raise ExportError ``segmentation-is-folder``."""
    if segmentation.is_dir():
        message = f"{segmentation} is a folder: give the file of the segmentation"
        raise ExportError(message, code="segmentation-is-folder", path=str(segmentation))


def segment_facts(segmentation: Segmentation) -> list[dict[str, Any]]:
    """Return what is said of every segment."""
    from medsam2_core.export.dicom.coding import format_terminology

    return [
        {
            "name": segment.name,
            "code": str(segment.terminology.type),
            "says": format_terminology(segment.terminology),
            "voxels": segment.voxel_count,
            "millilitres": millilitres(segmentation, segment.name),
        }
        for segment in segmentation
    ]


def show(facts: dict[str, Any]) -> None:
    """Print what was written."""
    print_table(
        [
            (one["name"], volume_text(one["millilitres"], one["voxels"]), one["says"] or "")
            for one in facts["segments"]
        ]
    )
    frames = f", {facts['frames']} frames" if "frames" in facts else ""
    print(f"{facts['out']}: {facts['kind']}{frames}, {size_text(facts['bytes'])}")
    for path in facts.get("measurements", ()):
        print(f"{path}: measurements")
    if facts.get("report"):
        print(f"{facts['report']}: report (DICOM SR)")


def _list_terms() -> None:
    from medsam2_core.export.dicom.coding import known_terms

    rows = [(term.name, str(term.terminology.type), ", ".join(term.synonyms)) for term in known_terms()]
    print_table(rows, ("name", "code", "also"))
