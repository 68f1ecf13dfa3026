"""The controller between prompts, session and segments, with a worker that answers when it is told to."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from a_user import AUser  # noqa: E402
from MedSAM2SegmentLib.PanelState import Status  # noqa: E402


@pytest.fixture
def user(scene):
    user = AUser(scene)
    user.wait()
    yield user
    user.controller.cleanup()


def test_a_click_is_answered_on_its_slice_and_nowhere_else(user):
    user.click((10, 10, 5))
    assert user.state.status is Status.ENCODING
    user.wait()
    assert user.slices() == [5]
    assert user.mask()[5, 10, 10]
    assert not user.mask("B").any()
    assert user.state.status is Status.PROMPTED


def test_propagation_fills_the_neighbours_as_one_step_of_undo(user):
    user.click((10, 10, 5))
    user.wait()
    before = user.mask()
    user.controller.propagate()
    assert user.state.status is Status.PROPAGATING
    user.wait()
    assert user.slices() == list(range(1, 10))
    assert user.state.status is Status.PROMPTED
    user.undo()
    assert np.array_equal(user.mask(), before)
    user.undo()
    assert not user.mask().any()
    assert user.prompts() == ()
    user.redo()
    user.redo()
    assert user.slices() == list(range(1, 10))
    assert len(user.prompts()) == 1
