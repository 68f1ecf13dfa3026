"""The history finds out what Slicer's undo and redo did to our steps, and what the user did himself."""

import random

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from MedSAM2SegmentLib.Segments.EditHistory import REDONE, UNDONE, EditHistory  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import SegmentError  # noqa: E402
from MedSAM2SegmentLib.Segments.VoxelOwnership import ERASED, OURS  # noqa: E402
from MedSAM2SegmentLib.Segments.VoxelSets import Extent  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import a_segmentation, box_mask, paint, set_reference, voxels_of  # noqa: E402
from support.writer_setup import WriterSetup  # noqa: E402


class Book(WriterSetup):
    """A desk with a history: every write is a step, whose payloads are how many steps stood."""

    def __init__(self, scene, **options):
        super().__init__(scene, **options)
        self.history = EditHistory(self.writer)
        self.count = 0

    def step(self, k, rows, columns, segmentID="A"):
        self.history.begin(self.count)
        self.count += 1
        self.write(k, rows, columns, segmentID)
        return self.history.end(self.count)

    def found(self):
        """What reconciling finds: payloads to go back to, by kind."""
        return [
            (what, step.payloadBefore if what == UNDONE else step.payloadAfter)
            for step, what in self.history.reconcile()
        ]

    def ours(self, segmentID="A"):
        """(K, J, I) voxels noted as ours."""
        return self.bits(segmentID) & OURS != 0

    def bits(self, segmentID="A"):
        ownership = self.writer.ownerships[segmentID]
        return ownership.read(ownership.extent).copy()


@pytest.fixture
def book(scene):
    return Book(scene)


def test_undo_and_redo_are_found_one_by_one(book):
    for rows in ((1, 5), (3, 9), (2, 4)):
        assert book.step(2, rows, (3, 14)) is not None
    assert book.found() == []
    for before in (2, 1, 0):
        book.editor.undo()
        assert book.found() == [(UNDONE, before)]
        assert book.found() == []
    for after in (1, 2, 3):
        book.editor.redo()
        assert book.found() == [(REDONE, after)]
        assert book.found() == []


@pytest.mark.parametrize("slices", [(2, 2, 2), (1, 2, 3), (1, 1, 2)])
def test_several_undone_at_once_are_found_together(book, slices):
    for k, rows in zip(slices, ((1, 5), (3, 9), (2, 4)), strict=True):
        book.step(k, rows, (3, 14))
    for _ in range(3):
        book.editor.undo()
    assert book.found() == [(UNDONE, 2), (UNDONE, 1), (UNDONE, 0)]
    for _ in range(2):
        book.editor.redo()
    assert book.found() == [(REDONE, 1), (REDONE, 2)]
    book.editor.redo()
    book.editor.undo()
    assert book.found() == []


def made(book, name, k):
    """A step that makes a segment, and fills it."""
    book.history.begin(book.count)
    book.count += 1
    book.writer.beginStepNow()
    segmentID = book.segmentation.GetSegmentation().AddEmptySegment(name, name)
    book.history.addCreated([segmentID])
    book.write(k, (2, 6), (3, 9), segmentID, newStep=False)
    assert book.history.end(book.count) is not None
    return segmentID


def test_segments_that_a_step_made_are_gone_and_there_again(book):
    book.step(1, (1, 5), (3, 14))
    segmentID = made(book, "new", 2)
    book.step(4, (1, 5), (3, 14), segmentID)
    filled = book.voxels(segmentID)
    assert book.found() == []
    book.editor.undo()
    assert book.found() == [(UNDONE, 2)]
    book.editor.undo()
    assert book.found() == [(UNDONE, 1)]
    assert book.segmentation.GetSegmentation().GetSegment(segmentID) is None
    assert book.found() == []
    for after in (2, 3):
        book.editor.redo()
        assert book.found() == [(REDONE, after)]
    assert np.array_equal(book.voxels(segmentID), filled)
    for _ in range(3):
        book.editor.undo()
    assert book.found() == [(UNDONE, 2), (UNDONE, 1), (UNDONE, 0)]


