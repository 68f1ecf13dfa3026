"""The commands of the tutorial "Train your own in ten minutes" run, on a tiny set."""

import re
import shlex

from medsam2_core.auto.model_file import read_card
from support.command_line import CommandLine
from support.labelled_images import write_pictures
from support.project import ROOT

PAGE = ROOT / "Resources" / "docs" / "auto.md"


def commands() -> list[str]:
    return re.findall(r"^    medsam2 (.+)$", PAGE.read_text(encoding="utf-8"), re.M)


def test_the_commands_of_the_page_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "cases", 3)
    medsam2 = CommandLine(capsys)
    words = [shlex.split(line) for line in commands()]
    assert [line[:2] for line in words[:2]] == [["train", "auto"]] * 2
    for line in words:
        # Two steps instead of ten minutes, on small images; everything else is as on the page.
        quick = ["--steps", "2", "--folds", "0", "--image-size", "64"] if line[0] == "train" else []
        said = medsam2(*line, *quick)
        assert said.code == 0, (line, said.err)
    assert read_card("nerve.medsam2auto").class_names == ("nerve", "vessel")
    assert read_card("nerve-lora.medsam2auto").decoder == "lora"
    assert (tmp_path / "found" / "000_img.seg.nrrd").exists()
    assert (tmp_path / "nerve-report" / "samples.png").exists() is False  # there were no folds


def test_the_page_names_no_option_that_is_not_there(capsys):
    text = PAGE.read_text(encoding="utf-8")
    text = re.sub(
        r"^    python .*\n(?: {8}.*\n)*", "", text, flags=re.M
    )  # benchmarks have options of their own
    help_of = CommandLine(capsys)("train", "auto", "--help").out + CommandLine(capsys)("auto", "--help").out
    for option in set(re.findall(r"--[a-z][a-z-]+", text)):
        assert option in help_of, option
