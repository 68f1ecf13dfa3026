"""Requests about Auto models: which there are, deleting one, and asking one about a session's slices."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Cancelled
from medsam2_core.worker.findings import AutoWish
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.masks import checked
from medsam2_core.worker.messages import prompt_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medsam2_core.auto.loading import AutoModel
    from medsam2_core.auto.model_file import AutoCard
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.session.automatic import AutoPrediction, AutoRun
    from medsam2_core.worker.sessions import Answer, Opened, Sessions, Tell


def listed() -> dict[str, Any]:
    """The result of `auto_models`."""
    from medsam2_core.auto.library import listing

    found = listing()
    return {
        "models": [described(path, card) for path, card in found.models],
        "damaged": [{"path": str(path), "reason": reason} for path, reason in found.damaged],
    }


def removed(job: Job) -> dict[str, Any]:
    """The result of `remove_auto_model`, done."""
    from medsam2_core.auto.library import remove

    return {"bytes": remove(checked(job.fields, "model", str))}


def described(path: Path, card: AutoCard) -> dict[str, Any]:
    """One item of `auto_models`."""
    from medsam2_core.auto.library import stem

    classes = [
        {"name": one.name, "colour_rgb": list(one.colour_rgb), "terminology": one.terminology}
        for one in card.classes
    ]
    return {
        **{"file": stem(path), "path": str(path), "name": card.name, "classes": classes},
        **{"base": card.base, "image_size": card.image_size, "window": card.window},
        **{"axis": card.axis, "modality": card.modality, "training": dict(card.training)},
    }


@dataclass(eq=False)
class _Running:
    """An `auto` request under way."""

    opened: Opened
    run: AutoRun
    changes: Iterator[SliceMask]


class AutoRequests:
    """Carries out `auto`.

    Parameters
    ----------
    sessions
        The sessions of the client; each keeps the Auto model it asked last.
    ask
        Asked between slices, as between the blocks of every model.
    tell
        Sends a message that is not the last one about a request.
    """

    def __init__(self, sessions: Sessions, ask: Callable[[], None], tell: Tell) -> None:
        self._sessions, self._ask, self._tell = sessions, ask, tell

    def find(self, job: Job) -> Answer:
        """`auto`: may raise Interrupted, and goes on when called again with the same job."""
        from medsam2_core.worker.sessions import records_of

        if job.state is None:
            job.state = self._started(job)
        running: _Running = job.state
        if self._sessions.find(running.opened.name) is not running.opened:
            raise Cancelled("the session was closed")
        self._ask()
        for mask in running.changes:
            fields, arrays = records_of([mask])
            counts = {"done": running.run.done, "total": max(running.run.total, running.run.done)}
            self._tell(job, {"type": "slice", **fields, **counts}, arrays)
            self._ask()
        return {"classes": [_told(one) for one in running.run.found()]}, {}

    def _started(self, job: Job) -> _Running:
        from medsam2_core.auto.library import find
        from medsam2_core.auto.volumes import VolumeOptions
        from medsam2_core.errors import PromptError
        from medsam2_core.imaging.intensity import parse_window
        from medsam2_core.session.automatic import AutoRun

        opened, wish = self._sessions.of(job), AutoWish.from_json(job.fields)
        path, card = find(wish.model)
        auto = _loaded(opened, path)
        try:
            options = VolumeOptions(wish.method) if wish.method else VolumeOptions()
        except ValueError as error:
            raise PromptError(f"unknown method {wish.method[:40]!r}: use memory or slices") from error
        window = parse_window(card.window, opened.session.volume)
        run = AutoRun(
            opened.session.stack,
            opened.session.tracker,
            auto,
            wish.classes,
            options,
            flips=wish.flips,
            window=window,
        )
        return _Running(opened, run, run.run(wish.first, wish.last))


def _loaded(opened: Opened, path: Path) -> AutoModel:
    """The Auto model of a file for a session's SAM 2: the one it has already, if the file is the same."""
    from medsam2_core.auto.loading import load_auto

    found = os.stat(path)
    key = (str(path), found.st_mtime_ns, found.st_size)
    if opened.auto is None or opened.auto[0] != key:
        opened.auto = key, load_auto(path, opened.model)
    return opened.auto[1]


def _told(one: AutoPrediction) -> dict[str, Any]:
    prompts = {str(n): [prompt_to_json(prompt, {}) for prompt in said] for n, said in one.prompts.items()}
    return {
        "name": one.name,
        "colour_rgb": [float(part) for part in one.colour_rgb],
        "terminology": one.terminology,
        "confidence": float(one.confidence),
        "slices": sorted(int(n) for n in one.slices),
        "prompts": prompts,
    }
