"""`medsam2 bench`: what it measures is complete, whatever the machine."""

import errno
import json
import runpy
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from medsam2_core.cli import bench
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import DeviceError
from medsam2_core.evaluation import matrix_products, speed, stock_video
from medsam2_core.evaluation.matrix_products import gigaflops_of
from medsam2_core.evaluation.speed import SpeedSettings
from medsam2_core.evaluation.stock_video import beside_stock
from medsam2_core.evaluation.timings import Phantom, Timings
from support.command_line import CommandLine
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

FEW = SpeedSettings(slices=6, side=48, repeats=1, objects=(1, 2), depths=(2,))


@pytest.fixture
def medsam2(capsys):
    return CommandLine(capsys)


def test_everything_is_measured(medsam2, tmp_path, monkeypatch):
    monkeypatch.setattr(SpeedSettings, "quick", classmethod(lambda cls: FEW))
    words = ("bench", "--random", "embedded", "--image-size", 64, "--quick", "--threads", 1)
    answer = medsam2(*words, "--plot", tmp_path / "times.svg", "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    names = [one["name"] for one in facts["timings"]]
    assert names == [
        "volume opened, and a first box",
        "click on an encoded slice",
        "click on a new slice",
        *(f"propagation{again}, {n}" for n in ("1 object", "2 objects") for again in ("", " again")),
        "a session",
    ]
    for one in facts["timings"]:
        assert 0 < one["least"] <= one["median"] <= one["most"] and one["runs"] == 1
    assert facts["matrix_products"]["gigaflops"] > 0 and facts["matrix_products"]["seconds"] > 0
    for phase in ("cold", "warm"):
        assert facts["beside_sam2"][phase]["ratio"] > 0
    assert facts["beside_sam2"]["least_iou"] is None  # the embedded model also gets the mask before
    assert [one["slices"] for one in facts["peak_memory"]] == [2]
    assert facts["peak_memory"][0]["mb"] > 50
    assert facts["machine"]["threads"] == 1 and facts["model"]["image_size"] == 64
    assert b"<svg" in (tmp_path / "times.svg").read_bytes()


def test_what_fails_takes_no_other_measurement_with_it(medsam2, tmp_path, monkeypatch):
    monkeypatch.setattr(SpeedSettings, "quick", classmethod(lambda cls: replace(FEW, depths=(2, 3))))

    def fails(what):
        def work(*_, **__):
            raise what

        return work

    killed, full = BrokenProcessPool("killed"), DeviceError("no memory left", code="device-memory")
    disk = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(speed, "peak_memory", lambda _, depth, __: fails(killed)() if depth == 2 else 60.0)
    monkeypatch.setattr(stock_video, "beside_stock", fails(full))
    monkeypatch.setattr(matrix_products, "seconds_of", fails(full))
    monkeypatch.setattr(speed, "new_file", fails(disk))
    words = ("bench", "--random", "embedded", "--image-size", 64, "--quick", "--threads", 1)
    answer = medsam2(*words, "--plot", tmp_path / "times.png", "--json")
    assert answer.code == 2
    assert len(answer.facts["timings"]) == 8 and answer.facts["beside_sam2"] is None
    assert answer.facts["matrix_products"] is None
    assert [one["mb"] for one in answer.facts["peak_memory"]] == [None, 60.0]
    failed = [note["code"] for note in answer.facts["notes"]]
    assert failed.count("not-measured") == 3 and failed.count("plot-not-written") == 1
    assert medsam2(*words).code == 0, "the table leaves out what is not known"


@pytest.mark.parametrize("kept", [0, 2**29])
def test_features_that_do_not_fit_into_the_cache_are_told(kept):
    model = speed.ModelChoice(random="embedded", image_size=64)()
    settings = replace(FEW, cache_bytes=kept)
    timings = speed.measure(model, settings, lambda done, what: None)
    notes = bench._not_kept(timings.encoded_again, settings)
    if kept:
        assert notes == []
        return
    (note,) = notes
    names = [f"propagation again, {n}" for n in ("1 object", "2 objects")]
    assert note.code == "features-not-kept" and list(note.fields["encoded_again"]) == names
    assert note.fields["encoded_again"][names[0]] >= FEW.slices - 1


def test_what_cannot_be_used_is_refused_before_anything_is_measured(medsam2, tmp_path):
    (tmp_path / "folder.svg").mkdir()
    assert medsam2("bench", "--plot", tmp_path / "folder.svg").refused("output-is-folder")
    (tmp_path / "there.png").write_bytes(b"kept")
    assert medsam2("bench", "--plot", tmp_path / "there.png").refused("output-exists")
    assert medsam2("bench", "--plot", tmp_path / "times.pdf", "--overwrite").refused("unknown-format")
    assert (tmp_path / "there.png").read_bytes() == b"kept" and not (tmp_path / "times.pdf").exists()
    for option in ("--model", "--config"):
        assert medsam2("bench", "--random", "embedded", option, "embedded").refused("random-and-model")
    assert medsam2("bench", "--random", "no-such").refused("unknown-configuration", config="no-such")
    assert medsam2("bench", "--device", "tpu").refused("unknown-device")


def test_sam2_and_ours_see_the_same_and_give_the_same():
    model = speed.ModelChoice(random="sam2.1_hiera_t", image_size=128)()
    assert isinstance(model, SegmentationModel) and model.recipe == STOCK
    timings, least = beside_stock(model, 3, 48, 2, lambda done, what: None)
    assert {timing.name: len(timing.wall) for timing in timings} == dict.fromkeys(
        ("sam2, cold", "ours, cold", "sam2, warm", "ours, warm"), 2
    )
    assert least is not None and least > 0.999
    assert timings.ratio(timings["sam2, warm"], timings["ours, warm"]) > 0


def test_runs_that_differ_are_noticed():
    timings = Timings(torch.device("cpu"))
    timings.run("steady", lambda: None)
    assert timings.noisy() == []
    timings["steady"].wall[:] = [1.0, 1.1, 1.2]
    timings.run("uneven", lambda: None, slices=2)
    timings["uneven"].wall[:] = [1.0, 1.1, 1.5]
    assert timings.noisy() == ["uneven"] and timings["uneven"].unit == "s/slice"


def test_every_kind_of_device_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "cuda:0", "mps"):
        Timings(torch.device(name)).run("nothing", lambda: None)
    assert waited == [torch.device("cuda:0")] * 2 + ["mps"] * 2


