"""Trainings that are killed at random moments, and trainings of several processes: equal curves."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from support import fine_tuning
from support.fine_tuning import curve_of
from support.labelled_images import write_pictures
from support.project import ROOT

KILLS = 3  # fifty in the campaign
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT / "MedSAM2Segment"), str(ROOT / "Testing")]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 6)


def arguments(data, folder, **settings) -> tuple[str, str, str]:
    return str(data), str(folder), json.dumps(settings)


@pytest.mark.skipif(os.name == "nt", reason="processes cannot be forked there")
def test_a_training_that_is_killed_at_random_moments_has_the_same_curve(
    data, tmp_path, campaign, record_property, monkeypatch
):
    kills_wanted = KILLS if campaign == 1 else 5 * campaign
    record_property("kills", kills_wanted)
    settings = {"steps": 18, "save_every": 4, "validate_every": 6}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    fine_tuning.main(*arguments(data, whole, **settings))
    lasts = time.monotonic() - began
    # One process imports what is needed; those that are killed are forked from it and begin at once.
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["support.fine_tuning", "support.tiny_model"])
    draw, kills, done = random.Random(5), 0, False
    while kills < kills_wanted or not done:
        if done:  # once more from the beginning
            assert_same(curve_of(whole), curve_of(killed))
            for path in killed.iterdir():
                path.unlink()
        process = forking.Process(target=fine_tuning.main, args=arguments(data, killed, **settings))
        process.start()
        process.join(draw.uniform(0, 0.5 * lasts) if kills < kills_wanted else 100 * lasts + 60)
        done = not process.is_alive()
        if done:
            assert process.exitcode == 0
        else:
            process.kill()
            process.join()
            kills += 1
    assert_same(curve_of(whole), curve_of(killed))


def assert_same(one: list[dict], other: list[dict], tolerance: float = 1e-6) -> None:
    """Curves with the same lines, and numbers in them that differ by the tolerance at most."""
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        assert flat(ours) == pytest.approx(flat(theirs), abs=tolerance), (ours, theirs)


def flat(line: dict) -> dict[str, float]:
    """The numbers of a line by name, those of validations too."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            numbers |= {f"{name} {inner}": number for inner, number in flat(value).items()}
        elif not isinstance(value, str):
            numbers[name] = value
    return numbers


@pytest.mark.parametrize("parts", ["all", "lora"])
def test_two_processes_train_as_one_does(data, tmp_path, parts, campaign):
    """The same views a step, divided among the processes: the same curve."""
    if parts == "lora" and campaign == 1:
        pytest.skip("in `make campaign`")
    settings = {"steps": 6, "batch": 4, "passes": 4, "parts": parts, "frames": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    fine_tuning.main(*arguments(data, one, **settings))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    log = tmp_path / "log"
    with log.open("wb") as output:  # no pipe, which a process left behind would keep open
        launched = subprocess.Popen(
            [sys.executable, *launcher, "-m", "support.fine_tuning", *arguments(data, two, **settings)],
            env=ENVIRONMENT, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            launched.wait(timeout=500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launched.pid, signal.SIGKILL)
    assert launched.returncode == 0, log.read_text(errors="replace")[-3000:]
    assert_same(curve_of(one), curve_of(two), tolerance=1e-4)
