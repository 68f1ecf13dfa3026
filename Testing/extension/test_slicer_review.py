"""The review queue in a real scene: cases with their segments and prompts, decisions, corrections saved."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core import export  # noqa: E402
from medsam2_core.auto.fewshot.data import find_pairs  # noqa: E402
from medsam2_core.batch.cases import Case  # noqa: E402
from medsam2_core.batch.inputs import fingerprint  # noqa: E402
from medsam2_core.batch.review import ReviewQueue  # noqa: E402
from medsam2_core.imaging.geometry import Geometry  # noqa: E402
from medsam2_core.imaging.reading import read_volume  # noqa: E402
from medsam2_core.imaging.segmentation import Segment, Segmentation  # noqa: E402
from medsam2_core.imaging.segmentation_files import read_segmentation  # noqa: E402
from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from medsam2_core.prompts import Box, Point  # noqa: E402
from MedSAM2SegmentLib.Effect.ReviewCases import ReviewCases  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import Level  # noqa: E402
from MedSAM2SegmentLib.Page.ReviewSection import ReviewSection  # noqa: E402
from MedSAM2SegmentLib.Prompts.Gestures import PointGesture  # noqa: E402
from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import nodesOf  # noqa: E402
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from MedSAM2SegmentLib.Segments.VoxelSets import Extent  # noqa: E402
from support.errors import raises  # noqa: E402
from support.review_results import MATRIX, SHAPE_KJI, the_mask, write_results  # noqa: E402
from support.scene import an_editor, box_mask, paint  # noqa: E402


class Reviewer:
    """Goes through a queue, and can look at the scene."""

    def __init__(self, scene):
        self.scene, self.now, self.changes = scene, 100.0, 0
        self.section = ReviewSection(ReviewCases(scene), self.count, lambda: self.now)

    def count(self):
        self.changes += 1

    @property
    def view(self):
        return self.section.view()

    @property
    def volume(self):
        (node,) = nodesOf(self.scene, "vtkMRMLScalarVolumeNode")
        return node

    @property
    def segmentation(self):
        (node,) = nodesOf(self.scene, "vtkMRMLSegmentationNode")
        return node

    def prompts(self):
        """The prompts of the only segment, by slice."""
        markups = PromptMarkups(self.scene, self.segmentation)
        try:
            adapter = VolumeAdapter(self.volume)
            stack = SliceStack.along(adapter.volume, "axial")
            (segmentID,) = markups.segmentIDs()
            return {n: one.prompts for n, one in markups.slicePrompts(segmentID, adapter, stack).items()}
        finally:
            markups.cleanup()

    def add_point(self, ras):
        markups = PromptMarkups(self.scene, self.segmentation)
        try:
            segmentID = self.segmentation.GetSegmentation().GetNthSegmentID(0)
            markups.add(segmentID, PointGesture(np.array(ras, float)))
        finally:
            markups.cleanup()

    def paint(self, mask_kji):
        editor = an_editor(self.segmentation, self.volume)
        paint(editor, mask_kji, self.segmentation.GetSegmentation().GetNthSegmentID(0))


@pytest.fixture
def reviewer(scene):
    return Reviewer(scene)


def decisions(folder):
    return {one["case"]: one for one in json.loads((folder / "review.json").read_text())["cases"]}


def test_the_worst_case_is_opened_with_its_segments_and_prompts(reviewer, tmp_path):
    out = write_results(tmp_path, a=0.9, b=0.2)
    reviewer.section.open(f" {out} ")
    assert reviewer.view.case == "b, confidence 0.20 (not calibrated)"
    assert reviewer.view.counts == "2 left, 0 accepted, 0 corrected, 0 skipped"
    assert reviewer.view.canAccept and reviewer.view.canSkip and reviewer.changes
    adapter = VolumeAdapter(reviewer.volume)
    assert np.array_equal(adapter.volume.voxels_kji, read_volume(out / "data" / "b.nrrd").voxels_kji)
    (segmentID,) = reviewer.segmentation.GetSegmentation().GetSegmentIDs()
    voxels = SegmentVoxels(reviewer.segmentation, adapter.geometry.ijk_to_ras)
    k, j, i = SHAPE_KJI
    assert np.array_equal(voxels.mask(segmentID, Extent(0, i - 1, 0, j - 1, 0, k - 1)), the_mask())
    prompts = reviewer.prompts()
    assert [type(one) for one in (*prompts[2], *prompts[3])] == [Box, Point]
    (box,) = prompts[2]
    assert np.allclose([box.first_ijk, box.last_ijk], [(6, 5, 2), (15, 14, 2)], atol=0.01)


def test_accept_skip_and_the_end_of_the_queue(reviewer, tmp_path):
    out, before = write_results(tmp_path, a=0.9, b=0.2), reviewer.scene.GetNumberOfNodes()
    reviewer.section.open(str(out))
    reviewer.now += 12.5
    reviewer.section.accept()
    assert reviewer.view.case.startswith("a,")
    assert reviewer.volume.GetName() == "a", "the accepted case is gone from the scene"
    reviewer.now += 3
    reviewer.section.skip()
    assert (reviewer.view.case, reviewer.view.line.level) == ("", Level.OK)
    assert not reviewer.view.canSkip and not reviewer.view.canAccept
    assert not list(nodesOf(reviewer.scene, "vtkMRMLVolumeNode"))
    assert not list(nodesOf(reviewer.scene, "vtkMRMLMarkupsNode"))
    assert reviewer.scene.GetNumberOfNodes() <= before + 4, "at most what a first case makes once"
    kept = decisions(out)
    assert {name: (one["decision"], one["seconds"]) for name, one in kept.items()} == {
        "b": ("accepted", 12.5), "a": ("skipped", 3.0),
    }  # fmt: skip
    (pair,) = find_pairs(out / "accepted.csv")
    assert (pair.image, pair.labels) == (out / "data" / "b.nrrd", out / "review" / "b.seg.nrrd")


def test_a_volume_has_colours_in_slicer(reviewer, tmp_path, monkeypatch):
    """Without a colour table, nothing is drawn; the logic of Slicer's module gives it."""
    app, colours = slicer.vtkMRMLApplicationLogic(), slicer.vtkMRMLColorLogic()
    logic = slicer.vtkSlicerVolumesLogic()
    app.SetModuleLogic("Colors", colours)
    for one in (app, colours, logic):
        one.SetMRMLScene(reviewer.scene)
    logic.SetMRMLApplicationLogic(app)
    modules = SimpleNamespace(volumes=SimpleNamespace(logic=lambda: logic))
    monkeypatch.setattr(slicer, "modules", modules, raising=False)
    monkeypatch.setattr(slicer, "mrmlScene", reviewer.scene, raising=False)
    monkeypatch.setattr(slicer.util, "setSliceViewerLayers", lambda **layers: None)
    reviewer.section.open(str(write_results(tmp_path, b=0.2)))
    assert reviewer.volume.GetDisplayNode().GetColorNodeID() == "vtkMRMLColorTableNodeGrey"


