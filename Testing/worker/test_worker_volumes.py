"""Volumes on links of any speed, simulated: as fast as the link is, never far ahead of it."""

import time
import zlib

import numpy as np
import pytest
from a_simulated_link import SimulatedWorker
from a_supervised_worker import volume
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.volumes import LinkSpeed, RemoteVolume

MB = 1e6


def noise(shape_kji, dtype=np.int16):
    voxels = np.random.default_rng(0).integers(-30000, 30000, shape_kji).astype(dtype)
    return Volume(voxels, Geometry(np.eye(4), shape_kji[2::-1]))


def sent(link, scan, seconds):
    """How long a volume takes; what stands in the frames."""
    link.pass_time(0.2)
    remote, start = link.supervisor.open_volume(scan), link.now
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
    remote, asked = link.supervisor.open_volume(noise((160, 256, 256))), []
    while not remote.is_there and len(asked) < 20:
        link.pass_time(0.13)
        link.supervisor.request("models")
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


def test_compression_is_judged_by_the_link_and_the_voxels():
    now = [0.0]
    speed = LinkSpeed(lambda: now[0])
    smooth, rough = np.zeros((4, 256, 256), np.int16), noise((4, 256, 256)).voxels_kji
    assert not speed.is_compressing_faster(smooth), "nothing is known of the link"
    for rate, faster in ((0.5 * MB, True), (1e9, False)):
        for _ in range(16):
            speed.sent(1 << 20)
            now[0] += max(0.02, (1 << 20) / rate)
            speed.came(1 << 20 if rate < 1e9 else 1 << 30)
        assert speed.is_compressing_faster(smooth) == faster
        assert not speed.is_compressing_faster(rough)


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
    one, same = (link.supervisor.open_volume(volume()) for _ in range(2))
    other = link.supervisor.open_volume(volume(seed=1))
    link.pass_time(0.2)
    assert one is same and other is not one and len(link.came("open_volume")) == 2
    link.supervisor.close_volume(one)
    assert not link.came("close_volume")
    link.supervisor.close_volume(one)
    link.pass_time(0.2)
    assert len(link.came("close_volume")) == 1


def test_the_slowest_part_of_sending_here_is_not_us():
    remote = RemoteVolume("v1", noise((60, 512, 512)))
    start = time.perf_counter()
    for first in range(0, 60, 2):
        remote.slab(first, 1 << 20)
    assert time.perf_counter() - start < 0.5
