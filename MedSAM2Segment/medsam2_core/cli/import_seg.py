"""`medsam2 import`: a DICOM segmentation, or another label file, as the file other programs take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam2_core import atomic
from medsam2_core.cli.report import peak_memory_mb, print_table, size
from medsam2_core.errors import ExportError


def import_seg(
    segmentation: Annotated[
        Path,
        typer.Argument(help="A DICOM SEG (binary, fractional or label map), or another label file."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="File to write: .seg.nrrd keeps everything; .nii.gz, .nrrd, .mha.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Turn a DICOM SEG into .seg.nrrd, NIfTI or another label map: names, codes and colours are kept."""
    from medsam2_core import export
    from medsam2_core.export.dicom.coding import in_words
    from medsam2_core.imaging.label_parts import read_parts
    from medsam2_core.imaging.segmentation_files import segmentation_of

    suffix = export.suffix_of(out)
    with atomic.protect(segmentation):
        atomic.check_target(out, overwrite=overwrite)
    if segmentation.is_dir():
        raise ExportError(f"{segmentation} is a folder: give the file of the segmentation")
    labels = read_parts(segmentation)
    read = segmentation_of(labels)
    notes = list(map(str, [*read.notes, *export.write(read, out, overwrite=overwrite).notes]))
    facts = {
        "segmentation": str(segmentation),
        "segmentation_type": labels.kind or None,
        "out": str(out),
        "kind": suffix.lstrip("."),
        "bytes": out.stat().st_size,
        "segments": [
            {
                "name": segment.name,
                "code": str(label.terminology.type) if label.terminology else None,
                "says": in_words(label.terminology) if label.terminology else None,
                "voxels": segment.voxel_count,
                "millilitres": round(read.volume_ml(segment.name), 3),
            }
            for label, segment in zip(labels.labels, read, strict=True)
        ],
        "notes": notes,
        "peak_memory_mb": peak_memory_mb(),
    }
    print(json.dumps(facts, indent=2)) if as_json else _print_for_people(facts)


def _print_for_people(facts: dict[str, Any]) -> None:
    print_table([(one["name"], f"{one['millilitres']:g} ml", one["says"] or "") for one in facts["segments"]])
    print(f"{facts['out']}: {facts['kind']}, {size(facts['bytes'])}")
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
