"""A session: prompts, propagation, corrections and undo over one volume, with a network of random weights."""

import inspect
import textwrap

import numpy as np
import pytest
import torch
from medsam2_core.engine.model import SegmentationModel, build_module
from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError, VolumeError
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import canonical_view
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet
from medsam2_core.session import Session
from medsam2_core.session import session as session_module
from support.command_line import ball_kji, write_nrrd
from support.errors import raises
from support.model import DRAWN, a_disc, stir
from support.training_folder import tiny_config

SHAPE_KJI = (24, 48, 40)
BALL = Box((13, 19, 12), (27, 33, 12))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny network of random weights: its masks mean nothing, but the same question has the same answer."""
    torch.manual_seed(0)
    module = build_module(tiny_config(tmp_path_factory.mktemp("config")))
    stir(module, score_bias=5.0)
    return SegmentationModel.of(module, "tiny", DRAWN)


@pytest.fixture
def session(volume, model):
    return Session.open(volume, model)


def propagated(session, *args, **options):
    return [result.n for result in session.propagate(*args, **options)]


def everything(session):
    """All a user can see of a session."""
    masks = {
        name: {
            r.n: (r.mask_hw.tobytes(), r.predicted_iou, r.prompted, r.final) for r in session.results(name)
        }
        for name in session.object_names
    }
    return masks, session.provenance()["prompts"]


def looked_at(session, monkeypatch):
    """The slices whose features are asked for from now on."""
    seen, features = set(), session.tracker.encoder.features

    def noting(n, region):
        seen.add(n)
        return features(n, region)

    monkeypatch.setattr(session.tracker.encoder, "features", noting)
    return seen


# Prompts ----------------------------------------------------------------------------------------------------


def test_the_example_of_the_module_runs(tmp_path, monkeypatch, model):
    write_nrrd(
        tmp_path / "scan.nrrd", np.random.default_rng(0).normal(0, 99, (18, 150, 130)).astype(np.int16)
    )
    example = inspect.getdoc(session_module).split("::\n", 1)[1].split("\nA set of images")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session_module, "load_model", lambda name, *given, **options: model)
    names = {}
    exec(textwrap.dedent(example), names)
    assert names["mask_kji"].shape == (18, 150, 130)
    assert names["session"].undo_steps == ["prompt liver", "propagate", "prompt liver"]


def test_a_prompt_gives_the_mask_of_its_slice_at_once(session):
    result = session.prompt("ball", BALL)
    assert (result.n, result.object, result.prompted) == (12, "ball", True)
    assert result.mask_hw.shape == (48, 40) and result.mask_hw.any()
    assert [r.n for r in session.results("ball")] == [12]
    assert session.tracker.encoder.encoded <= 3  # at most three looks at one slice, none at others
    mask = session.mask_kji("ball")
    assert mask[12].sum() == result.mask_hw.sum() == mask.sum()


def test_clicks_add_up_and_a_box_takes_the_place_of_the_box(session):
    session.prompt("ball", BALL)
    session.prompt("ball", Point((20, 26, 12)))
    other = Box((12, 18, 12), (28, 34, 12))
    session.prompt("ball", other, Point((2, 2, 12), positive=False))
    prompts = session.prompts.of("ball")
    assert prompts == [Point((20, 26, 12)), other, Point((2, 2, 12), positive=False)]
    pixels = session.tracker.state("ball").conditioning[12].prompt
    assert pixels.labels.tolist() == [1, 0] and pixels.box_xyxy is not None


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        ([], "no-prompts"),
        ([Point((20, 26, 99))], "outside-volume"),
        ([Point((20, 26, 3)), Point((20, 26, 4))], "prompts-on-several-slices"),
        ([Box((1, 1, 1), (1, 9, 9))], "box-spans-slices"),
        ([MaskPrompt(np.ones((1, 9, 99), bool))], "outside-volume"),
    ],
)
def test_a_refused_prompt_changes_nothing(session, prompts, code):
    session.prompt("ball", BALL)
    before = everything(session), session.undo_steps
    for name in ("ball", "another"):
        with raises(code, PromptError):
            session.prompt(name, *prompts)
    assert (everything(session), session.undo_steps) == before
    with pytest.raises(PromptError):
        session.prompt("  ", BALL)
    assert (everything(session), session.undo_steps) == before


def test_several_objects_on_several_slices_at_once_or_none(session):
    good = PromptSet({"ball": [BALL, Point((20, 26, 5))], "other": [Box((2, 2, 9), (9, 9, 9))], "empty": []})
    results = session.apply(good)
    assert [(r.object, r.n) for r in results] == [("ball", 12), ("ball", 5), ("other", 9)]
    assert session.object_names == ("ball", "other", "empty")
    before = everything(session)
    session.finalise("other", 9)
    with raises("slice-final", PromptError, object="other", n=9):
        session.apply(PromptSet({"new": [BALL], "other": [Point((5, 5, 9))]}))
    session.undo()
    assert everything(session) == before


def test_a_mask_of_several_slices_is_prompted_slice_by_slice(session):
    thick = MaskPrompt.from_volume(ball_kji())
    count = thick.mask_kji.shape[0]
    session.apply(PromptSet({"ball": [thick]}))
    assert np.array_equal(session.mask_kji("ball"), ball_kji())
    assert len(session.prompts.of("ball")) == count
    again = np.zeros(SHAPE_KJI, bool)
    for piece in session.prompts.of("ball"):
        (k, j, i), size = piece.offset_ijk[::-1], piece.mask_kji.shape
        again[k : k + size[0], j : j + size[1], i : i + size[2]] |= piece.mask_kji
    assert np.array_equal(again, ball_kji())
    session.prompt("ball", Point((2, 2, 13), positive=False))  # corrects the mask that was given there
    pixels = session.tracker.state("ball").conditioning[13].prompt
    assert np.array_equal(pixels.mask_hw, SliceStack.along(session.volume, "axial").mask_of(ball_kji(), 13))
    session.unprompt("ball", 12)
    assert len(session.prompts.of("ball")) == count  # one mask less, one click more
    assert 12 not in {r.n for r in session.results("ball")}


def test_an_empty_mask_means_that_the_object_is_not_there(session):
    session.prompt("ball", BALL)
    result = session.prompt("ball", MaskPrompt(np.zeros((1, 4, 4), bool), (5, 5, 15)))
    assert result.n == 15 and not result.mask_hw.any()
    propagated(session, stop_after_absent=None)
    assert max(r.n for r in session.results("ball") if r.mask_hw.any()) < 15


# Undo -------------------------------------------------------------------------------------------------------

STEPS = {
    "add": lambda s: s.add_object("new"),
    "prompt": lambda s: s.prompt("ball", Point((18, 24, 12))),
    "prompt a new object": lambda s: s.prompt("new", Box((5, 5, 3), (20, 20, 3))),
    "correct a tracked slice": lambda s: s.prompt("ball", Point((2, 2, 14), positive=False)),
    "apply": lambda s: s.apply(PromptSet({"ball": [Point((20, 26, 4))], "new": [BALL]})),
    "propagate": lambda s: (s.prompt("ball", Point((20, 26, 17))), list(s.propagate())),
    "finalise": lambda s: s.finalise("ball", 13),
    "finalise a drawn mask": lambda s: s.finalise("ball", 11, a_disc((48, 40), (20, 26), 5)),
    "release": lambda s: s.release("ball", 10),
    "remove": lambda s: s.remove_object("ball"),
    "unprompt": lambda s: s.unprompt("ball", 12),
}


@pytest.fixture(scope="module")
def busy(volume, model):
    """A session in the middle of things: two prompted slices, all others tracked, one final."""
    session = Session.open(volume, model)
    session.prompt("ball", BALL)
    session.prompt("ball", Point((20, 26, 8)))
    propagated(session, first=6, last=18)
    session.finalise("ball", 10)
    return session


@pytest.mark.parametrize("step", STEPS)
def test_undo_restores_exactly_what_was(busy, step):
    before = everything(busy)
    mask = busy.mask_kji("ball")
    steps = len(busy.undo_steps)
    STEPS[step](busy)
    assert len(busy.undo_steps) > steps
    if step != "release":
        assert everything(busy) != before
    while len(busy.undo_steps) > steps:
        busy.undo()
    assert everything(busy) == before
    assert np.array_equal(busy.mask_kji("ball"), mask)


def test_what_follows_an_undo_is_what_would_have_followed(volume, model):
    one, two = Session.open(volume, model), Session.open(volume, model)
    for session in (one, two):
        session.prompt("ball", BALL)
        list(session.propagate())
    one.prompt("ball", Point((3, 3, 15)))
    list(one.propagate())
    one.undo(), one.undo()
    for session in (one, two):
        session.prompt("ball", Point((20, 26, 9), positive=False))
        list(session.propagate())
    assert everything(one) == everything(two)


def test_steps_long_ago_keep_masks_but_no_tensors_of_tracked_slices(session):
    session.prompt("ball", BALL)
    list(session.propagate(stop_after_absent=None))
    pictures = []
    for k in range(1, 8):
        pictures.append(everything(session))
        session.prompt("ball", Point((20, 26, k)))
    *old, one, two, three, four = (step.state.states for step in session._history._past)
    assert len(old) == 5
    for masks in old:
        for state in masks.values():
            assert not state.recent and not any(list(bank.memories()) for bank in state.banks)
    assert all(masks["ball"].recent for masks in (one, two, three, four))
    for picture in reversed(pictures):
        session.undo()
        assert everything(session) == picture
    assert session.prompt("ball", Point((20, 26, 5))).mask_hw.shape == (48, 40)
    assert 6 in propagated(session, stop_after_absent=None)


@pytest.mark.parametrize("step", ["unprompt", "remove", "undo"])
def test_a_slice_that_is_no_longer_prompted_has_no_claim_on_the_cache(session, step):
    session.prompt("other", Point((20, 26, 3)))
    session.prompt("ball", Point((20, 26, 3)))
    session.prompt("ball", BALL)
    pinned = session.tracker.encoder.cache._pinned

    def claims():
        return {n for _, n in pinned[session.tracker]}

    assert claims() == {3, 12}
    {
        "unprompt": lambda: session.unprompt("ball", 12),
        "remove": lambda: session.remove_object("ball"),
        "undo": session.undo,
    }[step]()
    assert claims() == {3}  # the other object's, whatever happens to this one
    session.remove_object("other")
    assert claims() == ({3} if step != "remove" else set())


def test_undo_ends_somewhere(volume, model):
    session = Session(volume, model, undo_limit=2)
    for name in "abc":
        session.add_object(name)
    assert session.undo_steps == ["add c", "add b"]
    assert [session.undo(), session.undo()] == ["add c", "add b"]
    with raises("nothing-to-undo", PromptError):
        session.undo()
    assert session.object_names == ("a",)
    never = Session(volume, model, undo_limit=0)
    never.add_object("a")
    assert never.undo_steps == []


# Propagation ------------------------------------------------------------------------------------------------


def test_propagation_reaches_every_slice_and_reports_progress(session):
    session.prompt("ball", BALL)
    progress = session.propagate(stop_after_absent=None)
    assert progress.total == 24
    counts = [progress.done for _ in progress]
    assert counts == sorted(counts) and progress.done == 24
    assert [r.n for r in session.results("ball")] == list(range(24))


def test_only_what_a_correction_can_change_is_looked_at_again(session, monkeypatch):
    for k in (3, 12, 20):
        session.prompt("ball", Box((13, 19, k), (27, 33, k)))
    propagated(session, stop_after_absent=None)
    before = {r.n: r.mask_hw for r in session.results("ball")}
    assert propagated(session, stop_after_absent=None) == []  # nothing has changed
    session.prompt("ball", Point((20, 26, 16)))
    seen = looked_at(session, monkeypatch)
    assert set(propagated(session, stop_after_absent=None)) == set(range(12, 21))
    assert seen <= set(range(12, 21)) and {13, 14, 15, 17, 18, 19} <= seen
    for result in session.results("ball"):
        if not 12 < result.n < 20:
            assert np.array_equal(result.mask_hw, before[result.n])


def test_outward_begins_at_what_was_prompted_last_and_gives_the_same_masks(volume, model):
    plain, outward = Session(volume, model), Session(volume, model)
    for one in (plain, outward):
        one.prompt("ball", BALL)
    order = [r.n for r in outward.propagate(stop_after_absent=None, outward=True)]
    assert order[:5] == [12, 13, 11, 14, 10] and sorted(order) == list(range(24))
    list(plain.propagate(stop_after_absent=None))
    assert everything(outward)[0] == everything(plain)[0]

    outward.prompt("ball", Box((13, 19, 17), (27, 33, 17)))
    order = [r.n for r in outward.propagate(stop_after_absent=None, outward=True)]
    assert order[:4] == [17, 18, 16, 19]
    assert sorted(order) == list(range(12, 24)), "only what the correction can change"


def test_every_object_is_propagated_in_its_own_range(session, monkeypatch):
    for name in ("low", "high"):
        for k in (2, 10, 14, 22):
            session.prompt(name, Box((13, 19, k), (27, 33, k)))
    propagated(session, stop_after_absent=None)
    kept = everything(session)[0]
    session.prompt("low", Point((20, 26, 4)))
    session.prompt("high", Point((20, 26, 18)))
    progress = session.propagate(stop_after_absent=None)
    assert progress.total == 9 + 9
    assert {(r.object, r.n) for r in progress} == {
        *(("low", n) for n in range(2, 11)),
        *(("high", n) for n in range(14, 23)),
    }
    now = everything(session)[0]
    assert all(now["low"][n] == kept["low"][n] for n in range(10, 24))
    assert all(now["high"][n] == kept["high"][n] for n in range(15))


def test_corrections_survive_propagation(session):
    session.prompt("ball", BALL)
    propagated(session)
    for k in (9, 15):
        session.prompt("ball", Point((20, 26, k)))
    corrected = {r.n: r.mask_hw for r in session.results("ball") if r.prompted}
    assert set(corrected) == {9, 12, 15}
    propagated(session)
    propagated(session, first=6, last=18)
    for result in session.results("ball"):
        if result.n in corrected:
            assert result.prompted and np.array_equal(result.mask_hw, corrected[result.n])


def test_final_slices_are_never_overwritten(session):
    mine = a_disc((48, 40), (20, 26), 4)
    session.prompt("ball", BALL)
    propagated(session, stop_after_absent=None)
    frozen = next(r.mask_hw for r in session.results("ball") if r.n == 15)
    session.finalise("ball", 9, mine)
    session.finalise("ball", 15)
    with raises("slice-final", PromptError, object="ball", n=9):
        session.prompt("ball", Point((20, 26, 9)))
    session.prompt("ball", Point((30, 30, 14)))
    propagated(session, stop_after_absent=None)
    propagated(session, first=8, last=16, stop_after_absent=None)
    masks = {r.n: r.mask_hw for r in session.results("ball") if r.final}
    assert set(masks) == {9, 15}
    assert np.array_equal(masks[9], mine) and np.array_equal(masks[15], frozen)


def test_a_drawn_mask_is_one_of_the_prompts(session):
    session.prompt("ball", BALL)
    mine = a_disc((48, 40), (20, 26), 4)
    session.finalise("ball", 12, mine)
    (drawn,) = session.prompts.of("ball")
    assert isinstance(drawn, MaskPrompt) and drawn.mask_kji.sum() == mine.sum()
    session.release("ball", 12)
    session.prompt("ball", Point((20, 26, 12)))
    assert np.array_equal(session.tracker.state("ball").conditioning[12].prompt.mask_hw, mine)
    session.finalise("nothing here", 3, np.zeros((48, 40), bool))
    assert not session.mask_kji("nothing here").any()
    for n, mask, code in ((99, mine, "no-such-slice"), (3, mine.T, "mask-shape")):
        with raises(code, PromptError, n=n):
            session.finalise("ball", n, mask)


def test_a_released_slice_follows_again(session):
    session.prompt("ball", BALL)
    propagated(session, stop_after_absent=None)
    session.finalise("ball", 14)
    session.release("ball", 14)
    assert 14 in propagated(session, stop_after_absent=None)
    with raises("slice-not-final", PromptError, n=14):
        session.release("ball", 14)


def test_a_late_object_does_not_disturb_the_others(session):
    session.prompt("ball", BALL)
    propagated(session)
    before = everything(session)[0]["ball"]
    session.prompt("late", Box((4, 4, 6), (14, 16, 6)))
    assert {result.object for result in session.propagate()} == {"late"}
    assert everything(session)[0]["ball"] == before
    alone = Session(session.volume, session.model)
    alone.prompt("late", Box((4, 4, 6), (14, 16, 6)))
    propagated(alone)
    assert everything(alone)[0]["late"] == everything(session)[0]["late"]
    masks = {segment.name: segment.mask_kji for segment in session.segmentation()}
    assert set(masks) == {"ball", "late"}


def test_a_cancelled_propagation_keeps_what_it_did_and_can_be_finished(volume, model):
    session, other = Session.open(volume, model), Session.open(volume, model)
    for one in (session, other):
        one.prompt("ball", BALL)
    done = []
    with pytest.raises(Cancelled):
        for result in session.propagate(stop_after_absent=None, should_cancel=lambda: len(done) >= 5):
            done.append(result.n)
    assert len(done) == 5
    assert {r.n for r in session.results("ball")} == set(done)
    session.undo()
    assert [r.n for r in session.results("ball")] == [12]
    with pytest.raises(Cancelled):
        list(session.propagate(should_cancel=lambda: len(list(session.results("ball"))) > 3))
    propagated(session, stop_after_absent=None)
    propagated(other, stop_after_absent=None)
    assert everything(session) == everything(other)


def test_one_direction_leaves_the_other_to_be_done(session):
    session.prompt("ball", BALL)
    assert propagated(session, direction="forward", stop_after_absent=None) == list(range(12, 24))
    assert set(propagated(session, direction="reverse", stop_after_absent=None)) == set(range(13))
    assert [r.n for r in session.results("ball")] == list(range(24))


def test_more_patience_goes_on_where_propagation_gave_up(session):
    session.prompt("ball", BALL)
    session.prompt("ball", MaskPrompt(np.zeros((1, 4, 4), bool), (5, 5, 15)))
    propagated(session, stop_after_absent=1)
    assert propagated(session, stop_after_absent=1) == []
    assert propagated(session, stop_after_absent=None) != []
    assert propagated(session, stop_after_absent=5) == []


def test_prompts_during_propagation_are_kept(session):
    session.prompt("ball", BALL)
    for result in session.propagate(stop_after_absent=None):
        if result.n == 20:
            session.prompt("ball", Point((20, 26, 16)))
    assert 17 in propagated(session, stop_after_absent=None)


def test_prompts_before_the_first_result_are_kept(session):
    session.prompt("ball", BALL)
    progress = session.propagate(stop_after_absent=None)
    session.prompt("ball", Point((20, 26, 16)))
    list(progress)
    assert {15, 17} <= set(propagated(session, stop_after_absent=None))
    assert propagated(session, stop_after_absent=None) == []


def test_prompts_added_to_a_slice_during_propagation_are_kept(session):
    session.prompt("ball", BALL)
    for result in session.propagate(stop_after_absent=None):
        if result.n == 20:
            session.prompt("ball", Point((2, 2, 12), positive=False))
    assert {11, 13} <= set(propagated(session, stop_after_absent=None))


@pytest.mark.parametrize("memory", ["recent", "self-sorting"])
def test_both_memories_propagate(volume, model, memory):
    session = Session.open(volume, model, memory=memory)
    session.prompt("ball", BALL)
    assert set(propagated(session, stop_after_absent=None)) == set(range(24))


def test_without_zoom_the_model_sees_whole_slices(volume, model):
    session = Session.open(volume, model, zoom="off")
    session.prompt("ball", BALL)
    list(session.propagate())
    regions = {(r.width, r.height) for r in session.tracker.state("ball").regions.values()}
    assert regions == {(40, 48)}


# Axes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal", "i", "j", "k"])
def test_masks_map_back_voxel_by_voxel(volume, model, axis):
    session = Session.open(volume, model, axis=axis)
    session.apply(PromptSet({"ball": [MaskPrompt.from_volume(ball_kji())]}))
    assert np.array_equal(session.mask_kji("ball"), ball_kji())
    n = round(float(session.stack.to_slice([(20, 26, 12)])[0, 2]))
    result = session.prompt("click", Point((20, 26, 12)))
    assert result.n == n
    mask = session.mask_kji("click")
    assert (
        np.array_equal(session.stack.mask_of(mask, n), result.mask_hw) and mask.sum() == result.mask_hw.sum()
    )


def test_an_oblique_session_keeps_masks_whole(volume, model):
    angle = np.radians(20)
    stack = SliceStack.oblique(
        volume, (-20, -24, 24), (np.cos(angle), 0, np.sin(angle)), (0, 1, 0), spacing_mm=2.0
    )
    session = Session(volume, model, stack=stack)
    ball = MaskPrompt.from_volume(ball_kji())
    session.apply(PromptSet({"ball": [ball]}))
    assert session.prompts.of("ball") == [ball]
    agreement = session.mask_kji("ball") & ball_kji()
    assert agreement.sum() > 0.9 * ball_kji().sum()


@pytest.mark.parametrize("kind", [Box, Point])
def test_the_same_prompt_in_ras_gives_the_same_mask_in_every_axis_order(shared_data, model, kind):
    paths = sorted(path for path in (shared_data / "orient").glob("*.nii.gz") if len(path.name) == 10)
    assert len(paths) == 10
    masks = {}
    for path in paths:
        volume = read_volume(path)
        geometry = volume.geometry
        centre = np.array(masks.get("centre", geometry.to_ras([np.array(geometry.shape_ijk) // 2])[0]))
        masks.setdefault("centre", centre)
        here, *corners = geometry.to_ijk(np.add(centre, [[0, 0, 0], [-18, -22, 0], [18, 22, 0]]))
        session = Session.open(volume, model)
        one = Point(tuple(here)) if kind is Point else Box.between(*map(tuple, corners))
        result = session.prompt("it", one)
        list(session.propagate(first=result.n - 2, last=result.n + 2, stop_after_absent=None))
        masks[path.name] = np.ascontiguousarray(canonical_view(session.mask_kji("it"), geometry))
    del masks["centre"]
    first, *others = masks.values()
    assert first.any()
    assert all(np.array_equal(first, other) for other in others)


# What a session tells and refuses ---------------------------------------------------------------------------


def test_a_segmentation_has_the_codes_of_its_names(session):
    session.prompt("left kidney", BALL)
    kidney = session.segmentation()["left kidney"].terminology
    assert (kidney.type.value, kidney.type_modifier.meaning) == ("64033007", "Left")


def test_a_segmentation_says_that_it_was_made_in_several_steps(session):
    session.prompt("ball", BALL)
    propagated(session, first=10, last=14)
    facts = session.segmentation().provenance
    assert "continued" not in facts and facts["propagated"] == [10, 14]
    session.prompt("ball", Point((2, 2, 12), positive=False))
    assert session.segmentation().provenance["continued"]


def test_provenance_names_no_place(tmp_path, model):
    path = write_nrrd(tmp_path / "scan.nrrd", (300 * ball_kji()).astype(np.int16))
    session = Session.open(path, model, window="400,40")
    session.prompt("ball", BALL)
    facts = session.segmentation().provenance
    assert {"prompts", "weights_key", "window", "slices", "software"} <= facts.keys()
    assert (facts["zoom"], facts["memory"]) == ("auto", "recent")
    assert (facts["device"], facts["precision"]) == ("cpu", "fp32")
    assert "MedSAM2.confidence" in session.segmentation()["ball"].tags
    text = repr(dict(facts)) + repr([dict(segment.tags) for segment in session.segmentation()])
    assert str(tmp_path) not in text and "scan.nrrd" not in text and "/" not in facts["model"]
    assert PromptSet.from_json(facts["prompts"]).of("ball") == [BALL]


@pytest.mark.parametrize(
    ("settings", "kind", "problem"),
    [
        (
            {"memory": "photographic"},
            PromptError,
            {
                "code": "unknown-memory",
                "memory": "photographic",
                "known": ["recent", "self-sorting", "prompted"],
            },
        ),
        ({"zoom": "on"}, PromptError, {"code": "unknown-zoom", "zoom": "on"}),
        (
            {"axis": "diagonal"},
            VolumeError,
            {
                "code": "unknown-axis",
                "axis": "diagonal",
                "known": ["axial", "sagittal", "coronal", "i", "j", "k"],
            },
        ),
        (
            {"window": "stained glass"},
            VolumeError,
            {
                "code": "unknown-window",
                "text": "stained glass",
                "presets": ["abdomen", "lung", "brain", "mediastinum", "bone"],
            },
        ),
        ({"model": "sam3", "device": "cpu"}, MedSAM2Error, {"code": "unknown-model", "model": "sam3"}),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_the_choices(volume, model, settings, kind, problem):
    with raises(**problem, error_type=kind):
        Session.open(volume, **{"model": model, **settings})


@pytest.mark.parametrize(
    ("does", "code"),
    [
        (lambda s: s.propagate(), "nothing-to-propagate"),
        (lambda s: s.propagate(["liver"]), "unknown-object"),
        (lambda s: s.mask_kji("liver"), "unknown-object"),
        (lambda s: s.remove_object("liver"), "unknown-object"),
        (lambda s: s.unprompt("liver", 3), "unknown-object"),
        (lambda s: s.finalise("liver", 3), "unknown-object"),
        (lambda s: (s.add_object("a"), s.add_object("a")), "object-exists"),
        (lambda s: (s.prompt("a", BALL), s.unprompt("a", 3)), "no-prompts"),
        (lambda s: (s.prompt("a", BALL), s.propagate([])), "nothing-to-propagate"),
        (lambda s: (s.prompt("a", BALL), s.propagate(direction="up")), "unknown-direction"),
        (lambda s: (s.prompt("a", BALL), s.propagate(first=9, last=3)), "empty-range"),
        (lambda s: (s.prompt("a", BALL), s.propagate(last=24)), "no-such-slice"),
    ],
)
def test_what_makes_no_sense_is_refused(session, does, code):
    with raises(code, PromptError):
        does(session)


def test_an_object_without_prompts_has_an_empty_mask(session):
    session.add_object("later")
    assert not session.mask_kji("later").any()
    assert list(session.results("later")) == []
    assert session.segmentation().names == ("later",)