def test_objects_of_the_phantom_lie_in_their_boxes():
    phantom = Phantom.of(6, 60, 4)
    middle = phantom.volume.voxels_kji[3] > 75
    outside = middle.copy()
    for x0, y0, x1, y1 in phantom.boxes:
        box = np.s_[int(y0) : int(y1) + 2, int(x0) : int(x1) + 2]
        assert middle[box].mean() > 0.5
        outside[box] = False
    assert not outside.any()
    assert all((phantom.volume.voxels_kji[k] > 75).any() for k in (0, 5))


def test_matrix_products_are_counted_as_torch_counts_them():
    image, weight, deep = torch.randn(2, 6, 10, 12), torch.randn(8, 3, 3, 3), torch.randn(2, 4, 16, 8)
    upward, linear = torch.randn(8, 5, 2, 2), torch.nn.Linear(12, 7)

    def work():
        maps = functional.conv2d(image, weight, padding=1, groups=2)
        functional.conv_transpose2d(maps, upward, stride=2)
        functional.scaled_dot_product_attention(deep, deep, deep)
        linear(maps)
        torch.bmm(deep[0], deep[0].transpose(1, 2))

    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        work()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            attention = 2 * 2 * (2 * 4) * 16 * 16 * 8  # on a CPU torch leaves it out
            expected = (counted.get_total_flops() + attention) / 1e9
            assert gigaflops_of(work) == pytest.approx(expected)


def test_the_benchmark_for_graphics_cards_runs_on_anything(tmp_path, monkeypatch):
    script = Path(__file__).parents[1] / "bench" / "gpu.py"
    words = "--device cpu --configs sam2.1_hiera_t no-such --sizes 64 --slices 2 --turns 1 --plain --out"
    monkeypatch.setattr(sys, "argv", [str(script), *words.split(), str(tmp_path / "gpu.json")])
    runpy.run_path(str(script), run_name="__main__")
    found = json.loads((tmp_path / "gpu.json").read_text())
    (pair,) = found["pairs"]
    assert (pair["config"], pair["size"], pair["compiled"]) == ("sam2.1_hiera_t", 64, False)
    assert [one["name"] for one in pair["timings"]] == [
        "sam2, cold",
        "ours, cold",
        "sam2, warm",
        "ours, warm",
    ]
    assert [one["config"] for one in found["left_out"]] == ["no-such"]
    assert found["machine"]["device"] == "cpu"


def test_pairs_that_are_not_started_in_time_are_named(tmp_path, monkeypatch):
    script = Path(__file__).parents[1] / "bench" / "gpu.py"
    words = "--device cpu --configs sam2.1_hiera_t --sizes 64 128 --plain --minutes -1 --out"
    monkeypatch.setattr(sys, "argv", [str(script), *words.split(), str(tmp_path / "gpu.json")])
    runpy.run_path(str(script), run_name="__main__")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["pairs"] == [] and [one["size"] for one in found["left_out"]] == [64, 128]
    assert {one["why"] for one in found["left_out"]} == {"no time left"}


def test_a_rate_of_cohorts_needs_two_cases(monkeypatch):
    script = Path(__file__).parents[1] / "bench" / "cohort.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--cases", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
