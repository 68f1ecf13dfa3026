"""Requests to sessions, from opening to closing, and prefetching."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Cancelled, PromptError, ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts.types import SlicePrompts
from medsam2_core.worker.incoming import IncomingVolumes
from medsam2_core.worker.job_messages import AutoRequest
from medsam2_core.worker.jobs import Answer, Job
from medsam2_core.worker.messages import (
    TERMINOLOGY,
    SessionSettings,
    StackChoice,
    example_from_json,
    limits_from_json,
    prompt_to_json,
    segmentation_from_json,
    slice_mask_from_json,
    slice_mask_to_json,
    slice_prompts_from_json,
)
from medsam2_core.worker.protocol import Arrays, checked, dataclass_from_json, field_error, optional
from medsam2_core.worker.system import check_memory, memory

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.auto.predictions import AutoPrediction
    from medsam2_core.engine.cache import FeatureCache
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from medsam2_core.engine.zoom import Region
    from medsam2_core.session.automatic import AutoRun
    from medsam2_core.session.examples import ObjectSearch, SearchRun
    from medsam2_core.session.session import Session

Send = Callable[[Job, dict[str, Any], Arrays], None]

_log = logging.getLogger(__name__)

_PREFETCH_SLICES = 12  # to either side
_PREFETCH_SHARE = 0.5  # of the cache


@dataclass(eq=False)
class OpenSession:
    """A session and the client's name for it."""

    name: str
    volume: str
    session: Session
    model: SegmentationModel
    auto: tuple[Any, AutoModel] | None = None  # the Auto model used last, and the identity of its file


@dataclass(eq=False)
class _Running:
    opened: OpenSession
    run: AutoRun | SearchRun
    changes: Iterator[SliceMask]


