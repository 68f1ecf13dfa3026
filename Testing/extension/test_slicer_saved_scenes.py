"""A scene that was saved and loaded goes on as if it had never been away."""

import json
import logging
import time

import numpy as np
import pytest

pytest.importorskip("slicer")
from MedSAM2SegmentLib.Segments.ProvenanceStore import ProvenanceStore
from MedSAM2SegmentLib.Segments.VoxelOwnership import VoxelOwnership
from MedSAM2SegmentLib.Segments.VoxelSets import Extent
from support.in_process_worker import InProcessSource
from support.scene import a_linear_transform, a_matrix, rotation, set_reference
from support.slicer_user import SlicerUser
from test_slicer_markups import a_scene_of_markups

MEMORY = "MedSAM2.memory"


@pytest.fixture
def scenes():
    made = []

    def another():
        made.append(a_scene_of_markups())
        return made[-1]

    yield another
    for scene in made:
        scene.Clear(True)


@pytest.fixture
def user(scenes):
    """Someone who clicked, propagated, painted, and erased."""
    user = SlicerUser(scenes())
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    user.wait()
    user.paint(slice(2, 9), slice(8, 11), slice(4, 7))  # the user's own, and over ours
    user.paint(slice(9, 11), slice(10, 12), slice(6, 8), mode="remove")
    user.wait()
    return user


def loaded(user, scenes, tmp_path, change=None):
    """Save the user's scene; somebody else loads it (and, first, ``change`` does something to it)."""
    user.wait(1.0)
    path = str(tmp_path / "scene.mrb")
    assert user.scene.WriteToMRB(path)
    scene = scenes()
    assert scene.ReadFromMRB(path, False)
    if change is not None:
        change(scene)
    other = SlicerUser(
        scene,
        volume=scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"),
        segmentation=scene.GetFirstNodeByClass("vtkMRMLSegmentationNode"),
    )
    other.wait()
    return other


def node_of(scene):
    """The node of the scene that holds the memory."""
    nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
    (node,) = [node for node in nodes if node.GetAttribute(MEMORY)]
    return node


def strip(user):
    return [(one.n, one.confidence, one.prompted, one.final) for one in user.state.confidences]


def moves_the_prompt(user):
    node = next(node for node in user.prompt_nodes() if node.IsA("vtkMRMLMarkupsFiducialNode"))
    node.SetNthControlPointPositionWorld(0, *user.ras((17, 13, 5)))
    user.wait()
    user.controller.propagate()
    user.wait()


def propagates(user):
    user.controller.propagate()
    user.wait()


def corrects(user):
    user.click((13, 10, 6))
    user.click((8, 10, 6), positive=False)
    user.wait()
    user.controller.propagate()
    user.wait()


@pytest.mark.parametrize("goes_on", [propagates, moves_the_prompt, corrects])
def test_what_follows_is_the_same_as_without_saving(user, scenes, tmp_path, goes_on):
    other = loaded(user, scenes, tmp_path)
    assert np.array_equal(other.mask(), user.mask())
    assert other.prompts() == user.prompts() and len(other.prompts()) == 1
    assert strip(other) == strip(user) and len([one for one in strip(user) if one[1] is not None]) == 9
    assert other.editor.savedStates == 0
    before = user.mask()
    goes_on(user)
    goes_on(other)
    assert np.array_equal(other.mask(), user.mask())
    assert strip(other) == strip(user)
    assert goes_on is propagates or (before & ~user.mask()).any()  # something was taken away


def test_a_scene_can_be_saved_and_loaded_again_without_being_worked_on(user, scenes, tmp_path):
    other = loaded(loaded(user, scenes, tmp_path), scenes, tmp_path)
    assert strip(other) == strip(user)
    moves_the_prompt(user)
    moves_the_prompt(other)
    assert np.array_equal(other.mask(), user.mask())


@pytest.mark.parametrize("hardened", [False, True])
def test_a_scene_that_was_moved_before_it_was_saved(user, scenes, tmp_path, hardened):
    transform = a_linear_transform(user.scene, a_matrix(rotation((3.0, -2.0, 5.0)), origin=(9.0, 2.0, -4.0)))
    for node in (user.volume, user.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    user.wait()
    if hardened:
        user.segmentation.HardenTransform()
        user.volume.HardenTransform()
    other = loaded(user, scenes, tmp_path)
    assert strip(other) == strip(user)
    moves_the_prompt(user)
    moves_the_prompt(other)
    assert np.array_equal(other.mask(), user.mask())
    assert other.mask()[5, 13, 17] and not other.mask()[5, 10, 10] and other.mask()[5, 8:11, 2:7].all()


def test_what_somebody_painted_elsewhere_stays_and_what_they_erased_stays_away(user, scenes, tmp_path):
    def paints(scene):
        helper = SlicerUser(
            scene,
            volume=scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"),
            segmentation=scene.GetFirstNodeByClass("vtkMRMLSegmentationNode"),
            activate=False,
        )
        helper.paint(slice(20, 23), slice(20, 22), slice(5, 6))
        helper.paint(slice(11, 13), slice(10, 11), slice(5, 6), mode="remove")

    other = loaded(user, scenes, tmp_path, paints)
    propagates(other)
    assert other.mask()[5, 20:22, 20:23].all() and not other.mask()[5, 10, 11:13].any()
    moves_the_prompt(other)
    assert other.mask()[5, 20:22, 20:23].all() and not other.mask()[5, 10, 10]
    assert other.mask()[5, 8:11, 2:7].all()


def test_on_another_grid_what_is_ours_is_what_is_still_there(user, scenes, tmp_path):
    def refines(scene):
        segmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        matrix = np.diag([0.5, 0.5, 1.0, 1.0])
        matrix[:3, 3] = (-0.25, -0.25, 0.0)
        set_reference(segmentation, matrix, (11, 48, 56))

    other = loaded(user, scenes, tmp_path, refines)
    grid = Extent(0, 55, 0, 47, 0, 10)
    before = other.controller._edited.writer.maskOf("A", grid).copy()
    moves_the_prompt(other)
    after = other.controller._edited.writer.maskOf("A", grid)
    assert not after[5, 20, 21] and after[5, 26, 34]  # ours went along with the prompt
    assert (after & before)[5, 16:22, 4:8].all()  # the user's stays


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"version": 99, "segments": {}}',
        '{"version": 1, "segments": []}',
        '{"version": 1, "segments": {"A": 5}}',
        '{"version": 1, "segments": {"A": {"notes": {"box": [0, 1]}, "found": 3}}}',
    ],
)
def test_what_cannot_be_read_is_ignored_and_logged(user, scenes, tmp_path, caplog, text):
    def spoils(scene):
        node_of(scene).SetAttribute(MEMORY, text)

    with caplog.at_level(logging.WARNING):
        other = loaded(user, scenes, tmp_path, spoils)
    assert np.array_equal(other.mask(), user.mask())
    assert caplog.records or '"A": 5' in text
    moves_the_prompt(other)
    assert other.mask()[5, 13, 17]


