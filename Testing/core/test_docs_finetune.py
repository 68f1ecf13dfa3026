"""The commands of the page "Fine-tune on your own cases" run, on a tiny set."""

import re
import shlex

from medsam2_core.engine.card import read_card
from medsam2_core.training import loader
from medsam2_core.training.anatomy import random_anatomy
from support.command_line import CommandLine
from support.labelled_images import write_pictures, write_volumes
from support.project import ROOT
from support.reference_layouts import write_npz
from support.training_folder import write_training_folder

PAGE = ROOT / "Resources" / "docs" / "finetune.md"


def test_the_commands_of_the_page_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "random_anatomy", lambda rng: random_anatomy(rng, side=24))
    text = PAGE.read_text(encoding="utf-8")
    write_pictures(tmp_path / "cases", 6)
    write_volumes(tmp_path / "volumes", 2)
    write_training_folder(tmp_path / "sets")
    write_npz(tmp_path / "corrections", 3)
    (tmp_path / "runs").mkdir()
    (tmp_path / "augmentation.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    medsam2 = CommandLine(capsys)
    for line in re.findall(r"^    medsam2 (.+)$", text, re.M):
        words = shlex.split(line)
        if words[:2] == ["train", "finetune"]:
            # One step instead of minutes, on small images; everything else is as on the page.
            words = [word for word in words if word not in ("--epochs", "2")]
            words += ["--steps", "1", "--batch", "1", "--threads", "1", "--measure", "1", "--device", "cpu"]
            words += ["--image-size", "64"]
        if words[:2] == ["train", "base"]:
            words = ["1,0,0" if word == "2,0,0" else word for word in words]
            words += ["--threads", "1", "--workers", "0", "--device", "cpu"]
        said = medsam2(*words)
        assert said.code == 0, (line, said.err)
    card = read_card("my3d.safetensors")
    assert (card.base, card.training["dimension"], card.licence) == ("my", "3d", "Apache-2.0")
    assert read_card("lora.safetensors").training["trained"] == "lora"
    assert (tmp_path / "kidney.seg.nrrd").exists() and (tmp_path / "mine.safetensors").exists()
    report = tmp_path / "my.safetensors-report"
    assert sorted(path.name for path in report.iterdir()) == ["curves.png", "report.json"]


def test_the_page_names_no_option_that_is_not_there(capsys):
    # Options of other programs: torchrun's, and those of the benchmarks, which parse their own.
    text = PAGE.read_text(encoding="utf-8").replace("--nproc-per-node", "")
    text = re.sub(r"`python Testing/[^`]+`", "", text)
    medsam2 = CommandLine(capsys)
    pages = (("finetune",), ("base",), ("package",))
    help_of = "".join(medsam2("train", *page, "--help").out for page in pages)
    help_of += medsam2("segment", "--help").out
    for option in set(re.findall(r"--[a-z][a-z-]+", text)):
        assert option in help_of, option
