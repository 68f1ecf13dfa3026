"""`medsam2 segment` from an existing segment, a 3-D box or diameters, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
from medsam2_core.cli.earlier_scans import OtherScans
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.imaging.segmentation import Segment
from support.command_line import (
    BALL_BOX,
    ball_kji,
    write_nrrd,
    write_scan,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan, and a label map: 1 on few slices only, 2 the ball."""
    folder = tmp_path_factory.mktemp("given")
    write_scan(folder / "scan.nrrd")
    labels = 2 * ball_kji().astype(np.uint8)
    labels[12:14, :4, :4] = 1
    write_nrrd(folder / "labels.nrrd", labels)
    return folder


@pytest.fixture
def segment(medsam2, model, folder, tmp_path):
    def run(*words, out=tmp_path / "out.seg.nrrd"):
        start = ("segment", folder / "scan.nrrd", "--model", model, "--out", out)
        return medsam2(*start, *words, "--json")

    run.out = tmp_path / "out.seg.nrrd"
    return run


def test_kept_slices_stay_gaps_are_filled_and_nothing_else(medsam2, model, segment, folder):
    words = (
        "--object",
        "ball",
        "--mask",
        f"{folder / 'labels.nrrd'}:2",
        "--keep",
        "every:4",
        "--fill-between",
    )
    answer = segment(*words)
    assert answer.code == 0, answer.err
    found, ball = read_segmentation(segment.out), ball_kji()
    mask = found["ball"].mask_kji
    first, last = np.flatnonzero(ball.any((1, 2)))[[0, -1]]
    for k in (first, first + 4, last):
        assert np.array_equal(mask[k], ball[k])
    assert not mask[:first].any() and not mask[last + 1 :].any()
    assert mask[first + 1].any(), "a gap"
    assert found.provenance["limits"] == {"ball": [first, last]}
    again = medsam2("replay", segment.out, folder / "scan.nrrd", "--model", model, "--json")
    assert again.facts["identical"], again.out


def test_the_whole_segment_is_kept_when_nothing_else_is_said(segment, folder):
    words = ("--object", "2", "--mask", folder / "labels.nrrd", "--fill-between")
    answer = segment(*words)
    assert answer.code == 0, answer.err
    assert np.array_equal(read_segmentation(segment.out)["2"].mask_kji, ball_kji())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--mask", "LABELS:2", "--keep", "some"), "unknown-keep"),
        (("--box", BALL_BOX, "--keep", "ends"), "needs-mask"),
        (("--box", BALL_BOX, "--fill-between"), "nothing-between"),
        (("--mask", "LABELS:3"), "mask-label-ambiguous"),
        (("--mask", "LABELS"), "mask-label-ambiguous"),
        (("--box3d", "1,1,1,9,9"), "prompt-syntax"),
        (("--box3d", "1,1,1,9,9,99"), "outside-volume"),
        (("--box3d", "1,1,1,9,9,9", "--box3d", "1,1,1,9,9,9"), "two-boxes"),
        (("--box3d", "1,1,1,9,9,9", "--point", "4,4,12"), "prompt-outside-range"),
        (("--line", "1,1,9,9"), "prompt-syntax"),
        (("--line", "1,1,9,9,3@4"), "prompt-syntax"),
        (("--line", "1,1,9,9@"), "prompt-syntax"),
        (("--line", "1,1,99,9@4"), "outside-volume"),
        (("--line", "1,1,1.2,1@4"), "line-too-short"),
        (("--line", "5,5,25,5,5,15,20,15@4"), "diameters-apart"),
        (("--line", "5,5,25,5,30,2,30,12@4"), "diameters-apart"),
    ],
)
def test_what_cannot_be_meant_is_refused(segment, folder, words, code):
    answer = segment(*(word.replace("LABELS", str(folder / "labels.nrrd")) for word in words))
    assert (answer.code, answer.error.code) == (2, code)
    assert not segment.out.exists()


