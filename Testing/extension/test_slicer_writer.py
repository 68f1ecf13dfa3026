"""Writing goes through Slicer's own edits: neighbours, masks, undo and what the user made are respected."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.errors import GeometryError, MedSAM2Error  # noqa: E402
from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import SegmentError  # noqa: E402
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter  # noqa: E402
from MedSAM2SegmentLib.Segments.VoxelSets import Extent  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import (  # noqa: E402
    a_matrix,
    a_picture,
    a_segmentation,
    an_editor,
    an_imported_segment,
    box_mask,
    geometries,
    paint,
    set_reference,
)
from support.writer_setup import WriterSetup  # noqa: E402

EDITOR = slicer.vtkMRMLSegmentEditorNode
ALLOWED = slicer.vtkMRMLSegmentationNode


@pytest.fixture
def desk(scene):
    return WriterSetup(scene)


# Neighbours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["none", "visible", "all"])
@pytest.mark.parametrize("hidden", [False, True])
def test_neighbours_are_overwritten_only_as_the_user_chose(desk, mode, hidden):
    modes = {
        "none": EDITOR.OverwriteNone,
        "visible": EDITOR.OverwriteVisibleSegments,
        "all": EDITOR.OverwriteAllSegments,
    }
    neighbour = box_mask((2, 2), (4, 9), (6, 15))
    paint(desk.editor, neighbour, "B")
    desk.segmentation.GetDisplayNode().SetSegmentVisibility("B", not hidden)
    desk.overwrite(modes[mode])
    desk.write(2, (2, 6), (3, 10))
    ours = box_mask((2, 2), (2, 6), (3, 10))
    assert np.array_equal(desk.voxels("A"), ours)
    taken = mode == "all" or (mode == "visible" and not hidden)
    assert np.array_equal(desk.voxels("B"), neighbour & ~ours if taken else neighbour)
    desk.editor.undo()
    assert np.array_equal(desk.voxels("B"), neighbour) and not desk.voxels("A").any()


def test_shrinking_a_mask_gives_nothing_back_to_neighbours_and_takes_nothing_from_them(desk):
    desk.overwrite(EDITOR.OverwriteNone)
    paint(desk.editor, box_mask((2, 2), (0, 13), (0, 19)), "B")
    desk.write(2, (2, 9), (3, 10))
    desk.write(2, (4, 6), (5, 8))
    assert np.array_equal(desk.voxels("A"), box_mask((2, 2), (4, 6), (5, 8)))
    assert np.array_equal(desk.voxels("B"), box_mask((2, 2), (0, 13), (0, 19)))


def test_segments_that_share_a_layer_stay_what_they_are(desk):
    desk.overwrite(EDITOR.OverwriteAllSegments)  # keeps all in one labelmap
    others = {"B": box_mask((1, 3), (8, 12), (0, 5)), "C": box_mask((1, 3), (8, 12), (10, 18))}
    for segmentID, mask in others.items():
        paint(desk.editor, mask, segmentID)
    assert desk.segmentation.GetSegmentation().GetNumberOfLayers() == 1
    for rows in ((1, 5), (2, 6), (0, 3), None):
        desk.write(2, rows, (3, 14))
        for segmentID, mask in others.items():
            assert np.array_equal(desk.voxels(segmentID), mask)
    assert desk.segmentation.GetSegmentation().GetNumberOfLayers() == 1


def test_one_of_our_segments_that_another_overwrote_takes_its_voxels_back(desk):
    desk.overwrite(EDITOR.OverwriteAllSegments)
    desk.write(2, (2, 9), (3, 10), "A")
    desk.write(2, (5, 12), (3, 10), "B")
    desk.write(2, (11, 12), (3, 10), "B")  # B draws back
    desk.write(2, (2, 9), (3, 10), "A")  # the same mask of A as before
    assert np.array_equal(desk.voxels("A"), box_mask((2, 2), (2, 9), (3, 10)))


# Masks -----------------------------------------------------------------------------------------------------


def test_the_edit_mask_is_honoured(desk):
    desk.overwrite(EDITOR.OverwriteNone)
    fence = box_mask((0, 8), (0, 13), (8, 19))
    paint(desk.editor, fence, "B")
    full = box_mask((2, 2), (2, 9), (3, 15))
    allowed = {
        ALLOWED.EditAllowedInsideAllSegments: fence,
        ALLOWED.EditAllowedOutsideAllSegments: ~fence,
        ALLOWED.EditAllowedInsideSingleSegment: fence,
        ALLOWED.EditAllowedEverywhere: fence | True,
    }
    for mode, where in allowed.items():
        desk.editor.node.SetMaskMode(mode)
        desk.editor.node.SetMaskSegmentID("B")
        desk.write(2, (2, 9), (3, 15))
        assert np.array_equal(desk.voxels("A"), full & where)
        desk.write(2, None, None)
        assert not (desk.voxels("A") & where).any()
        desk.editor.node.SetMaskMode(ALLOWED.EditAllowedEverywhere)
        desk.write(2, None, None)
        assert not desk.voxels("A").any()


def test_a_segment_that_is_not_selected_is_masked_as_if_it_were(desk):
    """Several segments are propagated together, but Slicer's masks know only the selected one."""
    desk.overwrite(EDITOR.OverwriteNone)
    paint(desk.editor, box_mask((2, 2), (0, 13), (0, 4)), "A")  # selected
    desk.editor.node.SetMaskMode(ALLOWED.EditAllowedOutsideAllSegments)
    desk.write(2, (2, 9), (3, 15), "B")
    assert np.array_equal(desk.voxels("B"), box_mask((2, 2), (2, 9), (5, 15)))
    desk.write(2, (2, 9), (3, 10), "B")  # its own voxels are not fenced off
    assert np.array_equal(desk.voxels("B"), box_mask((2, 2), (2, 9), (5, 10)))
    assert desk.editor.selectedSegmentID() == "A"


