"""A run that is stopped at any moment leaves a whole result or none, and nothing in the next one's way."""

import signal
import sys
import time

import numpy as np
import pytest
from medsam2_core.imaging.reading import read_segmentation
from support.forked_runs import ForkedRuns, after, once_writing
from support.small_files import write_nrrd

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
KILLS = 10
STRAIGHT = np.diag([-1.0, -1.0, 2.0, 1.0])
OUTS = ("m.seg.nrrd", "m.nrrd", "m.nii.gz", "m.mha")


@pytest.fixture(scope="module")
def runs():
    runs = ForkedRuns("embedded")
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Large enough that writing its masks takes a while."""
    voxels = np.random.default_rng(0).integers(0, 99, (60, 160, 160)).astype(np.int16)
    return write_nrrd(tmp_path_factory.mktemp("scan") / "scan.nrrd", voxels, STRAIGHT, encoding="raw")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_no_half_result_at_any_moment(runs, scan, tmp_path, campaign, number, record_property):
    words = ["segment", scan, "--box", "30,30,120,120@30", "--range", "29:30"]
    wholes, seconds = {}, {}
    for name in OUTS:
        started = time.monotonic()
        assert runs.run([*words, "--out", tmp_path / name]) == 0
        seconds[name] = time.monotonic() - started
        wholes[name] = voxels_of(tmp_path / name)
        (tmp_path / name).unlink()
    rng = np.random.default_rng(number)
    codes = []
    record_property("kills", KILLS * campaign)
    for kill in range(KILLS * campaign):
        name = OUTS[kill % len(OUTS)]
        folder = tmp_path / f"kill{kill}"
        folder.mkdir()
        out = folder / name
        before = b""
        if kill % 4 == 3:  # something is there already, to be replaced
            before = b"the result of yesterday"
            out.write_bytes(before)
        asked = [*words, "--out", out, "--overwrite", "--picture", folder / "p.png"]
        writing = kill % 2 == 0
        moment = (
            once_writing(folder, rng.uniform(0, 0.05))
            if writing
            else after(rng.uniform(0, 1.2 * seconds[name]))
        )
        codes.append(runs.run(asked, number, moment))
        about = f"kill {kill} of {name}, exit code {codes[-1]}: {sorted(folder.iterdir())}"
        assert codes[-1] in (0, 130 if number == signal.SIGINT else -signal.SIGKILL), about
        if out.exists() and out.read_bytes() != before:
            assert np.array_equal(voxels_of(out), wholes[name]), about
        if (picture := folder / "p.png").exists():
            assert picture.read_bytes().endswith(b"IEND\xaeB\x60\x82"), about
        if number == signal.SIGINT:
            assert not list(folder.glob(".*")), about
            assert before == b"" or out.exists(), about
        if kill % 5 == 0:
            assert runs.run(asked) == 0, "what a killed run left behind is in nobody's way"
            assert np.array_equal(voxels_of(out), wholes[name])
    assert len([code for code in codes if code != 0]) >= len(codes) // 3, f"too few were hit: {codes}"


def voxels_of(path) -> np.ndarray:
    return np.stack([segment.mask_kji for segment in read_segmentation(path)])
