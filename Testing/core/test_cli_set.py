"""`medsam2 set` from words to files, with random weights: what is tested is all around the model."""

import csv
import json

import numpy as np
import pytest
from medsam2_core.cli import image_set
from medsam2_core.export import contact_sheet
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.session import set_results
from medsam2_core.session.set_results import SETTINGS, TABLE, SetResults
from PIL import Image
from support.model import a_disc

SIZES = [(60, 80), (72, 64), (50, 90), (64, 64)]
BOX = ("--prompt", "a0.png", "--box", "25,20,52,44")


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    for n, (height, width) in enumerate(SIZES):
        values = rng.integers(0, 90, (height, width), dtype=np.uint8)
        values[a_disc((height, width), (width / 2, height / 2), 12)] += 130
        pixels = np.stack([values, values // 2, values // 3], -1) if n == 2 else values
        Image.fromarray(pixels).save(images / f"a{n}.png")
    return images


@pytest.fixture
def run(medsam2, model, folder, tmp_path):
    def run(*words, out="masks"):
        return medsam2("set", folder, "--model", model, "--image-size", 64, "--out", tmp_path / out, *words)

    return run


def table(folder):
    with (folder / TABLE).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_box_on_one_image_gives_a_mask_of_every_image(run, tmp_path):
    review = tmp_path / "review.html"
    answer = run(*BOX, "--object", "disc", "--review", review, "--json")
    assert answer.code == 0, answer.err
    assert answer.facts["images"] == 4 and answer.facts["objects"] == ["disc"]
    masks = [np.asarray(Image.open(tmp_path / "masks" / f"a{n}.png")) for n in range(4)]
    assert [mask.shape for mask in masks] == SIZES
    assert all(set(np.unique(mask)) <= {0, 255} for mask in masks)
    lines = table(tmp_path / "masks")
    assert [line["image"] for line in lines] == [f"a{n}.png" for n in range(4)]
    assert [int(line["area_pixels"]) for line in lines] == [int((mask > 0).sum()) for mask in masks]
    assert [line["prompted"] for line in lines] == ["1", "0", "0", "0"]
    page = review.read_text()
    assert page.count("<figure>") == 4 and "<script" not in page and "http" not in page
    by_confidence = sorted(lines, key=lambda line: (float(line["confidence"]), line["image"]))
    places = [page.index(f"<figcaption>{line['image']}") for line in by_confidence]
    assert places == sorted(places), "the least confident first"


def test_several_objects_in_one_file_with_their_names(run, tmp_path):
    answer = run(
        *("--object", "disc", *BOX, "--object", "corner", "--prompt", "a1", "--point", "10,10"),
        *("--point", "40,50,-", "--format", "seg.nrrd", "--memory", "self-sorting"),
    )
    assert answer.code == 0, answer.err
    for n in range(4):
        stored = read_segmentation(tmp_path / "masks" / f"a{n}.seg.nrrd")
        assert stored.names == ("disc", "corner")
    assert len(table(tmp_path / "masks")) == 8


def test_masks_of_other_settings_are_not_taken_over_after_a_kill(run, tmp_path, monkeypatch):
    assert run(*BOX).code == 0
    monkeypatch.setattr(SetResults, "save", lambda self: None)  # killed before its first table
    other = ("--prompt", "a0.png", "--box", "5,5,30,30", "--overwrite")
    assert run(*other).code == 0
    monkeypatch.undo()
    answer = run(*other, "--json")
    assert answer.code == 0 and answer.facts["resumed"] == 0


def test_what_was_corrected_by_hand_stays_and_a_renamed_image_is_another_set(run, folder, tmp_path):
    assert run(*BOX).code == 0
    for name in ("a0.png", "a1.png"):
        Image.fromarray(np.full(SIZES[int(name[1])], 255, np.uint8)).save(tmp_path / "masks" / name)
    assert run(*BOX, "--review", tmp_path / "masks" / "page.html").code == 0
    for name in ("a0.png", "a1.png"):
        assert (np.asarray(Image.open(tmp_path / "masks" / name)) == 255).all()
    (folder / "a1.png").rename(folder / "a11.png")
    assert run(*BOX).error.code == "output-exists"


def test_methods_of_a_set_are_told_and_one_mask_is_not_replayed(run, medsam2, model, folder, tmp_path):
    assert run(*BOX, "--object", "disc", "--format", "seg.nrrd").code == 0
    one = tmp_path / "masks" / "a1.seg.nrrd"
    for result in (tmp_path / "masks", one):
        said = medsam2("methods", result).out
        assert said.startswith("disc was segmented")
        for text in ("each image of a set", "windowed automatically in each image"):
            assert text in said
        assert "slices" not in said and "width 255" not in said
    assert "1 box" in medsam2("methods", tmp_path / "masks").out
    assert medsam2("methods", folder).refused("no-provenance")
    for damaged in ("nonsense", "{}", '{"prompts": 3}', "[]"):
        (folder / "settings.json").write_text(damaged)
        assert medsam2("methods", folder).refused("no-provenance")
    (folder / "settings.json").unlink()
    assert medsam2("replay", one, folder / "a1.png", "--model", model).refused("result-of-a-set")


def test_a_review_may_be_one_picture(run, tmp_path):
    review = tmp_path / "review.png"
    assert run(*BOX, "--object", "disc · 圆", "--review", review).code == 0
    sheet = np.asarray(Image.open(review))
    assert sheet.shape[1] == 5 * 250 and sheet.shape[2] == 3
    first, last = sheet[:250, :250], sheet[:250, 1000:]
    assert first.max() > 200, "an image"
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > len(np.unique(last.reshape(-1, 3), axis=0))


def test_a_picture_that_cannot_show_all_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_IN_PICTURE", 2)
    monkeypatch.setattr(set_results, "MOST_IN_PICTURE", 2)
    answer = run(*BOX, "--review", tmp_path / "review.png", "--json")
    assert [note["code"] for note in answer.facts["notes"]] == ["review-cut"]


def test_a_review_page_replaces_nothing(run, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert run(*BOX, "--review", page).error.code == "output-exists"
    assert page.read_text() == "mine"


def test_a_drawn_mask_is_taken_as_it_is(run, folder, tmp_path):
    drawn = a_disc(SIZES[1], (30, 33), 11)
    Image.fromarray(drawn.astype(np.uint8) * 255).save(tmp_path / "drawn.png")
    answer = run("--prompt", "a1.png", "--mask", tmp_path / "drawn.png")
    assert answer.code == 0, answer.err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "a1.png")) > 0, drawn)


