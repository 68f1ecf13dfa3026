"""Cohorts on a Ray cluster of two workers on this machine: the same masks, and retries."""

import os
from functools import partial

import pytest
from medsam2_core.batch.cases import Case, Options, Task
from medsam2_core.batch.cohort import read_cohort
from medsam2_core.batch.pool import RayPool, room_of
from medsam2_core.batch.run import Run, opened
from support.cohorts import KilledRunner, entries, masks, run_here, write_cohort
from support.errors import raises

CASES = 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), CASES)


@pytest.fixture
def code_on_the_path(monkeypatch):
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    from support.project import CORE, ROOT

    places = [str(CORE.parent), str(ROOT / "Testing"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))


def test_two_actors_give_the_masks_of_one_process(cohort, model, tmp_path, code_on_the_path):
    options = Options(model=str(model), image_size=64)
    run_here(cohort, tmp_path / "one", options)
    # The actor that does c1 first kills itself.
    make_runner = partial(KilledRunner, tmp_path / "ray", options, "c1", tmp_path / "killed")
    pool = RayPool("local", make_runner, 2, memory=1 << 20, on_gpu=False)
    try:
        with opened(tmp_path / "ray") as journal:
            summary = Run(tmp_path / "ray", journal, options).run(read_cohort(cohort).cases, pool)
    finally:
        pool.close()
    assert len(pool.processes) == 2
    assert sorted(summary.done) == [f"c{n}" for n in range(CASES)] and summary.failed == []
    assert (tmp_path / "killed").exists() and entries(tmp_path / "ray")["c1"].attempts == 2
    for name in summary.done:
        assert masks(tmp_path / "ray", name) == masks(tmp_path / "one", name)


def test_actors_that_cannot_start_end_the_run(code_on_the_path):
    pool = RayPool("local", partial(int, "rubbish"), 1, on_gpu=False)
    try:
        pool.submit(Task(Case("c", "c.nrrd"), ""))
        with raises("process-not-started") as caught:
            while pool.in_flight:
                pool.wait(1.0)
    finally:
        pool.close()
    assert "rubbish" in caught.value.fields["reason"]


def test_actors_are_not_divided_between_nodes():
    nodes = [{"Alive": True, "Resources": {"CPU": 6.0, "GPU": 2.0, "memory": 9.0}} for _ in range(2)]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 99.0}})
    needs = [(4, 0, 0), (2, 1, 0), (4, 1, 0), (2, 0, 4), (2, 0, 10)]
    rooms = [room_of(nodes, {"CPU": cpu, "GPU": gpu, "memory": memory}) for cpu, gpu, memory in needs]
    assert rooms == [2, 4, 2, 4, 0]


def test_without_ray_it_says_how_to_get_it(medsam2, cohort, model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    answer = medsam2("batch", cohort, "--out", tmp_path / "out", "--model", model, "--ray", "local")
    assert answer.refused("ray-missing", package="ray")


def test_a_cluster_that_is_not_there(medsam2, cohort, model, tmp_path, code_on_the_path):
    with raises("cluster-not-found", address="127.0.0.1:1"):
        RayPool("127.0.0.1:1", partial(KilledRunner, tmp_path, Options(), "", tmp_path))