def test_what_a_mask_refused_comes_when_it_is_lifted(desk):
    desk.overwrite(EDITOR.OverwriteNone)
    paint(desk.editor, box_mask((0, 8), (0, 13), (8, 19)), "B")
    desk.editor.node.SetMaskMode(ALLOWED.EditAllowedOutsideAllSegments)
    desk.write(2, (2, 9), (3, 15))
    desk.editor.node.SetMaskMode(ALLOWED.EditAllowedEverywhere)
    desk.write(2, (2, 9), (3, 15))
    assert np.array_equal(desk.voxels("A"), box_mask((2, 2), (2, 9), (3, 15)))


@pytest.mark.parametrize("name", geometries())
def test_the_intensity_mask_is_honoured(scene, name):
    desk = WriterSetup(scene, matrix=geometries()[name])
    low, high = 200, 260
    desk.editor.node.SourceVolumeIntensityMaskOn()
    desk.editor.node.SetSourceVolumeIntensityMaskRange(low, high)
    assert desk.write(2, (2, 9), (3, 15))
    inside = (a_picture() >= low) & (a_picture() <= high)
    assert inside.any()
    assert np.array_equal(desk.voxels("A"), box_mask((2, 2), (2, 9), (3, 15)) & inside)


# What the user made ----------------------------------------------------------------------------------------


def test_what_the_user_painted_is_never_removed(desk):
    own = box_mask((2, 2), (2, 3), (0, 19))
    paint(desk.editor, own)
    desk.write(2, (2, 9), (3, 15))
    desk.write(2, None, None)
    assert np.array_equal(desk.voxels(), own)


def test_what_the_user_erased_stays_away_when_the_same_slice_comes_again(desk):
    desk.write(2, (2, 9), (3, 15))
    erased = box_mask((2, 2), (4, 6), (5, 7))
    paint(desk.editor, erased, mode="remove")
    left = box_mask((2, 2), (2, 9), (3, 15)) & ~erased
    for columns in ((3, 15), (3, 16), (4, 15), (3, 15)):
        desk.write(2, (2, 9), columns)
        assert np.array_equal(desk.voxels(), box_mask((2, 2), (2, 9), columns) & ~erased)
    desk.write(2, None, None)
    desk.write(2, (2, 9), (3, 15))  # gone in between, and come again
    assert np.array_equal(desk.voxels(), left)


def test_what_the_user_erased_comes_back_where_he_asks_for_it(desk):
    desk.write(2, (2, 9), (3, 15))
    paint(desk.editor, box_mask((2, 2), (4, 6), (5, 7)), mode="remove")
    desk.write(2, (2, 9), (3, 15), revived={desk.n_of(2): desk.mask((4, 5), (0, 19))})
    left = box_mask((2, 2), (2, 9), (3, 15)) & ~box_mask((2, 2), (6, 6), (5, 7))
    assert np.array_equal(desk.voxels(), left)


def test_what_the_user_painted_where_he_had_erased_is_his(desk):
    desk.write(2, (2, 9), (3, 15))
    spot = box_mask((2, 2), (4, 6), (5, 7))
    paint(desk.editor, spot, mode="remove")
    desk.write(2, (2, 9), (3, 14))
    paint(desk.editor, box_mask((2, 2), (4, 6), (5, 5)))
    desk.write(2, None, None)
    assert np.array_equal(desk.voxels(), box_mask((2, 2), (4, 6), (5, 5)))


