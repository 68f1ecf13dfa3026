"""Damaged training folders: a list of problems that names each, or a survey that can be trained on."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from medsam2_core.auto.fewshot.data import find_pairs, parse_classes
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.settings import FewShotSettings, plan_stages
from medsam2_core.auto.fewshot.survey import survey
from medsam2_core.errors import TrainingError
from medsam2_core.training.finetune import Division, stacks_of
from PIL import Image
from support.labelled_images import write_pictures, write_volumes
from support.reference_layouts import write_npz, write_rated, write_slice_by_slice

FOLDERS = 50
MUTATIONS = ["cut", "flip", "empty", "delete", "swap", "rename"]
MUTATIONS += ["resize", "fill", "colour", "text", "csv", "float"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_pictures(folder / "pictures", 4)
    write_volumes(folder / "volumes", 2)
    write_slice_by_slice(folder / "slices", slices=4)
    write_rated(folder / "rated", raters=3)
    write_npz(folder / "blocks")
    return folder


def test_mutated_training_folders_end_in_a_list_of_problems(sound, tmp_path, campaign, record_property):
    told = {"refused": 0, "problems": 0, "sound": 0}
    record_property("mutated inputs", FOLDERS * campaign)
    for number in range(FOLDERS * campaign):
        draw = random.Random(number)
        folder = tmp_path / "data"
        shutil.copytree(sound / draw.choice(["pictures", "volumes", "slices", "rated", "blocks"]), folder)
        did = [mutate(folder, draw) for _ in range(draw.randint(1, 4))]
        told[outcome(folder, draw, f"folder {number}: {did}")] += 1
        shutil.rmtree(folder)
    assert told["problems"] > FOLDERS * campaign // 4, told
    assert told["sound"] > 0, told


def outcome(folder: Path, draw: random.Random, about: str) -> str:
    """How a folder ends; anything but a TrainingError or a survey fails the test with what was done to it."""
    try:
        choices = parse_classes(draw.choice([None, None, "1=disc", "disc", "kidney", "9=moon"]))
        listed = folder / "pairs.csv"
        pairs = find_pairs(listed if listed.exists() else folder)
        reading = ReadingOptions(64, draw.choice(["axial", "sagittal", "coronal"]))
        found = survey(pairs, reading, choices, keeps_cases=True)
        found.raise_for_problems(skip_bad=draw.random() < 0.5)
    except TrainingError as error:
        text = str(error)
        assert text, about
        assert len(text) < 20_000, about
        return "problems" if "problem" in text else "refused"
    except Exception as error:
        raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error
    for stage in plan_stages(found.images, FewShotSettings("m")):
        assert not set(stage.training) & set(stage.validation), about
    assert all(image.labels_hw.max() <= len(found.classes) for image in found.images), about
    division = Division.of(found, draw.randrange(9))
    groups = dict(zip(map(id, found.cases), found.groups_of_cases, strict=True))
    sides = ({groups[id(case)] for case in part} for part in (division.training, division.aside))
    assert not set.intersection(*sides), about
    for case in found.cases:
        for stack in stacks_of(case, ["axial", "coronal"], "auto", found.table.numbers(case.labels.labels)):
            assert stack.image_kji.shape[:3] == stack.labels_kji.shape, about
    return "sound"


def mutate(folder: Path, draw: random.Random) -> str:
    """Do one bad thing to a folder; what it was."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        return "nothing left"
    path = draw.choice(files)
    what = draw.choice(MUTATIONS)
    if what == "cut":
        path.write_bytes(path.read_bytes()[: draw.randint(0, path.stat().st_size)])
    elif what == "flip":
        content = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 30)):
            if content:
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "delete":
        path.unlink()
    elif what == "swap":
        other = draw.choice(files)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif what == "rename":
        path.rename(path.with_name(draw.choice(["_seg.png", "ä ö.nrrd", f"x{path.name}", "a_seg_seg.png"])))
    elif what == "csv":
        rows = [
            f"{draw.choice(files).relative_to(folder)},{draw.choice(files).relative_to(folder)},"
            f"{draw.choice(['', 'test', 'x'])}"
            for _ in range(draw.randint(0, 5))
        ]
        (folder / "pairs.csv").write_text("\n".join(["image,label,split", *rows]), encoding="utf-8")
    elif what == "text":
        path.write_bytes(draw.choice([b"<html>", b"version https://git-lfs", b"\x00" * 300, b"NRRD0004\n\n"]))
    else:
        _repaint(path, what, draw)
    return f"{what} {path.name}"


def _repaint(path: Path, what: str, draw: random.Random) -> None:
    """Another sound picture where there was one."""
    if path.suffix != ".png":
        path.write_bytes(b"NRRD0004\ntype: float\ndimension: 0\n\n")
        return
    side = draw.choice([1, 2, 50, 72])
    values = {
        "resize": np.zeros((side, 72), np.uint8),
        "fill": np.full((72, 72), draw.choice([0, 1, 2, 255]), np.uint8),
        "colour": np.random.default_rng(draw.randrange(99)).integers(0, 255, (72, 72, 3)).astype(np.uint8),
        "float": np.arange(72 * 72, dtype=np.uint16).reshape(72, 72),
    }[what]
    Image.fromarray(values).save(path)
