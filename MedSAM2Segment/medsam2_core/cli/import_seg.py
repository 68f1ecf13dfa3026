"""`medsam2 import`: a DICOM segmentation, or another label map, as a file that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsam2_core.cli.console import peak_memory_mb, report
from medsam2_core.cli.export import check_is_file, segment_facts, show
from medsam2_core.cli.options import AsJson, Out


@dataclass(frozen=True)
class Import:
    """Convert a DICOM SEG to .seg.nrrd, NIfTI or another label map; names, codes and colours are kept.

    Options
    -------
    segmentation: A DICOM SEG (binary, fractional or label map), or another label map.
    out: File to write: .seg.nrrd keeps everything; .nii.gz, .nrrd, .mha.
    """

    segmentation: Path
    out: Out
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Read, write, and report."""
        from medsam2_core import atomic, export
        from medsam2_core.imaging.segmentation_files import read_segmentation

        suffix = export.suffix_of(self.out)
        with atomic.protect(self.segmentation):
            atomic.check_target(self.out, overwrite=self.overwrite)
        check_is_file(self.segmentation)
        read = read_segmentation(self.segmentation)
        notes = [*read.notes, *export.write(read, self.out, overwrite=self.overwrite).notes]
        facts = {
            "segmentation": str(self.segmentation),
            "segmentation_type": read.kind or None,
            "out": str(self.out),
            "kind": suffix.lstrip("."),
            "bytes": self.out.stat().st_size,
            # A file without codes is said to have none, not those that an export would give.
            "segments": [
                facts if label.terminology else {**facts, "code": None, "says": None}
                for label, facts in zip(read.labels, segment_facts(read), strict=True)
            ],
            "peak_memory_mb": peak_memory_mb(),
        }
        report(facts, notes, show, as_json=self.as_json)
