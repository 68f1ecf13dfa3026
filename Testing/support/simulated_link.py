"""A client over a transport that is only arithmetic: time passes when the test says so."""

import math

from medsam2_core.worker.client import WorkerClient
from medsam2_core.worker.connection import Timing
from medsam2_core.worker.protocol import PROTOCOLS, FrameReader, encode


class SimulatedWorker:
    """Answers after `latency` seconds, takes `rate` bytes a second, and is silent from `mute_from` on.

    Attributes
    ----------
    now
        The time.
    frames
        (when it had come, frame) of everything that has come.
    starts
        How often it was started.
    """

    def __init__(self, rate=math.inf, latency=0.0, timing=None, busy=None):
        self.rate, self.latency, self.busy = rate, latency, busy
        self.now, self.frames, self.starts, self.kills = 0.0, [], 0, 0
        self.mute_from = math.inf
        self.queued, self.on_the_way = [], []
        self.free_at, self.largest = 0.0, 0
        self.client = WorkerClient(lambda: self, clock=lambda: self.now, timing=timing or Timing())
        self.client.start()

    # A transport.

    def start(self, listener):
        self.listener = listener
        self.starts += 1
        self.reader, self.queued, self.on_the_way, self.received = FrameReader(), [], [], {}
        self.free_at = self.now

    def write(self, data):
        self.free_at = max(self.free_at, self.now) + len(data) / self.rate
        self.queued.append((self.free_at + self.latency, data))
        self.largest = max(self.largest, self.pending())

    def pending(self):
        return sum(len(data) for _, data in self.queued)

    def close_input(self):
        pass

    def kill(self):
        self.kills += 1
        self.queued, self.on_the_way = [], []

    # The other end.

    def pass_time(self, seconds, step=0.01):
        """Let time pass, in ticks."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            while self.queued and self.queued[0][0] <= self.now:
                when, data = self.queued.pop(0)
                for frame in self.reader.feed(data):
                    self.frames.append((when, frame))
                    self.answer(frame)
            while self.on_the_way and self.on_the_way[0][0] <= self.now:
                self.listener.on_bytes(self.on_the_way.pop(0)[1])
            if round(self.now / step) % 10 == 0:
                self.client.tick()

    def answer(self, frame):
        header = frame.header
        if self.now >= self.mute_from:
            return
        if frame.type == "hello":
            self.send("result", header, protocol=PROTOCOLS[0], software="arithmetic")
        elif frame.type == "ping":
            busy = {"busy": False, "step_age": 0.0} if self.busy is None else self.busy
            self.send("result", header, rss_bytes=1, **busy)
        elif frame.type == "open_volume":
            count = math.prod(header["shape_kji"]) * header["components"]
            self.received[header["volume"]] = [header, 0, count * int(header["dtype"][-1])]
        elif frame.type == "volume_data":
            held = self.received[header["volume"]]
            held[1] += frame.arrays["voxels_kji"].nbytes
            self.send("progress", held[0], what="receiving", done=held[1], total=held[2])
            if held[1] == held[2]:
                self.send("result", held[0], bytes=held[2])
        elif frame.type == "models":
            self.send("result", header, models=[])

    def send(self, type, header, **fields):
        """An answer, after the latency."""
        data = b"".join(encode({"type": type, "re": header["id"], **fields}))
        self.on_the_way.append((self.now + self.latency, data))

    def came(self, type):
        """When frames of a type had come."""
        return [when for when, frame in self.frames if frame.type == type]