def test_segments_of_several_steps_can_go_at_once(book):
    segmentID = made(book, "new", 2)
    made(book, "newer", 3)
    book.editor.undo()
    assert book.found() == [(UNDONE, 1)]
    made(book, "newest", 4)
    book.editor.undo()
    book.editor.undo()
    assert book.found() == [(UNDONE, 2), (UNDONE, 0)]
    assert book.segmentation.GetSegmentation().GetSegment(segmentID) is None


def test_a_step_that_went_back_by_itself_is_not_called_undone(book):
    """Adding, taking away again, adding elsewhere: the first state looks like the third."""
    book.step(2, (1, 5), (3, 14))
    book.step(2, None, None)
    book.step(5, (1, 5), (3, 14))
    book.editor.undo()
    assert book.found() == [(UNDONE, 2)]
    book.editor.undo()
    assert book.found() == [(UNDONE, 1)]
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]


def test_what_the_user_paints_and_undoes_in_between_is_not_ours(book):
    book.step(2, (1, 5), (3, 14))
    paint(book.editor, box_mask((4, 4), (1, 5), (3, 14)))
    assert book.found() == []
    book.step(6, (1, 5), (3, 14))
    book.editor.undo()
    assert book.found() == [(UNDONE, 1)]
    book.editor.undo()  # the user's own stroke
    assert book.found() == []
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]
    for found in ([(REDONE, 1)], [], [(REDONE, 2)]):
        book.editor.redo()
        assert book.found() == found


def test_a_stroke_over_a_step_hides_nothing(book):
    book.step(2, (1, 9), (3, 14))
    paint(book.editor, box_mask((2, 2), (1, 9), (3, 8)), mode="remove")
    assert book.found() == []
    book.editor.undo()
    assert book.found() == []
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]


def test_a_stroke_over_a_step_and_more_leaves_nothing_of_it_ours(book):
    """It looks like the undo of the step, but for the voxels around: what it painted is the user's."""
    book.step(2, (1, 9), (3, 14))
    book.step(2, (1, 5), (3, 14))
    paint(book.editor, box_mask((2, 2), (6, 11), (3, 14)))
    assert book.found() == [(UNDONE, 1)]
    assert np.array_equal(book.ours(), box_mask((2, 2), (1, 5), (3, 14)))
    book.editor.undo()  # the stroke
    assert book.found() == [(REDONE, 2)]
    book.editor.undo()
    assert book.found() == [(UNDONE, 1)]
    assert np.array_equal(book.ours(), box_mask((2, 2), (1, 9), (3, 14)))


def test_undone_over_a_stroke_at_once(book):
    book.step(2, (1, 9), (3, 14))
    paint(book.editor, box_mask((2, 2), (1, 9), (3, 8)), mode="remove")
    book.found()
    book.step(3, (1, 9), (3, 14))
    for _ in range(3):
        book.editor.undo()
    assert book.found() == [(UNDONE, 1), (UNDONE, 0)]


def test_after_an_undo_a_new_step_ends_what_could_be_redone(book):
    book.step(2, (1, 5), (3, 14))
    book.step(2, (1, 9), (3, 14))
    book.editor.undo()
    book.found()
    book.step(4, (1, 9), (3, 14))
    assert [step.payloadAfter for step in book.history.steps] == [1, 3]
    book.editor.undo()
    assert book.found() == [(UNDONE, 2)]
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]


def test_a_step_that_changes_nothing_is_none(book):
    assert book.step(2, None, None) is None
    book.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    book.editor.node.SetMaskSegmentID("B")
    assert book.step(2, (1, 5), (3, 14)) is None  # the mask refuses all of it
    assert book.history.steps == []


def test_neighbours_that_were_overwritten_are_part_of_the_step(book):
    book.overwrite(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    paint(book.editor, box_mask((2, 2), (0, 13), (0, 9)), "B")
    step = book.step(2, (1, 5), (3, 14))
    assert {patch.segmentID for patch in step.patches} == {"A", "B"}
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]


