"""Programs nobody here has written, which say whether a DICOM file is right: dicom3tools and dcmqi."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medsam2_core.imaging.geometry import Geometry


def validator_errors(path: Path) -> list[str]:
    """What dciodvfy (dicom3tools) calls an error in a DICOM file; skips where it is not installed."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian: dicom3tools) is not installed")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, f"dciodvfy says nothing of {path}"
    errors = [line for line in lines if line.startswith("Error")]
    if not any("Label Map Segmentation" in line for line in lines) and _is_label_map(path):
        # releases before Supplement 243 do not know the kind, and take its background for a wrong number
        errors = [line for line in errors if not any(words in line for words in _OF_OLD_RELEASES)]
    return errors


_OF_OLD_RELEASES = ("Information Object Not found", "with SegmentNumber of 0")


def _is_label_map(path: Path) -> bool:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return header.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"


@dataclass(frozen=True)
class DcmqiSegment:
    """A segment as dcmqi reads it from a SEG: its mask, where that lies, and what is said of it."""

    mask_kji: np.ndarray
    geometry: Geometry
    facts: dict


def dcmqi_segments(path: Path, folder: Path) -> dict[str, DcmqiSegment]:
    """Segments of a SEG as dcmqi's segimage2itkimage reads them, by label; skips where that is missing."""
    import nrrd

    program = Path(sys.executable).with_name("segimage2itkimage")
    found = str(program) if program.exists() else shutil.which("segimage2itkimage")
    if found is None:
        pytest.skip("segimage2itkimage (the package dcmqi) is not installed")
    folder.mkdir(exist_ok=True)
    words = [
        found,
        "--inputDICOM",
        str(path),
        "--outputDirectory",
        str(folder),
        "--prefix",
        "s",
        "-t",
        "nrrd",
    ]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    meta = json.loads((folder / "s-meta.json").read_text(encoding="utf-8"))
    segments = {}
    files = sorted(folder.glob("s-*.nrrd"))
    for facts in (facts for group in meta["segmentAttributes"] for facts in group):
        # of a label map dcmqi writes one file with all values, else one a segment
        own = folder / f"s-{facts['labelID']}.nrrd"
        voxels_ijk, header = nrrd.read(str(files[0] if len(files) == 1 else own))
        to_lps = np.eye(4)
        to_lps[:3, :3], to_lps[:3, 3] = np.array(header["space directions"]).T, header["space origin"]
        geometry = Geometry.from_lps(to_lps, voxels_ijk.shape)
        mask_kji = np.equal(voxels_ijk.T, facts["labelID"])
        segments[facts["SegmentLabel"]] = DcmqiSegment(mask_kji, geometry, facts)
    return segments


def on_grid(judged: DcmqiSegment, geometry: Geometry) -> np.ndarray:
    """The judged mask on a grid whose voxels it must hit, and hit exactly, wherever the object is."""
    k, j, i = np.nonzero(judged.mask_kji)
    places = geometry.to_ijk(judged.geometry.to_ras(np.column_stack([i, j, k])))
    nearest = np.rint(places).astype(int)
    off = np.linalg.norm((places - nearest) * geometry.spacing, axis=1)
    assert off.max() < 0.06, f"{off.max():.3f} mm off the grid"
    mask_kji = np.zeros(geometry.shape_ijk[::-1], dtype=bool)
    mask_kji[nearest[:, 2], nearest[:, 1], nearest[:, 0]] = True
    assert np.count_nonzero(mask_kji) == len(i)
    return mask_kji
