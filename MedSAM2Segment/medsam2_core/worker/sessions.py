"""Requests about sessions: opened, spoken to, propagated, closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medsam2_core.errors import Cancelled, ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.masks import checked, slice_mask_from_json, slice_mask_to_json
from medsam2_core.worker.messages import SessionSettings, StackChoice, words_from_json

if TYPE_CHECKING:
    from medsam2_core.auto.loading import AutoModel
    from medsam2_core.engine.cache import FeatureCache
    from medsam2_core.engine.model import SegmentationModel
    from medsam2_core.prompts import SlicePrompts
    from medsam2_core.session import Session
    from medsam2_core.worker.receiving import Volumes

#: Fields and arrays of a result.
Answer = tuple[dict[str, Any], dict[str, NDArray[Any]]]
Tell = Callable[[Job, dict[str, Any], dict[str, NDArray[Any]]], None]


@dataclass(eq=False)
class Opened:
    """A session under the client's name for it."""

    name: str
    volume: str
    session: Session
    model: SegmentationModel
    auto: tuple[Any, AutoModel] | None = None  # the one it asked last, and which file that was


class Sessions:
    """The sessions of one client; they share features and models.

    Parameters
    ----------
    volumes
        What has come.
    ask
        Asked between the blocks of every model.
    tell
        Sends a message that is not the last one about a request.
    cache_limit
        Bytes of features kept; None: a quarter of the memory that is free when the first session is opened.
    """

    def __init__(
        self, volumes: Volumes, ask: Callable[[], None], tell: Tell, cache_limit: int | None = None
    ) -> None:
        self._volumes, self._ask, self._tell = volumes, ask, tell
        self._cache_limit = cache_limit
        self._opened: dict[str, Opened] = {}
        self._models: dict[SegmentationModel, ExitStack] = {}
        self.cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self._opened)

    def find(self, name: str) -> Opened | None:
        """The session of that name, if there is one."""
        return self._opened.get(name)

    def open(self, job: Job) -> Answer:
        """`open_session`."""
        from medsam2_core.engine.options import TrackerOptions, memory_policy, zoom_is_on
        from medsam2_core.imaging.intensity import parse_window
        from medsam2_core.session import Session

        fields = job.fields
        name, volume_name = checked(fields, "session", str), checked(fields, "volume", str)
        if name in self._opened:
            raise ProtocolError(f"there is a session {name[:60]!r} already: close it first")
        volume = self._volumes.get(volume_name)
        settings = SessionSettings.from_json(fields.get("settings") or {})
        stack = StackChoice.from_json(fields.get("stack") or {"axis": "axial"}).stack(volume)
        window = parse_window(settings.window, volume)
        options = TrackerOptions(zoom=zoom_is_on(settings.zoom))
        policy = memory_policy(settings.memory)
        self._tell(job, {"type": "progress", "what": "loading", "done": 0, "total": None}, {})
        model = self.model(settings.model, settings.device, settings.precision)
        session = Session(
            volume, model, stack=stack, window=window, memory=policy, options=options,
            cache=self._shared_cache(), undo_limit=0,
        )  # fmt: skip
        self._opened[name] = Opened(name, volume_name, session, model)
        self._forget_unused(model)
        return {
            "slices": len(stack),
            "shape_hw": list(stack.shape_hw),
            "xyn_to_ijk": stack.xyn_to_ijk.tolist(),
            "window": window.to_dict(),
            "model": {
                **{"name": model.name, "title": _title(settings.model, model.name)},
                "weights_sha256": model.weights_key,
            },
            "device": str(model.device),
        }, {}

    def say(self, job: Job) -> Answer:
        """`say`."""
        opened, name, words = self._spoken(job)
        return records_of(opened.session.set_prompts(name, words).values())

    def restore(self, job: Job) -> Answer:
        """`restore`."""
        opened, name, words = self._spoken(job)
        tracked: dict[int, SliceMask] = {}
        for item in checked(job.fields, "tracked", list) if "tracked" in job.fields else []:
            record = slice_mask_from_json({**item, "object": name}, job.arrays)
            tracked[record.n] = record
        return records_of(opened.session.restore_object(name, words, tracked).values())

    def remove_object(self, job: Job) -> Answer:
        """`remove_object`; nothing happens when there is none of that name."""
        session, name = self.of(job).session, checked(job.fields, "object", str)
        if name in session.object_names:
            session.remove_object(name)
        return {}, {}

    def propagate(self, job: Job) -> Answer:
        """`propagate`: may raise Interrupted, and goes on when called again with the same job."""
        if job.state is None:
            job.state = self._started(job)
        opened, progress = job.state
        if self._opened.get(opened.name) is not opened:
            raise Cancelled("the session was closed")
        self._ask()
        for result in progress:
            fields, arrays = records_of([result])
            told = {"type": "slice", **fields, "done": progress.done, "total": progress.total}
            self._tell(job, told, arrays)
            self._ask()
        return {"done": progress.done, "total": progress.total}, {}

    def close(self, job: Job) -> Answer:
        """`close_session`."""
        self._close([checked(job.fields, "session", str)])
        return {}, {}

    def close_of_volume(self, volume: str) -> None:
        """End the sessions of a volume."""
        self._close([name for name, opened in self._opened.items() if opened.volume == volume])

    def model(self, name: str, device: str = "auto", precision: str = "auto") -> SegmentationModel:
        """Load a model, or the same again; it will be asked between its blocks."""
        from medsam2_core.engine.model import load_model

        model = load_model(name, device, precision)
        if model not in self._models:
            self._models[model] = ExitStack()
            self._models[model].enter_context(model.asking(self._ask))
        return model

    def free_memory(self) -> None:
        """Give back what can be computed again."""
        if self.cache is not None:
            self.cache.clear()

    def _started(self, job: Job) -> tuple[Opened, Any]:
        fields, opened = job.fields, self.of(job)
        names, patience = fields.get("objects"), fields.get("stop_after_absent", 3)
        limits = [fields.get("first"), fields.get("last")]
        if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise ProtocolError(f"objects must be a list of names or null, not {repr(names)[:60]}")
        if not all(value is None or type(value) is int for value in [*limits, patience]):
            raise ProtocolError("first, last and stop_after_absent must be whole numbers or null")
        progress = opened.session.propagate(
            names, *limits, direction=fields.get("direction", "both"), stop_after_absent=patience
        )
        return opened, progress

    def of(self, job: Job) -> Opened:
        """The session a request is about. ProtocolError when there is none."""
        name = checked(job.fields, "session", str)
        if name not in self._opened:
            raise ProtocolError(f"there is no session {name[:60]!r}: open it first")
        return self._opened[name]

    def _spoken(self, job: Job) -> tuple[Opened, str, dict[int, SlicePrompts]]:
        opened, name = self.of(job), checked(job.fields, "object", str)
        words = {}
        for item in checked(job.fields, "slices", list):
            n, said = words_from_json(item, name, job.arrays)
            words[n] = said
        return opened, name, words

    def _close(self, names: Iterable[str]) -> None:
        last = None
        for name in names:
            opened = self._opened.pop(name, None)
            last = opened.model if opened is not None else last
        self._forget_unused(last)

    def _forget_unused(self, kept: SegmentationModel | None) -> None:
        """Let models go that no session uses, but the one used last."""
        used = {opened.model for opened in self._opened.values()} | {kept}
        for model in [model for model in self._models if kept is not None and model not in used]:
            self._models.pop(model).close()

    def _shared_cache(self) -> FeatureCache:
        if self.cache is None:
            from medsam2_core.engine.cache import FeatureCache
            from medsam2_core.worker.machine import memory

            limit = self._cache_limit
            if limit is None:
                limit = min(max(memory()[0] // 4, 64 << 20), 2 << 30)
            self.cache = FeatureCache(limit)
        return self.cache


def records_of(results: Iterable[SliceMask | None]) -> Answer:
    """Results as ``slices`` of a message; those that are None are left out."""
    arrays: dict[str, NDArray[Any]] = {}
    told = [slice_mask_to_json(result, arrays) for result in results if result is not None]
    return {"slices": told}, arrays


def _title(asked: str, name: str) -> str:
    from medsam2_core.engine.catalogue import Catalogue

    entry = Catalogue.load().find(asked)
    return entry.title if not entry.is_local else name
