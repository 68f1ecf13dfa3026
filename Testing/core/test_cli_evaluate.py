"""`medsam2 evaluate` on pictures, with random weights: what is measured matters here, not how good it is."""

import json

import numpy as np
import pytest
from medsam2_core.evaluation import metrics, protocol
from PIL import Image
from support.command_line import ball_kji


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
        *("--corrections", 2, "--out", pictures / "figures.json", "--plot", pictures / "figures.png"),
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


def test_earlier_figures_are_replaced_on_request_only(medsam2, model, pictures):
    out, plot = pictures / "figures.json", pictures / "plot.svg"
    words = ("evaluate", pictures / "1_img.png", pictures / "1_seg.png", "--model", model, "--corrections", 0)
    for option, path in (("--out", out), ("--plot", plot)):
        path.write_text("earlier")
        assert medsam2(*words, option, path).refused("output-exists", path=str(path))
        assert path.read_text() == "earlier"
    assert medsam2(*words, "--out", out, "--plot", plot, "--overwrite").code == 0
    assert json.loads(out.read_text())["objects"] and "<svg" in plot.read_text()
    assert medsam2(*words, "--plot", pictures / "plot.jpg").refused(
        "unknown-format", suffixes=[".png", ".svg"]
    )


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
    ("words", "code", "fields"),
    [
        (("{0}/1_img.png",), "nothing-named", {}),
        (("{0}/1_img.png", "{0}/1_seg.png", "--cases", "{0}/cases.tsv"), "nothing-named", {}),
        (("--cases", "{0}/cases.tsv", "--row", "squares"), "unknown-row", {"row": "squares"}),
        (("--cases", "{0}/cases.tsv", "--out", "{0}/no/f.json"), "output-folder-missing", {}),
        (("--cases", "{0}/cases.tsv", "--data", "{0}/no"), "case-missing", {}),
        (("{0}/1_img.png", "{0}/none.png"), "case-missing", {}),
        (("{0}/1_img.png", "{0}/1_seg.png", "--zoom", "on"), "unknown-zoom", {"zoom": "on"}),
        (("{0}/1_img.png", "{0}/1_seg.png", "--memory", "good"), "unknown-memory", {"memory": "good"}),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(medsam2, model, pictures, words, code, fields):
    answer = medsam2("evaluate", *(word.format(pictures) for word in words), "--model", model)
    assert answer.refused(code, **fields)
    assert answer.err.count("\n") == 1


def test_a_case_that_cannot_be_read_is_named_and_the_others_are_measured(medsam2, model, pictures):
    (pictures / "1_img.png").write_bytes(b"not a picture")
    out = pictures / "figures.json"
    words = ("evaluate", "--cases", pictures / "cases.tsv", "--model", model, "--corrections", 0)
    answer = medsam2(*words, "--row", "discs", "--out", out)
    assert answer.refused("cases-left-out")
    assert list(answer.error.fields["left_out"]) == [str(pictures / "1_img.png")]
    assert "discs, 1_img.png is left out" in answer.err
    assert "| discs | 1 |" in answer.out
    content = json.loads(out.read_text())
    assert [one["name"] for one in content["objects"]] == ["2_img.png:1"]
    assert list(content["about"]["left_out"]) == [str(pictures / "1_img.png")]


def test_what_was_measured_before_ctrl_c_is_kept(medsam2, model, pictures, monkeypatch):
    measure_case = protocol.measure_case

    def interrupted(case, *given):
        if case.image.name.startswith("2"):
            raise KeyboardInterrupt
        return measure_case(case, *given)

    monkeypatch.setattr(protocol, "measure_case", interrupted)
    out = pictures / "figures.json"
    words = ("evaluate", "--cases", pictures / "cases.tsv", "--model", model, "--corrections", 0)
    answer = medsam2(*words, "--out", out)
    assert answer.code == 130
    assert "| discs | 1 |" in answer.out
    assert [one["name"] for one in json.loads(out.read_text())["objects"]] == ["1_img.png:1"]


def test_without_monai_nothing_is_begun(medsam2, model, pictures, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    answer = medsam2("evaluate", "--cases", pictures / "cases.tsv", "--model", model)
    assert answer.refused("monai-missing")
    assert "[metrics]" in answer.err


def test_a_checkpoint_of_any_name_is_measured_with_its_configuration(medsam2, model, pictures):
    renamed = pictures / "mine.safetensors"
    renamed.symlink_to(model)
    pair = ("evaluate", pictures / "1_img.png", pictures / "1_seg.png", "--corrections", 0)
    out = pictures / "figures.json"
    settings = ("--config", "embedded", "--image-size", 128, "--precision", "fp32", "--device", "cpu")
    answer = medsam2(*pair, "--model", renamed, *settings, "--out", out)
    assert answer.code == 0, answer.err
    about = json.loads(out.read_text())["about"]
    assert (about["model"], about["image_size"], about["precision"]) == ("mine", 128, "fp32")
