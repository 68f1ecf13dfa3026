"""What is typed becomes the prompts that were meant."""

import json

import numpy as np
import pytest
from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.imaging.geometry import Geometry, Space
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point, PromptSet
from medsam2_core.prompts.slice_prompts import resolve
from medsam2_core.prompts.text import (
    UNNAMED,
    PromptSpace,
    collect_prompts,
    length_mm,
    parse_box,
    parse_box3d,
    parse_line,
    parse_point,
    parse_range,
    read_mask,
)
from medsam2_core.session.object_facts import diameter_facts
from support.command_line import ball_kji, write_nrrd
from support.errors import raises

# i to Left, j to Posterior, k to Superior; 1 x 1 x 2 mm, as `write_nrrd` stores it.
GEOMETRY = Geometry.from_lps([[1, 0, 0, -10], [0, 1, 0, 5], [0, 0, 2, 100], [0, 0, 0, 1]], (40, 48, 24))


def prompt_space(axis: str = "axial", space: str = "ijk", geometry: Geometry = GEOMETRY) -> PromptSpace:
    voxels = np.zeros(geometry.shape_ijk[::-1], dtype=np.int16)
    return PromptSpace(AxisStack(Volume(voxels, geometry), axis), Space.named(space))


@pytest.mark.parametrize(
    ("axis", "text", "expected"),
    [
        ("axial", "13,19,27,33@12", Box((13, 19, 12), (27, 33, 12))),
        ("sagittal", "19,8,33,16@20", Box((20, 19, 8), (20, 33, 16))),
        ("coronal", "13,8,27,16@26", Box((13, 26, 8), (27, 26, 16))),
        ("k", "13,19,27,33@12", Box((13, 19, 12), (27, 33, 12))),
        ("axial", "13,19,12,27,33,12", Box((13, 19, 12), (27, 33, 12))),
        ("axial", "27,19,13,33@12", Box((13, 19, 12), (27, 33, 12))),
        ("axial", "27,33,13,19@12", Box((13, 19, 12), (27, 33, 12))),
        ("sagittal", "20,33,8,20,19,16", Box((20, 19, 8), (20, 33, 16))),
        ("axial", " 1.5, 2 ,3.25,4e0 @ 0", Box((1.5, 2, 0), (3.25, 4, 0))),
    ],
)
def test_a_box_lies_on_the_slice_of_the_chosen_axis(axis, text, expected):
    assert parse_box(text, prompt_space(axis)) == expected


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("space", ["ras", "lps"])
def test_a_box_in_millimetres_is_the_same_box(axis, space):
    in_ijk = prompt_space(axis)
    wanted = parse_box("19,8,33,16@20" if axis == "sagittal" else "13,8,27,16@12", in_ijk)
    in_mm = prompt_space(axis, space)
    first, last = GEOMETRY.ijk_to([wanted.first_ijk, wanted.last_ijk], space)
    plane = [str(corner[axis]) for corner in (first, last) for axis in in_mm.in_plane]
    found = parse_box(f"{','.join(plane)}@{first[in_mm.across]}", in_mm)
    assert np.allclose([found.first_ijk, found.last_ijk], [wanted.first_ijk, wanted.last_ijk])


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("space", ["ras", "lps"])
def test_diameters_and_3d_boxes_in_millimetres_are_the_same(axis, space):
    in_ijk, in_mm = prompt_space(axis), prompt_space(axis, space)
    wanted = parse_line("13,9,27,13,18,14,21,8@20", in_ijk)
    assert length_mm(wanted[0], in_ijk) > length_mm(wanted[1], in_ijk)
    ends = GEOMETRY.ijk_to(np.concatenate(wanted), space)
    plane = ",".join(str(end[a]) for end in ends for a in in_mm.in_plane)
    assert np.allclose(parse_line(f"{plane}@{ends[0][in_mm.across]}", in_mm), wanted)
    corners = GEOMETRY.ijk_to([(3, 5, 7), (30, 40, 20)], space)
    text = ",".join(str(value) for value in corners.ravel())
    assert np.allclose(parse_box3d(text, in_mm), [(3, 5, 7), (30, 40, 20)])


def test_a_line_on_the_middle_slice_of_a_3d_box_takes_the_place_of_its_box():
    space, line = prompt_space(), ("line", "13,26,27,26,20,20,20,32@12")
    alone = collect_prompts([line], None, space).of(UNNAMED)
    for given in ([line, ("box3d", "10,16,9,30,36,15")], [("box3d", "10,16,9,30,36,15"), line]):
        assert collect_prompts(given, None, space).of(UNNAMED) == alone
    both = collect_prompts([line, ("box3d", "10,16,7,30,36,11")], None, space)
    assert len(both.of(UNNAMED)) == 2


def test_the_longer_line_is_the_longest_diameter_whatever_the_order():
    space = prompt_space()
    assert parse_line("20,20,20,32,13,26,27,26@12", space) == parse_line("13,26,27,26,20,20,20,32@12", space)


