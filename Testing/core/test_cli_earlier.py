"""Earlier results as input: corrected, made again, described; their prompts used elsewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
from medsam2_core.export.methods import methods_text
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.prompts import PromptSet
from support.command_line import (
    BALL_BOX,
    ball_kji,
    write_nrrd,
    write_scan,
    write_untrained_model,
)
from support.errors import raises


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a scan, a model and a result of two objects."""
    from medsam2_core.cli import main

    folder = tmp_path_factory.mktemp("made")
    words = ["segment", write_scan(folder / "scan.nrrd"), "--model", write_untrained_model(folder)]
    words += ["--out", folder / "two.seg.nrrd", "--object", "ball", "--box", BALL_BOX, "--object", "corner"]
    words += ["--point", "5,6,12", "--window", "600,250", "--range", "8:16"]
    assert main([str(word) for word in words]) == 0
    return folder


def files(made, tmp_path):
    return (
        made / "two.seg.nrrd",
        made / "scan.nrrd",
        made / "small-embedded.safetensors",
        tmp_path / "new.seg.nrrd",
    )


def test_the_same_prompts_and_weights_give_the_same_masks(medsam2, made, tmp_path):
    result, scan, model, _ = files(made, tmp_path)
    answer = medsam2("replay", result, scan, "--model", model, "--json")
    assert answer.code == 0, answer.err
    assert answer.facts["identical"] and answer.facts["same"]
    assert [one["name"] for one in answer.facts["objects"]] == ["ball", "corner"]
    assert all(one["voxels"] > 0 and one["dice"] == 1 for one in answer.facts["objects"])
    assert answer.facts["notes"] == []


def test_a_mask_that_was_changed_is_not_the_same(medsam2, made, tmp_path):
    from medsam2_core import export

    result, scan, model, changed = files(made, tmp_path)
    given = read_segmentation(result)
    one = given.segments[0]
    mask_kji = one.mask_kji.copy()
    mask_kji[0] = True
    segments = (replace_mask(one, mask_kji), given.segments[1])
    export.write(replace(given, segments=segments), changed)
    answer = medsam2("replay", changed, scan, "--model", model, "--json")
    assert answer.code == 2
    ball, corner = answer.facts["objects"]
    assert (ball["same"], ball["identical"]) == (False, False)
    assert (corner["same"], corner["identical"]) == (True, True)
    assert 0 < ball["dice"] < 1


def test_a_voxel_of_many_is_rounding(medsam2, made, tmp_path):
    from medsam2_core import export

    result, scan, model, changed = files(made, tmp_path)
    given = read_segmentation(result)
    largest = max(given.segments, key=lambda one: one.mask_kji.sum())
    mask_kji = largest.mask_kji.copy()
    mask_kji[tuple(np.argwhere(mask_kji)[0])] = False
    assert mask_kji.sum() > 1000
    segments = [replace_mask(one, mask_kji) if one is largest else one for one in given.segments]
    export.write(replace(given, segments=tuple(segments)), changed)
    answer = medsam2("replay", changed, scan, "--model", model, "--json")
    assert (answer.code, answer.facts["same"], answer.facts["identical"]) == (0, True, False)
    found = {one["name"]: (one["same"], one["identical"]) for one in answer.facts["objects"]}
    assert found.pop(largest.name) == (True, False)
    assert list(found.values()) == [(True, True)]


def replace_mask(segment, mask_kji):
    from medsam2_core.imaging.segmentation import Segment

    return Segment(segment.name, segment.colour_rgb, mask_kji, segment.terminology, segment.tags)


def test_other_weights_are_told(medsam2, made, tmp_path):
    result, scan, _, _ = files(made, tmp_path)
    answer = medsam2("replay", result, scan, "--model", "embedded", "--json")
    assert [note["code"] for note in answer.facts["notes"]] == ["other-weights"]