class Sessions:
    """The sessions of one client, with shared models and features.

    Parameters
    ----------
    check
        Called between the blocks of every network; may raise Cancelled or Interrupted.
    cache_limit
        Bytes of features to keep; None for a quarter of the memory free at first use.
    """

    def __init__(
        self, volumes: IncomingVolumes, check: Callable[[], None], send: Send, cache_limit: int | None = None
    ) -> None:
        self._volumes, self._check, self._send, self._cache_limit = volumes, check, send, cache_limit
        self._open: dict[str, OpenSession] = {}
        self._models: dict[SegmentationModel, ExitStack] = {}
        self.cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self._open)

    def named(self, name: str) -> OpenSession | None:
        """Return the session of that name, if there is one."""
        return self._open.get(name)

    # Requests -----------------------------------------------------------------------------------------------

    def open(self, job: Job) -> Answer:
        """Carry out `open_session`."""
        from medsam2_core.engine.devices import choose_device
        from medsam2_core.engine.options import TrackerOptions, memory_policy, zoom_is_on
        from medsam2_core.imaging.intensity import parse_window
        from medsam2_core.imaging.slices import SliceStack
        from medsam2_core.session.session import Session

        fields = job.fields
        name, volume_name = checked(fields, "session", str), checked(fields, "volume", str)
        if name in self._open:
            raise ProtocolError(
                f"there is a session {name[:60]!r} already: close it first", code="session-exists"
            )
        volume = self._volumes.get(volume_name)
        settings = dataclass_from_json(SessionSettings, fields.get("settings") or {}, "settings")
        choice = StackChoice.from_json(fields.get("stack") or {"axis": "axial"})
        stack = SliceStack.cut(volume, **vars(choice))
        window = parse_window(settings.window, volume)
        options = TrackerOptions(zoom=zoom_is_on(settings.zoom))
        policy = settings.memory if settings.memory == "auto" else memory_policy(settings.memory)
        if text := check_memory(settings.model, choose_device(settings.device), volume.voxels_kji.nbytes):
            _log.warning("%s", text)
        self._send(job, {"type": "progress", "what": "loading", "done": 0, "total": None}, {})
        model = self.model(settings.model, settings.device, settings.precision)
        session = Session(
            volume, model, stack=stack, window=window, memory=policy, options=options,
            cache=self._shared_cache(), undo_limit=0, ordered=settings.ordered,
        )  # fmt: skip
        self._open[name] = OpenSession(name, volume_name, session, model)
        self._unload_unused(model)
        return {
            "slices": len(stack),
            "shape_hw": list(stack.shape_hw),
            "xyn_to_ijk": stack.xyn_to_ijk.tolist(),
            "window": window.to_dict(),
            "model": {
                "name": model.name,
                "title": _title(settings.model, model.name),
                "weights_sha256": model.weights_sha256,
                "weights_key": model.weights_key,
            },
            "device": str(model.device),
        }, {}

    def set_prompts(self, job: Job) -> Answer:
        """Carry out `set_prompts`."""
        opened, name, prompts = self._prompts_of(job)
        return _masks_to_json(opened.session.set_prompts(name, prompts).values())

    def restore(self, job: Job) -> Answer:
        """Carry out `restore`."""
        opened, name, prompts = self._prompts_of(job)
        propagated: dict[int, SliceMask] = {}
        for item in optional(job.fields, "propagated", list, ()):
            if not isinstance(item, dict):
                raise field_error("propagated", item, "must be a list of JSON objects")
            mask = slice_mask_from_json({**item, "object": name}, job.arrays)
            propagated[mask.n] = mask
        return _masks_to_json(opened.session.restore_object(name, prompts, propagated).values())

    def remove_object(self, job: Job) -> Answer:
        """Carry out `remove_object`; nothing happens for an unknown name."""
        session, name = self._of(job).session, checked(job.fields, "object", str)
        if name in session.object_names:
            session.remove_object(name)
        return {}, {}

    def propagate(self, job: Job) -> Answer:
        """Carry out `propagate`. After Interrupted, a call with the same job continues."""
        if job.state is None:
            job.state = self._start_propagation(job)
        opened, progress = job.state
        self._check_open(opened)
        for result in progress:
            fields, arrays = _masks_to_json([result])
            counts = {"done": progress.done, "total": progress.total}
            self._send(job, {"type": "slice", **fields, **counts}, arrays)
            self._check()
        return {"done": progress.done, "total": progress.total}, {}

    def auto(self, job: Job) -> Answer:
        """Carry out `auto`. After Interrupted, a call with the same job continues."""
        return self._predict(job, self._start_auto)

    def find(self, job: Job) -> Answer:
        """Carry out `find`. After Interrupted, a call with the same job continues."""
        return self._predict(job, self._start_search)

    def _predict(self, job: Job, start: Callable[[Job], _Running]) -> Answer:
        """Carry out a request that changes nothing in its session."""
        if job.state is None:
            job.state = start(job)
        running: _Running = job.state
        self._check_open(running.opened)
        for mask in running.changes:
            fields, arrays = _masks_to_json([mask])
            counts = {"done": running.run.done, "total": max(running.run.total, running.run.done)}
            self._send(job, {"type": "slice", **fields, **counts}, arrays)
            self._check()
        return {"classes": [_prediction_to_json(one) for one in running.run.found()]}, {}

    def close(self, job: Job) -> Answer:
        """Carry out `close_session`."""
        self._close([checked(job.fields, "session", str)])
        return {}, {}

    def close_of_volume(self, volume: str) -> None:
        """Close the sessions of a volume."""
        self._close([name for name, opened in self._open.items() if opened.volume == volume])

    # Models and memory --------------------------------------------------------------------------------------

    def model(self, name: str, device: str = "auto", precision: str = "auto") -> SegmentationModel:
        """Return a model, loading it if necessary; `check` is called between its blocks."""
        from medsam2_core.engine.model import load_model

        model = load_model(name, device, precision)
        if model not in self._models:
            self._models[model] = ExitStack()
            self._models[model].enter_context(model.interruptible_by(self._check))
        return model

    def free_memory(self) -> None:
        """Drop the cached features."""
        if self.cache is not None:
            self.cache.clear()

    def _unload_unused(self, kept: SegmentationModel | None) -> None:
        """Unload models that no session uses, except `kept`."""
        used = {opened.model for opened in self._open.values()} | {kept}
        for model in [model for model in self._models if kept is not None and model not in used]:
            self._models.pop(model).close()

    def _shared_cache(self) -> FeatureCache:
        if self.cache is None:
            from medsam2_core.engine.cache import FeatureCache

            limit = self._cache_limit
            if limit is None:
                limit = min(max(memory()[0] // 4, 64 << 20), 2 << 30)
            self.cache = FeatureCache(limit)
        return self.cache

    # Steps --------------------------------------------------------------------------------------------------

    def _of(self, job: Job) -> OpenSession:
        name = checked(job.fields, "session", str)
        if name not in self._open:
            raise ProtocolError(f"there is no session {name[:60]!r}: open it first", code="unknown-session")
        return self._open[name]

    def _check_open(self, opened: OpenSession) -> None:
        if self._open.get(opened.name) is not opened:
            raise Cancelled("the session was closed")
        self._check()

    def _close(self, names: Iterable[str]) -> None:
        last = None
        for name in names:
            opened = self._open.pop(name, None)
            last = opened.model if opened is not None else last
        self._unload_unused(last)

    def _prompts_of(self, job: Job) -> tuple[OpenSession, str, dict[int, SlicePrompts]]:
        opened, name = self._of(job), checked(job.fields, "object", str)
        items = checked(job.fields, "slices", list)
        return opened, name, dict(slice_prompts_from_json(item, name, job.arrays) for item in items)

    def _start_propagation(self, job: Job) -> tuple[OpenSession, Any]:
        fields, opened = job.fields, self._of(job)
        names, patience = fields.get("objects"), fields.get("stop_after_absent", 3)
        limits = [fields.get("first"), fields.get("last")]
        if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise field_error("objects", names, "must be a list of names or null")
        for part, value in zip(("first", "last", "stop_after_absent"), [*limits, patience], strict=True):
            if value is not None and type(value) is not int:
                raise field_error(part, value, "must be a whole number or null")
        return opened, opened.session.propagate(
            names, *limits, direction=fields.get("direction", "both"), stop_after_absent=patience,
            limits=limits_from_json(fields.get("limits")), overlap=optional(fields, "overlap", bool, True),
            outward=optional(fields, "outward", bool, False),
        )  # fmt: skip

    def _start_auto(self, job: Job) -> _Running:
        from medsam2_core.auto.library import find
        from medsam2_core.auto.volumes import VolumeOptions
        from medsam2_core.imaging.intensity import parse_window
        from medsam2_core.session.automatic import AutoRun

        opened = self._of(job)
        wanted = dataclass_from_json(
            AutoRequest, {k: v for k, v in job.fields.items() if k != "session"}, "auto"
        )
        path, card = find(wanted.model)
        auto = _loaded_auto(opened, path)
        try:
            options = VolumeOptions(wanted.method) if wanted.method else VolumeOptions()  # type: ignore[arg-type]
        except ValueError as error:
            method = str(wanted.method)[:40]
            raise PromptError(
                f"unknown method {method!r}: use memory or slices", code="unknown-method", method=method
            ) from error
        window = parse_window(card.window, opened.session.volume)
        stack, tracker = opened.session.stack, opened.session.tracker
        run = AutoRun(stack, tracker, auto, wanted.classes, options, flips=wanted.flips, window=window)
        return _Running(opened, run, run.run(wanted.first, wanted.last))

    def _start_search(self, job: Job) -> _Running:
        from medsam2_core.export.resampling import on_grid_of
        from medsam2_core.imaging.intensity import parse_window
        from medsam2_core.session.examples import Example, ExampleSearch, PriorSearch, SearchRun

        opened = self._of(job)
        session = opened.session
        first, last = (optional(job.fields, part, int) for part in ("first", "last"))
        slices = range(len(session.stack))[first : None if last is None else last + 1]
        if job.fields.get("prior") is not None:
            given = [segmentation_from_json(job.fields["prior"], job.arrays)]
            reached = on_grid_of(given[0], session.volume.geometry)
            search: ObjectSearch = PriorSearch(session.tracker, session.stack, reached, slices)
        else:
            examples = []
            for item in checked(job.fields, "examples", list):
                volume, segmentation, window = example_from_json(item, job.arrays)
                examples.append(Example(volume, segmentation, parse_window(window, volume)))
            given = [one.segmentation for one in examples]
            search = ExampleSearch(session.tracker, session.stack, examples, slices)
        described = {one.name: (one.colour_rgb, one.tags[TERMINOLOGY]) for of in given for one in of}
        run = SearchRun(session.stack, session.tracker, search, described)
        return _Running(opened, run, run.run(first, last))


class Prefetcher:
    """Encodes the slices around the one being viewed while the worker is idle.

    Attributes
    ----------
    focus
        The session and that slice; set by the reading thread.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.focus: tuple[str, int] | None = None
        self._finished: object = None
        self._round = 0

    @property
    def is_wanted(self) -> bool:
        """Whether there may be something to encode."""
        return self.focus is not None and self._finished != (self.focus, self._round)

    def reconsider(self) -> None:
        """Check again for slices to encode, because something has changed."""
        self._round += 1

    def step(self) -> None:
        """Encode one region, or record that none is left. May raise Interrupted."""
        focus, state = self.focus, (self.focus, self._round)
        opened = None if focus is None else self._sessions.named(focus[0])
        if opened is not None and focus is not None:
            encoder = opened.session.tracker.encoder
            room = _PREFETCH_SHARE * encoder.cache.byte_limit
            for n, region in _regions_around(opened, focus[1]):
                if encoder.key(n, region) not in encoder.cache:
                    encoder.features(n, region)
                    return
                kept = encoder.features(n, region).nbytes
                room -= kept
                if room < kept:
                    break
        self._finished = state


def _regions_around(opened: OpenSession, n: int) -> Iterator[tuple[int, Region]]:
    """Yield slices and regions, the most likely to be needed first."""
    tracker = opened.session.tracker
    offsets = [0, *(sign * step for step in range(1, _PREFETCH_SLICES + 1) for sign in (1, -1))]
    for m in (n + offset for offset in offsets):
        if 0 <= m < len(tracker.source):
            for region in tracker.expected_regions(m):
                yield m, region


def _loaded_auto(opened: OpenSession, path: Path) -> AutoModel:
    """Return the Auto model of a file; it is loaded again only if the file has changed."""
    from medsam2_core.auto.model import load_auto

    found = os.stat(path)
    key = (str(path), found.st_mtime_ns, found.st_size)
    if opened.auto is None or opened.auto[0] != key:
        opened.auto = key, load_auto(path, opened.model)
    return opened.auto[1]


def _prediction_to_json(one: AutoPrediction) -> dict[str, Any]:
    prompts = {str(n): [prompt_to_json(prompt, {}) for prompt in of_n] for n, of_n in one.prompts.items()}
    return {
        "name": one.name,
        "colour_rgb": [float(part) for part in one.colour_rgb],
        "terminology": one.terminology,
        "confidence": float(one.confidence),
        "slices": sorted(int(n) for n in one.masks),
        "prompts": prompts,
    }


def _masks_to_json(masks: Iterable[SliceMask | None]) -> Answer:
    """Return masks as ``slices`` of a message, without those that are None."""
    arrays = Arrays()
    return {"slices": [slice_mask_to_json(mask, arrays) for mask in masks if mask is not None]}, arrays


def _title(wanted: str, name: str) -> str:
    from medsam2_core.engine.catalogue import Catalogue

    entry = Catalogue.load().find(wanted)
    return entry.title if not entry.is_local else name
