"""Probabilities a session keeps on request: they fit the masks exactly, whatever is prompted and undone."""

import numpy as np
import pytest
import torch
from medsam2_core.auto.model_file import AutoClass
from medsam2_core.auto.volumes import VolumeOptions
from medsam2_core.engine.maps import ABSENT, mask_of_logits, probabilities_of_logits
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.zoom import Region
from medsam2_core.errors import Cancelled, PromptError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet, SlicePrompts
from medsam2_core.session import Session
from support.auto_model import made_up
from support.command_line import ball_kji
from support.errors import raises
from support.model import a_disc, logits_on_slice
from support.small_files import OBLIQUE_RAS
from support.tiny_model import tiny_model

SHAPE_KJI = (24, 48, 40)
BALL = Box((13, 19, 12), (27, 33, 12))
OTHER = Box((2, 4, 9), (20, 30, 9))


@pytest.fixture(scope="module")
def model():
    """A network of random weights: what it is sure of means nothing, but it is sure by degrees."""
    return tiny_model()


@pytest.fixture
def session(volume, model):
    return Session.open(volume, model, probabilities=True)


def checked(session) -> dict[str, np.ndarray]:
    """The probabilities of all objects, after a look at every voxel: inside is what is at least 0.5."""
    kept = session.probabilities()
    assert kept.geometry is session.volume.geometry
    assert kept.names == session.object_names
    for segment in session.segmentation():
        values_kji = kept.values_kji(segment.name)
        assert values_kji.dtype == np.uint8
        assert np.array_equal(values_kji / 255 >= 0.5, session.mask_kji(segment.name)), segment.name
        assert kept.count_differing(segment) == 0
    return {name: kept.values_kji(name) for name in kept.names}


def is_by_degrees(values_kji) -> bool:
    return bool(((values_kji > 0) & (values_kji < 255)).any())


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# From logits ------------------------------------------------------------------------------------------------


def test_rounding_moves_no_pixel_across_one_half():
    nearly = [0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 0.0039, -0.0039, 0.01, -0.01, 3.0, -3.0, 60.0, -60.0]
    logits = torch.tensor([*nearly, ABSENT, 1024.0]).reshape(1, 1, 4, 4)
    region = Region(2, 1, 6, 5)
    mask = mask_of_logits(logits, region, (7, 9))
    values = probabilities_of_logits(logits, region, mask).values_hw()
    assert np.array_equal(values >= 128, mask)
    assert values[1:5, 2:6].ravel().tolist() == [
        *(127, 127, 128, 127, 128, 127, 128, 127, 128, 127, 243, 12, 255, 0, 0, 255)
    ]
    values[1:5, 2:6] = 0
    assert not values.any(), "nothing is known beyond the region"


def test_they_are_the_models_own_at_the_slices_full_size(session):
    result = session.prompt("ball", BALL)
    logits = logits_on_slice(*session.tracker.state("ball").kept_logits(12), result.shape_hw)
    wanted_hw = 255 / (1 + np.exp(-logits.astype(np.float64).clip(-50, 50)))
    values_ji = session.probabilities().slice_ji("ball", 12)  # this stack's slices are the volume's own
    assert np.abs(wanted_hw - values_ji).max() < 1
    assert is_by_degrees(values_ji)


# On the volume's grid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoom", ["auto", "off"])
@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal", "i", "j", "k"])
def test_they_fit_the_masks_in_every_voxel(volume, model, axis, zoom):
    session = Session.open(volume, model, axis=axis, zoom=zoom, probabilities=True)
    points = {"ball": Point((20, 26, 12)), "other": Point((9, 30, 5)), "touching": Point((22, 26, 12))}
    session.apply(PromptSet({name: [point] for name, point in points.items()}))
    list(session.propagate())
    found = checked(session)
    assert all(is_by_degrees(values) for values in found.values())


@pytest.mark.parametrize("matrix", [OBLIQUE_RAS, np.diag([0.8, -0.7, 2.5, 1])[[2, 0, 1, 3]]])
def test_however_the_volume_is_stored(model, volume, matrix):
    stored = Volume(volume.voxels_kji, Geometry(matrix, SHAPE_KJI[::-1]), modality="MR")
    session = Session.open(stored, model, axis="sagittal", probabilities=True)
    session.prompt("ball", Point((20, 26, 12)))
    list(session.propagate())
    assert is_by_degrees(checked(session)["ball"])


