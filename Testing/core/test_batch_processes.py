"""Cohorts through real processes: equal masks on one and two, and none lost when one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import numpy as np
import psutil
import pytest
from medsam2_core.batch.cases import Case, Options, Task, read_facts
from medsam2_core.batch.pool import LocalPool
from support.cohorts import entries, masks, run_here, write_cohort
from support.errors import raises
from support.project import CORE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
CASES = 6


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), CASES)


@pytest.fixture(scope="module")
def in_one(cohort, model, tmp_path_factory):
    """The masks that one process makes."""
    out = tmp_path_factory.mktemp("one") / "out"
    run_here(cohort, out, Options(model=str(model), image_size=64))
    return {f"c{n}": masks(out, f"c{n}") for n in range(CASES)}


def start(cohort, out, model, *words):
    command = [sys.executable, "-m", "medsam2_core.cli", "batch", cohort, "--out", out, "--model", model]
    command += ["--image-size", "64", "--processes", "2", "--json", *words]
    environment = {**os.environ, "PYTHONPATH": str(CORE.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, env=environment)


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def finished(out):
    return [path.name for path in (out / "cases").glob("c*") if read_facts(path)]


def children(process):
    """The processes that do its cases, once there are any."""
    found = []

    def are_there():
        started = psutil.Process(process.pid).children()
        found[:] = [one for one in started if "spawn_main" in " ".join(one.cmdline())]
        return bool(found)

    wait_for(are_there, process)
    return found


@pytest.mark.parametrize(
    ("make", "reason"), [(partial(int, "rubbish"), "rubbish"), (partial(os._exit, 3), "3")]
)
def test_processes_that_cannot_start_end_the_run(make, reason):
    pool = LocalPool(make, 1)
    pool.submit(Task(Case("c", "c.nrrd"), ""))
    try:
        with raises("process-not-started") as caught:
            while pool.in_flight:
                pool.wait(1.0)
    finally:
        pool.close()
    assert reason in caught.value.fields["reason"]


def test_killed_at_any_moment_it_goes_on_and_gives_the_same_masks(cohort, model, in_one, tmp_path, campaign):
    rng = np.random.default_rng(8)
    for kill in range(campaign):
        out = tmp_path / f"out{kill}"
        process = start(cohort, out, model)
        wait_for((out / "cases").is_dir, process)  # the first results are being written
        time.sleep(rng.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = finished(out)
        running = [name for name, one in entries(out).items() if one.state == "running"]
        assert len([name for name in running if name not in before]) <= 4, "two cases a process at most"
        process = start(cohort, out, model)
        one = children(process)[0]
        time.sleep(rng.uniform(0, 5.0))
        with suppress(psutil.NoSuchProcess):  # it was done before
            one.kill()
        said = json.loads(process.communicate()[0])
        assert process.returncode == 0 and said["error"] is None
        assert (said["done"] + said["kept"], said["failed"]) == (CASES, 0), said
        assert said["kept"] >= len(before)
        assert {name: masks(out, name) for name in in_one} == in_one
        assert not list((out / "cases").glob(".*")), "nothing half is left"


def test_one_signal_ends_after_the_cases_that_were_begun(cohort, model, tmp_path, campaign):
    if campaign == 1:
        pytest.skip("in the campaign only: a start takes seconds")
    out = tmp_path / "out"
    process = start(cohort, out, model)
    wait_for((out / "cases").is_dir, process)
    process.send_signal(signal.SIGINT)
    said = json.loads(process.communicate()[0])
    assert process.returncode == 130
    known = entries(out)
    assert said["error"]["fields"]["done"] == len(known) < CASES
    assert {one.state for one in known.values()} == {"done"}
