"""What a machine may do to a run: full disks, read-only folders, links, pauses, other clocks, no network."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from medsam2_core import atomic
from medsam2_core.imaging.reading import read_segmentation
from support.command_line import BALL_BOX, CommandLine, write_photo, write_scan, write_untrained_model
from support.errors import raises
from support.forked_runs import ForkedRuns, after, once_writing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, mounts and links")
# What opens a connection or a port, or asks a name server (Python's audit events). urllib3, which pydicom
# imports, binds a socket to the loopback address at import to see whether there is IPv6, and closes it.
NETWORK = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
    "http.client.connect", "urllib.Request",
)  # fmt: skip
WATCHED = f"""
import os, sys

def watch(event, arguments):
    if event in {NETWORK!r} and (event, arguments[1:]) != ("socket.bind", (("::1", 0),)):
        os._exit(77)

sys.addaudithook(watch)
from medsam2_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_untrained_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nrrd")


@pytest.fixture(scope="module")
def runs(model):
    runs = ForkedRuns(model)
    yield runs
    runs.close()


@pytest.fixture
def words(scan, model):
    return ["segment", scan, "--box", BALL_BOX, "--range", "11:13", "--model", model]


@pytest.fixture
def medsam2(capsys):
    return CommandLine(capsys)


@contextlib.contextmanager
def a_small_disk(folder, size="64k"):
    """Mount a disk in memory; the mount ends with the block, whatever happens."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be made here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["m.seg.nrrd", "m.nrrd", "m.nii.gz", "m.mha", "m.dcm"])
def test_a_full_disk_leaves_what_was_there(medsam2, words, tmp_path, name):
    with a_small_disk(tmp_path / "disk") as disk:
        before = b"the result of yesterday"
        (disk / name).write_bytes(before)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1024))
        answer = medsam2(*words, "--out", disk / name, "--overwrite")
        assert answer.code == 2 and answer.err.splitlines()[-1].startswith("medsam2: "), answer
        assert (disk / name).read_bytes() == before
        assert sorted(one.name for one in disk.iterdir()) == sorted([name, "filler"])


def test_a_folder_that_is_read_only_is_refused_before_the_work(medsam2, words, tmp_path):
    with a_small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        answer = medsam2(*words, "--out", disk / "m.nrrd")
        assert answer.code == 2 and str(disk) in answer.err, answer


def test_a_link_put_in_the_results_place_costs_no_other_file(
    runs, words, tmp_path, campaign, record_property
):
    rng = random.Random(1)
    record_property("symlink races", 4 * campaign)
    swapped = 0
    for number in range(4 * campaign):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        precious, out = folder / "precious.nrrd", folder / "m.nrrd"
        precious.write_bytes(b"a scan that exists once")

        def swap(out=out, precious=precious, number=number):
            (once_writing(out.parent, rng.uniform(0, 0.02)) if number % 2 else after(rng.uniform(0, 0.3)))()
            with contextlib.suppress(FileExistsError):
                out.symlink_to(precious)

        code = runs.run([*words, "--out", out], signal.SIGCONT, swap)
        assert precious.read_bytes() == b"a scan that exists once", (number, code)
        swapped += out.is_symlink() or code != 0
        if code == 0 and not out.is_symlink():
            assert len(read_segmentation(out).segments) == 1
    assert swapped, "no run met a link"


def test_a_run_that_is_paused_at_any_moment_gives_the_same(runs, words, tmp_path, campaign, record_property):
    whole = tmp_path / "whole.nrrd"
    started = time.monotonic()
    assert runs.run([*words, "--out", whole]) == 0
    seconds = time.monotonic() - started
    rng = random.Random(2)
    record_property("pauses", 2 * campaign)
    for number in range(2 * campaign):
        out = tmp_path / f"m{number}.nrrd"

        def pause(number=number):
            time.sleep(rng.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(runs.child, signal.SIGSTOP)
                time.sleep(0.2)

        assert runs.run([*words, "--out", out], signal.SIGCONT, pause) == 0
        assert np.array_equal(mask_of(out), mask_of(whole))


def test_a_clock_that_jumps_changes_nothing(medsam2, words, tmp_path, monkeypatch, campaign, record_property):
    rng = random.Random(3)
    record_property("runs under a jumping clock", 2 * campaign)
    assert medsam2(*words, "--out", tmp_path / "whole.nrrd").code == 0
    monkeypatch.setattr(time, "time", lambda: rng.choice([0.0, 1e9, 4e9, 2**31 + 5.0]))
    for number in range(2 * campaign):
        out = tmp_path / f"m{number}.nrrd"
        answer = medsam2(*words, "--out", out, "--json")
        assert answer.code == 0, answer
        assert out.read_bytes() == (tmp_path / "whole.nrrd").read_bytes()


def test_nothing_opens_a_connection_or_a_port(words, scan, tmp_path):
    out = tmp_path / "m.seg.nrrd"
    alone = ["unshare", "--net"]  # a namespace with no interface that is up
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    for line in (
        [*words, "--out", out],
        ["export", out, "--out", tmp_path / "m.nii.gz"],
        ["info", scan, "--json"],
        ["models", "list", "--json"],
    ):
        command = [*alone, sys.executable, "-c", WATCHED, *map(str, line)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("name", ["../../out", "a/b", "..", "CON", "a" * 300, "a\nb", "圆" * 90])
def test_the_name_of_an_object_never_leads_out_of_the_folder(medsam2, tmp_path, model, name):
    # Masks of a set are files that bear the names of objects.
    images, results = tmp_path / "images", tmp_path / "deep" / "results"
    images.mkdir()
    results.parent.mkdir()
    write_photo(images / "one.png")
    write_photo(images / "two.png")
    words = ["set", images, "--prompt", "one.png", "--model", model, "--zoom", "off"]
    objects = ["--object", name, "--box", "13,19,27,33", "--object", "other", "--box", "3,9,17,13"]
    answer = medsam2(*words, *objects, "--out", results)
    assert answer.code in (0, 2), answer
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and results not in path.parents]
    assert sorted(path.name for path in outside) == ["one.png", "two.png"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    target, link = tmp_path / "real.nrrd", tmp_path / "link.nrrd"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic.protect(target), raises("output-is-input"):
        atomic.check_target(link, overwrite=True)
    with atomic.new_file(link, overwrite=True) as stream:
        stream.write(b"new")
    assert not link.is_symlink() and link.read_bytes() == b"new"
    assert target.read_bytes() == b"old"


def mask_of(path) -> np.ndarray:
    return read_segmentation(path).segments[0].mask_kji
