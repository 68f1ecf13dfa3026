"""The sample volume is offered in Sample Data, and comes without a network."""

import hashlib
import sys
import types
import urllib.request
from pathlib import Path

import pytest
from MedSAM2SegmentLib import SampleData as ours


@pytest.fixture
def offered(monkeypatch) -> list[dict]:
    """What was told to Slicer's Sample Data module, which exists only in Slicer."""
    told = []
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = types.SimpleNamespace(
        registerCustomSampleDataSource=lambda **one: told.append(one)
    )
    monkeypatch.setitem(sys.modules, "SampleData", module)
    ours.registerSampleData()
    return told


def test_it_is_offered_under_the_modules_name_with_a_picture(offered):
    assert len(offered) == 1
    assert offered[0]["category"] == "MedSAM2Segment"
    assert Path(offered[0]["thumbnailFileName"]).read_bytes().startswith(b"\x89PNG")
    # All of one length: Slicer refuses a source where they are not.
    assert all(isinstance(offered[0][name], str) for name in ("uris", "fileNames", "nodeNames", "checksums"))


def test_downloading_it_copies_the_volume_that_came_with_the_extension(offered, tmp_path):
    # As Slicer does it: fetch the address, compare the checksum.
    target = tmp_path / offered[0]["fileNames"]
    urllib.request.urlretrieve(offered[0]["uris"], target)
    assert offered[0]["checksums"] == "SHA256:" + hashlib.sha256(target.read_bytes()).hexdigest()


def test_slicer_reads_it_as_a_volume_in_its_place(scene):
    slicer = pytest.importorskip("slicer")
    storage, node = slicer.vtkMRMLVolumeArchetypeStorageNode(), slicer.vtkMRMLScalarVolumeNode()
    scene.AddNode(storage)
    scene.AddNode(node)
    storage.SetFileName(str(ours.sampleFile()))
    assert storage.ReadData(node) == 1
    assert node.GetImageData().GetDimensions() == (169, 205, 51)
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    assert bounds[0] < 0 < bounds[1], "the middle of the head lies at the origin"
