"""What the worker says comes whole and in order, and nobody who says something waits for who reads it."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from medsam2_core.worker.protocol import FrameReader
from medsam2_core.worker.server import Outbox


def a_pipe():
    reading, writing = os.pipe()
    return reading, writing, None


def a_socket():
    """As some ssh servers give to what they start."""
    if os.name == "nt":
        pytest.skip("sockets are no descriptors here")
    ours, theirs = socket.socketpair()
    return ours.fileno(), theirs.fileno(), (ours, theirs)


def read(descriptor, count):
    reader, frames = FrameReader(), []
    while len(frames) < count:
        frames += reader.feed(os.read(descriptor, 1 << 16))
    return frames


@pytest.mark.parametrize("made", [a_pipe, a_socket])
def test_nobody_waits_for_a_reader_and_all_comes_in_order(made):
    reading, writing, _kept = made()
    outbox, rng = Outbox(writing), np.random.default_rng(0)
    sizes = [int(size) for size in rng.choice([0, 100, 3000, 4096, 9000, 60_000, 300_000], 300)]
    began = time.monotonic()
    for n, size in enumerate(sizes):
        outbox.put({"type": "t", "n": n}, {"a": np.full(size, n % 251, np.uint8)})
    assert time.monotonic() - began < 5, "it waited"
    frames = read(reading, len(sizes))
    assert [frame.header["n"] for frame in frames] == list(range(len(sizes)))
    assert all((frame.arrays["a"] == n % 251).all() for n, frame in enumerate(frames))
    assert [frame.arrays["a"].size for frame in frames] == sizes


def test_several_threads_do_not_get_between_each_others_bytes():
    reading, writing, _ = a_pipe()
    outbox = Outbox(writing)

    def say(who):
        for n in range(200):
            outbox.put({"type": "t", "who": who, "n": n}, {"a": np.full(5000, who, np.uint8)})

    threads = [threading.Thread(target=say, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    frames = read(reading, 600)
    for thread in threads:
        thread.join()
    for who in range(3):
        mine = [frame for frame in frames if frame.header["who"] == who]
        assert [frame.header["n"] for frame in mine] == list(range(200))
        assert all((frame.arrays["a"] == who).all() for frame in mine)