def test_the_segment_editor_follows_from_case_to_case(reviewer, tmp_path):
    other = reviewer.scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    reviewer.section.open(str(write_results(tmp_path, a=0.9, b=0.2)))
    node = reviewer.scene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    assert node is not other and other.GetSegmentationNode() is None, "that of another module"
    for _ in range(2):
        assert (node.GetSegmentationNode(), node.GetSourceVolumeNode()) == (
            reviewer.segmentation, reviewer.volume
        )  # fmt: skip
        assert node.GetSelectedSegmentID() == reviewer.segmentation.GetSegmentation().GetNthSegmentID(0)
        reviewer.section.skip()
    assert node.GetSegmentationNode() is None


def test_a_correction_is_saved_beside_the_results(reviewer, tmp_path):
    out = write_results(tmp_path, b=0.2)
    reviewer.section.open(str(out))
    added = box_mask((0, 1), (0, 3), (0, 4), SHAPE_KJI)
    reviewer.paint(added)
    reviewer.add_point(VolumeAdapter(reviewer.volume).geometry.to_ras([[9, 8, 4]])[0])
    reviewer.section.accept()
    assert reviewer.view.line.level is Level.WARNING and reviewer.view.case, "it would leave the changes out"
    reviewer.section.correct()
    geometry = read_volume(out / "data" / "b.nrrd").geometry
    labels = read_segmentation(out / "review" / "b.seg.nrrd").on_grid(geometry)
    assert np.array_equal(labels["ball"].mask_kji, the_mask() | added)
    assert decisions(out)["b"]["decision"] == "corrected" and decisions(out)["b"]["clicks"] == 1
    untouched = read_segmentation(out / "cases" / "b" / "segmentation.seg.nrrd")
    assert np.array_equal(untouched["ball"].mask_kji, the_mask())
    assert [path.name for path in (out / "review").iterdir()] == ["b.seg.nrrd"]
    (pair,) = find_pairs(out / "accepted.csv")
    assert pair.labels == out / "review" / "b.seg.nrrd"


