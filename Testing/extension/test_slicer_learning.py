"""Learn from corrections: what was corrected or marked as final is kept as it is shown, if that is wanted."""

import json

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.imaging.intensity import Window, to_display  # noqa: E402
from MedSAM2SegmentLib.Worker.Corrections import Corrections  # noqa: E402
from support.page import FakeSettings  # noqa: E402
from support.scene import a_volume  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402


@pytest.fixture
def corrections(tmp_path):
    return Corrections(tmp_path / "corrections", FakeSettings(learns=False))


@pytest.fixture
def user(scene, corrections):
    """Has switched it on."""
    user = SlicerUser(scene, corrections=corrections)
    user.wait()
    user.controller.setValue("learn", "1")
    yield user
    user.controller.cleanup()


def propagate(user):
    user.controller.propagate()
    user.wait()
    user.wait()


def kept(corrections):
    """Contents of the files: (image, mask, prompts), in the order they were written."""
    found = []
    for path in sorted(corrections.folder.glob("*"), key=lambda path: path.stat().st_mtime_ns):
        with np.load(path) as arrays:
            found.append((arrays["imgs"][0], arrays["gts"][0], json.loads(str(arrays["prompts"]))))
    return found


def test_nothing_is_kept_unless_it_is_switched_on(user, corrections):
    assert user.state.values["learn"] == "1"
    user.controller.setValue("learn", "0")
    assert user.state.values["learn"] == "0"
    user.click((10, 10, 5))
    user.click((14, 10, 5))
    user.wait()
    propagate(user)
    user.controller.deactivate()
    assert corrections.size() == (0, 0)


def test_the_switch_is_the_users_and_in_no_scene(user, corrections):
    assert corrections.isOn
    assert "learn" not in user.controller.parameters.values()


def test_a_slice_with_a_further_prompt_is_kept_as_it_is_shown_when_the_user_goes_on(user, corrections):
    user.click((10, 10, 5))
    user.wait()
    propagate(user)
    assert corrections.size() == (0, 0)  # one click, and what the model made of it
    user.click((14, 10, 5), positive=False)
    user.wait()
    user.paint(slice(20, 23), slice(3, 6), 5)
    assert corrections.size() == (0, 0)  # the user may still be at it
    propagate(user)
    ((image, mask, prompts),) = kept(corrections)
    assert mask.sum() == user.mask()[5].sum() > 0  # with what was painted
    stack = user.worker.sessions[-1].stack
    assert np.array_equal(image, to_display(stack.image_hw(5), Window(0, 1))[..., 0])
    assert np.array_equal(mask, stack.mask_of(user.mask(), 5))
    assert [label for _, _, label in prompts["points"]] == [1, 0] and prompts["box"] is None


def test_a_click_that_corrects_a_propagated_mask_counts(user, corrections):
    user.click((10, 10, 5))
    user.wait()
    propagate(user)
    user.click((12, 10, 7))
    user.wait()
    user.controller.deactivate()
    assert [len(prompts["points"]) for _, _, prompts in kept(corrections)] == [1]


def test_a_final_slice_counts_when_the_effect_is_left(user, corrections):
    user.paint(slice(4, 12), slice(5, 10), 6)
    user.look_at(6)
    user.controller.viewUsed(user.view)
    user.controller.finaliseSlice()
    user.wait()
    user.controller.deactivate()
    ((_, mask, _),) = kept(corrections)
    assert mask.sum() == 8 * 5


def test_the_same_is_not_written_again_and_a_later_correction_replaces_it(user, corrections, monkeypatch):
    written, keep = [], Corrections.keep
    monkeypatch.setattr(Corrections, "keep", lambda *values: written.append(values[2]) or keep(*values))
    user.click((10, 10, 5))
    user.click((14, 10, 5))
    user.wait()
    propagate(user)
    propagate(user)
    assert len(written) == 1
    user.paint(slice(20, 23), slice(3, 6), 5)
    propagate(user)
    assert len(written) == 2 and corrections.size()[0] == 1


def test_segments_are_kept_apart(user, corrections):
    for segmentID, i in (("A", 4), ("B", 20)):
        user.select(segmentID)
        user.click((i, 10, 5))
        user.click((i + 2, 12, 5))
        user.wait()
    propagate(user)
    assert corrections.size()[0] == 2


def test_many_slices_are_written_a_few_at_a_time(user, corrections):
    user.paint(slice(4, 12), slice(5, 10), slice(0, 11))
    for k in range(11):
        user.look_at(k)
        user.controller.viewUsed(user.view)
        user.controller.finaliseSlice()
        user.wait()
    user.controller.deactivate()
    counts = [corrections.size()[0]]
    while counts[-1] < 11:
        user.controller.tick()
        counts.append(corrections.size()[0])
        assert 0 < counts[-1] - counts[-2] <= 5, counts
    assert len(counts) > 2


def test_slices_that_wait_are_not_taken_from_another_volume(user, corrections):
    user.paint(slice(4, 12), slice(5, 10), slice(0, 11))
    for k in range(11):
        user.look_at(k)
        user.controller.viewUsed(user.view)
        user.controller.finaliseSlice()
        user.wait()
    user.controller.deactivate()
    assert 0 < corrections.size()[0] < 11
    other = a_volume(user.scene, voxels=a_noise(seed=5))
    user.editor.parameterSetNode().SetAndObserveSourceVolumeNode(other)
    user.controller.activate()
    for _ in range(5):
        user.wait()
    volumes = set()
    for path in corrections.folder.iterdir():
        with np.load(path) as arrays:
            volumes.add(str(arrays["group"]))
    assert len(volumes) == 1


def test_a_full_disk_is_a_notice_and_nothing_is_lost(user, corrections, monkeypatch):
    def full(stream, **arrays):
        raise OSError(28, "No space left on device")

    user.click((10, 10, 5))
    user.click((14, 10, 5))
    user.wait()
    monkeypatch.setattr(np, "savez_compressed", full)
    user.controller.propagate()
    assert "No space left" in user.state.text
    user.wait()
    user.wait()
    assert len(user.slices()) > 1
    assert list(corrections.folder.iterdir()) == []
    monkeypatch.undo()
    propagate(user)
    assert corrections.size()[0] == 1
