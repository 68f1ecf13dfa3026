"""Volumes on links of any speed, simulated: as fast as the link is, never far ahead of it."""

import math
import time
import zlib

import numpy as np
import pytest
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.incoming import IncomingVolumes
from medsam2_core.worker.messages import StackChoice
from medsam2_core.worker.uploads import RemoteVolume, SendWindow
from support.simulated_link import SimulatedWorker
from support.supervised_worker import volume

MB = 1e6


def noise(shape_kji, dtype=np.int16):
    voxels = np.random.default_rng(0).integers(-30000, 30000, shape_kji).astype(dtype)
    return Volume(voxels, Geometry(np.eye(4), shape_kji[2::-1]))


def sent(link, scan, seconds):
    """How long a volume takes; what stands in the frames."""
    link.pass_time(0.2)
    remote, start = link.client.open_volume(scan), link.now
    while not remote.is_there:
        assert link.now - start < seconds, f"{remote.received} of {remote.total} bytes after {seconds} s"
        link.pass_time(0.01)
    slabs = [frame for _, frame in link.frames if frame.type == "volume_data"]
    return link.now - start, slabs


@pytest.mark.parametrize(
    ("rate", "latency"), [(0.3 * MB, 0.0), (3 * MB, 0.02), (30 * MB, 0.1), (300 * MB, 0.0), (10 * MB, 0.3)]
)
def test_a_link_is_used_well_and_not_flooded(rate, latency):
    link, scan = SimulatedWorker(rate, latency), noise((40, 256, 256))
    seconds, slabs = sent(link, scan, 60)
    rebuilt = np.concatenate([frame.arrays["voxels_kji"] for frame in slabs])
    assert np.array_equal(rebuilt, scan.voxels_kji)
    assert seconds < 1.6 * scan.voxels_kji.nbytes / rate + 12 * latency + 0.3
    assert link.largest < max(0.8 * rate, 0.4 * MB) and link.largest < 6 * MB
    assert link.starts == 1


@pytest.mark.parametrize(
    ("rate", "latency"), [(0.3 * MB, 0.0), (3 * MB, 0.02), (30 * MB, 0.1), (10 * MB, 0.3)]
)
def test_what_is_asked_meanwhile_does_not_wait_for_the_volume(rate, latency):
    link = SimulatedWorker(rate, latency)
    link.pass_time(0.2)
    remote, asked = link.client.open_volume(noise((160, 256, 256))), []
    while not remote.is_there and len(asked) < 20:
        link.pass_time(0.13)
        link.client.request("models")
        asked.append(link.now)
    link.pass_time(2.0)
    waits = [there - then for there, then in zip(link.came("models"), asked, strict=True)]
    assert max(waits) < latency + (1.0 if rate < MB else 0.75), waits


def test_on_a_slow_link_what_shrinks_is_shrunk():
    scan = volume((60, 256, 256))
    ratio = len(zlib.compress(scan.voxels_kji, 1)) / scan.voxels_kji.nbytes
    link = SimulatedWorker(1 * MB)
    seconds, slabs = sent(link, scan, 60)
    assert seconds < (ratio + 0.25) * scan.voxels_kji.nbytes / MB
    assert sum(frame.nbytes for frame in slabs) < (ratio + 0.25) * scan.voxels_kji.nbytes


@pytest.mark.parametrize(("rate", "is_slow"), [(0.5 * MB, True), (5 * MB, True), (200 * MB, False)])
def test_whether_to_compress_is_decided_by_the_rate(rate, is_slow):
    now = [0.0]
    window = SendWindow(lambda: now[0])
    assert not window.is_slow, "nothing is known of the link"
    for _ in range(16):
        window.sent(1 << 20)
        now[0] += (1 << 20) / rate
        window.acknowledged(1 << 20)
    assert window.is_slow == is_slow


def refusing(link, until):
    """Let a link refuse volumes after so many slabs have come."""
    take, slabs = link.answer, []

    def answer(frame):
        if frame.type == "volume_data" and len(slabs) < until[0]:
            slabs.append(frame)
            if len(slabs) < until[0]:
                take(frame)
            else:
                header = link.received[frame.header["volume"]][0]
                link.send("error", header, kind="OutOfMemoryError", message="the memory is full")
        elif frame.type != "volume_data" or not until[0]:
            take(frame)

    link.answer = answer


def test_what_is_left_of_a_refused_volume_is_not_sent_and_holds_up_no_other():
    link, failures, until = SimulatedWorker(3 * MB), [], [2]
    refusing(link, until)
    link.pass_time(0.2)
    remote = link.client.open_volume(noise((60, 256, 256)))
    link.client.open_session(remote, StackChoice("k"), failed=failures.append)
    link.pass_time(6.0)
    assert failures
    assert sum(frame.nbytes for _, frame in link.frames if frame.type == "volume_data") < remote.total / 3
    until[0] = 0
    seconds, _ = sent(link, noise((20, 256, 256)), 10)
    assert seconds < 2, "bytes of the refused volume still count as on their way"