def test_a_3d_box_limits_its_object_alone(medsam2, model, segment, folder):
    words = ("--object", "ball", "--box3d", "13,19,9,27,33,15", "--object", "corner", "--point", "5,6,12")
    answer = segment(*words)
    assert answer.code == 0, answer.err
    found = read_segmentation(segment.out)
    slices = np.flatnonzero(found["ball"].mask_kji.any((1, 2)))
    assert slices.min() >= 9 and slices.max() <= 15
    assert found.provenance["limits"] == {"ball": [9, 15]}
    again = medsam2("replay", segment.out, folder / "scan.nrrd", "--model", model, "--json")
    assert again.facts["identical"], again.out

    corrected = segment.out.with_name("corrected.seg.nrrd")
    words = ("--continue", segment.out, "--object", "ball", "--point", "20,26,14")
    assert segment(*words, out=corrected).code == 0
    slices = np.flatnonzero(read_segmentation(corrected)["ball"].mask_kji.any((1, 2)))
    assert slices.min() >= 9 and slices.max() <= 15, "the limits of the result still hold"


def test_diameters_are_drawn_and_measured(medsam2, model, segment, folder):
    words = ("--object", "ball", "--line", "13,26,27,26,20,20,20,32@12", "--range", "10:14")
    answer = segment(*words)
    assert answer.code == 0, answer.err
    (ball,) = answer.facts["objects"]
    assert ball["drawn_mm"] == [14, 12]
    assert len(ball["diameters_mm"]) == 2
    stored = read_segmentation(segment.out).provenance["prompts"]
    assert '"box"' in (stored if isinstance(stored, str) else str(stored).replace("'", '"'))
    start = ("segment", folder / "scan.nrrd", "--model", model)
    said = medsam2(*start, *words, "--out", segment.out, "--overwrite").out
    assert re.search(r"ball: diameters [\d.]+ x [\d.]+ mm, drawn 14\.0 x 12\.0 mm", said)


def test_diameters_of_a_picture_are_pixels_on_its_only_slice(medsam2, model, photo, results):
    out = results / "ball.seg.nrrd"
    words = ("segment", photo, "--model", model, "--line", "13,26,27,26,20,20,20,32", "--out", out)
    said = medsam2(*words)
    assert said.code == 0, said.err
    assert re.search(r"object: diameters [\d.]+ x [\d.]+ pixels, drawn 14\.0 x 12\.0 pixels", said.out)
    (ball,) = medsam2(*words, "--overwrite", "--json").facts["objects"]
    assert (ball["drawn_mm"], ball["diameters_mm"], ball["drawn_pixels"]) == (None, None, [14, 12])
    assert re.search(r"spacing +not known", medsam2("info", out).out)
    assert medsam2("info", out, "--json").facts["known_spacing"] == "none"


def test_methods_tell_what_prompts_were_made_of(medsam2, segment, folder):
    words = ("--object", "ball", "--mask", f"{folder / 'labels.nrrd'}:2", "--keep", "ends", "--fill-between")
    words += ("--object", "corner", "--line", "3,6,9,6@12", "--box3d", "2,2,10,10,10,13", "--no-overlap")
    assert segment(*words).code == 0
    said = medsam2("methods", segment.out).out
    for text in ("measured diameters", "3-D box", "(ends)", "between prompted ones", "higher logit"):
        assert text in said
    assert "set for ball and corner" in said
    assert segment("--object", "ball", "--box", BALL_BOX, "--range", "12:12", "--overwrite").code == 0
    said = medsam2("methods", segment.out).out
    for text in ("diameters", "3-D", "ends", "between", "logit", "set for"):
        assert text not in said


def test_objects_may_be_kept_apart(medsam2, model, segment, folder):
    words = ("--object", "left", "--box", "8,14,24,34@12", "--object", "right", "--box", "16,16,33,36@12")
    assert segment(*words, "--range", "11:13").code == 0
    free = read_segmentation(segment.out)
    apart = segment.out.with_name("apart.seg.nrrd")
    assert segment(*words, "--range", "11:13", "--no-overlap", out=apart).code == 0
    found = read_segmentation(apart)
    tracked = [11, 13]
    assert (free["left"].mask_kji & free["right"].mask_kji)[tracked].any()
    assert not (found["left"].mask_kji & found["right"].mask_kji)[tracked].any()
    again = medsam2("replay", apart, folder / "scan.nrrd", "--model", model, "--json")
    assert again.facts["identical"], again.out


def test_the_file_of_a_label_is_never_written_over(segment, folder):
    labels = folder / "labels.nrrd"
    before = labels.read_bytes()
    answer = segment("--mask", f"{labels}:2", "--overwrite", out=labels)
    assert answer.code == 2
    assert labels.read_bytes() == before


