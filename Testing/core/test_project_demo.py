"""The demonstration: its sample, and that it runs."""

import importlib.util
import re
import sys

import numpy as np
import pytest
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts.slice_prompts import resolve
from medsam2_core.session import Session
from support.command_line import write_untrained_model
from support.project import ROOT

FOLDER = ROOT / "Resources" / "demo"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", FOLDER / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sample_is_small_and_comes_with_its_licence():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.nrrd")) < 1 << 20
    licence = (FOLDER / "LICENSE-MNI152.txt").read_text(encoding="utf-8")
    assert all(path.name in licence for path in FOLDER.glob("*.nrrd"))
    assert "Permission to use, copy, modify, and distribute" in licence


def test_the_box_of_the_demonstration_is_around_the_brain(demo):
    scan, truth = read_volume(FOLDER / "mni152_t1.nrrd"), read_segmentation(FOLDER / "mni152_brain.nrrd")
    assert scan.geometry.same_grid(truth.geometry)
    stack = SliceStack.along(scan)
    ((n, prompt),) = resolve([demo.BRAIN], stack).items()
    rows, columns = np.nonzero(stack.mask_of(truth["1"].mask_kji, n))
    left, top, right, bottom = prompt.box_xyxy
    assert left <= columns.min() <= left + 5
    assert top <= rows.min() <= top + 5
    assert right - 5 <= columns.max() <= right
    assert bottom - 5 <= rows.max() <= bottom


def test_the_demonstration_writes_its_files_and_ends_with_dice(demo, tmp_path, monkeypatch, capsys):
    usual = Session.propagate
    monkeypatch.setattr(Session, "propagate", lambda session: usual(session, first=23, last=25))
    model, out = write_untrained_model(tmp_path), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(out), "--model", str(model)])
    assert demo.main() == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"Dice [01]\.\d\d", said.splitlines()[-1])
    assert "s a slice" in said
    assert sorted(path.name for path in out.iterdir()) == ["montage.png", "segmentation.seg.nrrd"]