@pytest.mark.parametrize(
    ("dtype", "told"),
    [(bool, "|u1"), (">i2", "<i2"), ("f2", "<f4"), ("f8", "<f8"), ("u8", "<u8"), (np.longdouble, "<f8")],
)
def test_any_voxels_go_as_a_type_of_the_protocol(dtype, told):
    voxels = (np.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    remote = RemoteVolume("v1", Volume(voxels[:, ::-1], Geometry(np.eye(4), (4, 3, 2))))
    assert remote.description()["dtype"] == told and remote.slab(0, 10**6).dtype == np.dtype(told)
    assert (
        np.array_equal(remote.slab(1, 1), voxels[1:, ::-1]) and remote.total == 24 * np.dtype(told).itemsize
    )


def test_colour_goes_in_three_components():
    remote = RemoteVolume("v1", Volume(np.zeros((2, 3, 4, 3), np.uint8), Geometry(np.eye(4), (4, 3, 2))))
    assert remote.description()["components"] == 3 and remote.slab(0, 1).shape == (1, 3, 4, 3)
    assert remote.description()["shape_kji"] == [2, 3, 4] and remote.total == 72


def test_an_equal_volume_is_sent_once_and_a_different_one_again():
    link = SimulatedWorker()
    link.pass_time(0.2)
    one, same = (link.client.open_volume(volume()) for _ in range(2))
    other = link.client.open_volume(volume(seed=1))
    link.pass_time(0.2)
    assert one is same and other is not one and len(link.came("open_volume")) == 2
    link.client.close_volume(one)
    assert not link.came("close_volume")
    link.client.close_volume(one)
    link.pass_time(0.2)
    assert len(link.came("close_volume")) == 1


@pytest.mark.parametrize("sent_until", [0.0, 0.5, 1.0])
def test_voxels_changed_in_place_are_another_volume(sent_until):
    link = SimulatedWorker(rate=math.inf if sent_until == 1.0 else 3 * MB)
    if sent_until:
        link.pass_time(0.2)
    live = noise((24, 128, 128)).voxels_kji.copy()

    def as_it_is():
        return Volume(live, Geometry(np.eye(4), live.shape[::-1]), "MR")

    one = link.client.open_volume(as_it_is())
    while one.received < sent_until * one.total:
        link.pass_time(0.01)
    assert link.client.open_volume(as_it_is()) is one
    live[0, 0, 0] += 1
    if not sent_until:
        assert link.client.open_volume(as_it_is()) is one, "nothing of it was sent yet: it goes as it is now"
        return
    assert link.client.open_volume(as_it_is()) is not one
    live[0, 0, 0] -= 1
    assert link.client.open_volume(as_it_is()) is one


def test_a_new_worker_is_sent_what_the_voxels_are_then():
    link = SimulatedWorker()
    link.pass_time(0.2)
    live = noise((4, 64, 64)).voxels_kji.copy()
    one = link.client.open_volume(Volume(live, Geometry(np.eye(4), live.shape[::-1])))
    link.pass_time(0.2)
    live[:] = 3
    link.listener.on_end("the worker ended with exit code 1", 1)
    link.pass_time(0.6)
    slab = [frame for _, frame in link.frames if frame.type == "volume_data"][-1]
    assert one.is_there and (slab.arrays["voxels_kji"] == 3).all()
    assert link.client.open_volume(Volume(live, Geometry(np.eye(4), live.shape[::-1]))) is one


def test_a_slice_larger_than_a_frame_is_refused_with_a_way_out():
    link, failures = SimulatedWorker(), []
    link.pass_time(0.2)
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1, 40_000, 40_000), (0, 0, 0))
    remote = link.client.open_volume(Volume(wide, Geometry(np.eye(4), wide.shape[::-1])))
    link.client.open_session(remote, StackChoice("k"), failed=failures.append)
    link.pass_time(0.3)
    assert isinstance(failures[0], VolumeError) and "crop" in str(failures[0])
    small = link.client.open_volume(volume())
    link.pass_time(0.3)
    assert small.is_there and link.starts == 1


def test_a_volume_that_was_refused_is_sent_again_for_who_asks_again():
    link, failures, is_full = SimulatedWorker(), [], True
    take = link.answer

    def answer(frame):
        if not is_full:
            take(frame)
        elif frame.type == "open_volume":
            link.send("error", frame.header, kind="OutOfMemoryError", message="the memory is full")
        elif frame.type != "volume_data":
            take(frame)

    link.answer = answer
    link.pass_time(0.2)
    remote = link.client.open_volume(volume())
    link.client.open_session(remote, StackChoice(), failed=failures.append)
    link.pass_time(0.5)
    assert "full" in str(failures[0])
    is_full = False
    link.client.open_session(remote, StackChoice(), failed=failures.append)
    link.pass_time(0.5)
    assert remote.is_there and link.came("open_session") and len(failures) == 1


def test_a_volume_closed_while_its_last_slab_comes_is_gone():
    volumes = IncomingVolumes()
    fields = {"volume": "v", "shape_kji": [2, 3, 4], "dtype": "<i2", "ijk_to_ras": np.eye(4).tolist()}
    volumes.open(7, fields)
    incoming = volumes._incoming["v"]

    class Closing:
        """Coverage of slices that is looked at when the volume has just been closed by another thread."""

        def __init__(self, array):
            self.array = array

        def __setitem__(self, key, value):
            self.array[key] = value

        def all(self):
            assert volumes.close("v") == 7
            return self.array.all()

    incoming.received = Closing(incoming.received)
    slab = {"voxels_kji": np.zeros((2, 3, 4), "<i2")}
    assert volumes.fill({"volume": "v", "first": 0}, slab) is None
    assert len(volumes) == 0


def test_the_slowest_part_of_sending_here_is_not_us():
    remote = RemoteVolume("v1", noise((60, 512, 512)))
    start = time.perf_counter()
    for first in range(0, 60, 2):
        remote.slab(first, 1 << 20)
    assert time.perf_counter() - start < 0.5
