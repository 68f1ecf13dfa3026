"""Prompts live in the scene: ordered, undone, saved, loaded, and gone with what they belong to."""

import gc
import tempfile

import numpy as np
import pytest

pytest.importorskip("slicer")
import slicer
import vtk
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import Box, MaskPrompt, Point
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, PointGesture, ScribbleGesture
from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter
from support.errors import raises
from support.scene import a_matrix, a_segmentation, a_volume, an_empty_scene, direction_of
from support.shown_errors import every_error_shown

SHAPE_KJI = (12, 30, 36)


class ASegmentation:
    """A volume of 1 x 1 x 3 mm, two segments and their prompts in a scene."""

    def __init__(self, scene):
        self.scene = scene
        self.volume = a_volume(scene, a_matrix(direction_of("LPS"), (1, 1, 3)), np.zeros(SHAPE_KJI, np.int16))
        self.node = a_segmentation(scene, self.volume, ("A", "B"))
        self.meet()

    def meet(self):
        self.adapter = VolumeAdapter(self.volume)
        self.stack = SliceStack.along(self.adapter.volume, "axial")
        self.markups = PromptMarkups(self.scene, self.node)
        self.markups.volumeNode = self.volume
        self.changes = []
        self.markups.changed.append(self.changes.append)
        return self

    def ras(self, *ijk):
        return self.adapter.geometry.to_ras(ijk)

    def point(self, i, j, k, positive=True):
        return PointGesture(self.ras([i, j, k])[0], positive)

    def box(self, first, last, k):
        (a, b), (c, d) = first, last
        return BoxGesture(self.ras([a, b, k], [c, b, k], [c, d, k], [a, d, k]), 3.0)

    def scribble(self, *positions, positive=True):
        return ScribbleGesture(self.ras(*positions), positive)

    def slice_prompts(self, segment="A", stack=None):
        return self.markups.slicePrompts(segment, self.adapter, stack or self.stack)

    def prompts_a_lot(self):
        """One of everything, on two slices, to two segments."""
        add = self.markups.add
        add("A", self.point(10, 12, 5))
        add("A", self.box((4, 5), (20, 22), 5))
        add("B", self.point(30, 3, 5))
        add("A", self.point(18, 6.5, 5, False))
        add("A", self.scribble([5, 20, 5], [15, 20, 5], [15, 26, 5]))
        add("A", self.scribble([5, 3, 8], [15, 3, 8], positive=False))
        add("A", self.point(11, 12, 5))
        mask_kji = np.zeros((1, 4, 6), bool)
        mask_kji[0, 1:3, 2:] = True
        self.markups.addMask("A", 9, MaskPrompt(mask_kji, (7, 8, 9)), self.stack.key)
        self.markups.setFinal("A", self.stack.key, 9, True)
        self.changes.clear()
        return self


def a_scene_of_markups():
    """With what Slicer's application adds: the storage of markups, and a place to unpack files."""
    scene = an_empty_scene()
    logic = slicer.vtkSlicerMarkupsLogic()
    logic.SetMRMLScene(scene)
    manager = slicer.vtkDataIOManager()
    cache = slicer.vtkCacheManager()
    cache.SetRemoteCacheDirectory(tempfile.mkdtemp())
    manager.SetCacheManager(cache)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    _KEPT.append((scene, logic, manager, cache))
    return scene


_KEPT = []


@pytest.fixture
def scene():
    scene = a_scene_of_markups()
    yield scene
    scene.Clear(True)


@pytest.fixture
def seg(scene):
    seg = ASegmentation(scene)
    with every_error_shown():
        yield seg
    seg.markups.cleanup()


