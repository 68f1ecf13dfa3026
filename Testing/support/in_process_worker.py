"""A worker that lives in the test: it answers when it is told to, with discs instead of anatomy.

It has the methods of the real client and its sessions, so that what users do can be played through
quickly and in any order of answers: ``worker.answer_all()`` answers everything, ``worker.step()`` one thing,
``worker.die()`` loses the process and ``worker.recover()`` brings it back as the real one comes back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from medsam2_core.errors import Cancelled, WorkerError
from medsam2_core.export.changes import changes, changes_to_json
from medsam2_core.export.measurements import measure
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import SlicePrompts
from medsam2_core.prompts.slice_prompts import resolve
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.measuring import measured
from medsam2_core.worker.messages import ObjectSnapshot, segmentation_from_json
from medsam2_core.worker.session_client import SessionInfo

from support.auto_predictions import found_again

RADIUS = 3  # pixels round a click
REACH = 4  # slices an object has on either side of a prompted one
WEIGHTS = "8c1f" * 16
ORDERED = ("open", "set_prompts", "restore", "remove")  # answered in the order they were asked


@dataclass
class InProcessRequest:
    """A request on its way."""

    what: str
    run: Callable[[], None]
    failed: Callable[[Exception], None] | None = None
    isOver: bool = False
    worker: Any = None

    def cancel(self) -> None:
        """End it; the other side answers that it was cancelled."""
        if not self.isOver:
            self.isOver = True
            self.worker.later(
                InProcessRequest("cancelled", lambda: self._fail(Cancelled("cancelled by the user")))
            )

    def _fail(self, error: Exception) -> None:
        if self.failed is not None:
            self.failed(error)


@dataclass
class InProcessVolume:
    """A volume the worker was sent."""

    volume: Any
    received: int = 0
    total: int = 100
    is_there: bool = True


@dataclass
class InProcessWorker:
    """Stands in for the WorkerClient and for the worker behind it.

    Attributes
    ----------
    refusal
        Raised at the next request that is answered, once.
    isResending
        Whether a propagation sends each mask again with the next one, as where segments may not overlap.
    isPrompt
        Whether everything is answered at once.
    predict, search
        What an Auto model, and a search for objects of another scan, find: called with a session and what it
        is asked.
    """

    state: WorkerState = WorkerState.READY
    problem: str = ""
    report: str = ""
    welcome: dict = field(default_factory=lambda: {"device": {"title": "a test"}})
    listeners: list = field(default_factory=list)
    queue: list[InProcessRequest] = field(default_factory=list)
    sessions: list = field(default_factory=list)
    volumes: list = field(default_factory=list)
    refusal: Exception | None = None
    starts: int = 0
    answered: int = 0
    isResending: bool = False
    models: list = field(default_factory=list)
    autoModels: list = field(default_factory=list)
    predict: Callable[[Any, Any], list] = lambda session, request: []
    search: Callable[[Any, Any], list] = found_again

    def start(self) -> None:
        self.starts += 1
        self._become(WorkerState.READY)

    def stop(self) -> None:
        self._become(WorkerState.STOPPED)

    def open_volume(self, volume: Any) -> InProcessVolume:
        self.volumes.append(InProcessVolume(volume))
        return self.volumes[-1]

    def close_volume(self, volume: InProcessVolume) -> None:
        self.volumes.remove(volume)

    def open_session(self, volume: InProcessVolume, choice: Any, settings: Any, *, failed=None, opened=None):
        session = InProcessSession(self, SliceStack.cut(volume.volume, **vars(choice)), settings)
        self.sessions.append(session)

        def open_it() -> None:
            session.is_open = True
            model = {"name": settings.model, "title": settings.model, "weights_sha256": WEIGHTS}
            session.info = SessionInfo(
                len(session.stack), session.stack.shape_hw, {"width": 1, "level": 0}, model, "cpu"
            )
            if opened is not None:
                opened()

        self.later(InProcessRequest("open", open_it, failed, worker=self))
        return session

    def request(
        self, kind: str, fields=None, done=None, failed=None, progress=None, note=None, arrays=None
    ) -> InProcessRequest:
        def answer() -> None:
            if kind == "compare":
                then, now = (measure(segmentation_from_json(fields[one], arrays)) for one in ("then", "now"))
                done({"changes": changes_to_json(changes(then, now))})
            elif kind == "measure":
                done(measured(fields, arrays))
            elif done is not None:
                done({"models": self.autoModels if kind == "auto_models" else self.models})

        request = InProcessRequest(kind, answer, None if kind == "auto_models" else failed, worker=self)
        self.later(request)
        return request

    # What the test says -------------------------------------------------------------------------------------

    def later(self, request: InProcessRequest) -> None:
        """Answer this when the test says so."""
        request.worker = self
        self.queue.append(request)

    def step(self, chance: random.Random | None = None) -> bool:
        """Answer one request: the first, or any; whether there was one."""
        if self.state is not WorkerState.READY or not self.queue:
            return False
        index = 0
        if chance is not None and not any(one.what in ORDERED for one in self.queue[:1]):
            index = chance.randrange(len(self.queue))
        request = self.queue.pop(index)
        if request.isOver and request.what != "cancelled":
            return True
        self.answered += 1
        if self.refusal is not None and request.failed is not None:
            error, self.refusal = self.refusal, None
            request.isOver = True
            request.failed(error)
            return True
        request.run()
        return True

    def answer_all(self, limit: int = 10_000) -> None:
        """Answer everything."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the worker never comes to rest")

    def die(self, problem: str = "killed by signal 9") -> None:
        """Lose the process: what was being propagated fails, everything else is sent again."""
        if self.state is not WorkerState.READY:
            return
        self.problem = problem
        lost = [one for one in self.queue if one.what == "slice" and not one.isOver]
        self.queue = [one for one in self.queue if one.what not in ("slice", "cancelled")]
        for session in self.sessions:
            session.is_open = False
        self._become(WorkerState.RESTARTING)
        for request in lost:
            request.isOver = True
            request.failed(WorkerError(problem))

    def recover(self) -> None:
        """The worker is back, and has been told everything again."""
        if self.state is WorkerState.RESTARTING:
            waiting = {id(one) for one in self.queue}
            for session in self.sessions:
                session.is_open = not any(
                    id(one) in waiting and one.what == "open" for one in session.requests
                )
            self.problem = ""
            self._become(WorkerState.READY)

    def _become(self, state: WorkerState) -> None:
        self.state = state
        for listener in list(self.listeners):
            listener()