def test_damage_of_every_kind_is_noticed(user, caplog):
    user.wait(1.0)
    memory, node = ProvenanceStore(user.segmentation), node_of(user.scene)
    good = json.loads(node.GetAttribute(MEMORY))
    kept = good["segments"]["A"]["notes"]
    assert memory.ownership("A") is not None
    damages = {
        "box": [[0, 1, 0, 1, 0, 1], [0, 10**6] * 3, [5, 4, 0, 1, 0, 1], ["a"] * 6],
        "runs": ["", "AAAA", "%", kept["runs"][:-8], kept["values"], None],
        "values": ["", kept["runs"], 7],
        "grid": [[0.0] * 16, [1.0] * 15, [float("nan")] * 16, "x"],
        "world": [[0.0] * 16, None],
    }
    for part, values in damages.items():
        for value in values:
            bad = {**good, "segments": {"A": {"notes": {**kept, part: value}}}}
            node.SetAttribute(MEMORY, json.dumps(bad))
            caplog.clear()
            assert memory.ownership("A") is None, (part, value)
            assert caplog.records


def test_what_the_user_has_taken_over_is_theirs_after_loading(user, scenes, tmp_path):
    user.controller.clearPrompts()
    other = loaded(user, scenes, tmp_path)
    before = other.mask()
    other.click((10, 10, 5))
    other.wait()
    moves_the_prompt(other)
    assert (other.mask() & before).sum() == before.sum()


def test_another_segmentation_and_back(user):
    before, own = user.mask(), user.segmentation
    twin = SlicerUser(user.scene, volume=user.volume, source=InProcessSource(), activate=False)
    user.editor.logic.SetSegmentationNode(twin.segmentation)
    user.wait()
    user.editor.logic.SetSegmentationNode(own)
    user.editor.logic.SetCurrentSegmentID("A")
    user.wait()
    assert np.array_equal(user.mask(), before) and strip(user)
    moves_the_prompt(user)
    assert not user.mask()[5, 10, 10] and user.mask()[5, 8:11, 2:7].all()


def test_the_memory_goes_with_its_segmentation(user):
    user.wait(1.0)
    assert node_of(user.scene).GetHideFromEditors()
    user.scene.RemoveNode(user.segmentation)
    user.wait()
    nodes = [user.scene.GetNthNode(n) for n in range(user.scene.GetNumberOfNodes())]
    assert not any(node.GetAttribute(MEMORY) for node in nodes)


def test_notes_of_any_kind_come_back(campaign, record_property):
    chance = np.random.default_rng(3)
    record_property("random cases", 20 * campaign)
    for _ in range(20 * campaign):
        shape = tuple(chance.integers(1, 9, 3))
        box = Extent(*(int(v) for n, low in zip(shape[::-1], chance.integers(-4, 4, 3), strict=True)
                       for v in (low, low + n - 1)))  # fmt: skip
        notes = VoxelOwnership(np.diag([1.5, 2, 3, 1]), box)
        notes.write(box, chance.choice([0, 3, 4, 12], shape, p=[0.5, 0.4, 0.05, 0.05]).astype(np.uint8))
        kept = notes.toJson(np.eye(4))
        if kept is None:
            assert not notes.read(box).any()
            continue
        again, _ = VoxelOwnership.fromJson(json.loads(json.dumps(kept)))
        assert np.array_equal(again.read(box), notes.read(box)) and again.used == box
        assert np.array_equal(again.indexToRAS, notes.indexToRAS)


def test_a_brain_of_half_a_millimetre_takes_little():
    k, j, i = np.ogrid[-150:150, -256:256, -256:256]
    radius = 1 + 0.05 * np.sin(np.arctan2(j, i) * 9) * np.cos(k / 7)  # with folds
    brain = (k / 140) ** 2 + (j / 210) ** 2 + (i / 170) ** 2 < radius**2
    notes = VoxelOwnership(np.eye(4), Extent(0, 511, 0, 511, 0, 299))
    notes.write(notes.extent, brain * np.uint8(3))
    began = time.perf_counter()
    kept = notes.toJson(np.eye(4))
    seconds, size = time.perf_counter() - began, len(json.dumps(kept))
    print(f"{brain.sum() / 1e6:.1f} million voxels: {size / 1000:.0f} kB in {seconds * 1000:.0f} ms")
    assert size < 300_000 and seconds < 2
