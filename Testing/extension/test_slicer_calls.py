"""How many calls the effect needs: an idle tick nearly none, a click few frames until its prompts are sent.

Counts, not times: they are the same on every machine.
"""

import os
import sys
import traceback
from contextlib import contextmanager

import pytest

pytest.importorskip("slicer")

import vtk
from MedSAM2SegmentLib.Panels.PanelState import Status
from support.in_process_worker import InProcessSession
from support.slicer_user import SlicerUser

OURS = os.path.join("MedSAM2Segment", "")
IDLE_CALLS = 50


@contextmanager
def counted_calls():
    """The calls of Python functions within, as (file, function) pairs."""
    calls = []

    def profile(frame, event, _):
        if event == "call":
            calls.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def calls_of_a_tick(user) -> list:
    with counted_calls() as calls:
        user.controller.tick()
    return calls


def rest(user) -> None:
    """Until everything is answered and saved."""
    for _ in range(12):
        user.wait(0.1)


def prompted(user):
    user.click((10, 10, 5))


def propagated(user):
    user.click((10, 10, 5))
    rest(user)
    user.controller.propagate()


def without_segment(user):
    user.select("")


def inactive(user):
    user.click((10, 10, 5))
    rest(user)
    user.controller.deactivate()


def failed(user):
    user.worker.stop()


@pytest.mark.parametrize("situation", [prompted, propagated, without_segment, inactive])
def test_an_idle_tick_needs_nearly_no_calls(user, situation):
    situation(user)
    rest(user)
    calls = calls_of_a_tick(user)
    assert len(calls) <= IDLE_CALLS, calls


def test_a_tick_after_a_change_is_followed_by_idle_ones(user):
    user.click((10, 10, 5))
    rest(user)
    user.look_at(7)
    assert len(calls_of_a_tick(user)) > IDLE_CALLS
    assert len(calls_of_a_tick(user)) <= IDLE_CALLS


# What has no event of its own is noticed at the next tick.


def another_segment(user):
    user.editor.node.SetSelectedSegmentID("B")
    return lambda: not user.state.canClear


def another_model(user):
    user.editor.node.SetAttribute("MedSAM2.model", "other")
    return lambda: user.state.values["model"] == "other"


def another_slice(user):
    user.look_at(7)
    return lambda: user.state.current == 7


def no_worker(user):
    user.source.trouble = "nothing is installed"
    return lambda: "nothing is installed" in user.state.text.lower()


def a_warped_volume(user):
    grid = user.scene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    grid.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
    user.volume.SetAndObserveTransformNodeID(grid.GetID())
    return lambda: user.state.action != ""


def a_moved_volume(user):
    transform = user.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    user.volume.SetAndObserveTransformNodeID(transform.GetID())
    user.controller.tick()
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 4.0)
    transform.SetMatrixTransformToParent(matrix)  # the volume's node itself does not change
    return lambda: "was moved" in user.state.text


@pytest.mark.parametrize(
    "change", [another_segment, another_model, another_slice, no_worker, a_warped_volume, a_moved_volume]
)
def test_what_has_no_event_is_noticed_at_the_next_tick(user, change):
    user.click((10, 10, 5))
    rest(user)
    assert len(calls_of_a_tick(user)) <= IDLE_CALLS
    is_noticed = change(user)
    user.controller.tick()
    assert is_noticed(), user.state


def test_the_end_of_a_slow_propagation_is_noticed(user):
    """Between two slices everything is saved and at rest: nothing but its end says that it is over."""
    user.click((10, 10, 5))
    rest(user)
    user.controller.propagate()
    while user.worker.step():
        for _ in range(3):
            user.pass_time(1.0)
    assert user.state.status is Status.PROMPTED and not user.state.canCancel
    assert len(calls_of_a_tick(user)) <= IDLE_CALLS


def test_a_click_is_few_frames_away_from_the_session(scene, monkeypatch):
    """The prompts leave before the panel is drawn, and the way there can be read in an hour."""
    user = SlicerUser(scene)
    user.wait()
    stacks = []
    real = InProcessSession.set_prompts

    def set_prompts(self, *arguments, **more):
        stacks.append(traceback.extract_stack())
        return real(self, *arguments, **more)

    monkeypatch.setattr(InProcessSession, "set_prompts", set_prompts)
    user.click((10, 10, 5))
    (stack,) = stacks
    frames = [frame for frame in stack if OURS in frame.filename]
    assert frames[0].name == "onGesture"
    assert len(frames) <= 4, [frame.name for frame in frames]
    assert len({frame.filename for frame in frames}) <= 3
    user.controller.cleanup()