@pytest.mark.parametrize("codes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_box_in_millimetres_is_the_same_pixels_in_every_storage_order(codes):
    """The same anatomy with its array axes in another order: the same pixels of the same slice."""
    answers = []
    for order in ((0, 1, 2), codes):
        to_lps = GEOMETRY.ijk_to_lps.copy()
        to_lps[:, :3] = to_lps[:, list(order)]
        shape = tuple(GEOMETRY.shape_ijk[axis] for axis in order)
        space = prompt_space("axial", "ras", Geometry.from_lps(to_lps, shape))
        prompt = parse_box("-17,-38,-3,-24@124", space)
        answers.append({n: p.box_xyxy.tolist() for n, p in resolve([prompt], space.stack).items()})
    assert answers[0] == answers[1]
    assert list(answers[0]) == [12]


@pytest.mark.parametrize(
    ("text", "positive"), [("5,6,7", True), ("5,6,7,+", True), ("5,6,7,-", False), ("5,6,7, - ", False)]
)
def test_a_point_is_positive_unless_marked_otherwise(text, positive):
    assert parse_point(text, prompt_space()) == Point((5, 6, 7), positive)


def test_a_negative_coordinate_is_not_an_option():
    assert np.allclose(parse_point("-10,-26,124", prompt_space(space="ras")).ijk, (20, 21, 12))


@pytest.mark.parametrize(
    ("axis", "space", "text", "expected"),
    [
        ("axial", "ijk", "3:9", (3, 9)),
        ("axial", "ijk", ":9", (None, 9)),
        ("axial", "ijk", "9:", (9, None)),
        ("axial", "ijk", ":", (None, None)),
        ("axial", "ras", "106:118", (3, 9)),
        ("sagittal", "ijk", "30:", (30, None)),
        # Sagittal slices run to Left, R of RAS to the Right.
        ("sagittal", "ras", "-20:", (None, 30)),
        ("sagittal", "ras", ":-20", (30, None)),
        ("sagittal", "lps", "20:", (30, None)),
    ],
)
def test_a_range_counts_as_the_slice_of_a_box_does(axis, space, text, expected):
    assert parse_range(text, prompt_space(axis, space)) == expected


def test_prompts_belong_to_the_object_before_them():
    given = [
        ("object", "liver"), ("box", "1,1,9,9@3"), ("point", "4,4,3,-"),
        ("object", "spleen"), ("point", "20,20,5"),
        ("object", "liver"), ("point", "5,5,3"),
    ]  # fmt: skip
    found = collect_prompts(given, None, prompt_space())
    assert found.names == ("liver", "spleen")
    assert found.of("liver") == [Box((1, 1, 3), (9, 9, 3)), Point((4, 4, 3), False), Point((5, 5, 3))]
    assert found.of("spleen") == [Point((20, 20, 5))]


def test_prompts_before_the_first_object_are_its_own():
    found = collect_prompts([("box", "1,1,9,9@3"), ("object", "liver")], None, prompt_space())
    assert found.names == ("liver",)


def test_without_a_name_the_object_is_called_object():
    assert collect_prompts([("box", "1,1,9,9@3")], None, prompt_space()).names == (UNNAMED,)


def test_prompts_join_the_only_object_of_the_file():
    from_file = PromptSet()
    from_file.add("kidney", Box((1, 1, 3), (9, 9, 3)))
    assert collect_prompts([("point", "4,4,3")], from_file, prompt_space()).names == ("kidney",)


def test_with_several_objects_in_the_file_one_must_be_named():
    from_file = PromptSet()
    from_file.add("kidney", Point((1, 1, 3)))
    from_file.add("liver", Point((1, 1, 3)))
    with raises("object-ambiguous", objects=["kidney", "liver"]):
        collect_prompts([("point", "4,4,3")], from_file, prompt_space())


def test_a_mask_is_the_label_of_the_objects_name(tmp_path):
    labels = ball_kji().astype(np.uint8)
    labels[0, :3, :3] = 2
    file = write_nrrd(tmp_path / "labels.nrrd", labels)
    space = prompt_space()
    prompt = read_mask(file, "1", space)
    assert prompt.mask_kji.sum() == ball_kji().sum()
    with raises("mask-label-ambiguous", labels=["1", "2"], object="liver"):
        read_mask(file, "liver", space)


def test_the_only_label_of_a_mask_needs_no_name(tmp_path):
    file = write_nrrd(tmp_path / "labels.nrrd", ball_kji().astype(np.uint8))
    assert read_mask(file, "liver", prompt_space()).mask_kji.sum() == ball_kji().sum()


def test_a_mask_on_another_grid_is_refused(tmp_path):
    file = write_nrrd(tmp_path / "labels.nrrd", np.ones((3, 4, 5), dtype=np.uint8))
    with raises("mask-on-other-grid", PromptError, path=str(file)):
        read_mask(file, "liver", prompt_space())


@pytest.mark.parametrize(
    ("option", "text", "code", "reason"),
    [
        ("box", "1,2,3@4", "prompt-syntax", "3 numbers instead of 4: write i0,j0,i1,j1@k"),
        ("box", "1,2,3,4", "prompt-syntax", "4 numbers instead of 6"),
        ("box", "1,2,three,4@5", "prompt-syntax", "'three' is not a number"),
        ("box", "1,2,3,4@", "prompt-syntax", "'' is not a number"),
        ("box", "3,3,3,3@5", "", "empty"),
        ("box", "nan,2,3,4@5", "prompt-syntax", "finite"),
        ("box", "1,2,inf,4@5", "prompt-syntax", "finite"),
        ("point", "1,2", "prompt-syntax", "2 numbers instead of 3"),
        ("point", "1,2,3,4", "prompt-syntax", "4 numbers instead of 3"),
        ("point", "1,2,x", "prompt-syntax", "'x' is not a number"),
        ("object", " ", "", "give a name"),
        ("object", "liver", "object-without-prompt", "'liver'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(option, text, code, reason):
    with pytest.raises(PromptError) as refusal:
        collect_prompts([(option, text)], None, prompt_space())
    assert not code or refusal.value.code == code
    assert reason in str(refusal.value)


@pytest.mark.parametrize("text", ["3", "a:b", "-5:3", "3:24", "1:2:3", "9:3"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(PromptError) as refusal:
        parse_range(text, prompt_space())
    assert refusal.value.code in ("range-syntax", "range-outside-volume", "prompt-syntax", "range-reversed")


def test_no_prompt_is_refused():
    with raises("no-prompt"):
        collect_prompts([], None, prompt_space())


def test_whatever_is_typed_it_is_taken_or_refused_in_one_line(campaign, record_property):
    """Random words made of what prompts are made of never end in another error than ours."""
    rng = np.random.default_rng(5)
    letters = list("0123456789,,,,auto.-+eE:ninfa ")
    taken = 0
    record_property("mutated inputs", 500 * campaign)
    for _ in range(500 * campaign):
        text = "".join(rng.choice(letters, size=rng.integers(1, 24)))
        option = str(rng.choice(["box", "point", "line", "box3d"]))
        try:
            collect_prompts(
                [(option, text)], None, prompt_space(str(rng.choice(["axial", "i", "coronal"])), "ras")
            )
            taken += 1
        except MedSAM2Error as error:
            assert "\n" not in str(error)
        try:
            parse_range(text, prompt_space())
        except MedSAM2Error as error:
            assert "\n" not in str(error)
    assert taken < 500 * campaign


def test_a_prompt_file_written_by_one_run_is_read_by_the_next():
    found = collect_prompts(
        [("object", "a"), ("box", "1,1,9,9@3"), ("point", "4,4,3,-")], None, prompt_space()
    )
    again = PromptSet.from_json(found.to_json("ras", GEOMETRY), GEOMETRY)
    assert json.loads(found.to_json())["objects"][0]["name"] == "a"
    assert (
        resolve(again.of("a"), prompt_space().stack).keys()
        == resolve(found.of("a"), prompt_space().stack).keys()
    )


def test_a_3d_box_in_millimetres_holds_its_eight_corners_in_a_turned_volume():
    turn = np.eye(4)
    turn[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    geometry = Geometry(turn, (80, 80, 20))
    space = prompt_space("axial", "ras", geometry)
    x, y, z = geometry.to_ras([[40, 40, 10]])[0]
    low, high = parse_box3d(f"{x - 10},{y - 6},{z - 3},{x + 10},{y + 6},{z + 3}", space)
    reach = 16 / np.sqrt(2)
    assert np.allclose([low, high], [(40 - reach, 40 - reach, 7), (40 + reach, 40 + reach, 13)])
    low, high = parse_box3d(f"{x - 10},{y - 10},{z},{x + 10},{y + 10},{z}", space)
    assert high[0] - low[0] == pytest.approx(20 * np.sqrt(2)), "its diagonal runs along an axis of the array"


@pytest.mark.parametrize(("axis", "number"), [("sagittal", 20), ("coronal", 26), ("axial", 12)])
def test_diameters_are_measured_in_the_plane_they_are_drawn_in(axis, number):
    space = prompt_space(axis)
    on_slice = np.zeros(ball_kji().shape, bool)
    chosen = tuple(number if 2 - a == space.across else slice(None) for a in range(3))
    on_slice[chosen] = ball_kji()[chosen]
    segmentation = Segmentation(GEOMETRY, (Segment("ball", (1, 0, 0), on_slice),))
    facts = diameter_facts(segmentation, "ball", {"ball": [14.0]}, space.stack)
    assert facts["drawn_mm"] == [14]
    assert np.allclose(facts["diameters_mm"], 14.3, atol=1.5), facts
    assert diameter_facts(segmentation, "ball", {}, space.stack)["diameters_mm"] == []