def test_a_correction_changes_its_object_and_keeps_the_others(medsam2, made, tmp_path):
    result, scan, model, out = files(made, tmp_path)
    words = ("segment", scan, "--continue", result, "--model", model, "--out", out, "--object", "ball")
    answer = medsam2(*words, "--point", "20,26,12,-", "--json")
    assert answer.code == 0, answer.err
    assert answer.facts["window"]["width"] == 600, "settings are those of the result"
    before, after = read_segmentation(result), read_segmentation(out)
    assert before.names == after.names
    assert np.array_equal(before["corner"].mask_kji, after["corner"].mask_kji)
    assert not np.array_equal(before["ball"].mask_kji[12], after["ball"].mask_kji[12])
    prompts = PromptSet.from_json(json.dumps(json.loads(after.provenance["prompts"])))
    assert len(prompts.of("ball")) == 2, "the box is still among them"
    assert after.provenance["continued"]


def test_a_correction_keeps_what_the_result_says_and_segments_without_prompts(medsam2, made, tmp_path):
    from medsam2_core import export
    from medsam2_core.imaging.segmentation import Segment

    result, scan, model, out = files(made, tmp_path)
    given = read_segmentation(result)
    ball = given["ball"]
    tags = {**ball.tags, "reader": "A"}
    ball = Segment("ball", (0.1, 0.2, 0.3), ball.mask_kji, ball.terminology, tags)
    painted = Segment("painted", (0.9, 0.8, 0.7), given["corner"].mask_kji)
    earlier = tmp_path / "earlier.seg.nrrd"
    export.write(replace(given, segments=(ball, given["corner"], painted)), earlier)
    words = ("segment", scan, "--continue", earlier, "--model", model, "--out", out, "--object", "ball")
    answer = medsam2(*words, "--point", "20,26,12,-")
    assert answer.code == 0, answer.err
    after = read_segmentation(out)
    assert after.names == ("ball", "corner", "painted")
    assert after["ball"].colour_rgb == pytest.approx((0.1, 0.2, 0.3), abs=1e-3)
    assert after["ball"].tags["reader"] == "A"
    assert np.array_equal(after["painted"].mask_kji, painted.mask_kji)


def test_a_correction_that_is_undone_by_nothing_else_costs_less_than_starting_again(
    medsam2, made, tmp_path, monkeypatch
):
    """Slices beyond the next prompted one on either side are not looked at again."""
    from medsam2_core.session import Session

    result, scan, model, out = files(made, tmp_path)
    seen = []
    usual = Session.propagate

    def propagate(session, *args, **options):
        for mask in (progress := usual(session, *args, **options)):
            seen.append((mask.object, mask.n))
        return progress

    monkeypatch.setattr(Session, "propagate", propagate)
    words = ("segment", scan, "--continue", result, "--model", model, "--out", out, "--object", "ball")
    assert medsam2(*words, "--box", "14,20,26,32@9").code == 0
    assert {name for name, _ in seen} == {"ball"}
    assert max(n for _, n in seen) <= 12, "the box of slice 12 stands between"


def test_a_result_is_never_corrected_in_its_place(medsam2, made, tmp_path):
    result, scan, model, _ = files(made, tmp_path)
    before = result.read_bytes()
    words = ("segment", scan, "--continue", result, "--model", model, "--out", result, "--overwrite")
    assert medsam2(*words, "--object", "ball", "--point", "20,26,12,-").refused("output-is-input")
    assert result.read_bytes() == before


@pytest.mark.parametrize("command", ["continue", "replay", "prompts"])
def test_what_is_no_result_of_this_scan_is_refused(medsam2, made, tmp_path, command):
    from medsam2_core import export

    _, scan, model, out = files(made, tmp_path)
    geometry = read_segmentation(made / "two.seg.nrrd").geometry
    drawn = Segmentation.from_masks(geometry, {"ball": ball_kji()})
    export.write(drawn, tmp_path / "drawn.seg.nrrd")
    export.write(drawn, tmp_path / "drawn.nrrd")
    other = write_nrrd(tmp_path / "other.nrrd", np.arange(24 * 48 * 38).reshape(24, 48, 38).astype(np.int16))

    def run(result, volume):
        if command == "replay":
            return medsam2("replay", result, volume, "--model", model)
        words = ("--model", model, "--out", out, "--point", "20,26,12")
        return medsam2("segment", volume, f"--{command}", result, *words)

    assert run(tmp_path / "drawn.seg.nrrd", scan).error.code == "no-stored-prompts"
    wanted = "not-json" if command == "prompts" else "not-a-result"
    assert run(tmp_path / "drawn.nrrd", scan).error.code == wanted
    assert run(made / "two.seg.nrrd", other).error.code == "result-on-another-grid"