class InProcessSession:
    """Stands in for a SessionClient; test_worker_contract.py holds it to that."""

    def __init__(self, worker: InProcessWorker, stack: Any, settings: Any) -> None:
        self.worker, self.stack, self.settings = worker, stack, settings
        self.is_open = self.is_closed = False
        self.info: SessionInfo | None = None
        self.progress = None
        self.requests: list[InProcessRequest] = []
        self.prefetched: int | None = None
        self.overlap: bool | None = None  # of the last propagation
        self.outward: bool | None = None
        self._objects: dict[str, ObjectSnapshot] = {}  # as answered
        self._pending: list[tuple[InProcessRequest, str, Callable[[ObjectSnapshot], ObjectSnapshot]]] = []

    def prompts(self, name: str) -> dict[int, SlicePrompts]:
        return dict(self._expected(name).prompts)

    def masks(self, name: str) -> dict[int, SliceMask]:
        return dict(self._expected(name).masks)

    @property
    def objects(self) -> tuple[str, ...]:
        names = dict.fromkeys([*self._objects, *(name for _, name, _ in self._pending if name)])
        return tuple(name for name in names if self._expected(name))

    def snapshot(self, name: str) -> ObjectSnapshot:
        return self._expected(name).without_outdated()

    def _known(self, name: str) -> ObjectSnapshot:
        return self._objects.get(name, ObjectSnapshot())

    def _expected(self, name: str) -> ObjectSnapshot:
        state = self._known(name)
        for _, object, change in self._pending:
            state = change(state) if object == name else state
        return state

    def prefetch(self, n: int) -> None:
        self.prefetched = n

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed, self.is_open = True, False
        for request in self.requests:
            request.isOver = True
        self.worker.sessions.remove(self)

    def remove_object(self, name: str, done=None, failed=None) -> InProcessRequest:
        return self._ask("remove", name, lambda _: ObjectSnapshot(), lambda: None, done, failed)

    def restore(self, name: str, snapshot: ObjectSnapshot, done=None, failed=None) -> InProcessRequest:
        def answer() -> list[SliceMask]:
            self._objects[name] = snapshot
            return []

        return self._ask("restore", name, lambda _: snapshot, answer, done, failed)

    def set_prompts(
        self, name: str, slices: dict[int, SlicePrompts], done=None, failed=None
    ) -> InProcessRequest:
        slices = dict(slices)

        def answer() -> list[SliceMask]:
            masks = []
            for n, one in slices.items():
                if one:
                    mask = one.known.mask_hw if one.known is not None else answer_to(one, n, self.stack)
                    figures = {"predicted_iou": 0.5 + 0.4 * (n % 5) / 5, "prompted": True, "final": one.final}
                    masks.append(SliceMask.from_mask(name, n, mask, **figures))
            self._objects[name] = self._known(name).with_prompts(slices, masks)
            return masks

        return self._ask("set_prompts", name, lambda state: state.with_prompts(slices), answer, done, failed)

    def propagate(
        self, objects=None, first=None, last=None, direction="both", stop_after_absent=3,
        *, limits=None, overlap=True, outward=False, slices=None, done=None, failed=None,
    ) -> InProcessRequest:  # fmt: skip
        names = [*self._objects, *(name for _, name, _ in self._pending)] if objects is None else objects
        names = [name for name in dict.fromkeys(names) if self.prompts(name)]
        self.overlap, self.outward = overlap, outward
        plan = [(name, n, source) for name in names for n, source in self._plan(name, first, last, direction)]
        ends = {name: (limits or {}).get(name, (0, len(self.stack))) for name in names}
        plan = [step for step in plan if ends[step[0]][0] <= step[1] <= ends[step[0]][1]]
        plan.sort(key=lambda item: abs(item[1] - item[2]))
        request = InProcessRequest("slice", lambda: None, failed)
        position = iter(range(len(plan) + 1))
        sent: list[SliceMask] = []

        def next_slice() -> None:
            index = next(position)
            if index == len(plan):
                request.isOver = True
                if done is not None:
                    done({"done": len(plan), "total": len(plan)})
                return
            name, n, source = plan[index]
            known = self._known(name)
            found, before = known.masks.get(source), known.masks.get(n)
            if found is not None and (before is None or not before.final):
                mask = SliceMask.from_mask(name, n, found.mask_hw, predicted_iou=1 / (2 + abs(n - source)))
                self._objects[name] = known.with_masks([mask])
                if slices is not None:
                    again = sent[-1:] if self.worker.isResending else []
                    sent.append(mask)
                    slices([mask, *again], index + 1, len(plan))
            self.worker.later(request)

        request.run = next_slice
        self.requests.append(request)
        self.worker.later(request)
        return request

    def auto(self, wanted, slices=None, done=None, failed=None, progress=None) -> InProcessRequest:
        """Slice after slice, and then what the worker of the test is told to find."""
        return self._predict("auto", wanted, self.worker.predict, slices, done, failed)

    def find(self, wanted, slices=None, done=None, failed=None, progress=None) -> InProcessRequest:
        """Slice after slice, and then the objects of the other scan."""
        return self._predict("find", wanted, self.worker.search, slices, done, failed)

    def _predict(self, what, wanted, predict, slices, done, failed) -> InProcessRequest:
        first = 0 if wanted.first is None else wanted.first
        last = len(self.stack) - 1 if wanted.last is None else wanted.last
        request = InProcessRequest(what, lambda: None, failed)
        position = iter(range(first, last + 2))

        def next_slice() -> None:
            n = next(position)
            if n > last:
                request.isOver = True
                done(predict(self, wanted))
                return
            slices([], n - first + 1, last - first + 1)
            self.worker.later(request)

        request.run = next_slice
        self.requests.append(request)
        self.worker.later(request)
        return request

    def _plan(self, name: str, first, last, direction):
        prompted = sorted(self.prompts(name))
        for n in range(0 if first is None else first, (len(self.stack) - 1 if last is None else last) + 1):
            sources = [
                source
                for source in prompted
                if abs(n - source) <= REACH
                and (direction != "forward" or source <= n)
                and (direction != "reverse" or source >= n)
            ]
            if n not in prompted and sources:
                yield n, min(sources, key=lambda source: abs(source - n))

    def _ask(
        self,
        what: str,
        name: str,
        change: Callable[[ObjectSnapshot], ObjectSnapshot],
        answer: Callable[[], Any],
        done: Callable[[Any], None] | None,
        failed: Callable[[Exception], None] | None,
    ) -> InProcessRequest:
        def run() -> None:
            self._pending.remove(pending)
            result = answer()
            if what == "remove":
                self._objects.pop(name, None)
            if done is not None:
                done(result)

        def fail(error: Exception) -> None:
            if pending in self._pending:
                self._pending.remove(pending)
            if failed is not None:
                failed(error)

        request = InProcessRequest(what, run, fail)
        pending = (request, name, change)
        if self.is_closed:
            self.worker.later(InProcessRequest("cancelled", lambda: request._fail(_closed())))
            return request
        self._pending.append(pending)
        self.requests.append(request)
        self.worker.later(request)
        return request


