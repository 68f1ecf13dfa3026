"""The worker's own process, spoken to in frames over its pipes; and what it is shown."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.messages import slice_mask_from_json
from medsam2_core.worker.protocol import FrameReader, encode

CORE = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
SHAPE_KJI = (24, 80, 96)


def a_ball() -> Volume:
    """A bright ball in noise."""
    k, j, i = np.ogrid[: SHAPE_KJI[0], : SHAPE_KJI[1], : SHAPE_KJI[2]]
    inside = ((k - 12) * 2) ** 2 + (j - 40) ** 2 + (i - 50) ** 2 < 16**2
    noise = np.random.default_rng(1).normal(100, 10, SHAPE_KJI)
    matrix = np.diag([-1.0, -1.0, 2.0, 1.0])
    return Volume(
        (noise + 200 * inside).astype("<i2"), Geometry(matrix, SHAPE_KJI[::-1]), "MR", "Secret^Name"
    )


def a_point(i, j, k, positive=True) -> dict:
    return {"kind": "point", "ijk": [i, j, k], "positive": positive}


def a_box(first, last) -> dict:
    return {"kind": "box", "first_ijk": list(first), "last_ijk": list(last)}


class WorkerEnded(Exception):
    """It closed its output."""


class RealWorker:
    """A process, and everything it sent."""

    def __init__(self, folder: Path, command=("-m", "medsam2_core.worker"), **environment) -> None:
        self.log = folder / "worker.log"
        own = {"PYTHONPATH": str(CORE), "MEDSAM2_LOG": str(self.log), "OMP_NUM_THREADS": "1"}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **own, **environment},
        )
        self.reader = FrameReader(skip_banner=True)
        self.frames = []
        self._ids = itertools.count(1)

    def send(self, type, arrays=None, **fields) -> int:
        """Send a request; its id."""
        number = next(self._ids)
        self.write(b"".join(encode({"type": type, "id": number, **fields}, arrays)))
        return number

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def receive(self) -> None:
        """Wait for more frames."""
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            raise WorkerEnded
        self.frames += self.reader.feed(data)
        self.reader.feed(b"")

    def about(self, number, *types):
        """All frames about a request so far."""
        return [f for f in self.frames if f.header.get("re") == number and (not types or f.type in types)]

    def answer(self, number):
        """The frame that ends a request."""
        while not self.about(number, "result", "error"):
            self.receive()
        (frame,) = self.about(number, "result", "error")
        return frame

    def ask(self, type, arrays=None, **fields) -> dict:
        """A request's result; an error is a failure."""
        frame = self.answer(self.send(type, arrays, **fields))
        assert frame.type == "result", frame.header
        return frame.header

    def refused(self, type, arrays=None, **fields) -> dict:
        """A request's error; a result is a failure."""
        frame = self.answer(self.send(type, arrays, **fields))
        assert frame.type == "error", frame.header
        return frame.header

    def greet(self) -> dict:
        return self.ask("hello", protocols=[3], client="test")

    def give(self, volume: Volume, name="ball", slab=7) -> int:
        """Send a volume in slabs; the id of the request."""
        voxels = volume.voxels_kji
        shown = {"shape_kji": list(voxels.shape[:3]), "dtype": voxels.dtype.str, "components": 1}
        place = {"ijk_to_ras": volume.geometry.ijk_to_ras.tolist(), "modality": "MR", "title": volume.name}
        number = self.send("open_volume", volume=name, **shown, **place)
        for first in range(0, len(voxels), slab):
            self.slab(name, first, voxels[first : first + slab])
        return number

    def slab(self, name, first, voxels) -> None:
        header = {"type": "volume_data", "volume": name, "first": first}
        self.write(b"".join(encode(header, {"voxels_kji": voxels})))

    def open(self, session="s", volume="ball", **settings) -> dict:
        return self.ask(
            "open_session", session=session, volume=volume, stack={"axis": "axial"}, settings=settings
        )

    def set_prompts(self, object, n, *prompts, session="s", final=False) -> int:
        slices = [{"n": n, "prompts": list(prompts), "final": final}]
        return self.send("set_prompts", session=session, object=object, slices=slices)

    def propagate(self, session="s", objects=None, first=None, last=None, patience=3) -> int:
        return self.send(
            "propagate", session=session, objects=objects, first=first, last=last, direction="both",
            stop_after_absent=patience,
        )  # fmt: skip

    def records(self, number) -> list[SliceMask]:
        """All records a request brought."""
        self.answer(number)
        return [
            slice_mask_from_json(item, frame.arrays)
            for frame in self.about(number)
            for item in frame.header.get("slices", [])
            if isinstance(item, dict)
        ]

    def close(self) -> int:
        """Close its input, and wait for its end."""
        self.process.stdin.close()
        code = self.process.wait(10)
        self.process.stdout.close()
        self.process.stderr.close()
        return code
