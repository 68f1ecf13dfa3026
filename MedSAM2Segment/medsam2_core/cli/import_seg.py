"""`medsam2 import`: a DICOM segmentation, or another label map, as a file that other programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam2_core.cli.console import (
    millilitres,
    peak_memory_mb,
    print_table,
    report,
    size_text,
    volume_text,
)
from medsam2_core.cli.options import AsJson, Overwrite
from medsam2_core.errors import ExportError


@dataclass(frozen=True)
class Import:
    """Convert a DICOM SEG to .seg.nrrd, NIfTI or another label map; names, codes and colours are kept."""

    segmentation: Annotated[
        Path,
        typer.Argument(help="A DICOM SEG (binary, fractional or label map), or another label map."),
    ]
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File to write: .seg.nrrd keeps everything; .nii.gz, .nrrd, .mha."),
    ]
    overwrite: Overwrite = False
    as_json: AsJson = False

    def run(self) -> None:
        """Read, write, and report."""
        from medsam2_core import atomic, export
        from medsam2_core.export.dicom.coding import format_terminology
        from medsam2_core.imaging.segmentation_files import read_stored_segments

        suffix = export.suffix_of(self.out)
        with atomic.protect(self.segmentation):
            atomic.check_target(self.out, overwrite=self.overwrite)
        if self.segmentation.is_dir():
            raise ExportError(
                f"{self.segmentation} is a folder: give the file of the segmentation",
                code="segmentation-is-folder", path=str(self.segmentation),
            )  # fmt: skip
        labels = read_stored_segments(self.segmentation)
        read = labels.to_segmentation()
        notes = [*read.notes, *export.write(read, self.out, overwrite=self.overwrite).notes]
        facts = {
            "segmentation": str(self.segmentation),
            "segmentation_type": labels.kind or None,
            "out": str(self.out),
            "kind": suffix.lstrip("."),
            "bytes": self.out.stat().st_size,
            "segments": [
                {
                    "name": segment.name,
                    "code": str(label.terminology.type) if label.terminology else None,
                    "says": format_terminology(label.terminology) if label.terminology else None,
                    "voxels": segment.voxel_count,
                    "millilitres": millilitres(read, segment.name),
                }
                for label, segment in zip(labels.labels, read, strict=True)
            ],
            "peak_memory_mb": peak_memory_mb(),
        }
        report(facts, notes, _print, as_json=self.as_json)


def _print(facts: dict[str, Any]) -> None:
    print_table(
        [
            (one["name"], volume_text(one["millilitres"], one["voxels"]), one["says"] or "")
            for one in facts["segments"]
        ]
    )
    print(f"{facts['out']}: {facts['kind']}, {size_text(facts['bytes'])}")