def test_a_bad_image_is_named_or_left_out(run, folder, tmp_path):
    (folder / "b.png").write_bytes(b"no picture")
    answer = run(*BOX)
    assert answer.error.code == "bad-images" and "--skip-bad" in answer.err and "b.png" in answer.err
    answer = run(*BOX, "--skip-bad", "--json")
    assert answer.code == 0, answer.err
    assert answer.facts["images"] == 4
    (note,) = (note for note in answer.facts["notes"] if note["code"] == "image-left-out")
    assert note["fields"]["image"] == "b.png"


@pytest.mark.parametrize("memory", ["prompted", "self-sorting"])
def test_what_was_stopped_goes_on_where_it_was(run, tmp_path, monkeypatch, memory):
    words = (*BOX, "--object", "disc", "--memory", memory)
    assert run(*words, out="whole").code == 0
    steps = []

    def stop_after_two():
        return lambda: steps.append(None) or len(steps) > 2

    monkeypatch.setattr(image_set, "stop_on_request", stop_after_two)
    assert run(*words).code == 130
    done = {line["image"] for line in table(tmp_path / "masks")}
    assert len(done) == 2 and "a0.png" in done
    kept = {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")}
    assert len(kept) == 2
    monkeypatch.undo()
    answer = run(*words, "--json")
    assert answer.code == 0 and answer.facts["resumed"] == 1, "the prompted image is predicted again"
    for name, content in kept.items():
        assert (tmp_path / "masks" / name).read_bytes() == content
    if memory == "prompted":  # every image follows from the prompted ones alone
        for path in (tmp_path / "whole").glob("*.png"):
            assert (tmp_path / "masks" / path.name).read_bytes() == path.read_bytes()
        assert table(tmp_path / "masks") == table(tmp_path / "whole")


def test_other_settings_need_another_folder_or_permission(run, tmp_path):
    assert run(*BOX).code == 0
    answer = run("--prompt", "a0.png", "--box", "20,20,50,40")
    assert answer.error.code == "output-exists"
    assert run("--prompt", "a0.png", "--box", "20,20,50,40", "--overwrite").code == 0
    settings = json.loads((tmp_path / "masks" / SETTINGS).read_text())
    assert settings["memory"] == "prompted" and len(settings["images"]) == 4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "no-prompt"),
        (("--box", "1,2,3,4"), "no-image-named"),
        (("--prompt", "zz.png", "--box", "1,2,3,4"), "unknown-image"),
        (("--prompt", "a0.png", "--box", "1,2,3"), "prompt-syntax"),
        (("--prompt", "a0.png", "--point", "500,2"), "outside-volume"),
        (("--prompt", "a0.png", "--point", "5,2", "--object", "a", "--object", "b"), "object-without-prompt"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(run, tmp_path, words, code):
    assert run(*words).refused(code)
    assert not (tmp_path / "masks").exists()


def test_images_are_never_written_over(run, folder, tmp_path):
    answer = run(*BOX, "--review", folder / "a1.png")
    assert answer.error.code == "output-is-input"
    assert run(*BOX, out="images").error.code == "output-is-input"


def test_labels_beside_the_images_are_noted(run, folder):
    (folder / "a1.png").rename(folder / "a0_seg.png")
    (folder / "a2.png").rename(folder / "b_img.png")
    (folder / "a3.png").rename(folder / "b_seg.png")
    (note,) = run(*BOX, "--json").facts["notes"]
    assert (note["code"], note["fields"]["images"]) == ("label-pictures", ["a0_seg.png", "b_seg.png"])