def test_what_is_ours_goes_back_with_an_undo_and_forth_with_a_redo(book):
    known = [np.zeros(book.volume.voxels_kji.shape, dtype=np.uint8)]
    for rows in ((1, 5), (3, 9), (2, 4)):
        book.step(2, rows, (3, 14))
        known.append(book.bits())
    for before in (2, 1, 0):
        book.editor.undo()
        book.found()
        assert np.array_equal(book.bits(), known[before])
    for after in (1, 2, 3):
        book.editor.redo()
        book.found()
        assert np.array_equal(book.bits(), known[after])
    book.write(2, None, None)
    assert not book.voxels().any()


def test_after_an_undo_the_same_mask_is_written_again(book):
    book.step(2, (1, 5), (3, 14))
    book.editor.undo()
    book.found()
    book.step(2, (1, 5), (3, 14))
    assert np.array_equal(book.voxels(), box_mask((2, 2), (1, 5), (3, 14)))
    assert np.array_equal(book.ours(), book.voxels())


def test_an_erasure_that_the_user_undoes_gives_back_what_is_ours(book):
    book.step(2, (1, 9), (3, 14))
    for columns in ((3, 5), (9, 12)):
        paint(book.editor, box_mask((2, 2), (1, 9), columns), mode="remove")
        assert book.found() == []
    assert (book.bits()[2, 1:10, 3:6] & ERASED).all()
    for _ in range(2):
        book.editor.undo()
        assert book.found() == []
    assert np.array_equal(book.ours(), box_mask((2, 2), (1, 9), (3, 14)))
    book.write(2, None, None)
    assert not book.voxels().any()


def test_another_segmentation_is_left_alone(book):
    first = book.segmentation
    book.step(2, (1, 9), (3, 14))
    other = a_segmentation(first.GetScene(), book.volume_node)
    book.editor.node.SetAndObserveSegmentationNode(other)
    assert book.found() == []
    with raises("no-segmentation", SegmentError):
        book.write(2, (1, 5), (3, 14))
    assert not voxels_of(other, "A").any()
    book.editor.node.SetAndObserveSegmentationNode(first)
    assert book.found() == []
    book.write(2, None, None)  # what was ours still is
    assert not book.voxels().any()


def test_more_steps_than_slicer_can_undo_do_no_harm(book):
    for n in range(30):
        book.step(n % 8, (1, 3 + n % 7), (3, 14))
    assert len(book.history.steps) == 20
    states = 0
    while book.editor.logic.CanUndo() if hasattr(book.editor.logic, "CanUndo") else states < 9:
        before = book.voxels()
        book.editor.undo()
        if np.array_equal(before, book.voxels()):
            break
        states += 1
        assert len(book.found()) == 1
    assert 9 <= states <= 10


def test_an_undo_while_a_step_is_open_closes_it(book):
    book.step(1, (1, 9), (3, 14))
    book.history.begin("open")
    for k in (2, 3, 4):
        book.write(k, (1, 9), (3, 14), newStep=k == 2)
    assert book.found() == []  # somebody did something else
    book.write(5, (1, 9), (3, 14), newStep=False)
    book.editor.undo()
    assert book.found() == [(UNDONE, "open")]
    assert book.history.end("never") is None
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]


def test_reverting_takes_back_what_nobody_changed_since(book):
    kept = book.step(1, (1, 9), (3, 14))
    paint(book.editor, box_mask((2, 2), (4, 5), (0, 4)))
    steps = [book.step(2, (1, 9), (3, 14)), book.step(2, (0, 5), (3, 14))]
    paint(book.editor, box_mask((2, 2), (0, 1), (13, 16)), mode="remove")
    book.history.begin("discard")
    book.history.revert(steps)
    book.history.end("discarded")
    left = box_mask((1, 1), (1, 9), (3, 14)) | box_mask((2, 2), (4, 5), (0, 4))
    assert np.array_equal(book.voxels(), left)
    book.editor.undo()
    assert book.found() == [(UNDONE, "discard")]
    assert kept.done


def test_oblique_steps_are_found_too(book):
    across = SliceStack.oblique(book.volume, (9, 6, 4), (1, 0, 0.4), (0, 1, 0))
    full = np.ones(across.shape_hw, dtype=bool)
    for n in (1, 2):
        book.history.begin(n)
        book.writer.write("A", {n: full, n + 1: full}, across, newStep=True)
        book.history.end(n)
    notes = book.bits()
    for n in (2, 1):
        book.editor.undo()
        assert book.found() == [(UNDONE, n)]
    book.editor.redo()
    book.editor.redo()
    assert len(book.found()) == 2
    assert np.array_equal(book.bits(), notes)


