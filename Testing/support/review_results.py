"""A folder of results as `medsam2 batch` leaves it, made without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from medsam2_core import export
from medsam2_core.batch.cases import Case
from medsam2_core.batch.inputs import fingerprint
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.prompts import Box, Point, PromptSet

from support.small_files import some_voxels, write_nrrd, write_series

SHAPE_KJI = (6, 20, 24)
MATRIX = np.diag([-1.0, -1.0, 2.0, 1.0])
PROMPTS = PromptSet({"ball": [Box((6, 5, 2), (15, 14, 2)), Point((10, 9, 3))]})


def the_mask() -> np.ndarray:
    """(6, 20, 24) of the object of every case."""
    mask_kji = np.zeros(SHAPE_KJI, bool)
    mask_kji[1:5, 6:14, 7:16] = True
    return mask_kji


def write_results(folder: Path, **confidence: float) -> Path:
    """Results of cases with these confidences; `series` is one of DICOM."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, value in confidence.items():
        image = folder / "data" / f"{name}.nrrd"
        if name == "series":
            image = write_series(folder / "data" / name, some_voxels(SHAPE_KJI), SeriesInstanceUID="1.2.3")
        else:
            write_nrrd(image, some_voxels(SHAPE_KJI), MATRIX)
        volume = read_volume(image)
        place = folder / "cases" / name
        place.mkdir(parents=True)
        segments = (Segment("ball", (0.2, 0.9, 0.3), the_mask()),)
        export.write(Segmentation(volume.geometry, segments), place / "segmentation.seg.nrrd")
        known = {
            "case": {"name": name, "image": str(image), "series": ""},
            "signature": "s",
            "inputs": fingerprint(Case(name, str(image))),
            "facts": {"objects": [{"name": "ball", "confidence": value}]},
            "prompts": PROMPTS.to_json(),
            "slice_files": volume.metadata.get("slice_files", []),
        }
        (place / "case.json").write_text(json.dumps(known))
    return folder
