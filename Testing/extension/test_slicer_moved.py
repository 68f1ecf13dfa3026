"""Volume and segmentation are put under transforms, moved, and hardened: prompts stay with the anatomy."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer")
from medsam2_core.imaging.slices import SliceStack
from MedSAM2SegmentLib.Panels.PanelState import Status
from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix, transformToWorld
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter
from support.scene import (
    a_linear_transform,
    a_matrix,
    a_segmentation,
    a_volume,
    an_empty_scene,
    rotation,
    sheared,
)
from support.slicer_user import SlicerUser, a_noise
from test_slicer_markups import ASegmentation, the_same

SHIFT = a_matrix(origin=(4.0, -3.0, 2.0))
TURN = a_matrix(rotation((3.0, -2.0, 5.0)), origin=(12.0, -7.0, 31.0))
MATRICES = {
    "shift": SHIFT,
    "turn": TURN,
    "scale": a_matrix(rotation((3.0, -2.0, 5.0)), (1.2, 0.9, 1.1), (1.0, 2.0, 3.0)),
    "shear": sheared(TURN, 0.1),
}


def prompted_and_painted(scene):
    """A user who clicked, propagated and painted."""
    user = SlicerUser(scene)
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    user.wait()
    user.paint(slice(2, 9), slice(8, 11), slice(4, 7))
    user.wait(1.0)
    return user


@pytest.fixture
def user(scene):
    return prompted_and_painted(scene)


def under(user, transform, *nodes):
    """Put nodes under a transform, or (None) let them go."""
    for node in nodes or (user.volume, user.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID() if transform else None)
        user.wait()


def words(user):
    return user.controller._edited.slicePrompts("A")


def said(user):
    """What the session was told."""
    return {n: one.prompts for n, one in user.worker.sessions[-1].prompts("A").items()}


def follows_the_prompt(user):
    """Move the prompt: what was ours goes, what was painted stays."""
    node = next(node for node in user.prompt_nodes() if node.IsA("vtkMRMLMarkupsFiducialNode"))
    node.SetNthControlPointPositionWorld(0, *user.ras((17, 13, 5)))
    user.wait()
    user.controller.propagate()
    user.wait()
    return user.mask()


def without_moving():
    """What the same user ends up with who moves nothing but the prompt."""
    user = prompted_and_painted(an_empty_scene())
    mask = follows_the_prompt(user)
    user.controller.cleanup()
    return mask


def nothing_has_changed(user, mask, before, strip, steps):
    assert np.array_equal(user.mask(), mask)
    assert words(user) == before
    assert said(user) == {n: one.prompts for n, one in before.items()}
    assert user.state.confidences == strip
    assert user.editor.savedStates == steps
    assert "moved" not in user.state.text


@pytest.mark.parametrize("name", MATRICES)
def test_moved_together_nothing_changes(user, name):
    transform = a_linear_transform(user.scene, np.eye(4))
    under(user, transform)
    known = user.mask(), words(user), user.state.confidences, user.editor.savedStates
    transform.SetMatrixTransformToParent(arrayToMatrix(MATRICES[name]))
    user.wait()
    nothing_has_changed(user, *known)
    assert np.array_equal(follows_the_prompt(user), without_moving())


@pytest.mark.parametrize("first", ["volume", "segmentation"])
@pytest.mark.parametrize("name", MATRICES)
def test_one_after_the_other_the_user_is_informed_in_between(user, first, name):
    transform = a_linear_transform(user.scene, MATRICES[name])
    nodes = [user.volume, user.segmentation]
    if first == "segmentation":
        nodes.reverse()
    mask, before, steps = user.mask(), words(user), user.editor.savedStates
    under(user, transform, nodes[0])
    assert np.array_equal(user.mask(), mask) and user.editor.savedStates == steps
    assert "was moved against" in user.state.text or "outside the volume" in user.state.text
    under(user, transform, nodes[1])
    nothing_has_changed(user, mask, before, user.state.confidences, steps)
    under(user, None)
    nothing_has_changed(user, mask, before, user.state.confidences, steps)
    assert np.array_equal(follows_the_prompt(user), without_moving())


def test_only_the_volume_is_moved(user):
    transform = a_linear_transform(user.scene, a_matrix(origin=(0.0, 0.0, 2.0)))
    mask, steps = user.mask(), user.editor.savedStates
    under(user, transform, user.volume)
    assert list(words(user)) == [3]  # the prompt lies on another slice of the image now
    assert "was moved against" in user.state.text and "same transform" in user.state.text
    assert np.array_equal(user.mask(), mask) and user.editor.savedStates == steps
    user.click((10, 10, 4))  # the user goes on with it as it is
    user.wait()
    assert "moved" not in user.state.text
    assert sorted(said(user)) == [3, 4]


def test_only_the_segmentation_is_moved(user):
    transform = a_linear_transform(user.scene, a_matrix(origin=(0.0, 0.0, 2.0)))
    mask, steps = user.mask(), user.editor.savedStates
    under(user, transform, user.segmentation)
    assert list(words(user)) == [7] and sorted(said(user)) == [7]
    assert "was moved against" in user.state.text
    assert np.array_equal(user.mask(), mask) and user.editor.savedStates == steps


def test_beside_the_volume_and_back(user):
    transform = a_linear_transform(user.scene, a_matrix(origin=(500.0, 0.0, 0.0)))
    known = user.mask(), words(user)
    under(user, transform, user.volume)
    assert user.state.text and np.array_equal(user.mask(), known[0])
    under(user, None, user.volume)
    assert np.array_equal(user.mask(), known[0]) and words(user) == known[1]
    assert np.array_equal(follows_the_prompt(user), without_moving())


@pytest.mark.parametrize("order", ["volume", "segmentation"])
@pytest.mark.parametrize("name", MATRICES)
def test_hardening(user, name, order):
    transform = a_linear_transform(user.scene, MATRICES[name])
    under(user, transform)
    mask, before, steps = user.mask(), words(user), user.editor.savedStates
    nodes = [user.volume, user.segmentation]
    for node in nodes if order == "volume" else reversed(nodes):
        assert node.HardenTransform()
        user.wait()
        assert "moved" not in user.state.text
    assert all(
        node.GetTransformNodeID() is None for node in user.prompt_nodes() if hasattr(node, "HardenTransform")
    )
    nothing_has_changed(user, mask, before, user.state.confidences, steps)
    assert np.array_equal(follows_the_prompt(user), without_moving())


def test_undo_after_everything_was_moved(user):
    user.click((20, 18, 5))
    user.wait()
    transform = a_linear_transform(user.scene, MATRICES["scale"])
    under(user, transform)
    user.undo()
    user.wait()
    assert [len(one.prompts) for one in words(user).values()] == [1]
    assert words(user)[5].prompts[0].ijk == pytest.approx((10, 10, 5))
    user.redo()
    user.wait()
    assert words(user)[5].prompts[1].ijk == pytest.approx((20, 18, 5))
    assert user.mask()[5, 18, 20]


def test_undo_of_what_was_done_after_hardening(user):
    transform = a_linear_transform(user.scene, TURN)
    under(user, transform)
    for node in (user.volume, user.segmentation):
        node.HardenTransform()
    user.wait()
    mask = user.mask()
    user.click((20, 18, 5))
    user.wait()
    user.undo()
    user.wait()
    assert np.array_equal(user.mask(), mask)
    assert words(user)[5].prompts[0].ijk == pytest.approx((10, 10, 5)) and len(words(user)[5].prompts) == 1


def test_a_transform_over_everything_may_reach_the_prompts_first(user):
    transform = a_linear_transform(user.scene, SHIFT)
    known = user.mask(), words(user), user.editor.savedStates
    for node in [*user.prompt_nodes(), user.segmentation, user.volume]:
        if node.IsA("vtkMRMLTransformableNode"):
            node.SetAndObserveTransformNodeID(transform.GetID())
    user.wait()
    assert np.array_equal(user.mask(), known[0]) and words(user) == known[1]
    assert user.editor.savedStates == known[2]
    user.scene.RemoveNode(transform)
    user.wait()
    assert np.array_equal(user.mask(), known[0]) and words(user) == known[1]


def test_a_volume_that_is_transformed_and_a_segmentation_that_is_not_are_at_home(scene):
    volume = a_volume(scene, voxels=a_noise(), transform=a_linear_transform(scene, SHIFT))
    user = SlicerUser(scene, volume=volume)
    user.click((10, 10, 5))
    user.wait()
    assert user.state.status is Status.PROMPTED and "moved" not in user.state.text


# Prompts of all kinds ---------------------------------------------------------------------------------------


def nearly(snapshot):
    """States of nodes in any order; Slicer keeps the centre of a box in single precision."""

    def rounded(values):
        return tuple(round(value, 4) + 0.0 for value in values)

    return {replace(one, frame=rounded(one.frame), size=rounded(one.size)) for one in snapshot}


def looks_again(seg):
    """The volume was moved."""
    seg.adapter = VolumeAdapter(seg.volume)
    seg.stack = SliceStack.along(seg.adapter.volume, "k")


@pytest.mark.parametrize("name", MATRICES)
def test_every_kind_of_prompt_goes_along(scene, name):
    seg = ASegmentation(scene)
    looks_again(seg)
    seg.prompts_a_lot()
    before, other = seg.slice_prompts(), seg.slice_prompts("B")
    shown = seg.markups.snapshot()
    transform = a_linear_transform(scene, MATRICES[name])
    for node in (seg.volume, seg.node):
        node.SetAndObserveTransformNodeID(transform.GetID())
    looks_again(seg)
    the_same(seg.slice_prompts(), before)
    the_same(seg.slice_prompts("B"), other)
    assert set(seg.markups.snapshot()) == set(shown) and not seg.changes
    seg.markups.clear("A")
    seg.markups.restore(shown)
    the_same(seg.slice_prompts(), before)
    assert nearly(seg.markups.snapshot()) == nearly(shown)
    assert all(node.GetTransformNodeID() == transform.GetID() for node in seg.markups._observer.nodes
               if node.IsA("vtkMRMLMarkupsNode"))  # fmt: skip
    for node in (seg.node, seg.volume):
        node.HardenTransform()
    looks_again(seg)
    the_same(seg.slice_prompts(), before)
    seg.markups.cleanup()


@pytest.mark.parametrize("name", ["shift", "turn"])
def test_prompts_are_drawn_where_the_mouse_was_under_a_transform(scene, name):
    plain = ASegmentation(scene).prompts_a_lot()
    before = plain.slice_prompts()
    plain.markups.cleanup()
    transform = a_linear_transform(scene, MATRICES[name])
    seg = object.__new__(ASegmentation)
    seg.scene, seg.volume = scene, plain.volume
    seg.node = a_segmentation(scene, seg.volume, ("A", "B"))
    for node in (seg.volume, seg.node):
        node.SetAndObserveTransformNodeID(transform.GetID())
    seg.meet().prompts_a_lot()
    the_same(seg.slice_prompts(), before)
    assert not np.allclose(transformToWorld(seg.markups._observer.nodes[0]), np.eye(4))
    seg.markups.cleanup()