def test_slices_of_all_directions_know_of_each_other(desk):
    across = SliceStack.along(desk.volume, "i")
    desk.write(2, (2, 9), (3, 15))
    n = round(float(across.to_slice([[7, 0, 0]])[0, 2]))
    full = np.ones(across.shape_hw, dtype=bool)
    desk.writer.write("A", {n: full}, across, newStep=True)
    desk.writer.write("A", {n: ~full}, across, newStep=True)  # ours, whichever slice put it there
    column = np.zeros(desk.voxels().shape, dtype=bool)
    column[:, :, 7] = True
    assert np.array_equal(desk.voxels(), box_mask((2, 2), (2, 9), (3, 15)) & ~column)


def test_a_forgotten_segment_is_the_users_own(desk):
    desk.write(2, (2, 9), (3, 15))
    desk.writer.disown("A")
    desk.write(2, (4, 6), (3, 15))
    assert np.array_equal(desk.voxels(), box_mask((2, 2), (2, 9), (3, 15)))


def test_what_the_user_made_can_be_taken_over_slice_by_slice(desk):
    for k in (2, 3):
        paint(desk.editor, box_mask((k, k), (2, 5), (3, 15)))
    desk.writer.own("A", [desk.n_of(2)], desk.stack)
    desk.write(2, (4, 9), (3, 15))
    desk.write(3, (4, 9), (3, 15))
    assert np.array_equal(desk.voxels()[2], box_mask((2, 2), (4, 9), (3, 15))[2])
    assert np.array_equal(desk.voxels()[3], box_mask((3, 3), (2, 9), (3, 15))[3]), "this one stays the user's"


def test_what_was_erased_is_forgotten_with_it(desk):
    desk.write(2, (2, 9), (3, 15))
    paint(desk.editor, box_mask((2, 2), (4, 6), (5, 7)), mode="remove")
    desk.write(2, (2, 9), (3, 14))
    desk.writer.own("A", [desk.n_of(2)], desk.stack)
    desk.write(2, (2, 9), (3, 15))
    assert np.array_equal(desk.voxels(), box_mask((2, 2), (2, 9), (3, 15)))


def test_another_geometry_of_the_segmentation_keeps_what_is_ours(desk):
    desk.write(2, (2, 9), (3, 15))
    grid = np.eye(4)
    grid[:3, 3] = (2, 1, 0)
    set_reference(desk.segmentation, grid, (9, 13, 18))
    paint(desk.editor, np.zeros((9, 13, 18), dtype=bool) | np.eye(18, dtype=bool)[:1, None, :])
    desk.write(2, None, None)
    assert not desk.voxels()[:, :, 1:].any()
    assert desk.voxels()[:, :, 0].all()


# Undo ------------------------------------------------------------------------------------------------------


def test_undo_and_redo_bring_back_the_exact_voxels(desk):
    desk.overwrite(EDITOR.OverwriteAllSegments)
    paint(desk.editor, box_mask((0, 8), (0, 5), (0, 9)), "B")
    states = [(desk.voxels("A"), desk.voxels("B"))]
    for rows in ((1, 5), (3, 9), (2, 4)):
        desk.write(2, rows, (3, 14))
        states.append((desk.voxels("A"), desk.voxels("B")))
    for state in states[-2::-1]:
        desk.editor.undo()
        assert all(np.array_equal(desk.voxels(s), mask) for s, mask in zip("AB", state, strict=True))
    for state in states[1:]:
        desk.editor.redo()
        assert all(np.array_equal(desk.voxels(s), mask) for s, mask in zip("AB", state, strict=True))


def test_a_step_begins_only_when_something_changes(desk):
    assert not desk.write(2, None, None)
    assert desk.editor.savedStates == 0 and desk.editor.edits == []
    assert desk.write(2, (2, 9), (3, 15), newStep=False)  # the step that was asked for begins here
    assert desk.editor.savedStates == 1
    assert not desk.write(2, (2, 9), (3, 15))
    assert desk.editor.savedStates == 1


def test_many_writes_can_be_one_step(desk):
    for k in range(1, 6):
        desk.write(k, (2, 9), (3, 15), newStep=k == 1)
    desk.editor.undo()
    assert not desk.voxels().any()


