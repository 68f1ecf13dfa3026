"""Random users: whatever they do, in whatever order answers come, nothing is lost that was not edited."""

import gc
import random
import sys
import weakref

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.errors import PromptError  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from MedSAM2SegmentLib.Prompts import PromptNodes  # noqa: E402
from support.auto_predictions import a_model, a_prediction  # noqa: E402
from support.in_process_worker import InProcessSource, InProcessWorker  # noqa: E402
from support.scene import a_segmentation, a_volume, an_editor, an_empty_scene, paint  # noqa: E402
from support.slicer_user import SHAPE_KJI, SlicerUser, a_noise  # noqa: E402

SEQUENCES = 40
ACTIONS = 25
UNDO_STATES = 10
FOUND = ("kidney", "cyst")


class ARandomUser:
    """Does things, and checks after each that the world is as it must be."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.scene = an_empty_scene()
        self.source = InProcessSource(InProcessWorker(autoModels=[a_model()], predict=self.find))
        self.user = SlicerUser(self.scene, source=self.source)
        self.done = []
        self.added = 0
        self.saved = []  # what every segment showed when a step of Slicer's undo began
        self.painted = {}  # voxels that only the user put there
        self.other = a_volume(self.scene, voxels=a_noise(seed=2), name="Other")
        self.earlier = a_segmentation(self.scene, self.other, segments=FOUND)
        for n, name in enumerate(FOUND):
            mask = np.zeros(SHAPE_KJI, bool)
            mask[2 + n : 6 + n, 5:12, 6 + 7 * n : 12 + 7 * n] = True
            paint(an_editor(self.earlier, self.other, name), mask, name)
        node = self.user.editor.node
        self.isOverwriting = self.chance.random() < 0.5
        node.SetOverwriteMode(node.OverwriteAllSegments if self.isOverwriting else node.OverwriteNone)
        self.untouched = {"B"} if self.chance.random() < 0.3 else set()
        save, self.user.editor.saveStateForUndo = self.user.editor.saveStateForUndo, self.save
        self._save = save

    def save(self) -> None:
        """Slicer's undo begins a step."""
        self.saved = [*self.saved, self.masks()][-UNDO_STATES:]
        self._save()

    def masks(self):
        """(K, J, I) by segment."""
        return {segment: self.user.mask(segment) for segment in self.segments()}

    def act(self) -> None:
        """One thing, chosen by chance."""
        actions = [
            *[self.click] * 5, self.box, self.scribble, self.move, self.delete, self.clear,
            self.clear_slice,
            *[self.propagate] * 3, self.cancel, self.cancel, self.keep, self.discard,
            *[self.undo] * 3, self.redo, self.redo, self.select, self.select, self.paint, self.erase,
            self.use_segment_on_slices, self.use_markups, self.use_markups, self.describe,
            self.finalise, self.use_segment, self.look, self.weakest, self.settings, self.modify_voxels,
            self.die, self.recover, self.refuse, self.remove_segment, self.add_segment, self.other_effect,
            self.change_volume, self.rename, *[self.auto] * 3, self.replacing, self.move_box,
            self.other_scan, self.compare, self.images,
            *[self.answer] * 8, *[self.wait] * 6,
        ]  # fmt: skip
        action = self.chance.choice(actions)
        self.done.append(action.__name__)
        action()
        self.check()

    # Actions ------------------------------------------------------------------------------------------------

    def voxel(self):
        k, j, i = (self.chance.randrange(size) for size in SHAPE_KJI)
        return i, j, k

    def click(self):
        self.user.click(self.voxel(), positive=self.chance.random() < 0.75)

    def box(self):
        i, j, k = self.voxel()
        self.user.box((i / 2, j / 2, k), (i / 2 + 6, j / 2 + 5, k))

    def scribble(self):
        i, j, k = self.voxel()
        self.user.scribble([(i / 2 + n, j / 2 + n, k) for n in range(6)])

    def nodes(self):
        return list(PromptNodes.promptNodes(self.scene, self.user.segmentation))

    def move(self):
        nodes = [
            node
            for node in self.nodes()
            if node.IsA("vtkMRMLMarkupsFiducialNode") and node.GetNumberOfControlPoints()
        ]
        if nodes:
            node = self.chance.choice(nodes)
            index = self.chance.randrange(node.GetNumberOfControlPoints())
            node.SetNthControlPointPositionWorld(index, *self.user.ras(self.voxel()))

    def delete(self):
        nodes = self.nodes()
        if nodes:
            node = self.chance.choice(nodes)
            points = node.GetNumberOfControlPoints() if node.IsA("vtkMRMLMarkupsFiducialNode") else 0
            if points and self.chance.random() < 0.7:
                node.RemoveNthControlPoint(self.chance.randrange(points))
            else:
                self.scene.RemoveNode(node)

    def clear(self):
        self.user.controller.clearPrompts()

    def clear_slice(self):
        self.user.controller.clearSlice(self.chance.randrange(SHAPE_KJI[0]))

    def propagate(self):
        self.user.controller.propagate()

    def cancel(self):
        self.user.controller.cancel()

    def keep(self):
        self.user.controller.keep()

    def discard(self):
        self.user.controller.discard()

    def undo(self):
        """What was undone stays undone, whatever the worker still answers."""
        if not self.user.editor.logic.CanUndo():
            return
        before = self.masks()
        self.user.editor.undo()
        undone = self.masks()
        self.painted = {}
        self.user.controller.tick()
        assert_equal(self.masks(), undone)
        self.saved = came_back(undone, self.saved, before)
        if self.chance.random() < 0.3 and not self.user.controller.state.canCancel:
            self.stays(undone)

    def stays(self, masks):
        """Nothing is on its way that would still change a segment."""
        if self.user.state.status in (Status.READY, Status.PROMPTED) and not self.user.controller.isWaiting:
            self.user.wait()
            assert_equal(self.masks(), masks)

    def redo(self):
        if not self.user.editor.logic.CanRedo():
            return
        before = self.masks()
        self.user.editor.redo()
        redone = self.masks()
        self.user.controller.tick()
        assert_equal(self.masks(), redone)
        self.painted = {}
        if not are_equal(before, redone):
            self.saved.append(before)

    def find(self, session, wish):
        """What Auto finds: something else every time."""
        i, j, _ = self.voxel()
        slices = range(len(session.stack)) if wish.first is None else [wish.first]
        some = [n for n in slices if self.chance.random() < 0.7]
        return [a_prediction(session.stack, name, (i, j), 4, some, some[::3]) for name in FOUND[: len(some)]]

    def auto(self):
        if self.chance.random() < 0.5 or len(self.segments()) > 5:
            self.user.controller.autoSlice()
        else:
            self.user.controller.autoVolume()

    def other_scan(self):
        """Another segmented scan, as example or as an earlier one of the patient."""
        if len(self.segments()) <= 5:
            self.chance.choice((self.user.controller.findLike, self.user.controller.followUp))()

    def compare(self):
        self.user.controller.compare()

    def images(self):
        self.user.controller.setValue("stack", self.chance.choice(("auto", "auto", "images")))

    def replacing(self):
        self.user.controller.setValue("replaceSegments", self.chance.choice("01"))

    def move_box(self):
        boxes = [node for node in self.nodes() if node.IsA("vtkMRMLMarkupsROINode")]
        if boxes:
            self.chance.choice(boxes).SetCenter(*self.user.ras(self.voxel()))

    def select(self):
        segments = sorted(set(self.segments()) - self.untouched)
        if segments:
            self.user.select(self.chance.choice(segments))

    def block(self):
        i, j, k = self.voxel()
        return slice(i, i + 4), slice(j, j + 4), slice(k, k + 1)

    def paint(self):
        segments = sorted(one for one in set(self.segments()) - self.untouched if not self.is_found(one))
        if segments:
            segment, before = self.chance.choice(segments), self.masks()
            self.user.paint(*self.block(), segmentID=segment)
            known = self.painted.get(segment, np.zeros(SHAPE_KJI, dtype=bool))
            self.painted[segment] = known | (self.user.mask(segment) & ~before[segment])

    def erase(self):
        segments = sorted(set(self.segments()) - self.untouched)
        if segments:
            self.user.paint(*self.block(), segmentID=self.chance.choice(segments), mode="remove")
            self.still()

    def still(self):
        """What the user painted and has not taken away himself."""
        self.painted = {
            segment: mask & self.user.mask(segment)
            for segment, mask in self.painted.items()
            if segment in self.segments()
        }

    def finalise(self):
        self.user.controller.finaliseSlice()

    def use_segment(self):
        self.user.controller.useSegmentAsPrompt()

    def use_segment_on_slices(self):
        self.user.controller.setValue("keep", self.chance.choice(["slice", "all", "every:5", "ends"]))
        self.user.controller.useSegmentAsPrompt()

    def use_markups(self):
        one, other = (np.array(self.user.ras(self.voxel())) for _ in range(2))
        kind = self.chance.choice(["Line", "ROI", "ClosedCurve"])
        node = self.user.scene.AddNewNodeByClass(f"vtkMRMLMarkups{kind}Node")
        node.CreateDefaultDisplayNodes()
        if kind == "ROI":
            node.SetCenter(*(one + other) / 2)
            node.SetSize(*np.abs(one - other))
        else:
            other[2] = one[2]  # the axes of this volume are those of space
            corners = [one, [other[0], one[1], one[2]], other, [one[0], other[1], one[2]]]
            for ras in corners if kind == "ClosedCurve" else (one, other):
                node.AddControlPoint(*ras)
        self.user.controller.useMarkups()

    def describe(self):
        before = self.masks()
        self.user.controller.methodsText()
        assert_equal(self.masks(), before)

    def look(self):
        self.user.look_at(self.chance.randrange(SHAPE_KJI[0]))

    def weakest(self):
        self.user.controller.nextWeakest()

    def settings(self):
        name, value = self.chance.choice(
            [
                *[("window", "auto"), ("window", "lung"), ("window", "displayed"), ("model", "embedded")],
                *[
                    ("direction", "both"),
                    ("direction", "forward"),
                    ("range", "2..7"),
                    ("range", "all"),
                    ("range", "between"),
                ],
                *[("stack", "auto"), ("stack", "sagittal"), ("autoPropagate", "1"), ("autoPropagate", "0")],
            ]
        )
        self.user.controller.setValue(name, value)

    def modify_voxels(self):
        self.user.volume.GetImageData().Modified()
        self.user.controller.tick()

    def die(self):
        self.user.worker.die()

    def recover(self):
        self.user.worker.recover()

    def refuse(self):
        self.user.worker.refusal = PromptError("not today")

    def remove_segment(self):
        segments = sorted(set(self.segments()) - self.untouched)
        if len(segments) > 1:
            self.user.editor.saveStateForUndo()  # as the Segment Editor does
            self.user.segmentation.GetSegmentation().RemoveSegment(self.chance.choice(segments))
            self.user.controller.tick()
            self.still()

    def add_segment(self):
        if len(self.segments()) < 4:
            self.user.editor.saveStateForUndo()
            self.added += 1
            name = self.user.segmentation.GetSegmentation().AddEmptySegment(f"N{self.added}", "New")
            self.user.select(name)

    def rename(self):
        segment = self.chance.choice(self.segments())
        self.user.segmentation.GetSegmentation().GetSegment(segment).SetName("Renamed")

    def change_volume(self):
        node = self.user.editor.node
        other = self.other if node.GetSourceVolumeNode() is self.user.volume else self.user.volume
        self.user.editor.logic.SetSourceVolumeNode(other)
        self.user.controller.update()

    def other_effect(self):
        self.user.controller.deactivate()
        if self.chance.random() < 0.5:
            self.user.pass_time(700)
        self.user.controller.activate()

    def answer(self):
        self.user.worker.step(self.chance)
        self.user.pass_time(self.chance.choice([0.0, 0.1, 0.3]))

    def wait(self):
        self.user.worker.recover()
        self.user.wait()

    # What must be so ----------------------------------------------------------------------------------------

    def is_found(self, segment):
        """Whether Auto may replace it."""
        return self.user.segmentation.GetSegmentation().GetSegment(segment).GetName() in FOUND

    def segments(self):
        return list(self.user.segmentation.GetSegmentation().GetSegmentIDs())

    def check(self):
        segments = set(self.segments())
        for node in self.nodes():
            assert PromptNodes.segmentOf(node) in segments, "a prompt of a segment that is gone"
        sessions = self.user.worker.sessions
        assert len(sessions) <= 1, "a session that nobody closed"
        assert len(self.user.worker.volumes) <= 1, "a volume that nobody closed"
        assert self.user.state.text, "the user is told nothing"
        for segment in self.untouched & segments:
            assert not self.user.mask(segment).any(), "a segment without prompts changed"
        if not self.isOverwriting:
            for segment, mask in self.painted.items():
                if segment in segments:
                    assert not (mask & ~self.user.mask(segment)).any(), "paint of the user was lost"