def test_oblique_slices_come_back_voxel_by_voxel(volume, model):
    angle = np.radians(20)
    stack = SliceStack.oblique(volume, (-20, -24, 24), (np.cos(angle), 0, np.sin(angle)), (0, 1, 0), 1.3)
    session = Session(volume, model, stack=stack, options=TrackerOptions(keeps_probabilities=True))
    session.prompt("ball", Point((20, 26, 12)))
    list(session.propagate())
    session.apply(PromptSet({"drawn": [MaskPrompt.from_volume(ball_kji())]}))
    found = checked(session)
    assert is_by_degrees(found["ball"])
    assert not is_by_degrees(found["drawn"])


# As the session goes on -------------------------------------------------------------------------------------

STEPS = {
    "a click": lambda s: s.prompt("ball", Point((18, 24, 12))),
    "a new object": lambda s: s.prompt("new", OTHER),
    "a correction of a tracked slice": lambda s: s.prompt("ball", Point((2, 2, 14), positive=False)),
    "a correction, followed": lambda s: (s.prompt("ball", Point((20, 26, 17))), list(s.propagate())),
    "a slice as it stands": lambda s: s.finalise("ball", 13),
    "a drawn slice": lambda s: s.finalise("ball", 11, a_disc((48, 40), (20, 26), 5)),
    "a painted slice": lambda s: s.prompt("ball", MaskPrompt(np.ones((1, 6, 6), bool), (5, 5, 14))),
    "an erased slice": lambda s: s.prompt("ball", MaskPrompt(np.zeros((1, 6, 6), bool), (5, 5, 14))),
    "other prompts": lambda s: s.set_prompts("ball", {12: SlicePrompts([Point((20, 26, 12))])}),
    "prompts removed": lambda s: s.set_prompts("ball", {8: SlicePrompts()}),
    "a prompt taken back": lambda s: s.unprompt("ball", 12),
    "an object removed": lambda s: s.remove_object("ball"),
    "less patience": lambda s: (
        s.prompt("ball", MaskPrompt(np.zeros((1, 4, 4), bool), (5, 5, 13))),
        list(s.propagate(stop_after_absent=1)),
    ),
}


@pytest.fixture(scope="module")
def busy(volume, model):
    """A session in the middle of things: two prompted slices, the others tracked, one final."""
    session = Session.open(volume, model, probabilities=True)
    session.prompt("ball", BALL)
    session.prompt("ball", Point((20, 26, 8)))
    list(session.propagate(first=6, last=18))
    session.finalise("ball", 10)
    return session


@pytest.mark.parametrize("step", STEPS)
def test_they_change_with_the_masks_and_come_back_with_them(busy, step):
    before, steps = checked(busy), len(busy.undo_steps)
    STEPS[step](busy)
    after = checked(busy)
    if step != "a slice as it stands":
        assert not same(before, after)
    while len(busy.undo_steps) > steps:
        busy.undo()
    assert same(checked(busy), before)


@pytest.mark.parametrize("step", ["a drawn slice", "a painted slice", "an erased slice"])
def test_what_the_user_drew_is_certain(busy, step):
    k = 11 if step == "a drawn slice" else 14
    assert is_by_degrees(busy.probabilities().slice_ji("ball", k))
    STEPS[step](busy)
    values_ji = busy.probabilities().slice_ji("ball", k)
    assert np.array_equal(values_ji, np.where(busy.mask_kji("ball")[k], 255, 0))
    assert is_by_degrees(busy.probabilities().slice_ji("ball", k + 1)), "others are as they were"
    busy.undo()


def test_clicks_on_a_painted_mask_ask_the_model_again(session):
    session.prompt("ball", MaskPrompt.from_volume(ball_kji() & (np.arange(24) == 12)[:, None, None]))
    assert not is_by_degrees(checked(session)["ball"])
    session.prompt("ball", Point((2, 2, 12), positive=False))
    assert is_by_degrees(checked(session)["ball"])