def test_prompts_of_a_result_are_prompts(medsam2, made, tmp_path):
    result, scan, model, out = files(made, tmp_path)
    words = ("segment", scan, "--model", model, "--window", "600,250", "--range", "8:16", "--out", out)
    assert medsam2(*words, "--prompts", result).code == 0
    before, after = read_segmentation(result), read_segmentation(out)
    for name in before.names:
        assert np.array_equal(before[name].mask_kji, after[name].mask_kji)


def test_a_corrected_picture_was_made_in_steps_and_a_new_object_is_noted(medsam2, model, photo, results):
    first, second = results / "first.seg.nrrd", results / "second.seg.nrrd"
    words = ("segment", photo, "--model", model)
    assert medsam2(*words, "--object", "ball", "--box", "13,19,27,33", "--out", first).code == 0
    assert "steps" not in medsam2("methods", first).out
    continued = (*words, "--continue", first, "--out", second, "--json")
    assert medsam2(*continued, "--object", "ball", "--point", "20,26,-").facts["notes"] == []
    said = medsam2("methods", second).out
    assert "in several steps" in said
    assert "a single image" in said and "memory" not in said and "1 box and 1 point" in said
    notes = medsam2("replay", second, photo, "--model", model, "--json").facts["notes"]
    assert [note["code"] for note in notes] == ["made-in-steps"]
    answer = medsam2(*continued, "--overwrite", "--object", "bal", "--point", "20,26")
    (note,) = answer.facts["notes"]
    assert (note["code"], note["fields"]) == ("new-object", {"object": "bal", "known": ["ball"]})


# Methods text -----------------------------------------------------------------------------------------------


def test_methods_text_says_what_is_stored(medsam2, made):
    import hashlib

    answer = medsam2("methods", made / "two.seg.nrrd")
    assert answer.code == 0, answer.err
    sha256 = hashlib.sha256((made / "small-embedded.safetensors").read_bytes()).hexdigest()
    for text in (
        "ball and corner were",
        sha256,
        "1 box and 1 point",
        "axial slices, and followed the object with its memory",
        "axial slices",
        "width 600, level 250",
        "fp32",
    ):
        assert text in answer.out
    assert "Ravi" in answer.out
    assert "Sam2Rad" not in answer.out
    assert str(made) not in answer.out


def test_a_plain_scan_has_no_methods(medsam2, made):
    assert medsam2("methods", made / "scan.nrrd").refused("no-provenance", path=str(made / "scan.nrrd"))


def test_methods_text_claims_nothing_that_is_not_stored():
    geometry = read_geometry()
    with raises("no-provenance"):
        methods_text(Segmentation.from_masks(geometry, {"ball": ball_kji()}))
    bare = methods_text(Segmentation.from_masks(geometry, {"ball": ball_kji()}, {"model": "medsam2-latest"}))
    assert "prompted" not in bare
    assert "windowed" not in bare
    assert "MedSAM2: Segment Anything in 3D" in bare


def read_geometry():
    from medsam2_core.imaging.geometry import Geometry

    return Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), (40, 48, 24))


def test_stored_prompts_that_are_damaged_name_their_file(medsam2, made, tmp_path):
    damaged = tmp_path / "damaged.seg.nrrd"
    damaged.write_bytes((made / "two.seg.nrrd").read_bytes().replace(b'"type"', b'"typo"'))
    for words in (
        ("replay", damaged, made / "scan.nrrd"),
        (
            "segment",
            made / "scan.nrrd",
            "--continue",
            damaged,
            "--point",
            "1,1,1",
            "--out",
            tmp_path / "o.nrrd",
        ),
    ):
        answer = medsam2(*words)
        assert answer.code == 2 and answer.error.fields["path"] == str(damaged)
        assert str(damaged) in answer.err
