"""3D Slicer's own MRML opens our segmentations as its own.

Runs where the package slicer-core is installed, here or for the interpreter MEDSAM2_SLICER_PYTHON names.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from medsam2_core import export
from support.objects import GEOMETRIES, a_geometry, a_segmentation, some_masks, some_prompts

# Loads a file as Slicer does and prints what the segmentation node then knows.
_PROGRAM = """
import json, sys
import numpy as np
import slicer, vtk
from vtk.util.numpy_support import vtk_to_numpy

def load(path):
    scene = slicer.vtkMRMLScene()
    node, storage = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(node)
    scene.AddNode(storage)
    storage.SetFileName(path)
    ok = storage.ReadData(node)
    segments = []
    segmentation = node.GetSegmentation()
    for n in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(n)
        image = segment.GetRepresentation("Binary labelmap")
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
        tags = {}
        for name in ("TerminologyEntry", "DICOM.SegmentAlgorithmType", "MedSAM2.prompts", "MedSAM2.window"):
            value = vtk.mutable("")
            tags[name] = str(value) if segment.GetTag(name, value) else None
        segments.append({
            "name": segment.GetName(), "colour": segment.GetColor(), "tags": tags,
            "extent": image.GetExtent(),
            "voxels": np.flatnonzero(voxels == segment.GetLabelValue()).tolist(),
            "matrix": [[matrix.GetElement(row, column) for column in range(4)] for row in range(4)],
        })
    reference = segmentation.GetConversionParameter("Reference image geometry")
    messages = storage.GetUserMessages().GetAllMessagesAsString()
    return {"ok": ok, "messages": messages, "segments": segments, "reference": reference,
            "layers": segmentation.GetNumberOfLayers()}


print(json.dumps([load(path) for path in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def slicer_python() -> str:
    python = os.environ.get("MEDSAM2_SLICER_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import slicer"], capture_output=True, check=False)
    if found.returncode != 0:
        pytest.skip(
            f"slicer-core is not installed for {python}: set MEDSAM2_SLICER_PYTHON to one that has it"
        )
    return python


def as_slicer_reads_them(python, *paths) -> list[dict]:
    """What each file holds; one process for all, since starting it takes longest."""
    command = [python, "-c", _PROGRAM, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    found = json.loads(done.stdout.splitlines()[-1])
    for one in found:
        assert one["ok"] == 1, one["messages"] + done.stderr
        assert not one["messages"].strip(), one["messages"]
    return found


def test_slicer_opens_named_segments_in_their_place(tmp_path, slicer_python):
    geometries = {name: a_geometry(name) for name in GEOMETRIES}
    paths = [
        export.write(a_segmentation(geometry), tmp_path / f"{name}.seg.nrrd").path
        for name, geometry in geometries.items()
    ]
    opened = as_slicer_reads_them(slicer_python, *paths)
    for geometry, found in zip(geometries.values(), opened, strict=True):
        assert [segment["name"] for segment in found["segments"]] == list(some_masks())
        assert found["layers"] == 2
        for segment, ours in zip(found["segments"], a_segmentation(geometry), strict=True):
            assert segment["extent"] == [0, 19, 0, 15, 0, 8]
            assert segment["voxels"] == np.flatnonzero(ours.mask_kji).tolist()
            assert segment["colour"] == pytest.approx(ours.colour_rgb, abs=1e-5)
            assert np.abs(np.array(segment["matrix"]) - geometry.ijk_to_ras).max() < 1e-9
        matrix = [float(number) for number in found["reference"].split(";")[:16]]
        assert np.array_equal(np.reshape(matrix, (4, 4)), geometry.ijk_to_ras)


def test_slicer_keeps_tags_and_names_of_all_languages(tmp_path, slicer_python):
    name = 'Leber "Ü" | a\\b 肝'
    prompts = some_prompts()
    prompts.objects = {name: prompts.of("liver")}
    segmentation = a_segmentation(masks={name: some_masks()["liver"]}, prompts=prompts.to_json())
    path = export.write(segmentation, tmp_path / "x.seg.nrrd").path
    ((found,),) = (one["segments"] for one in as_slicer_reads_them(slicer_python, path))
    assert found["name"] == name
    assert found["tags"]["TerminologyEntry"].count("~") == 6
    assert found["tags"]["DICOM.SegmentAlgorithmType"] == "SEMIAUTOMATIC"
    assert json.loads(found["tags"]["MedSAM2.window"])["width"] == 400
    assert type(prompts).from_json(found["tags"]["MedSAM2.prompts"]).objects == prompts.objects