def are_equal(masks, others):
    return masks.keys() == others.keys() and all(np.array_equal(masks[s], others[s]) for s in masks)


def assert_equal(masks, others):
    """The same segments show the same."""
    assert masks.keys() == others.keys()
    for segment, mask in masks.items():
        assert np.array_equal(mask, others[segment]), f"segment {segment} is not what it was"


@pytest.fixture
def raised(monkeypatch):
    """Errors inside observers, which VTK only prints."""
    errors = []
    monkeypatch.setattr(sys, "excepthook", lambda _, error, __: errors.append(error))
    return errors


@pytest.mark.parametrize("part", range(4))
def test_a_user_who_does_anything_at_all(part, campaign, raised, record_property):
    count = SEQUENCES * campaign * (3 if campaign > 1 else 1) // 4
    record_property("random cases", count)
    for number in range(count):
        seed = part * 100_000 + number
        play(seed, raised)


def play(seed, raised):
    """One user, from the first click to the end."""
    someone = ARandomUser(seed)
    try:
        for _ in range(ACTIONS):
            someone.act()
            if raised:
                raise raised[0]
        if seed % 2:
            undo_everything(someone)
            leave(someone)
        else:
            close_the_scene(someone)
        assert not raised
    except BaseException:
        print("seed", seed, "did", someone.done)
        raise


