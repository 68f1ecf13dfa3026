"""What is typed becomes the prompts that were meant."""

import json

import numpy as np
import pytest
from medsam2_core.cli.prompt_options import UNNAMED, Frame, box, collect, mask, point, slice_range
from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.imaging.geometry import Geometry, Space
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point, PromptSet, resolve
from support.command_line import ball_kji, write_nrrd

# i to Left, j to Posterior, k to Superior; 1 x 1 x 2 mm, as `write_nrrd` stores it.
GEOMETRY = Geometry.from_lps([[1, 0, 0, -10], [0, 1, 0, 5], [0, 0, 2, 100], [0, 0, 0, 1]], (40, 48, 24))


def a_frame(axis: str = "axial", space: str = "ijk", geometry: Geometry = GEOMETRY) -> Frame:
    voxels = np.zeros(geometry.shape_ijk[::-1], dtype=np.int16)
    return Frame(AxisStack(Volume(voxels, geometry), axis), Space.named(space))


@pytest.mark.parametrize(
    ("axis", "text", "expected"),
    [
        ("axial", "13,19,27,33@12", Box((13, 19, 12), (27, 33, 12))),
        ("sagittal", "19,8,33,16@20", Box((20, 19, 8), (20, 33, 16))),
        ("coronal", "13,8,27,16@26", Box((13, 26, 8), (27, 26, 16))),
        ("k", "13,19,27,33@12", Box((13, 19, 12), (27, 33, 12))),
        ("axial", "13,19,12,27,33,12", Box((13, 19, 12), (27, 33, 12))),
        ("axial", " 1.5, 2 ,3.25,4e0 @ 0", Box((1.5, 2, 0), (3.25, 4, 0))),
    ],
)
def test_a_box_lies_on_the_slice_of_the_chosen_axis(axis, text, expected):
    assert box(text, a_frame(axis)) == expected


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("space", ["ras", "lps"])
def test_a_box_in_millimetres_is_the_same_box(axis, space):
    in_ijk = a_frame(axis)
    wanted = box("19,8,33,16@20" if axis == "sagittal" else "13,8,27,16@12", in_ijk)
    frame = a_frame(axis, space)
    first, last = GEOMETRY.ijk_to([wanted.first_ijk, wanted.last_ijk], space)
    plane = [str(corner[axis]) for corner in (first, last) for axis in frame.in_plane]
    found = box(f"{','.join(plane)}@{first[frame.across]}", frame)
    assert np.allclose([found.first_ijk, found.last_ijk], [wanted.first_ijk, wanted.last_ijk])


