"""`medsam2 evaluate` on pictures, with random weights: what is measured matters here, not how good it is."""

import json

import numpy as np
import pytest
from a_command_line import CommandLine, ball_kji, write_untrained_model
from PIL import Image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of the embedded model's architecture and name, never trained."""
    return write_untrained_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def medsam2(capsys):
    return CommandLine(capsys)


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of a disc, their labels, and a table of them."""
    for number in (1, 2):
        disc = ball_kji()[11 + number]
        Image.fromarray((disc * 180 + 40).astype(np.uint8)).save(tmp_path / f"{number}_img.png")
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path / f"{number}_seg.png")
    (tmp_path / "cases.tsv").write_text(
        "row\timage\tlabels\ndiscs\t*_img.png\t*_seg.png\nfirst\t1_img.png\t1_seg.png\n"
    )
    return tmp_path


def test_one_picture_is_measured_beside_the_ellipse_in_its_box(medsam2, model, pictures):
    answer = medsam2(
        *("evaluate", pictures / "1_img.png", pictures / "1_seg.png", "--model", model),
        *("--corrections", 2, "--json", pictures / "figures.json", "--plot", pictures / "figures.png"),
    )
    assert answer.code == 0, answer.err
    assert "| 1_img.png | 1 |" in answer.out
    assert "+2 corrections" in answer.out
    content = json.loads((pictures / "figures.json").read_text())
    assert content["about"]["corrections"] == 2
    (measured,) = content["objects"]
    assert len(measured["stages"]) == 3
    # The object is a disc: an ellipse in its box, 5 % off, is nearly all of it.
    assert measured["baseline"] > 0.85
    assert (pictures / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_is_averaged_by_row(medsam2, model, pictures):
    words = ("evaluate", "--cases", pictures / "cases.tsv", "--model", model, "--corrections", 0)
    answer = medsam2(*words)
    assert answer.code == 0, answer.err
    assert "| discs | 2 |" in answer.out
    assert "| first | 1 |" in answer.out
    answer = medsam2(*words, "--row", "discs", "--most", 1)
    assert "| discs | 1 |" in answer.out
    assert "first" not in answer.out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("{0}/1_img.png",), "say what to measure"),
        (("{0}/1_img.png", "{0}/1_seg.png", "--cases", "{0}/cases.tsv"), "say what to measure"),
        (("--cases", "{0}/cases.tsv", "--row", "squares"), "'squares' is not in the table"),
        (("--cases", "{0}/cases.tsv", "--json", "{0}/no/f.json"), "does not exist"),
        (("--cases", "{0}/cases.tsv", "--data", "{0}/no"), "no file matches"),
        (("{0}/1_img.png", "{0}/none.png"), "no such file"),
        (("{0}/1_img.png", "{0}/1_seg.png", "--zoom", "on"), "unknown zoom"),
        (("{0}/1_img.png", "{0}/1_seg.png", "--memory", "good"), "unknown memory"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(medsam2, model, pictures, words, reason):
    answer = medsam2("evaluate", *(word.format(pictures) for word in words), "--model", model)
    assert answer.code == 2
    assert reason in answer.err
    assert answer.err.count("\n") == 1