def undo_everything(someone):
    """Each step back is exactly what was there before it."""
    someone.select()  # without a segment, what was said is not answered before undo brings one back
    someone.wait()
    for _ in range(UNDO_STATES):
        if not someone.user.editor.logic.CanUndo():
            break
        before = someone.masks()
        someone.user.editor.undo()
        undone = someone.masks()
        someone.user.controller.tick()
        assert_equal(someone.masks(), undone)
        someone.user.wait()
        assert_equal(someone.masks(), undone)
        someone.saved = came_back(undone, someone.saved, before)


def came_back(undone, saved, before):
    """What undo brought back was saved as the beginning of a step; the steps before that.

    Slicer keeps a state twice when something but voxels changed meanwhile (a name): going back to that
    changes nothing.
    """
    for index in reversed(range(len(saved))):
        if are_equal(undone, saved[index]):
            return saved[:index]
    assert_equal(undone, before)
    return saved


def leave(someone):
    """The effect goes; segments and prompts stay, and nothing of it does."""
    user = someone.user
    user.controller.cleanup()
    assert user.source.owners == user.worker.listeners == []
    assert user.worker.sessions == user.worker.volumes == []
    masks = someone.masks()
    user.worker.answer_all()
    assert_equal(someone.masks(), masks)
    gone = weakref.ref(user.controller)
    user.controller = None
    user.worker.queue.clear()
    gc.collect()
    assert gone() is None, "somebody still observes for the effect"
    someone.scene.Clear(True)


def close_the_scene(someone):
    """The scene is closed while the effect is active, and the worker still busy."""
    user = someone.user
    someone.scene.Clear(True)
    user.worker.recover()
    user.worker.answer_all()
    user.pass_time(1)
    assert user.worker.sessions == user.worker.volumes == []
    user.controller.propagate()
    user.controller.finaliseSlice()
    user.controller.cleanup()
    assert user.source.owners == []