def test_a_slice_given_back_to_tracking_has_its_probabilities_again(busy):
    before = busy.probabilities().slice_ji("ball", 15)
    busy.set_prompts("ball", {15: SlicePrompts([Point((20, 26, 15)), Point((3, 3, 15), positive=False)])})
    assert not np.array_equal(busy.probabilities().slice_ji("ball", 15), before)
    busy.set_prompts("ball", {15: SlicePrompts()})
    assert np.array_equal(busy.probabilities().slice_ji("ball", 15), before)
    busy.undo(), busy.undo()


def test_steps_long_ago_keep_them(session):
    session.prompt("ball", BALL)
    list(session.propagate(stop_after_absent=None))
    seen = []
    for k in range(1, 8):
        seen.append(checked(session))
        session.prompt("ball", Point((20, 26, k)))
    for before in reversed(seen):
        session.undo()
        assert same(checked(session), before)


def test_a_propagation_that_is_stopped_leaves_those_of_the_slices_done(session):
    session.prompt("ball", BALL)
    count = iter(range(9))
    with pytest.raises(Cancelled):
        list(session.propagate(should_cancel=lambda: next(count) == 8))
    assert is_by_degrees(checked(session)["ball"])


# On request -------------------------------------------------------------------------------------------------


def test_by_default_nothing_is_kept(volume, model, session):
    plain = Session.open(volume, model)
    for one in (plain, session):
        one.prompt("ball", BALL)
        list(one.propagate())
    assert all(mask.probabilities is None for mask in plain.tracker.state("ball").masks.values())
    assert np.array_equal(plain.mask_kji("ball"), session.mask_kji("ball")), "and the masks are the same"
    assert plain.provenance() == session.provenance()
    with raises("no-probabilities", PromptError):
        plain.probabilities()
    with_them, without = (one.tracker.state("ball").nbytes for one in (session, plain))
    kept = sum(r.probabilities.nbytes for r in session.results("ball") if r.probabilities is not None)
    assert with_them == without + kept


def test_they_record_what_made_them(session):
    session.add_object("nothing yet")
    kept = session.probabilities()
    assert not kept.values_kji("nothing yet").any()
    assert (kept.provenance["model"], kept.provenance["weights_key"]) == ("tiny", session.model.weights_key)


# Without prompts --------------------------------------------------------------------------------------------


@pytest.fixture
def auto(model, monkeypatch):
    """A model whose answers are made up: on slices 5 to 14 two classes that claim the same pixels; specks."""

    def draw(n, logits):
        logits += 2.0
        if 5 <= n <= 14:
            logits[0, 8:24, 6:24] = 3.0 - 0.2 * abs(n - 9)
            logits[0, 40:42, 30:32] = 2.0  # a piece too small to stay
            logits[1, 20:34, 4:30] = 2.5

    names = (AutoClass("ball", 1, (0.1, 0.2, 0.3), least_piece=0.005), AutoClass("bar", 2, (0.9, 0.5, 0.1)))
    return made_up(monkeypatch, model, names, draw, lambda n: [5.0, 3.0 if n < 13 else -3.0])


@pytest.mark.parametrize("options", [("slices", 1), ("memory", 1), ("memory", 3)])
def test_those_of_an_auto_model_fit_its_masks(session, auto, options):
    session.auto(auto, options=VolumeOptions(*options))
    found = checked(session)
    assert all(is_by_degrees(values) for values in found.values())
    sure = [result for result in session.results("ball") if result.prompted]
    assert sure
    assert all(is_by_degrees(result.probabilities.values_hw()) for result in sure)
    assert session.probabilities().provenance["auto"] == "made up"
    session.prompt("ball", Point((3, 3, 9), positive=False))
    list(session.propagate(["ball"]))
    checked(session)
    session.undo(), session.undo()
    assert same(checked(session), found)


def test_a_pixel_of_another_class_is_not_likely_and_an_absent_class_is_nowhere(session, auto):
    session.auto(auto, options=VolumeOptions("slices"))
    bar = checked(session)["bar"]
    assert not bar[13].any(), "absent"
    assert bar[9].max() >= 128
    both = session.stack.volume_values([(9, np.full(session.stack.shape_hw, 255, np.uint8))]).astype(bool)
    assert (bar[both & session.mask_kji("ball")] == 127).any(), "a close second"
