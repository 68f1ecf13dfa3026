"""A worker without a network: it speaks the protocol, paints discs, and misbehaves where it is told to.

    python fake_worker.py [--banner TEXT] [--protocol N] [--step SECONDS]
                            [--at TYPE ACTION [--times N --notes FOLDER]]

ACTION is what happens when a request of TYPE comes, at most N times, counted by files in FOLDER so that it
holds for all lives of the worker together: die, kill, hang, stop, deaf, garbage, close, refuse.
"""

import argparse
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from medsam2_core.errors import MedSAM2Error, ProtocolError, VolumeError
from medsam2_core.export.changes import changes, changes_to_json
from medsam2_core.export.measurements import measure
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import MaskPrompt, Point
from medsam2_core.prompts.slice_prompts import resolve
from medsam2_core.worker.messages import (
    StackChoice,
    segmentation_from_json,
    slice_mask_from_json,
    slice_mask_to_json,
    slice_prompts_from_json,
)
from medsam2_core.worker.protocol import PROTOCOLS, FrameReader, encode, error_to_json

RADIUS = 4


class Session:
    """Paints a disc around every point; tracking moves the mask of the nearest prompted slice a little."""

    def __init__(self, volume, stack):
        self.stack = SliceStack.cut(volume, **vars(stack))
        self.prompts, self.masks, self.covered = {}, {}, {}

    def set_prompts(self, name, n, prompts):
        given, masks = self.prompts.setdefault(name, {}), self.masks.setdefault(name, {})
        covered = self.covered.setdefault(name, {})
        earlier = given.pop(n, None)
        if not prompts:
            masks.pop(n, None)
            if n in covered:
                masks[n] = covered.pop(n)
            return self.record(name, n) if n in masks else None
        if earlier is None and n in masks:
            covered[n] = masks[n]
        if prompts.known is not None:
            masks[n] = prompts.known.mask_hw
        elif earlier is not None and prompts.prompts[: len(earlier.prompts)] == earlier.prompts:
            masks[n] = self.fold(masks[n], prompts.prompts[len(earlier.prompts) :])
        else:
            masks[n] = self.fold(covered.get(n), prompts.prompts)
        given[n] = prompts
        return self.record(name, n)

    def restore(self, name, prompts, propagated):
        for known in (self.prompts, self.masks, self.covered):
            known[name] = {}
        self.masks[name] = {n: record.mask_hw for n, record in propagated.items()}
        return [self.set_prompts(name, n, one) for n, one in prompts]

    def fold(self, mask, prompts):
        height, width = self.stack.shape_hw
        mask = np.zeros((height, width), bool) if mask is None else mask.copy()
        y, x = np.mgrid[:height, :width]
        for prompt in prompts:
            for given in resolve([prompt], self.stack).values():
                if isinstance(prompt, Point):
                    (px, py), positive = given.points_xy[0], given.labels[0]
                    mask[(x - px) ** 2 + (y - py) ** 2 <= RADIUS**2] = bool(positive)
                elif isinstance(prompt, MaskPrompt):
                    mask = given.mask_hw.copy()
                else:
                    left, top, right, bottom = given.box_xyxy
                    mask = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        return mask

    def record(self, name, n):
        prompts = self.prompts.get(name, {}).get(n)
        final = prompts is not None and prompts.final
        mask = self.masks[name][n]
        return SliceMask.from_mask(
            name, n, mask, predicted_iou=0.5, prompted=prompts is not None, final=final
        )

    def track(self, name, n):
        nearest = min(self.prompts[name], key=lambda m: (abs(m - n), m))
        if n not in self.prompts[name]:
            self.masks[name][n] = np.roll(self.masks[name][nearest], n - nearest, axis=1)
        return self.record(name, n)