def the_same(words, others):
    assert words.keys() == others.keys()
    for n, said in words.items():
        assert said.final == others[n].final and len(said.prompts) == len(others[n].prompts)
        for one, other in zip(said.prompts, others[n].prompts, strict=True):
            assert type(one) is type(other)
            if isinstance(one, Point):
                assert one.positive == other.positive
                np.testing.assert_allclose(one.ijk, other.ijk, atol=1e-4)
            elif isinstance(one, Box):
                np.testing.assert_allclose(
                    [one.first_ijk, one.last_ijk], [other.first_ijk, other.last_ijk], atol=1e-4
                )
            else:
                assert one == other


def prompt_nodes(scene):
    names = ("vtkMRMLMarkupsNode", "vtkMRMLTextNode", "vtkMRMLMarkupsDisplayNode")
    return sum(scene.GetNumberOfNodesByClass(name) for name in names)


# Words ------------------------------------------------------------------------------------------------------


def test_prompts_come_in_the_order_they_were_added(seg):
    words = seg.prompts_a_lot().slice_prompts()
    assert list(words) == [5, 8, 9]
    kinds = [type(prompt).__name__ for prompt in words[5].prompts]
    assert kinds == ["Point", "Box", "Point", *["Point"] * 3, "Point"]
    assert words[5].prompts[0] == Point((10, 12, 5)) and words[5].prompts[-1] == Point((11, 12, 5))
    assert not words[5].prompts[2].positive
    assert all(not point.positive for point in words[8].prompts)
    assert words[9].final and words[9].prompts[0].mask_kji.sum() == 8
    assert (
        seg.slice_prompts("B") == {5: seg.slice_prompts("B")[5]}
        and len(seg.slice_prompts("B")[5].prompts) == 1
    )


def test_every_addition_is_reported_once(seg):
    seg.markups.add("A", seg.point(1, 2, 3))
    seg.markups.add("B", seg.box((4, 5), (9, 9), 3))
    seg.markups.setFinal("A", seg.stack.key, 3, True)
    seg.markups.setFinal("A", seg.stack.key, 3, True)  # nothing new
    assert seg.changes == [("A",), ("B",), ("A",)]
    with seg.markups.silenced():
        seg.markups.clear("A")
    assert len(seg.changes) == 3 and seg.markups.isEmpty("A") and not seg.markups.isEmpty("B")


def test_a_point_outside_the_volume_is_named_with_the_way_out(seg):
    seg.markups.add("A", seg.point(10, 12, 5))
    outside = seg.point(40, 12, 5)
    with raises("prompt-outside-volume", PromptError):
        seg.markups.check(outside, seg.adapter, seg.stack)
    assert seg.markups.check(seg.point(10, 12, 11.4), seg.adapter, seg.stack) == (11,)
    seg.markups.add("A", outside)
    with raises("prompt-outside-volume", PromptError, prompt="the point with the number 2"):
        seg.slice_prompts()


def test_two_boxes_on_a_slice_are_refused_with_their_numbers(seg):
    seg.markups.add("A", seg.box((4, 5), (20, 22), 5))
    gesture = seg.box(
        (4, 5), (20, 22), 5.6
    )  # more than half a slice away in the view, the same slice of the stack
    seg.markups.add("A", BoxGesture(gesture.rasCorners, 1.0))
    assert list(seg.slice_prompts()) == [5, 6]
    seg.markups.add("A", BoxGesture(seg.box((4, 5), (20, 22), 5.3).rasCorners, 1.0))
    with raises("two-boxes-on-slice", PromptError, slice=5, boxes=[1, 3]):
        seg.slice_prompts()


def test_a_box_that_replaces_another_is_told_apart_from_it(seg):
    seg.markups.add("A", seg.box((4, 5), (20, 22), 5))
    before = seg.markups.snapshot("A")
    seg.markups.add("A", seg.box((6, 7), (20, 22), 5))
    (state,) = seg.markups.snapshot("A")
    assert state.order == before[0].order + 1
    seg.markups.restore(before, "A")
    assert seg.markups.snapshot("A") == before


