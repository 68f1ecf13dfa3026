"""`medsam2` on damaged volumes, prompts, masks and checkpoints: a whole result, or one clear line."""

import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from medsam2_core.engine.model import build_module, load_model
from medsam2_core.imaging.reading import read_segmentation, read_volume
from safetensors.torch import save_file
from support.command_line import CommandLine
from support.small_files import write_metaimage, write_nifti, write_nrrd, write_picture, write_series
from test_imaging_damaged import damaged
from test_prompts_files import mutated_bytes, mutated_values

SHAPE_KJI = (6, 30, 26)
STRAIGHT = np.diag([-0.8, -0.8, 2.5, 1.0])
SLOWEST = 60  # seconds a run may take on a busy machine before it counts as hanging
WINDOWS = ("auto", "400,40", "lung", "0.001,-5", "1e9,0", "nan,3", "wide")
OUTS = ("m.seg.nrrd", "m.seg.nrrd", "m.nii.gz", "m.nrrd", "m.mha", "m.png")


@dataclass
class Kind:
    """What is damaged, and how often in the normal suite."""

    runs: int
    files: tuple[str, ...] = field(default=())


KINDS = {
    "volume": Kind(45, ("v.nii", "v.nii.gz", "v.nrrd", "v.mha", "v.png", "series")),
    "info": Kind(30, ("v.nii", "v.nii.gz", "v.nrrd", "v.mha", "v.png", "series", "k.seg.nrrd")),
    "prompts": Kind(45, ("p.json",)),
    "mask": Kind(15, ("k.seg.nrrd", "k.nii")),
    "checkpoint": Kind(15, ("embedded.safetensors", "embedded.pt")),
}  # 150 runs


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound files of every kind, and the model, loaded once for all runs that do not damage it."""
    folder = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 300, SHAPE_KJI).astype(np.int16)
    voxels[1:5, 8:20, 6:18] += 500
    write_nifti(folder / "v.nii", voxels, STRAIGHT)
    write_nifti(folder / "v.nii.gz", voxels, STRAIGHT, scl_slope=2.0, scl_inter=-100.0)
    write_nrrd(folder / "v.nrrd", voxels, STRAIGHT)
    write_metaimage(folder / "v.mha", voxels, STRAIGHT)
    write_picture(folder / "v.png", voxels[2].astype(np.uint16))
    write_series(folder / "series", voxels)
    key = np.zeros(SHAPE_KJI, np.uint8)
    key[2, 8:20, 6:18] = 1
    names = {"Segment0_ID": "S0", "Segment0_Name": "it", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
    write_nrrd(folder / "k.seg.nrrd", key, STRAIGHT, **names)
    write_nifti(folder / "k.nii", key, STRAIGHT)
    prompts = [
        {"type": "box", "first": [6, 8, 2], "last": [17, 19, 2]},
        {"type": "point", "at": [10, 12, 3], "positive": True},
        {"type": "mask", "offset": [6, 8, 4], "shape": [3, 2, 1], "runs": [1, 2, 3]},
    ]
    objects = [{"name": "it", "prompts": prompts}, {"name": "other", "prompts": prompts[1:2]}]
    (folder / "p.json").write_text(json.dumps({"version": 1, "space": "ijk", "objects": objects}))
    torch.manual_seed(0)
    state = {key: value.half().contiguous() for key, value in build_module("embedded").state_dict().items()}
    save_file(state, folder / "embedded.safetensors")
    torch.save({"model": state}, folder / "embedded.pt")
    return folder, load_model(folder / "embedded.safetensors")


@pytest.fixture
def medsam2(capsys, monkeypatch, tmp_path):
    reports = tmp_path / "reports"
    reports.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(reports))
    # What libraries warn of is seen as a user sees it, not collected as pytest does.
    monkeypatch.setattr("logging.root.handlers", [])
    monkeypatch.setattr("warnings.showwarning", lambda *said: print("warning:", *said[:2], file=sys.stderr))
    return CommandLine(capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_ends_with_a_whole_result_or_one_clear_line(
    medsam2, sound, kind, campaign, tmp_path, record_property
):
    folder, _held = sound
    rng = np.random.default_rng(list(KINDS).index(kind))
    done = 0
    record_property("mutated inputs", KINDS[kind].runs * campaign)
    for run in range(KINDS[kind].runs * campaign):
        results = tmp_path / f"results{run}"
        results.mkdir()
        name = KINDS[kind].files[run % len(KINDS[kind].files)]
        bad = spoiled(folder / name, tmp_path / "bad", rng)
        words = ["info", bad, "--json"] if kind == "info" else segment_words(kind, folder, bad, results, rng)
        with at_most(SLOWEST):
            answer = medsam2(*words)
        about = f"run {run}: {' '.join(map(str, words))}\n{answer.err}{reports(tmp_path)}"
        assert answer.code in (0, 2), about
        assert "Traceback" not in answer.err + answer.out, about
        left = sorted(results.iterdir())
        if answer.code == 2:
            assert answer.err.startswith("medsam2: ") and answer.err.count("\n") == 1, about
            assert len(answer.err) < 2500, about
            if "--json" in words:
                assert json.loads(answer.out)["error"]["code"], about
            else:
                assert not answer.out, about
            assert not left, about
        else:
            done += 1
            json.loads(answer.out)
            assert all(line.startswith("note: ") for line in answer.err.splitlines()), about
            if kind != "info":
                check_result(words[1], left, about)
        shutil.rmtree(results)
    runs = KINDS[kind].runs * campaign
    assert 0 < done < runs, (
        f"{done} of {runs} had a result: damage is too strong or too weak to tell anything"
    )


def segment_words(kind, folder, bad, results, rng) -> list:
    """A command line with random options around the damaged file."""
    is_picture = bad.suffix == ".png"
    out = results / ("m.png" if is_picture else OUTS[rng.integers(len(OUTS))])
    volume = bad if kind == "volume" else folder / "v.nrrd"
    model = bad if kind == "checkpoint" else folder / "embedded.safetensors"
    words = ["segment", volume, "--out", out, "--model", model, "--json"]
    if kind == "prompts":
        words += ["--prompts", bad]
    elif kind == "mask":
        words += ["--mask", bad, "--object", "it"]
    else:
        words += ["--box", "6,8,17,19@0" if is_picture else "6,8,17,19@2", "--point", "10,12,0,+"]
    for option, chance, choices in (
        ("--zoom", 0.4, ("off", "auto")),
        ("--memory", 0.4, ("self-sorting", "recent")),
        ("--window", 0.3, WINDOWS),
        ("--range", 0.5, ("1:3", "2:2", "0:5", "4:1", "0:99")),
        ("--axis", 0.15, ("sagittal", "k", "up")),
        ("--picture", 0.2, (results / "p.png", results / "p.jpg")),
    ):
        if rng.random() < chance:
            # The first choice is a sound one; half of the runs take it.
            pick = 0 if rng.random() < 0.6 else int(rng.integers(len(choices)))
            words += [option, choices[pick]]
    return words


def spoiled(sound: Path, target: Path, rng) -> Path:
    """A damaged copy under the same name; one in ten stays sound."""
    target.mkdir(exist_ok=True)
    copy = target / sound.name
    if sound.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sound, copy)
        file = sorted(copy.iterdir())[int(rng.integers(len(list(copy.iterdir()))))]
        file.write_bytes(damaged(file.read_bytes(), rng))
        return copy
    shutil.copyfile(sound, copy)
    if rng.random() < 0.1:
        return copy
    if sound.suffix == ".json":
        whole = copy.read_bytes()
        text = mutated_bytes(whole, rng) if rng.random() < 0.4 else mutated_values(whole, rng).encode()
        copy.write_bytes(text)
    elif sound.suffix in (".safetensors", ".pt"):
        damage_in_place(copy, rng)
    else:
        copy.write_bytes(damaged(copy.read_bytes(), rng))
    return copy


def damage_in_place(path: Path, rng) -> None:
    """Cut a large file off, or overwrite some bytes of its head, its tail, or anywhere."""
    size = path.stat().st_size
    if rng.random() < 0.2:
        os.truncate(path, int(rng.integers(size)))
        return
    with path.open("r+b") as file:
        for _ in range(int(rng.integers(1, 4))):
            reach = (2000, size, size, size)[rng.integers(4)]
            start = size - reach if rng.random() < 0.3 else 0
            file.seek(max(0, start + int(rng.integers(reach)) - 8))
            file.write(rng.bytes(int(rng.integers(1, 9))))


def check_result(volume, left, about) -> None:
    """The files that were asked for and no others, readable, on the volume's own grid."""
    assert 1 <= len(left) <= 2, about
    assert {path.name for path in left} <= {*OUTS, "p.png"}, about
    (out,) = (path for path in left if path.name.startswith("m."))
    if out.suffix != ".png":
        grid = read_volume(volume, "1").geometry
        assert read_segmentation(out).geometry.shape_ijk == grid.shape_ijk, about


def reports(folder: Path) -> str:
    """The traceback of a defect, for whoever reads why a test failed."""
    return "".join(path.read_text() for path in (folder / "reports").glob("medsam2-error-*.txt"))


class Hangs(Exception):
    """Not an error of ours: it ends as a defect, which is what hanging is."""


@contextmanager
def at_most(seconds: int):
    """Interrupt what takes longer, where the system can."""
    if sys.platform == "win32":
        yield
        return

    def stop(_number, _frame):
        raise Hangs(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