def test_the_same_button_again_leaves_changes_out(reviewer, tmp_path):
    out = write_results(tmp_path, b=0.2)
    reviewer.section.open(str(out))
    reviewer.paint(~the_mask())
    reviewer.section.skip()
    assert decisions(out)["b"]["decision"] == ""
    reviewer.section.skip()
    assert decisions(out)["b"]["decision"] == "skipped"


def test_another_change_after_the_warning_is_warned_of_again(reviewer, tmp_path):
    out = write_results(tmp_path, a=0.9, b=0.2)
    reviewer.section.open(str(out))
    reviewer.paint(~the_mask())
    reviewer.section.accept()
    reviewer.paint(the_mask())
    reviewer.section.accept()
    assert reviewer.view.line.level is Level.WARNING and decisions(out)["b"]["decision"] == ""
    reviewer.section.skip()
    assert decisions(out)["b"]["decision"] == "", "another button"
    reviewer.section.skip()
    assert decisions(out)["b"]["decision"] == "skipped"


def test_to_open_a_queue_does_not_discard_changes_silently(reviewer, tmp_path):
    out, other = write_results(tmp_path, b=0.2), write_results(tmp_path / "other", c=0.2)
    reviewer.section.open(str(out))
    reviewer.paint(~the_mask())
    reviewer.section.open(str(other))
    assert reviewer.view.line.level is Level.WARNING and reviewer.view.case.startswith("b,")
    reviewer.section.open(str(other))
    assert reviewer.view.case.startswith("c,") and reviewer.view.line.text == ""


def geometry_changed(out, name, matrix, shape_kji=SHAPE_KJI):
    """Write the result of a case on another grid."""
    mask_kji = np.zeros(shape_kji, bool)
    mask_kji[:3, 6:14, 7:16] = True
    path = out / "cases" / name / "segmentation.seg.nrrd"
    path.unlink()
    segmentation = Segmentation(Geometry(matrix, shape_kji[::-1]), (Segment("ball", (0, 1, 0), mask_kji),))
    export.write(segmentation, path)


def translation(*by_mm):
    matrix = np.eye(4)
    matrix[:3, 3] = by_mm
    return matrix