def test_a_mask_applies_to_its_voxels_on_another_stack(seg):
    seg.prompts_a_lot()
    coronal = SliceStack.along(seg.adapter.volume, "coronal")
    seg.markups.remove(seg.markups.add("B", seg.point(0, 0, 0)))
    with raises("box-across-slices", PromptError):
        seg.slice_prompts("A", coronal)
    for node in [n for n in seg.markups._observer.nodes if n.IsA("vtkMRMLMarkupsROINode")]:
        seg.scene.RemoveNode(node)
    words = seg.slice_prompts("A", coronal)
    assert not any(said.final for said in words.values())
    masked = [n for n, said in words.items() if any(isinstance(p, MaskPrompt) for p in said.prompts)]
    assert len(masked) == 2


def test_damaged_notes_are_reported(seg):
    seg.prompts_a_lot()
    node = seg.scene.GetFirstNodeByClass("vtkMRMLTextNode")
    for text in ("{", "[]", '{"version": 2}', node.GetText().replace('"n": 9', '"n": "x"')):
        node.SetText(text)
        with raises("mask-notes-damaged", PromptError):
            seg.slice_prompts()


# Undo -------------------------------------------------------------------------------------------------------


def test_a_snapshot_brings_back_everything_exactly(seg):
    seg.prompts_a_lot()
    snapshot, words = seg.markups.snapshot(), seg.slice_prompts()
    seg.markups.clear("A")
    seg.markups.add("A", seg.point(1, 1, 1))
    seg.markups.add("B", seg.point(1, 1, 1, False))
    seg.changes.clear()
    for _ in range(3):
        seg.markups.restore(snapshot)
        assert set(seg.markups.snapshot()) == set(snapshot)
        assert seg.slice_prompts() == words
    assert not seg.changes


def test_a_snapshot_of_one_segment_leaves_the_other(seg):
    seg.prompts_a_lot()
    snapshot = seg.markups.snapshot("A")
    seg.markups.clear("A")
    seg.markups.add("B", seg.point(2, 2, 2))
    seg.markups.restore(snapshot, "A")
    assert set(seg.markups.snapshot("A")) == set(snapshot) and len(seg.slice_prompts("B")) == 2


def test_prompts_of_one_slice_can_be_cleared(seg):
    seg.prompts_a_lot()
    before, of_other = seg.slice_prompts(), seg.slice_prompts("B")
    seg.markups.clearSlice("A", 5, seg.adapter, seg.stack)
    left = seg.slice_prompts()
    assert sorted(left) == [8, 9]
    the_same(left, {n: before[n] for n in (8, 9)})
    the_same(seg.slice_prompts("B"), of_other)
    assert not seg.changes
    seg.markups.clearSlice("A", 9, seg.adapter, seg.stack)
    seg.markups.clearSlice("A", 3, seg.adapter, seg.stack)
    assert sorted(seg.slice_prompts()) == [8], "a mask and what is final go, too"


def test_a_scribble_across_slices_goes_as_a_whole(seg):
    across = SliceStack.along(seg.adapter.volume, "coronal")
    seg.markups.add("A", seg.scribble([5, 3, 8], [15, 3, 8]))
    seg.markups.add("A", seg.point(4, 20, 8))
    n = next(iter(seg.slice_prompts(stack=across)))
    seg.markups.clearSlice("A", n, seg.adapter, across)
    assert len(seg.slice_prompts(stack=across)) == 1


def test_orders_go_on_after_undo(seg):
    empty = seg.markups.snapshot()
    seg.markups.add("A", seg.point(1, 1, 5))
    seg.markups.restore(empty)
    seg.markups.add("A", seg.point(2, 2, 5))
    seg.markups.add("A", seg.box((1, 1), (5, 5), 5))
    assert [type(p).__name__ for p in seg.slice_prompts()[5].prompts] == ["Point", "Box"]


# What others do ---------------------------------------------------------------------------------------------


