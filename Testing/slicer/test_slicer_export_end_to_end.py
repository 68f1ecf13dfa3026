"""From the scene to files other systems take: through the page, the worker's own process and the command."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest

slicer = pytest.importorskip("slicer")

sys.path.append(str(Path(__file__).resolve().parents[1] / "core"))

from a_clinic import ARealSource  # noqa: E402
from a_dicom_database import a_dicom_volume  # noqa: E402
from a_page import FakeSettings  # noqa: E402
from a_scene import a_linear_transform, a_segmentation, an_editor, an_empty_scene, paint  # noqa: E402
from judges import dcmqi_segments, on_grid, validator_errors  # noqa: E402
from medsam2_core.imaging.reading import read_volume  # noqa: E402
from medsam2_core.imaging.segmentation_files import read_segmentation  # noqa: E402
from MedSAM2SegmentLib.Panels.ExportPage import ExportPage  # noqa: E402
from MedSAM2SegmentLib.Panels.ExportWish import ExportWish  # noqa: E402
from MedSAM2SegmentLib.Panels.ModulePageState import Kind  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneSegmentations import SceneSegmentations  # noqa: E402

SERIES = ["ct_liver_dcmqi", "mr_oblique_hitachi", "mr_enhanced_siemens"]
LIVER = "Category~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes - DICOM~^^~^^"
WEIGHTS = "8c1f" * 16


@pytest.fixture(scope="module")
def source():
    source = ARealSource()
    yield source
    source.supervisor.stop()


class ADesk:
    """A series in the scene with two segments that overlap, one that is empty, and the page."""

    def __init__(self, source, folder, transform=False):
        self.source, self.folder = source, folder
        self.scene = an_empty_scene()
        self.volume, database = a_dicom_volume(self.scene, folder, "Scan of Anna")
        moved = a_linear_transform(self.scene) if transform else None
        if moved is not None:
            self.volume.SetAndObserveTransformNodeID(moved.GetID())
        self.segmentation = a_segmentation(self.scene, self.volume, ("A", "B", "C"), transform=moved)
        self.segmentation.SetName("Liver of Anna")
        self.masks = self.painted()
        self.describe()
        self.page = ExportPage(
            FakeSettings(),
            SimpleNamespace(current=lambda: source),
            SceneSegmentations(self.scene, lambda: database),
            list,
        )

    def painted(self):
        width, height, depth = self.volume.GetImageData().GetDimensions()
        a, b = np.zeros((2, depth, height, width), dtype=bool)
        a[: depth - 1, height // 4 : height // 2, width // 3 : width // 2] = True
        b[1:, height // 3 : height // 2 + 5, width // 3 + 2 : width // 2 + 9] = True
        editor = an_editor(self.segmentation, self.volume)
        editor.node.SetOverwriteMode(editor.node.OverwriteNone)
        paint(editor, a, "A")
        paint(editor, b, "B")
        return {"Liver": a, "Segment 2": b}

    def describe(self):
        known = self.segmentation.GetSegmentation()
        for name, new in (("A", "Liver"), ("B", "Segment 2"), ("C", "Nothing yet")):
            known.GetSegment(name).SetName(new)
        liver = known.GetSegment("A")
        liver.SetColor(0.8, 0.4, 0.2)
        tags = {
            "TerminologyEntry": LIVER,
            "DICOM.SegmentAlgorithmType": "SEMIAUTOMATIC",
            "DICOM.SegmentAlgorithmName": "MedSAM2Segment 0.1.0 embedded",
            "MedSAM2.model": "embedded",
            "MedSAM2.weights_sha256": WEIGHTS,
        }
        for tag, value in tags.items():
            liver.SetTag(tag, value)
        self.segmentation.GetDisplayNode().SetSegmentVisibility("B", False)

    def export(self, out, format="dicom", seconds=60, **wish):
        """Press *Export*, and wait; what the page says then."""
        self.page.export(ExportWish(format, str(out), **wish))
        end = time.monotonic() + seconds
        while self.page.view().isRunning:
            assert time.monotonic() < end, "it takes too long"
            self.source.supervisor.pump(0.02)
        return self.page.view().line


@pytest.fixture
def desk(source, shared_data):
    made = []

    def open_it(name=SERIES[0], **how):
        made.append(ADesk(source, shared_data / "dicom" / name, **how))
        return made[-1]

    yield open_it
    for one in made:
        one.page.cleanup()
        one.scene.Clear(True)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("transform", [False, True])
def test_a_scene_becomes_a_dicom_seg_on_its_series(desk, tmp_path, name, transform):
    desk = desk(name, transform=transform)
    line = desk.export(tmp_path / "liver", generic=True, description="Liver, draft", creator="Doe^Jane")
    assert line.kind in (Kind.GOOD, Kind.WARNING), line.text
    out = tmp_path / "liver.dcm"
    assert line.text.startswith(f"{out} is written: ")
    assert validator_errors(out) == []
    seg = pydicom.dcmread(out)
    source = pydicom.dcmread(next(iter(sorted(desk.folder.glob("*.dcm")))), stop_before_pixels=True)
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert (seg.SeriesDescription, seg.ContentCreatorName) == ("Liver, draft", "Doe^Jane")
    found = {item.SegmentLabel: item for item in seg.SegmentSequence}
    liver, other = found["Liver"], found["Segment 2"]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert liver.SegmentAlgorithmName == "MedSAM2Segment 0.1.0 embedded"
    assert other.SegmentAlgorithmType == "MANUAL"
    geometry = read_volume(desk.folder).geometry
    for label, judged in dcmqi_segments(out, tmp_path / "judged").items():
        assert np.array_equal(on_grid(judged, geometry), desk.masks[label])
    for secret in (b"Liver of Anna", str(tmp_path).encode(), b"medsam2-export"):
        assert secret not in out.read_bytes()


def test_as_a_label_map(desk, tmp_path):
    desk = desk()
    desk.segmentation.GetSegmentation().RemoveSegment("B")  # a label map has one segment a voxel
    line = desk.export(tmp_path / "liver.dcm", kind="labelmap", compression="rle")
    assert line.kind in (Kind.GOOD, Kind.WARNING), line.text
    assert validator_errors(tmp_path / "liver.dcm") == []
    assert read_segmentation(tmp_path / "liver.dcm")["Liver"].voxel_count == desk.masks["Liver"].sum()


def test_measurements_and_report_are_written_beside(desk, tmp_path):
    line = desk().export(tmp_path / "liver.dcm", generic=True, measurements="json", report=True)
    assert "liver_measurements.json is beside it. liver_SR.dcm is beside it." in line.text
    assert validator_errors(tmp_path / "liver_SR.dcm") == []
    seg, report = (pydicom.dcmread(tmp_path / f"liver{end}.dcm") for end in ("", "_SR"))
    assert seg.SOPInstanceUID in str(report)
    assert "Liver" in (tmp_path / "liver_measurements.json").read_text()


@pytest.mark.parametrize("format", ["seg.nrrd", "nii.gz", "nrrd"])
def test_the_other_formats_keep_voxels_and_names(desk, tmp_path, format):
    desk = desk("mr_oblique_hitachi")
    desk.segmentation.GetSegmentation().RemoveSegment("B")
    line = desk.export(tmp_path / "liver", format, measurements="csv")
    assert line.kind in (Kind.GOOD, Kind.WARNING), line.text
    again = read_segmentation(tmp_path / f"liver.{format}")
    geometry = read_volume(desk.folder).geometry
    assert again.geometry.ijk_to_ras == pytest.approx(geometry.ijk_to_ras, abs=1e-3)
    liver = next(one for one in again if one.voxel_count)
    assert np.array_equal(liver.mask_kji, desk.masks["Liver"])
    assert (tmp_path / "liver_measurements.csv").exists()
    if format == "seg.nrrd":
        assert again.names == ("Liver", "Nothing yet")
        assert liver.tags["DICOM.SegmentAlgorithmName"] == "MedSAM2Segment 0.1.0 embedded"
        assert liver.tags["MedSAM2.weights_sha256"] == WEIGHTS


def test_a_segment_without_a_code_is_refused_with_slicers_way_out(desk, tmp_path):
    desk = desk()
    line = desk.export(tmp_path / "liver.dcm")
    assert line.kind is Kind.ERROR
    assert line.text.startswith("segment 'Segment 2': no code says what it is: double click its colour")
    assert list(tmp_path.iterdir()) == []


def test_a_second_export_replaces_when_allowed_with_uids_of_its_own(desk, tmp_path):
    desk, out = desk(), tmp_path / "liver.dcm"
    desk.export(out, generic=True)
    first = pydicom.dcmread(out)
    assert "exists already" in desk.export(out, generic=True).text
    assert desk.export(out, generic=True, overwrite=True).kind in (Kind.GOOD, Kind.WARNING)
    second = pydicom.dcmread(out)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_a_cancelled_export_leaves_nothing(desk, tmp_path):
    desk = desk()
    desk.page.export(ExportWish("dicom", str(tmp_path / "liver.dcm"), generic=True))
    desk.source.supervisor.pump(0.3)
    desk.page.cancel()
    end = time.monotonic() + 60
    while desk.page.view().isRunning:
        assert time.monotonic() < end
        desk.source.supervisor.pump(0.02)
    line = desk.page.view().line
    assert line.text == "The export was stopped; no file is left half written"
    assert list(tmp_path.iterdir()) == []
    assert desk.export(tmp_path / "liver.dcm", generic=True).kind in (Kind.GOOD, Kind.WARNING)


def test_the_scene_and_where_slicer_keeps_it_stay_as_they_were(desk, tmp_path):
    desk = desk()
    known = desk.segmentation.GetSegmentation()
    before = desk.scene.GetNumberOfNodes(), known.GetMTime(), desk.volume.GetMTime()
    desk.export(tmp_path / "liver.dcm", generic=True)
    assert (desk.scene.GetNumberOfNodes(), known.GetMTime(), desk.volume.GetMTime()) == before
    assert desk.segmentation.GetStorageNode() is None


def test_measurements_are_those_of_the_masks(desk, tmp_path):
    desk = desk("mr_oblique_hitachi")
    desk.export(tmp_path / "liver.nrrd", "nrrd", measurements="json")
    geometry = read_volume(desk.folder).geometry
    millilitres = desk.masks["Liver"].sum() * abs(np.linalg.det(geometry.ijk_to_ras[:3, :3])) / 1000
    told = json.loads((tmp_path / "liver_measurements.json").read_text())
    assert f"{millilitres:.1f}" in json.dumps(told) or str(round(millilitres, 3)) in json.dumps(told)