def test_a_new_geometry_of_the_segmentation_does_not_hide_an_undo(book):
    book.step(2, (1, 9), (3, 14))
    grid = np.eye(4)
    grid[:3, 3] = (2, 1, 0)
    set_reference(book.segmentation, grid, (9, 13, 18))
    assert book.found() == []
    book.editor.undo()
    assert book.found() == [(UNDONE, 0)]


def test_steps_are_small(book):
    for n in range(5):
        book.step(2, (1, 5 + n), (3, 14))
    assert book.history.bytes < 5 * 1500
    book.history.clear()
    assert book.history.bytes == 0


class Memory:
    """Slicer's states, written down as they come: where it stands is known, and must be found out."""

    def __init__(self, book):
        self.book, self.at = book, 0
        self.states = [(book.both(), [])]  # voxels, payloads of the steps that stand

    def note(self, step):
        standing = self.states[self.at][1] + ([] if step is None else [step])
        self.states = [*self.states[: self.at + 1], (self.book.both(), standing)]
        self.at += 1

    def move(self, forth: bool):
        if forth and self.at + 1 < len(self.states):
            self.book.editor.redo()
            self.at += 1
        elif not forth and self.at > 0:
            self.book.editor.undo()
            self.at -= 1

    def check(self):
        voxels, standing = self.states[self.at]
        assert all(np.array_equal(*pair) for pair in zip(self.book.both(), voxels, strict=True))
        self.book.found()
        assert [step for step in self.book.history.steps if step.done] == standing


@pytest.mark.parametrize("seed", range(6))
def test_in_any_order_of_steps_strokes_undos_and_redos(scene, campaign, seed, record_property):
    """Strokes are painted beside the steps and erased in them, but never all that a step did."""
    rng = random.Random(seed)
    book = Book(scene)
    book.history = EditHistory(book.writer, limit=1000)
    book.editor.logic.SetMaximumNumberOfUndoStates(1000)
    memory = Memory(book)
    record_property("random cases", 40 * campaign)
    for _ in range(40 * campaign):
        what = rng.choice(["step"] * 3 + ["stroke", "erase", "undo", "undo", "redo", "many undos"])
        rows, columns = (sorted(rng.choices(range(size), k=2)) for size in (14, 20))
        segmentID = rng.choice("AB")
        if what == "step":
            book.overwrite(rng.randrange(3))
            step = book.step(rng.randrange(4), rows, columns, segmentID)
            if step is not None:
                memory.note(step)
        elif what == "stroke":
            k = rng.randrange(4, 8)
            mask = box_mask((k, k), rows, columns) & ~book.voxels(segmentID)
            book.overwrite(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
            if mask.any():  # Slicer keeps a state for a stroke that changes nothing, too: not tried here
                paint(book.editor, mask, segmentID)
                memory.note(None)
        elif what == "erase":
            mask = box_mask((0, 3), (0, 13), (columns[0], columns[0])) & book.voxels(segmentID)
            if mask.any() and not takes_all(book, mask, segmentID):
                paint(book.editor, mask, segmentID, "remove")
                memory.note(None)
        else:
            for _ in range(rng.randint(2, 4) if what == "many undos" else 1):
                memory.move(what == "redo")
        memory.check()


def takes_all(book, mask, segmentID) -> bool:
    """Whether erasing leaves nothing of what some step did: that is the same as to undo it."""
    for step in book.history.steps:
        left = [patch for patch in step.patches if patch.segmentID != segmentID and not patch.isEmpty]
        for patch in step.patches:
            if patch.segmentID == segmentID and not patch.isEmpty:
                changed = patch.mask(0) != patch.mask(1)
                taken = patch.voxels.read(mask, Extent(0, 19, 0, 13, 0, 8))
                if (changed & ~taken).any():
                    left.append(patch)
        if not left:
            return True
    return False