def test_a_point_moved_in_the_markups_module_is_reported(seg):
    seg.markups.add("A", seg.point(10, 12, 5))
    node = seg.scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    seg.changes.clear()
    node.SetNthControlPointPositionWorld(0, *seg.ras([11, 13, 6])[0])
    assert seg.changes == [("A",)] and seg.slice_prompts()[6].prompts == (Point((11, 13, 6)),)


def test_a_point_deleted_or_added_by_others_is_reported_and_numbered(seg):
    seg.markups.add("A", seg.point(10, 12, 5))
    seg.markups.add("A", seg.point(11, 12, 5, False))
    node = seg.scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    seg.changes.clear()
    node.AddControlPointWorld(vtk.vtkVector3d(*seg.ras([12, 12, 5])[0]))
    assert seg.changes == [("A",)] and node.GetNthControlPointDescription(1) == "3"
    node.RemoveNthControlPoint(0)
    assert len(seg.changes) == 2 and len(seg.slice_prompts()[5].prompts) == 2
    node.RemoveAllControlPoints()
    assert len(seg.changes) == 3 and len(seg.slice_prompts()[5].prompts) == 1
    seg.scene.RemoveNode(node)
    assert len(seg.slice_prompts()[5].prompts) == 1


def test_a_transform_over_prompts_moves_them(seg):
    seg.markups.add("A", seg.point(10, 12, 5))
    node = seg.scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    transform = seg.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    seg.changes.clear()
    node.SetAndObserveTransformNodeID(transform.GetID())
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(2, 3, 6.0)
    transform.SetMatrixTransformToParent(matrix)
    assert not seg.changes  # the segmentation may be about to follow
    seg.markups.update()
    assert seg.changes == [("A",)] and list(seg.slice_prompts()) == [7]


def test_a_change_of_colours_is_not_reported(seg):
    seg.prompts_a_lot()
    seg.node.GetSegmentation().GetSegment("A").SetColor(0.1, 0.9, 0.2)
    seg.node.GetSegmentation().GetSegment("A").SetName("liver")
    nodes = [
        n
        for n in seg.markups._observer.nodes
        if n.GetAttribute("MedSAM2.segmentID") == "A" and n.IsA("vtkMRMLMarkupsNode")
    ]
    assert nodes and all(n.GetDisplayNode().GetSelectedColor() == (0.1, 0.9, 0.2) for n in nodes)
    assert not seg.changes


# Segments and segmentations ---------------------------------------------------------------------------------


def test_prompts_go_with_their_segment_and_come_back_with_it(seg):
    words = seg.prompts_a_lot().slice_prompts()
    segment = seg.node.GetSegmentation().GetSegment("A")
    seg.node.GetSegmentation().RemoveSegment("A")
    assert seg.markups.segmentIDs() == ("B",) and seg.changes == [("A",)]
    seg.node.GetSegmentation().AddSegment(segment, "A")  # as undo does
    assert seg.slice_prompts() == words and seg.changes == [("A",), ("A",)]


def test_prompts_go_with_their_segmentation(seg):
    seg.prompts_a_lot()
    seg.scene.RemoveNode(seg.node)
    assert prompt_nodes(seg.scene) == 0 and seg.markups.segmentationNode is None
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(seg.scene)
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    names = [hierarchy.GetItemName(items.GetId(n)) for n in range(items.GetNumberOfIds())]
    assert not [name for name in names if "prompts" in name]


def test_two_segmentations_do_not_mix(seg):
    seg.prompts_a_lot()
    other = a_segmentation(seg.scene, seg.volume, ("A",))  # the same segment ID
    markups = PromptMarkups(seg.scene, other)
    changes = []
    markups.changed.append(changes.append)
    assert markups.segmentIDs() == ()
    markups.add("A", seg.point(1, 2, 3))
    assert changes == [("A",)] and not seg.changes
    assert list(markups.slicePrompts("A", seg.adapter, seg.stack)) == [3] and 3 not in seg.slice_prompts()
    seg.markups.clear("A")
    assert list(markups.slicePrompts("A", seg.adapter, seg.stack)) == [3] and changes == [("A",)]
    markups.cleanup()