@pytest.mark.parametrize("codes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_box_in_millimetres_is_the_same_pixels_in_every_storage_order(codes):
    """The same anatomy with its array axes in another order: the same pixels of the same slice."""
    answers = []
    for order in ((0, 1, 2), codes):
        to_lps = GEOMETRY.ijk_to_lps.copy()
        to_lps[:, :3] = to_lps[:, list(order)]
        shape = tuple(GEOMETRY.shape_ijk[axis] for axis in order)
        frame = a_frame("axial", "ras", Geometry.from_lps(to_lps, shape))
        prompt = box("-17,-38,-3,-24@124", frame)
        answers.append({n: p.box_xyxy.tolist() for n, p in resolve([prompt], frame.stack).items()})
    assert answers[0] == answers[1]
    assert list(answers[0]) == [12]


@pytest.mark.parametrize(
    ("text", "positive"), [("5,6,7", True), ("5,6,7,+", True), ("5,6,7,-", False), ("5,6,7, - ", False)]
)
def test_a_point_is_on_the_object_unless_it_says_otherwise(text, positive):
    assert point(text, a_frame()) == Point((5, 6, 7), positive)


def test_a_negative_coordinate_is_not_an_option():
    assert np.allclose(point("-10,-26,124", a_frame(space="ras")).ijk, (20, 21, 12))


@pytest.mark.parametrize(
    ("axis", "space", "text", "expected"),
    [
        ("axial", "ijk", "3:9", (3, 9)),
        ("axial", "ijk", "9:3", (3, 9)),
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
    assert slice_range(text, a_frame(axis, space)) == expected


def test_prompts_belong_to_the_object_before_them():
    given = [
        ("object", "liver"), ("box", "1,1,9,9@3"), ("point", "4,4,3,-"),
        ("object", "spleen"), ("point", "20,20,5"),
        ("object", "liver"), ("point", "5,5,3"),
    ]  # fmt: skip
    found = collect(given, None, a_frame())
    assert found.names == ("liver", "spleen")
    assert found.of("liver") == [Box((1, 1, 3), (9, 9, 3)), Point((4, 4, 3), False), Point((5, 5, 3))]
    assert found.of("spleen") == [Point((20, 20, 5))]


def test_prompts_before_the_first_object_are_its_own():
    found = collect([("box", "1,1,9,9@3"), ("object", "liver")], None, a_frame())
    assert found.names == ("liver",)


def test_without_a_name_the_object_is_called_object():
    assert collect([("box", "1,1,9,9@3")], None, a_frame()).names == (UNNAMED,)


def test_prompts_join_the_only_object_of_the_file():
    from_file = PromptSet()
    from_file.add("kidney", Box((1, 1, 3), (9, 9, 3)))
    assert collect([("point", "4,4,3")], from_file, a_frame()).names == ("kidney",)


def test_with_several_objects_in_the_file_one_has_to_say_whose():
    from_file = PromptSet()
    from_file.add("kidney", Point((1, 1, 3)))
    from_file.add("liver", Point((1, 1, 3)))
    with pytest.raises(PromptError, match=r"kidney, liver.*--object"):
        collect([("point", "4,4,3")], from_file, a_frame())


def test_a_mask_is_the_label_of_the_objects_name(tmp_path):
    labels = ball_kji().astype(np.uint8)
    labels[0, :3, :3] = 2
    file = write_nrrd(tmp_path / "labels.nrrd", labels)
    frame = a_frame()
    prompt = mask(file, "1", frame)
    assert prompt.mask_kji.sum() == ball_kji().sum()
    with pytest.raises(PromptError, match=r"2 labels \(1, 2\).*--object"):
        mask(file, "liver", frame)


def test_the_only_label_of_a_mask_needs_no_name(tmp_path):
    file = write_nrrd(tmp_path / "labels.nrrd", ball_kji().astype(np.uint8))
    assert mask(file, "liver", a_frame()).mask_kji.sum() == ball_kji().sum()


def test_a_mask_on_another_grid_is_refused(tmp_path):
    file = write_nrrd(tmp_path / "labels.nrrd", np.ones((3, 4, 5), dtype=np.uint8))
    with pytest.raises(PromptError, match=r"\(5, 4, 3\) voxels.* not lie on .*\(40, 48, 24\)"):
        mask(file, "liver", a_frame())


@pytest.mark.parametrize(
    ("option", "text", "reason"),
    [
        ("box", "1,2,3@4", "3 numbers instead of 4: write i0,j0,i1,j1@k"),
        ("box", "1,2,3,4", "4 numbers instead of 6"),
        ("box", "1,2,three,4@5", "'three' is not a number"),
        ("box", "1,2,3,4@", "'' is not a number"),
        ("box", "9,2,3,4@5", "inverted"),
        ("box", "3,3,3,3@5", "empty"),
        ("box", "nan,2,3,4@5", "finite"),
        ("box", "1,2,inf,4@5", "finite"),
        ("point", "1,2", "2 numbers instead of 3"),
        ("point", "1,2,3,4", "4 numbers instead of 3"),
        ("point", "1,2,x", "'x' is not a number"),
        ("object", " ", "give a name"),
        ("object", "liver", "has no prompt"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(option, text, reason):
    with pytest.raises(PromptError) as refusal:
        collect([(option, text)], None, a_frame())
    assert reason in str(refusal.value)


@pytest.mark.parametrize("text", ["3", "a:b", "-5:3", "3:24", "1:2:3"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(PromptError, match=f"--range {text}"):
        slice_range(text, a_frame())


def test_nothing_said_is_refused():
    with pytest.raises(PromptError, match="nothing says what to segment"):
        collect([], None, a_frame())


def test_whatever_is_typed_it_is_taken_or_refused_in_one_line(campaign):
    """Random words made of what prompts are made of never end in another error than ours."""
    rng = np.random.default_rng(5)
    letters = list("0123456789,,,,@@.-+eE:ninfa ")
    taken = 0
    for _ in range(500 * campaign):
        text = "".join(rng.choice(letters, size=rng.integers(1, 24)))
        option = str(rng.choice(["box", "point"]))
        try:
            collect([(option, text)], None, a_frame(str(rng.choice(["axial", "i", "coronal"])), "ras"))
            taken += 1
        except MedSAM2Error as error:
            assert "\n" not in str(error)
        try:
            slice_range(text, a_frame())
        except MedSAM2Error as error:
            assert "\n" not in str(error)
    assert taken < 500 * campaign


def test_a_prompt_file_written_by_one_run_is_read_by_the_next():
    found = collect([("object", "a"), ("box", "1,1,9,9@3"), ("point", "4,4,3,-")], None, a_frame())
    again = PromptSet.from_json(found.to_json("ras", GEOMETRY), GEOMETRY)
    assert json.loads(found.to_json())["objects"][0]["name"] == "a"
    assert resolve(again.of("a"), a_frame().stack).keys() == resolve(found.of("a"), a_frame().stack).keys()
