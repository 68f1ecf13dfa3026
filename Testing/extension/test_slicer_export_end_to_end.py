"""From the scene to files other systems take: through the page, the worker's own process and the command."""

import json
import os
import tempfile
import time

import numpy as np
import psutil
import pydicom
import pytest

slicer = pytest.importorskip("slicer")


from medsam2_core.imaging.reading import read_volume  # noqa: E402
from medsam2_core.imaging.segmentation_files import read_segmentation  # noqa: E402
from MedSAM2SegmentLib.Page.ExportOptions import ExportOptions  # noqa: E402
from MedSAM2SegmentLib.Page.ExportSection import ExportSection  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import Level  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneSegmentations import SceneSegmentations  # noqa: E402
from support.active_effect import RealWorkerSource  # noqa: E402
from support.dicom_database import a_dicom_volume  # noqa: E402
from support.dicom_validators import dcmqi_segments, on_grid, validator_errors  # noqa: E402
from support.page import FakeSettings  # noqa: E402
from support.scene import (  # noqa: E402
    a_linear_transform,
    a_matrix,
    a_segmentation,
    an_editor,
    an_empty_scene,
    arrayToMatrix,
    paint,
)

SERIES = ["ct_liver_dcmqi", "mr_oblique_hitachi", "mr_enhanced_siemens"]
LIVER = "Category~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes - DICOM~^^~^^"
WEIGHTS = "8c1f" * 16


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
        self.page = ExportSection(
            FakeSettings(),
            source,
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
        self.page.export(ExportOptions(format, str(out), **wish))
        end = time.monotonic() + seconds
        while self.page.view().isRunning:
            assert time.monotonic() < end, "it takes too long"
            self.source.client.pump(0.02)
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
    assert line.level in (Level.OK, Level.WARNING), line.text
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
    assert line.level in (Level.OK, Level.WARNING), line.text
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
    assert line.level in (Level.OK, Level.WARNING), line.text
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


def test_an_export_of_what_was_painted_is_no_warning(desk, tmp_path):
    desk = desk()
    desk.segmentation.GetSegmentation().GetSegment("B").SetName("Kidney")
    line = desk.export(tmp_path / "liver")
    assert line.level is Level.OK, line.text
    assert "--" not in line.text
    assert pydicom.dcmread(tmp_path / "liver.dcm").SegmentSequence[1].SegmentAlgorithmType == "MANUAL"


def test_a_segmentation_without_a_voxel_is_refused_in_every_format(desk, tmp_path):
    desk = desk()
    known = desk.segmentation.GetSegmentation()
    known.RemoveSegment("A")
    known.RemoveSegment("B")
    for format in ("dicom", "seg.nrrd", "nii.gz", "nrrd"):
        line = desk.export(tmp_path / "a", format, measurements="csv")
        assert "'Liver of Anna' is empty, none of its segments has a voxel" in line.text
        assert line.level is Level.ERROR
    assert list(tmp_path.iterdir()) == []


# On other grids and in other places -------------------------------------------------------------------------


def moved_to(desk, matrix):
    """The volume was moved after it was loaded, and is segmented there."""
    desk.volume.SetIJKToRASMatrix(arrayToMatrix(matrix))
    desk.scene.RemoveNode(desk.segmentation)
    desk.segmentation = a_segmentation(desk.scene, desk.volume, ("A", "B", "C"))
    desk.segmentation.SetName("Liver of Anna")
    desk.masks = desk.painted()
    desk.describe()


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("by", ["centred", (4.0, 3.0, 0.0), (0.0, 0.0, 20.0)])
def test_what_was_drawn_on_a_volume_that_was_moved_lands_on_its_pictures(desk, tmp_path, name, by):
    desk = desk(name)
    geometry = read_volume(desk.folder).geometry
    middle = geometry.to_ras((np.array(geometry.shape_ijk) - 1) / 2)[0]
    moved_to(desk, a_matrix(origin=-middle if by == "centred" else by) @ geometry.ijk_to_ras)
    line = desk.export(tmp_path / "liver", generic=True)
    assert line.level is Level.WARNING, line.text
    assert "the volume was moved by" in line.text
    again = read_segmentation(tmp_path / "liver.dcm")
    for label, mask_kji in desk.masks.items():
        assert np.array_equal(again[label].mask_kji, mask_kji)


def test_a_volume_that_is_not_the_series_any_more_is_refused(desk, tmp_path):
    desk = desk()
    geometry = read_volume(desk.folder).geometry
    cropped = desk.volume.GetImageData()
    cropped.SetDimensions(*cropped.GetDimensions()[:2], cropped.GetDimensions()[2] - 1)
    moved_to(desk, a_matrix(origin=(500.0, 0, 0)) @ geometry.ijk_to_ras)
    line = desk.export(tmp_path / "liver", generic=True)
    assert line.level is Level.ERROR
    assert "or choose another format" in line.text
    assert list(tmp_path.iterdir()) == []


def on_a_finer_grid(desk, sizes):
    """Segments of so many voxels along i and j, on a grid three times as fine as the volume's."""
    geometry = read_volume(desk.folder).geometry
    depth, height, width = (3 * size for size in geometry.shape_ijk[::-1])
    fine = geometry.ijk_to_ras @ a_matrix(spacing=[1 / 3] * 3, origin=[-1 / 3] * 3)
    desk.scene.RemoveNode(desk.segmentation)
    segmentation = a_segmentation(desk.scene, desk.volume, ("A",), (fine, (depth, height, width)))
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    segmentation.SetNodeReferenceID(role, desk.volume.GetID())
    segmentation.SetName("Fine")
    mask_kji = np.zeros((depth, height, width), dtype=bool)
    mask_kji[3 : depth - 3, 300 : 300 + sizes[1], 300 : 300 + sizes[0]] = True
    paint(an_editor(segmentation, desk.volume), mask_kji, "A")
    segmentation.GetSegmentation().GetSegment("A").SetName("Liver")
    desk.segmentation = segmentation
    return mask_kji


def test_a_vessel_too_thin_for_the_series_is_refused_and_kept_by_other_formats(desk, tmp_path):
    desk = desk()
    vessel = on_a_finer_grid(desk, (1, 2))
    line = desk.export(tmp_path / "vessel", generic=True)
    assert line.level is Level.ERROR
    assert line.text.startswith("'Liver': ")
    assert list(tmp_path.iterdir()) == []
    assert desk.export(tmp_path / "vessel", "seg.nrrd").level is Level.OK
    assert read_segmentation(tmp_path / "vessel.seg.nrrd")["Liver"].voxel_count == vessel.sum()


def test_what_changes_a_little_on_the_way_to_the_series_is_reported(desk, tmp_path):
    desk = desk()
    on_a_finer_grid(desk, (150, 160))
    line = desk.export(tmp_path / "lump", generic=True)
    assert line.level is Level.WARNING, line.text
    assert "was resampled to the series' voxels" in line.text
    assert read_segmentation(tmp_path / "lump.dcm")["Liver"].voxel_count > 0


# How it ends ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be told apart by signals there")
def test_a_worker_that_is_killed_leaves_no_paths_of_patients_behind(shared_data, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    others = psutil.Process().children()
    source = RealWorkerSource(TMPDIR=str(temporary))
    desk = ADesk(source, shared_data / "dicom" / SERIES[0])
    desk.page.export(ExportOptions("dicom", str(tmp_path / "liver.dcm"), generic=True))
    end = time.monotonic() + 60
    while not list(temporary.rglob("dicom.txt")):
        assert time.monotonic() < end
        source.client.pump(0.01)
    for worker in set(psutil.Process().children()) - set(others):
        worker.kill()
    while desk.page.view().isRunning:
        assert time.monotonic() < end
        source.client.pump(0.02)
    assert not list(temporary.glob("medsam2-export-*"))
    source.client.stop()
    desk.scene.Clear(True)


def test_a_segment_without_a_code_is_refused_with_slicers_way_out(desk, tmp_path):
    desk = desk()
    line = desk.export(tmp_path / "liver.dcm")
    assert line.level is Level.ERROR
    assert line.text.startswith("segment 'Segment 2': no code says what it is: double click its colour")
    assert list(tmp_path.iterdir()) == []


def test_a_second_export_replaces_when_allowed_with_uids_of_its_own(desk, tmp_path):
    desk, out = desk(), tmp_path / "liver.dcm"
    desk.export(out, generic=True)
    first = pydicom.dcmread(out)
    assert "exists already" in desk.export(out, generic=True).text
    assert desk.export(out, generic=True, overwrite=True).level in (Level.OK, Level.WARNING)
    second = pydicom.dcmread(out)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_a_cancelled_export_leaves_nothing(desk, tmp_path):
    desk = desk()
    desk.page.export(ExportOptions("dicom", str(tmp_path / "liver.dcm"), generic=True))
    desk.source.client.pump(0.3)
    desk.page.cancel()
    end = time.monotonic() + 60
    while desk.page.view().isRunning:
        assert time.monotonic() < end
        desk.source.client.pump(0.02)
    line = desk.page.view().line
    assert line.text == "The export was stopped; no file is left incomplete."
    assert list(tmp_path.iterdir()) == []
    assert desk.export(tmp_path / "liver.dcm", generic=True).level in (Level.OK, Level.WARNING)


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