def test_two_editors_on_one_segmentation_see_the_same(seg):
    other = PromptMarkups(seg.scene, seg.node)
    changes = []
    other.changed.append(changes.append)
    seg.markups.add("A", seg.point(1, 2, 3))
    seg.markups.add("A", seg.box((4, 5), (9, 9), 3))
    assert other.slicePrompts("A", seg.adapter, seg.stack) == seg.slice_prompts()
    assert set(changes) == {("A",)}
    other.cleanup()


def test_prompts_stand_in_a_closed_folder_beside_the_segmentation(seg):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(seg.scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, seg.node)
    seg.prompts_a_lot()
    nodes = seg.markups._observer.nodes
    items = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in nodes}
    (folder,) = items
    assert (
        hierarchy.GetItemName(folder) == "Segmentation prompts" and hierarchy.GetItemParent(folder) == study
    )
    assert not hierarchy.GetItemExpanded(folder)
    seg.markups.clear("A")
    seg.markups.clear("B")
    assert hierarchy.GetNumberOfItemChildren(study) == 1 and prompt_nodes(seg.scene) == 0


# Saving and loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["an empty scene", "a scene in use"])
def test_a_saved_scene_has_the_same_prompts_again(seg, tmp_path, into):
    words = seg.prompts_a_lot().slice_prompts()
    others = seg.slice_prompts("B")
    path = tmp_path / "scene.mrb"
    assert seg.scene.WriteToMRB(str(path))
    scene = a_scene_of_markups()
    if into == "a scene in use":
        ASegmentation(scene).prompts_a_lot().markups.cleanup()
    before = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    assert scene.ReadFromMRB(str(path), False)
    loaded = object.__new__(ASegmentation)
    loaded.scene = scene
    loaded.node = scene.GetNthNodeByClass(before, "vtkMRMLSegmentationNode")
    loaded.volume = scene.GetNthNodeByClass(before, "vtkMRMLScalarVolumeNode")
    loaded.meet()
    the_same(loaded.slice_prompts(), words)
    the_same(loaded.slice_prompts("B"), others)
    node = next(n for n in loaded.markups._observer.nodes if n.IsA("vtkMRMLMarkupsFiducialNode"))
    assert node.GetNumberOfDisplayNodes() == 3 and node.GetNodeReference("MedSAM2.volume") is loaded.volume
    loaded.markups.add("A", loaded.point(3, 3, 5))
    assert loaded.slice_prompts()[5].prompts[-1] == Point((3, 3, 5))
    loaded.markups.cleanup()
    scene.Clear(True)


# Leaving ----------------------------------------------------------------------------------------------------


def test_cleanup_leaves_no_observer_and_keeps_the_prompts(seg):
    seg.prompts_a_lot()
    nodes = [seg.scene, seg.node, *seg.markups._observer.nodes]
    events = ["ModifiedEvent", "AnyEvent"]
    before = {id(node): [node.HasObserver(event) for event in events] for node in nodes}
    assert any(any(flags) for flags in before.values())
    markups, count = seg.markups, prompt_nodes(seg.scene)
    markups.cleanup()
    for node in nodes[2:]:
        assert not node.HasObserver(slicer.vtkMRMLMarkupsNode.PointStartInteractionEvent)
        assert not node.HasObserver(slicer.vtkMRMLMarkupsNode.PointModifiedEvent)
    assert prompt_nodes(seg.scene) == count
    seg.scene.RemoveNode(nodes[2])
    seg.node.GetSegmentation().RemoveSegment("B")
    assert not seg.changes
    gc.collect()


def test_closing_the_scene_is_not_reported(seg):
    seg.prompts_a_lot()
    seg.scene.Clear(False)
    assert not seg.changes and seg.markups.segmentationNode is None
