"""The segmentation in 3D after its first propagation: once, if wanted, and only where it is quick."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from MedSAM2SegmentLib.Segments import ClosedSurface  # noqa: E402
from support.scene import a_segmentation, a_volume, paint  # noqa: E402
from support.segment_editor import LogicEditor  # noqa: E402


@pytest.fixture(autouse=True)
def converter():
    """Slicer's own conversion to surfaces, which its Segmentations module registers."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule()
    factory.RegisterConverterRule(rule)
    yield
    factory.UnregisterConverterRule(rule)


@pytest.fixture
def user(user):
    user.segmentation.GetDisplayNode().SetVisibility3D(False)
    user.click((10, 10, 5))
    user.wait()
    return user


def is_shown(user):
    has = user.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    return has and bool(user.segmentation.GetDisplayNode().GetVisibility3D())


def propagate(user):
    user.controller.propagate()
    user.wait()
    user.wait()


def test_the_first_propagation_is_shown_in_3d_and_what_was_hidden_stays_hidden(user):
    assert not is_shown(user)
    propagate(user)
    assert is_shown(user)
    display = user.segmentation.GetDisplayNode()
    assert display.GetPreferredDisplayRepresentationName3D() == "Closed surface"
    assert display.GetPreferredDisplayRepresentationName2D() == "Binary labelmap"
    surface = user.segmentation.GetSegmentation().GetSegment("A").GetRepresentation("Closed surface")
    assert surface.GetNumberOfPoints() > 0
    user.segmentation.RemoveClosedSurfaceRepresentation()
    user.click((20, 18, 5))
    user.wait()
    propagate(user)
    assert not is_shown(user)


def test_undo_and_redo_of_the_propagation_stay_exact(user):
    before, prompts = user.mask(), user.prompts()
    propagate(user)
    after = user.mask()
    user.undo()
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert user.prompts() == prompts
    assert user.slices() == [5]
    user.redo()
    user.wait()
    assert np.array_equal(user.mask(), after)


def test_the_surface_follows_later_writes(user):
    propagate(user)
    segment = user.segmentation.GetSegmentation().GetSegment("A")
    before = segment.GetRepresentation("Closed surface").GetNumberOfPoints()
    user.click((22, 4, 5))
    user.wait()
    assert segment.GetRepresentation("Closed surface").GetNumberOfPoints() != before


def test_who_switches_it_off_is_not_shown_it_and_that_is_remembered(user):
    remembered = []
    user.controller.onShow3D = remembered.append
    user.controller.setValue("show3D", "0")
    user.controller.setValue("show3D", "0")
    propagate(user)
    assert not is_shown(user)
    assert remembered == [False]
    user.controller.setValue("show3D", "1")
    assert remembered == [False, True]
    user.click((20, 18, 5))
    user.wait()
    propagate(user)
    assert is_shown(user)


def test_a_cancelled_propagation_is_not_shown(user):
    user.controller.propagate()
    user.worker.step()
    user.pass_time()
    user.controller.cancel()
    user.controller.keep()
    user.wait()
    assert not is_shown(user)
    propagate(user)
    assert is_shown(user)


@pytest.mark.parametrize("limit", ["MOST_FACES", "MOST_VOXELS"])
def test_what_would_take_long_is_not_shown(user, monkeypatch, limit):
    monkeypatch.setattr(ClosedSurface, limit, 10)
    propagate(user)
    assert not is_shown(user)


def test_a_surface_that_was_there_is_left_as_it_is(user):
    user.segmentation.CreateClosedSurfaceRepresentation()
    propagate(user)
    assert not is_shown(user)
    assert user.segmentation.GetSegmentation().ContainsRepresentation("Closed surface")


def test_faces_between_labels_and_at_the_edge_are_counted(scene, monkeypatch):
    volume = a_volume(scene, voxels=np.zeros((8, 8, 8), dtype=np.int16))
    node = a_segmentation(scene, volume, segments=("A", "B", "empty"))
    editor = LogicEditor(node, volume, "A")
    for name, along in (("A", slice(0, 3)), ("B", slice(4, 7))):
        mask = np.zeros((8, 8, 8), dtype=bool)
        mask[along, 2:4, 2:5] = True  # 3 x 2 x 3 voxels: 42 faces
        paint(editor, mask, name)
    segmentation = node.GetSegmentation()
    for limit, is_quick in ((83, False), (84, True)):
        monkeypatch.setattr(ClosedSurface, "MOST_FACES", limit)
        assert ClosedSurface.isQuick(segmentation) is is_quick


def test_slow_writes_leave_time_between_them(user, monkeypatch):
    """Whatever a write takes, three quarters of the time are the user's."""
    edited, written = user.controller._edited, []
    real = edited.write

    def write(*arguments, **more):
        written.append(user.time)
        user.time += 0.5
        return real(*arguments, **more)

    monkeypatch.setattr(edited, "write", write)
    user.controller.propagate()
    for tenth in range(150):
        if tenth % 10 == 0:
            user.worker.step()
        user.pass_time(0.1)
    pauses = np.diff(written[:-1])  # the last one comes with the end
    assert len(pauses) > 1
    assert pauses.min() > 1.9