class FakeWorker:
    """Reads in one thread and works in another, as a worker does."""

    def __init__(self, options):
        self.options = options
        self.volumes, self.sessions, self.jobs = {}, {}, queue.Queue()
        self.cancelled, self.busy_since, self.propagating = set(), None, []
        self.lock = threading.Lock()
        self.is_deaf = False

    def send(self, header, arrays=None):
        with self.lock:
            for piece in encode(header, arrays or {}):
                view = memoryview(piece)
                while view:
                    view = view[os.write(1, view) :]

    def run(self):
        if self.options.banner:
            os.write(1, self.options.banner.encode())
        threading.Thread(target=self.work, daemon=True).start()
        reader = FrameReader()
        while data := os.read(0, 1 << 18):
            for frame in reader.feed(data):
                self.misbehave(frame.type)
                self.read(frame)
        os._exit(0)

    def misbehave(self, type):
        if self.options.at is None or self.options.at[0] != type:
            return
        if self.options.notes:
            notes = Path(self.options.notes)
            if len(list(notes.iterdir())) >= self.options.times:
                return
            (notes / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        action = self.options.at[1]
        print(f"about to {action} at {type}", file=sys.stderr, flush=True)
        if action == "die":
            os._exit(3)
        elif action in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        elif action == "garbage":
            os.write(1, b"Segmentation fault" * 3)
        elif action == "close":
            os.close(1)
            time.sleep(60)
        elif action == "hang":
            self.jobs.put((time.sleep, 3600))
        elif action == "deaf":
            self.is_deaf = True
        elif action == "refuse":
            self.volumes = {}

    def read(self, frame):
        header, kind = frame.header, frame.type
        if self.is_deaf:
            return
        if kind == "hello":
            self.hello(header)
        elif kind == "ping":
            age = 0.0 if self.busy_since is None else time.monotonic() - self.busy_since
            self.answer(header, busy=self.busy_since is not None, step_age=age, rss_bytes=1)
        elif kind == "open_volume":
            shape = tuple(header["shape_kji"]) + ((3,) if header["components"] == 3 else ())
            array = np.zeros(shape, header["dtype"])
            self.volumes[header["volume"]] = [array, header, 0]
        elif kind == "volume_data":
            self.fill(frame)
        elif kind == "cancel":
            self.cancelled.add(header["request"])
            self.answer(header)
        elif kind in ("prefetch", "status"):
            self.answer(header, sessions=len(self.sessions), volumes=len(self.volumes))
        else:
            self.jobs.put((self.compute, frame))

    def hello(self, header):
        if self.options.protocol not in header["protocols"]:
            message = f"the worker speaks protocol {self.options.protocol}, the client {header['protocols']}"
            self.send({"type": "error", "re": header["id"], **error_to_json(ProtocolError(message))})
            os._exit(1)
        self.answer(
            header, protocol=PROTOCOLS[0], software="a fake worker", pid=os.getpid(), device={"name": "cpu"}
        )

    def fill(self, frame):
        held = self.volumes.get(frame.header["volume"])
        if held is None:
            return
        array, header, _ = held
        first, slab = frame.header["first"], frame.arrays["voxels_kji"]
        array[first : first + len(slab)] = slab
        held[2] += slab.nbytes
        progress = {"what": "receiving", "done": held[2], "total": array.nbytes}
        self.send({"type": "progress", "re": header["id"], **progress})
        if held[2] == array.nbytes:
            geometry = Geometry(np.array(header["ijk_to_ras"]), array.shape[2::-1])
            self.volumes[header["volume"]] = Volume(array, geometry)
            self.answer(header, bytes=array.nbytes, sum=int(array.sum(dtype=np.int64)))

    def answer(self, header, arrays=None, **fields):
        self.send({"type": "result", "re": header["id"], **fields}, arrays)

    def work(self):
        while True:
            task, given = self.jobs.get() if not self.propagating else self.next_or_propagate()
            self.busy_since = time.monotonic()
            task(given)
            self.busy_since = None

    def next_or_propagate(self):
        try:
            return self.jobs.get_nowait()
        except queue.Empty:
            return self.propagate_one, None

    def compute(self, frame):
        header = frame.header
        time.sleep(self.options.step)
        if header["id"] in self.cancelled:
            self.send({"type": "error", "re": header["id"], "kind": "Cancelled", "message": "cancelled"})
            return
        try:
            getattr(self, f"do_{frame.type}")(header, frame.arrays)
        except MedSAM2Error as error:
            self.send({"type": "error", "re": header["id"], **error_to_json(error)})

    def do_open_session(self, header, _):
        volume = self.volumes.get(header["volume"])
        if not isinstance(volume, Volume):
            raise VolumeError(f"no volume {header['volume']}")
        session = Session(volume, StackChoice.from_json(header["stack"]))
        self.sessions[header["session"]] = session
        model = {"name": header["settings"]["model"], "title": "Discs"}
        window = {"width": 1, "level": 0}
        shape = list(session.stack.shape_hw)
        count = len(session.stack)
        self.answer(header, slices=count, shape_hw=shape, window=window, model=model, device="cpu")

    def do_close_session(self, header, _):
        self.sessions.pop(header["session"], None)
        self.answer(header)

    def do_close_volume(self, header, _):
        self.volumes.pop(header["volume"], None)
        self.answer(header)

    def do_set_prompts(self, header, arrays):
        session, name = self.sessions[header["session"]], header["object"]
        items = [slice_prompts_from_json(item, name, arrays) for item in header["slices"]]
        masks = [session.set_prompts(name, n, prompts) for n, prompts in items]
        self.answer_records(header, masks)

    def do_restore(self, header, arrays):
        session, name = self.sessions[header["session"]], header["object"]
        items = [slice_prompts_from_json(item, name, arrays) for item in header["slices"]]
        records = (slice_mask_from_json(item, arrays) for item in header["propagated"])
        self.answer_records(header, session.restore(name, items, {record.n: record for record in records}))

    def answer_records(self, header, records):
        arrays = {}
        told = [slice_mask_to_json(record, arrays) for record in records if record is not None]
        self.answer(header, arrays, slices=told)

    def do_remove_object(self, header, _):
        session = self.sessions[header["session"]]
        session.prompts.pop(header["object"], None)
        session.masks.pop(header["object"], None)
        session.covered.pop(header["object"], None)
        self.answer(header)

    def do_propagate(self, header, _):
        session = self.sessions[header["session"]]
        names = header["objects"] or [name for name, prompts in session.prompts.items() if prompts]
        whole = (0, len(session.stack) - 1)
        limits = {name: (header.get("limits") or {}).get(name, whole) for name in names}
        tasks = [(name, n) for n in range(whole[1] + 1) for name in names]
        tasks = [(name, n) for name, n in tasks if limits[name][0] <= n <= limits[name][1]]
        self.propagating.append([header, session, tasks, 0])

    def propagate_one(self, _):
        header, session, tasks, done = self.propagating[0]
        if header["id"] in self.cancelled:
            self.propagating.pop(0)
            self.send({"type": "error", "re": header["id"], "kind": "Cancelled", "message": "cancelled"})
            return
        time.sleep(self.options.step)
        if done < len(tasks):
            name, n = tasks[done]
            self.propagating[0][3] += 1
            if session.prompts.get(name):
                arrays = {}
                told = [slice_mask_to_json(session.track(name, n), arrays)]
                self.send(
                    {
                        "type": "slice",
                        "re": header["id"],
                        "slices": told,
                        "done": done + 1,
                        "total": len(tasks),
                    },
                    arrays,
                )
        else:
            self.propagating.pop(0)
            self.answer(header, done=done, total=len(tasks))

    def do_auto(self, header, _):
        """One class, a square on every slice of the range; a predicted box on the first."""
        self.predict(header, ["square"])

    def do_find(self, header, arrays):
        """Every object that is asked for, as `auto`."""
        given = [header["prior"]] if header.get("prior") else header["examples"]
        named = [segmentation_from_json(one, arrays).names for one in given]
        self.predict(header, list(dict.fromkeys(name for names in named for name in names)))

    def predict(self, header, names):
        session = self.sessions[header["session"]]
        first, last = header.get("first") or 0, header.get("last")
        numbers = list(range(first, len(session.stack) if last is None else last + 1))
        mask = np.zeros(session.stack.shape_hw, bool)
        mask[4:9, 5:12] = True
        tasks = [(name, n) for name in names for n in numbers]
        for done, (name, n) in enumerate(tasks, start=1):
            arrays = {}
            record = SliceMask.from_mask(name, n, mask, predicted_iou=0.8, prompted=False)
            told = [slice_mask_to_json(record, arrays)]
            counts = {"done": done, "total": len(tasks)}
            self.send({"type": "slice", "re": header["id"], "slices": told, **counts}, arrays)
            time.sleep(self.options.step)
        first, last = session.stack.to_ijk([[5, 4, numbers[0]], [11, 8, numbers[0]]])
        box = {"kind": "box", **{"first_ijk": [*first], "last_ijk": [*last]}, "predicted": True}
        told = {"colour_rgb": [1, 0, 0], "terminology": "", "confidence": 0.8, "slices": numbers}
        told |= {"prompts": {str(numbers[0]): [box]}}
        self.answer(header, classes=[{"name": name, **told} for name in names])

    def do_compare(self, header, arrays):
        then, now = (segmentation_from_json(header[part], arrays) for part in ("then", "now"))
        self.answer(header, changes=changes_to_json(changes(measure(then), measure(now))))

    def do_models(self, header, _):
        self.answer(header, models=[{"name": "embedded"}])

    def do_install_model(self, header, _):
        for done in range(3):
            self.send(
                {"type": "progress", "re": header["id"], "what": "downloading", "done": done, "total": None}
            )
        self.answer(header, path="somewhere")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--banner", default="")
    parser.add_argument("--protocol", type=int, default=PROTOCOLS[0])
    parser.add_argument("--step", type=float, default=0.0)
    parser.add_argument("--at", nargs=2)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--notes")
    FakeWorker(parser.parse_args()).run()


if __name__ == "__main__":
    main()