def edited(path, changed, tags=None, **masks_kji):
    """Write a result again with other masks, and other tags of what it was made from."""
    from medsam2_core import export

    given = read_segmentation(path)
    segments = tuple(
        Segment(one.name, one.colour_rgb, masks_kji.get(one.name, one.mask_kji), tags=one.tags)
        for one in given
    )
    export.write(replace(given, segments=segments, provenance={**given.provenance, **(tags or {})}), changed)
    return changed


def test_corrections_keep_to_the_limits_and_leave_other_objects_alone(segment, folder):
    two = ("--object", "ball", "--box3d", "13,19,6,27,33,16", "--object", "corner", "--point", "5,6,12")
    assert segment(*two, "--range", "4:18").code == 0
    mask = read_segmentation(segment.out)["ball"].mask_kji.copy()
    assert mask[9].any()
    mask[14], mask[20, :4, :4] = 0, True
    mask[14, 20:24, 20:24] = True
    result = edited(segment.out, segment.out.with_name("edited.seg.nrrd"), ball=mask)
    other, narrow = (segment.out.with_name(f"{name}.seg.nrrd") for name in ("other", "narrow"))

    words = ("--continue", result, "--object", "corner", "--point", "6,7,12")
    assert segment(*words, out=other).code == 0
    found = read_segmentation(other)
    assert np.array_equal(found["ball"].mask_kji, mask), "unchanged"
    assert found.provenance["limits"] == {"ball": [6, 16]}

    words = ("--continue", result, "--object", "ball", "--box3d", "13,19,10,27,33,12")
    assert segment(*words, out=narrow).code == 0
    found = read_segmentation(narrow)
    slices = np.flatnonzero(found["ball"].mask_kji.any((1, 2)))
    assert set(slices) <= {10, 11, 12, 20}, "within the new limits, and what was drawn beyond the old ones"
    assert 20 in slices
    assert found.provenance["limits"] == {"ball": [10, 12]}


@pytest.mark.parametrize(
    "tags",
    [
        {"limits": {"object": 3}},
        {"limits": {"object": [1, "b"]}},
        {"limits": {"object": [9, 3]}},
        {"limits": [1, 2]},
        {"propagated": ["a", None]},
    ],
)
def test_damaged_limits_of_a_result_are_refused(segment, folder, tags):
    if not segment.out.exists():
        assert segment("--box", BALL_BOX, "--range", "11:13").code == 0
    damaged = edited(segment.out, segment.out.with_name("damaged.seg.nrrd"), tags)
    words = ("--continue", damaged, "--point", "20,26,12,-")
    answer = segment(*words, out=segment.out.with_name("new.seg.nrrd"))
    assert answer.refused("stored-range", path=str(damaged), tag=next(iter(tags)))


def test_what_has_nothing_between_is_refused_before_any_search(segment, folder, monkeypatch):
    monkeypatch.setattr(OtherScans, "find_in", lambda *_: pytest.fail("searched"))
    like = ("--like", folder / "scan.nrrd", folder / "labels.nrrd")
    answer = segment("--object", "ball", "--box", BALL_BOX, "--fill-between", *like)
    assert answer.refused("nothing-between", object="ball")


def test_a_mask_of_which_the_ends_are_kept_ends_there(medsam2, segment, folder):
    words = ("--object", "ball", "--mask", f"{folder / 'labels.nrrd'}:2", "--keep", "ends")
    assert segment(*words).code == 0
    first, last = np.flatnonzero(ball_kji().any((1, 2)))[[0, -1]]
    slices = np.flatnonzero(read_segmentation(segment.out)["ball"].mask_kji.any((1, 2)))
    assert (slices.min(), slices.max()) == (first, last)
    assert "Only slices between prompted ones were filled." in medsam2("methods", segment.out).out


def test_a_correction_within_a_range_leaves_other_objects_alone(segment):
    two = ("--object", "ball", "--box", BALL_BOX, "--object", "corner", "--point", "5,6,12")
    assert segment(*two, "--range", "8:16").code == 0
    drawn = read_segmentation(segment.out)["corner"].mask_kji.copy()
    drawn[10] = drawn[14] = False
    drawn[14, 30:34, 30:34] = True
    result = edited(segment.out, segment.out.with_name("edited.seg.nrrd"), corner=drawn)
    corrected = segment.out.with_name("corrected.seg.nrrd")
    words = ("--continue", result, "--object", "ball", "--point", "20,26,12", "--range", "9:15")
    assert segment(*words, out=corrected).code == 0
    assert np.array_equal(read_segmentation(corrected)["corner"].mask_kji, drawn)