def _closed() -> WorkerError:
    return WorkerError("the session is closed; open another", code="session-closed")


@dataclass
class InProcessSource:
    """Gives out the worker of the test, and counts who holds it."""

    worker: InProcessWorker = field(default_factory=InProcessWorker)
    trouble: str = ""
    installing: bool = False
    changed: bool = False
    resolved: int = 0
    section: str = ""
    owners: list = field(default_factory=list)

    def problem(self) -> str:
        return self.trouble

    def isInstalling(self) -> bool:
        return self.installing

    def resolve(self, section: str = "") -> None:
        self.resolved += 1
        self.section = section

    def hasChanged(self, owner: object) -> bool:
        return self.changed

    def acquire(self, owner: object) -> InProcessWorker:
        self.changed = False
        self.owners.append(owner)
        return self.worker

    def release(self, owner: object) -> None:
        self.owners = [one for one in self.owners if one is not owner]


def answer_to(words: SlicePrompts, n: int, stack: Any) -> np.ndarray:
    """(H, W) discs round positive points, boxes and masks, less discs round negative points."""
    mask = np.zeros(stack.shape_hw, dtype=bool)
    rows, columns = np.indices(stack.shape_hw)
    said = resolve(words.prompts, stack).get(n)
    if said is None:
        return mask
    if said.mask_hw is not None:
        mask |= said.mask_hw
    if said.box_xyxy is not None:
        left, top, right, bottom = said.box_xyxy
        mask |= (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
    for wanted in (1, 0):
        for (x, y), label in zip(said.points_xy, said.labels, strict=True):
            if label == wanted:
                disc = (columns - x) ** 2 + (rows - y) ** 2 <= RADIUS**2
                mask = mask | disc if wanted else mask & ~disc
    return mask