def test_slices_that_follow_one_another_are_one_edit_of_just_their_extent(desk):
    masks = {desk.n_of(k): desk.mask((2, 9), (3, 15)) for k in (1, 2, 3, 6, 7)}
    desk.writer.write("A", masks, desk.stack, newStep=True)
    assert [(mode, extent) for _, mode, extent in desk.editor.edits] == [
        ("add", (3, 15, 2, 9, 1, 3)),
        ("add", (3, 15, 2, 9, 6, 7)),
    ]
    desk.editor.edits.clear()
    desk.write(2, (2, 9), (4, 16))
    assert [(mode, extent) for _, mode, extent in desk.editor.edits] == [
        ("remove", (3, 3, 2, 9, 2, 2)),
        ("add", (16, 16, 2, 9, 2, 2)),
    ]


# What can go wrong -----------------------------------------------------------------------------------------


def test_a_segment_that_is_gone_is_named_and_nothing_is_lost(desk):
    paint(desk.editor, box_mask((2, 2), (4, 6), (5, 7)), "B")
    desk.write(2, (2, 3), (3, 15))
    desk.segmentation.GetSegmentation().RemoveSegment("A")
    with raises("segment-gone", SegmentError, segment="A"):
        desk.write(2, (2, 9), (3, 15))
    with pytest.raises(SegmentError):
        desk.writer.segmentMasks("A", desk.stack, [2])
    assert desk.writer.maskOf("A", Extent(0, 3, 0, 3, 0, 3)) is None
    assert np.array_equal(desk.voxels("B"), box_mask((2, 2), (4, 6), (5, 7)))


def test_a_segmentation_of_surfaces_is_refused_until_it_is_converted(scene):
    desk = WriterSetup(scene)
    paint(desk.editor, box_mask((2, 6), (3, 10), (4, 14)))
    segmentation = desk.segmentation.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    with raises("segmentation-not-labelmap", SegmentError, representation="Closed surface"):
        desk.write(2, (2, 9), (3, 15))
    desk.editor.logic.SetSourceRepresentationToBinaryLabelMap()  # what the Segment Editor does on "Yes"
    assert desk.write(2, (0, 13), (0, 19))
    assert desk.voxels()[2].all()


def test_a_surface_shown_in_3d_follows(desk):
    paint(desk.editor, box_mask((2, 6), (3, 10), (4, 14)))
    segmentation = desk.segmentation.GetSegmentation()
    segmentation.CreateRepresentation("Closed surface")
    before = segmentation.GetSegment("A").GetRepresentation("Closed surface").GetBounds()
    desk.write(4, (0, 13), (0, 19))
    after = segmentation.GetSegment("A").GetRepresentation("Closed surface").GetBounds()
    assert after[0] < before[0] and after[1] > before[1]


def test_without_a_segmentation_or_a_geometry_the_message_names_what_to_choose(scene):
    desk = WriterSetup(scene)
    desk.editor.node.SetAndObserveSegmentationNode(None)
    with raises("no-segmentation", SegmentError):
        desk.write(2, (2, 9), (3, 15))
    bare = a_segmentation(scene)
    editor = an_editor(bare, None)
    with raises("no-reference-geometry", GeometryError):
        SegmentWriter(editor).write("A", {0: desk.empty}, desk.stack, newStep=True)


def test_masks_that_do_not_fit_are_refused_before_anything_is_written(desk):
    good = desk.mask((2, 9), (3, 15))
    for masks in ({2: good, 99: good}, {2: good, 3: good[:-1]}):
        with pytest.raises(MedSAM2Error):
            desk.writer.write("A", masks, desk.stack, newStep=True)
    assert not desk.voxels().any() and desk.editor.savedStates == 0


def test_a_segment_on_a_lattice_of_its_own_is_read_and_written(desk):
    """Imported segments keep their lattice until they are edited."""
    paint(desk.editor, box_mask((7, 7), (0, 0), (0, 0)), "B")
    an_imported_segment(desk.segmentation, "I", a_matrix(None, (2, 2, 1), (0.5, 0.5, 0)), (4, 6, 8))
    was = desk.writer.segmentMasks("I", desk.stack, [desk.n_of(2)])[desk.n_of(2)]
    assert was.any()
    desk.write(2, (2, 9), (3, 15), "I")
    now = desk.writer.segmentMasks("I", desk.stack, [desk.n_of(2)])[desk.n_of(2)]
    assert np.array_equal(now, was | desk.mask((2, 9), (3, 15)))
    desk.write(2, None, None, "I")
    assert np.array_equal(desk.writer.segmentMasks("I", desk.stack, [desk.n_of(2)])[desk.n_of(2)], was)
