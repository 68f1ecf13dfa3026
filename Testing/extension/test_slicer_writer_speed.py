"""A click must not wait for us: what writing costs beyond Slicer's own edit, on a large volume."""

import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from MedSAM2SegmentLib.Segments.EditHistory import UNDONE, EditHistory  # noqa: E402
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from support import in_process_worker  # noqa: E402
from support.scene import a_segmentation, a_volume, an_editor, geometries  # noqa: E402
from support.slicer_user import SlicerUser  # noqa: E402

LIMIT = 0.030  # seconds of computing


class Clocked:
    """An editor that knows how long Slicer's own functions took."""

    def __init__(self, editor):
        self.editor, self.seconds = editor, 0.0

    def __getattr__(self, name):
        return getattr(self.editor, name)

    def timed(self, function, *arguments):
        began = time.process_time()
        result = function(*arguments)
        self.seconds += time.process_time() - began
        return result

    def saveStateForUndo(self):
        self.timed(self.editor.saveStateForUndo)

    def modifySegment(self, *arguments):
        self.timed(self.editor.modifySegment, *arguments)


def a_disc(shape_hw, radius):
    """A round mask in the middle."""
    y, x = np.indices(shape_hw)
    return (y - shape_hw[0] / 2) ** 2 + (x - shape_hw[1] / 2) ** 2 < radius**2


@pytest.fixture
def large(scene):
    """512 x 512 x 300, half filled already, with a history."""
    node = a_volume(scene, geometries()["anisotropic"], np.zeros((300, 512, 512), np.int16))
    editor = Clocked(an_editor(a_segmentation(scene, node, ("A", "B")), node))
    writer = SegmentWriter(editor)
    history = EditHistory(writer)
    volume = VolumeAdapter(node).volume
    stack = SliceStack.along(volume, "axial")
    history.begin("empty")
    writer.write("A", {n: a_disc(stack.shape_hw, 120) for n in range(0, 150)}, stack, newStep=True)
    history.end("half")
    return editor, writer, history, volume


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_one_slice_costs_little_beyond_slicers_own_edit(large, axis):
    editor, writer, history, volume = large
    stack = SliceStack.along(volume, axis)
    ours = []
    for radius in (60, 63, 66, 70, 58):
        editor.seconds, began = 0.0, time.process_time()
        history.begin("before")
        assert writer.write("A", {len(stack) // 2: a_disc(stack.shape_hw, radius)}, stack, newStep=True)
        history.end("after")
        ours.append(time.process_time() - began - editor.seconds)
    assert sorted(ours)[2] < LIMIT, ours


def test_a_half_volume_is_kept_small_and_its_undo_is_found_fast(large):
    editor, _, history, _ = large
    assert history.bytes < 2 << 20
    began = time.process_time()
    assert history.reconcile() == []
    assert time.process_time() - began < LIMIT
    editor.undo()
    assert [what for _, what in history.reconcile()] == [UNDONE]


def test_the_first_click_in_a_picture_of_20_megapixels_does_not_freeze_the_window(scene, monkeypatch):
    height, width, radius = 3648, 5472, 600
    y, x = np.ogrid[:height, :width]
    disc = (y - height // 2) ** 2 + (x - width // 2) ** 2 < radius**2
    monkeypatch.setattr(in_process_worker, "answer_to", lambda prompts, n, stack: disc)
    user = SlicerUser(scene, volume=a_volume(scene, voxels=np.zeros((1, height, width, 3), np.uint8)))
    user.wait()
    session, seconds = user.controller._session, []
    apply = session.onAnswer

    def timed(answer):
        began = time.process_time()
        apply(answer)
        seconds.append(time.process_time() - began)

    session.onAnswer = timed
    for column in (width // 2, width // 2 + 40):
        user.click((column, height // 2, 0))
        user.wait()
    assert np.array_equal(user.mask()[0], disc[::-1, ::-1])  # as an axial view shows it
    assert len(seconds) == 2 and max(seconds) < 0.2, seconds
    user.controller.cleanup()
