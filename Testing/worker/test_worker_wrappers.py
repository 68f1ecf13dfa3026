"""A remote worker is a command line: whatever stands before it, it is spoken to as if it were here."""

import sys
import time

import numpy as np
import pytest
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.transports import split_command
from support.supervised_worker import CORE, FOLDER, clicks, fake_worker, volume

FAR = 2e6  # bytes a second


def wrapped(*options, command=None):
    return [
        sys.executable,
        str(FOLDER / "wrapper.py"),
        *map(str, options),
        "--",
        *(command or fake_worker()),
    ]


def smooth(shape_kji):
    """Voxels that compress well, as most of a CT does."""
    k, j, i = np.indices(shape_kji, sparse=True)
    return Volume(((k + j // 8 + i // 8) % 50).astype(np.int16), Geometry(np.eye(4), shape_kji[::-1]))


def noise(shape_kji):
    """Voxels that do not."""
    voxels = np.random.default_rng(0).integers(-30000, 30000, shape_kji, dtype=np.int16)
    return Volume(voxels, Geometry(np.eye(4), shape_kji[::-1]))


@pytest.mark.parametrize(
    "wrapper",
    [
        ["sh", "-c", 'echo "Welcome to the cluster"; exec "$@"', "sh"],
        ["sh", "-c", 'echo "Welcome to the cluster"; "$@"', "sh"],
        ["sh", "-c", 'for n in $(seq 1500); do echo "all use is monitored"; done; exec "$@"', "sh"],
        ["env", "-i", f"PYTHONPATH={CORE}"],
        ["nice", "-n", "1"],
        wrapped("--latency", 0.05, command=["env"]),
    ],
    ids=["banner", "child", "long banner", "clean", "nice", "latency"],
)
def test_a_wrapper_is_not_noticed(supervised, wrapper):
    worker = supervised([*wrapper, *fake_worker()])
    session = worker.session()
    assert worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))[0].mask_hw[6, 5]
    worker.answer(session.propagate)
    assert len(session.masks("a")) == 6 and len(worker.transports) == 1


@pytest.mark.parametrize("action", ["die", "garbage", "close", "stop"])
def test_a_wrapper_that_breaks_is_started_again(supervised, tmp_path, action):
    volume_bytes = 3 * 16384  # of answers: in the middle of what propagation brings
    worker = supervised(wrapped("--after", volume_bytes, action, "--once", tmp_path / "done"))
    session = worker.session(volume((80, 24, 32)))
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    for _ in range(3):
        worker.answer(session.propagate)
    assert WorkerState.RESTARTING in worker.states and len(worker.transports) == 2
    assert len(session.masks("a")) == 80


def test_a_volume_goes_compressed_where_that_is_faster(supervised, tmp_path):
    count, scan = tmp_path / "count", smooth((40, 256, 256))
    worker = supervised(wrapped("--rate", FAR, "--count", count))
    worker.until_ready()
    start = time.monotonic()
    worker.session(scan)
    raw = scan.voxels_kji.nbytes
    assert int(count.read_text()) < 0.6 * raw and time.monotonic() - start < 0.8 * raw / FAR


def test_a_volume_goes_as_it_is_where_compressing_would_only_delay_it(supervised):
    scan = volume((100, 256, 256))
    worker = supervised()
    worker.until_ready()
    transport, written = worker.transports[-1], []
    write = transport.write
    transport.write = lambda data: (written.append(len(data)), write(data))
    worker.session(scan)
    assert sum(written) >= scan.voxels_kji.nbytes


def test_clicks_and_signs_of_life_do_not_wait_behind_a_volume(supervised):
    worker = supervised(wrapped("--rate", FAR))
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    large = worker.client.open_volume(noise((24, 512, 512)))
    waits = []
    while not large.is_there and len(waits) < 50:
        worker.turn(0.1)
        start = time.monotonic()
        worker.answer(session.set_prompts, "a", clicks((5, 6), (len(waits), 9), n=2))
        waits.append(time.monotonic() - start)
    assert len(waits) > 5 and max(waits) < 1.5, waits
    assert len(worker.transports) == 1
    assert 0 < large.received <= large.total


def test_closing_a_volume_on_its_way_stops_it(supervised, tmp_path):
    count = tmp_path / "count"
    worker = supervised(wrapped("--rate", FAR, "--count", count))
    worker.until_ready()
    large = worker.client.open_volume(noise((60, 512, 512)))
    worker.until(lambda: large.received)
    worker.client.close_volume(large)
    worker.answer(worker.client.request, "models")
    session = worker.session()
    assert isinstance(worker.answer(session.set_prompts, "a", clicks((5, 6), n=2)), list)
    assert int(count.read_text()) < large.total / 3 and len(worker.transports) == 1


@pytest.mark.parametrize(
    ("line", "windows", "posix"),
    [
        ("ssh gpu-host medsam2 worker", None, ["ssh", "gpu-host", "medsam2", "worker"]),
        ('  "C:\\Program Files\\ssh.exe"  -i C:\\keys\\mine host ', ["C:\\Program Files\\ssh.exe", "-i",
         "C:\\keys\\mine", "host"], None),
        ("ssh host 'conda run -n seg worker'", None, ["ssh", "host", "conda run -n seg worker"]),
        ('a "" b', ["a", "", "b"], ["a", "", "b"]),
        ('say \\"hello\\"', ["say", '"hello"'], ["say", '"hello"']),
        ('--name="two words"x', ["--name=two wordsx"], ["--name=two wordsx"]),
        ("", [], []),
    ],
)  # fmt: skip
def test_a_command_line_is_split_as_its_system_does(line, windows, posix):
    if windows is not None:
        assert split_command(line, windows=True) == windows
    if posix is not None:
        assert split_command(line, windows=False) == posix


@pytest.mark.parametrize("windows", [True, False])
def test_an_open_quote_is_refused(windows):
    with pytest.raises(ValueError, match="quot"):
        split_command('ssh "host', windows=windows)