@pytest.mark.parametrize(
    ("matrix", "shape"),
    [
        (np.diag([-1.0, -1.0, 2.2, 1.0]), SHAPE_KJI),  # slices of another spacing
        (MATRIX, (5, 20, 24)),
        (translation(0, 0, 0.6) @ MATRIX, SHAPE_KJI),
    ],
)
def test_a_result_on_another_grid_than_slicers_is_refused(reviewer, tmp_path, matrix, shape):
    out = write_results(tmp_path, b=0.2)
    geometry_changed(out, "b", matrix, shape)
    queue = ReviewQueue(out)
    with raises("grid-differs", case="b"):
        ReviewCases(reviewer.scene).open("b", queue.files(queue.next()))
    assert not list(nodesOf(reviewer.scene, "vtkMRMLVolumeNode"))
    reviewer.section.open(str(out))
    assert reviewer.view.line.level is Level.ERROR and not reviewer.view.canAccept and reviewer.view.canSkip


def test_a_single_slice_may_have_another_thickness_in_slicer(reviewer, tmp_path):
    out = write_results(tmp_path, series=0.2)
    folder, path = out / "data" / "series", out / "cases" / "series" / "case.json"
    known = json.loads(path.read_text())
    for one in known["slice_files"][1:]:
        Path(one).unlink()
    known = {
        **known,
        "slice_files": known["slice_files"][:1],
        "inputs": fingerprint(Case("series", str(folder))),
    }
    path.write_text(json.dumps(known))
    geometry_changed(out, "series", read_volume(folder).geometry.ijk_to_ras, (1, *SHAPE_KJI[1:]))
    reviewer.section.open(str(out))
    assert reviewer.view.line.text == "" and reviewer.view.canAccept


def test_an_uneven_series_that_was_resampled_is_refused(reviewer, tmp_path):
    out = write_results(tmp_path, series=0.2)
    path = out / "cases" / "series" / "case.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "slice_files": []}))
    queue = ReviewQueue(out)
    with raises("grid-differs", case="series"):
        ReviewCases(reviewer.scene).open("series", queue.files(queue.next()))


def test_a_dicom_series_is_opened_in_its_order(reviewer, tmp_path):
    out = write_results(tmp_path, series=0.3)
    reviewer.section.open(str(out))
    assert reviewer.view.line.text == ""
    ours = read_volume(out / "data" / "series")
    adapter = VolumeAdapter(reviewer.volume)
    for corner in ([0, 0, 0], [3, 4, 5]):
        at = np.rint(adapter.geometry.to_ijk(ours.geometry.to_ras([corner])))[0].astype(int)
        assert adapter.volume.voxels_kji[tuple(at[::-1])] == ours.voxels_kji[tuple(corner[::-1])]


def test_a_case_that_cannot_be_opened_may_be_skipped(reviewer, tmp_path):
    out = write_results(tmp_path, a=0.9, b=0.2)
    (out / "data" / "b.nrrd").unlink()
    reviewer.section.open(str(out))
    assert reviewer.view.line.level is Level.ERROR and not reviewer.view.canAccept
    reviewer.section.accept()
    assert decisions(out)["b"]["decision"] == ""
    reviewer.section.skip()
    assert reviewer.view.case.startswith("a,") and reviewer.view.canAccept


def test_a_case_that_was_taken_out_of_the_scene(reviewer, tmp_path):
    out = write_results(tmp_path, a=0.9, b=0.2)
    reviewer.section.open(str(out))
    reviewer.scene.RemoveNode(reviewer.volume)
    reviewer.section.correct()
    assert reviewer.view.line.level is Level.ERROR and decisions(out)["b"]["decision"] == ""
    reviewer.section.skip()
    assert decisions(out)["b"]["decision"] == "skipped"


def test_a_folder_without_results_and_no_scene(reviewer, tmp_path):
    reviewer.section.open(str(tmp_path))
    assert reviewer.view.line.level is Level.ERROR and not reviewer.view.canSkip
    reviewer.section.accept()
    out = write_results(tmp_path / "r", a=0.5)
    shutil.rmtree(out / "cases" / "a")
    reviewer.section.open(str(out))
    assert reviewer.view.counts == "0 left, 0 accepted, 0 corrected, 0 skipped"
    alone = ReviewSection(None, lambda: None)
    alone.open(str(out))
    assert not alone.view().canOpen
