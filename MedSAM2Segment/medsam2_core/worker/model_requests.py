"""Requests that list, download and delete models, both of SAM 2 and of Auto."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error
from medsam2_core.worker.jobs import Finish, Job, Send
from medsam2_core.worker.protocol import checked

if TYPE_CHECKING:
    from medsam2_core.auto.model_file import AutoCard
    from medsam2_core.engine.catalogue import ModelEntry
    from medsam2_core.engine.store import Store

_PAUSE_S = 0.2  # between two progress messages of a download


def list_models(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out `models`."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    store = Store.default()
    return {"models": [model_to_json(entry, store) for entry in Catalogue.load()]}


def model_to_json(entry: ModelEntry, store: Store) -> dict[str, Any]:
    """Return one item of `models`; of a fine-tuned model with its card."""
    from medsam2_core.engine.card import read_card

    _, path = store.find(entry)
    size = entry.bytes if entry.bytes is not None or path is None else path.stat().st_size
    same = ("name", "title", "licence", "image_size", "memory", "attribution", "notice", "page")
    card = read_card(entry.path) if entry.path is not None and entry.is_own else None
    return {
        **{name: getattr(entry, name) for name in same},
        "bytes": size,
        "installed": path is not None,
        "path": str(path) if path else None,
        "removable": entry.is_own or store.download_path(entry) == path,
        "card": None if card is None else dataclasses.asdict(card),
    }


def remove_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out `remove_model`."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    store, entry = Store.default(), Catalogue.load().find(checked(fields, "name", str))
    path = entry.path or store.download_path(entry)
    size = path.stat().st_size if path.is_file() else 0
    store.remove(entry)
    return {"bytes": size}


def list_auto_models(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out `auto_models`."""
    from medsam2_core.auto.library import listing

    found = listing()
    return {
        "models": [auto_model_to_json(path, card) for path, card in found.models],
        "damaged": [{"path": str(path), "reason": reason} for path, reason in found.damaged],
    }


def remove_auto_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out `remove_auto_model`."""
    from medsam2_core.auto.library import remove

    return {"bytes": remove(checked(fields, "model", str))}


def auto_model_to_json(path: Path, card: AutoCard) -> dict[str, Any]:
    """Return one item of `auto_models`."""
    from medsam2_core.auto.library import stem

    classes = [
        {"name": one.name, "colour_rgb": list(one.colour_rgb), "terminology": one.terminology}
        for one in card.classes
    ]
    same = ("name", "base", "image_size", "window", "axis", "modality")
    return {
        "file": stem(path),
        "path": str(path),
        "classes": classes,
        "training": dict(card.training),
        **{name: getattr(card, name) for name in same},
    }


#: Handlers of requests without arrays: from fields to fields.
HANDLERS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "models": list_models,
    "remove_model": remove_model,
    "auto_models": list_auto_models,
    "remove_auto_model": remove_auto_model,
}


class Downloads:
    """Downloads of models, each in a thread of its own."""

    def __init__(self, finish: Finish, send: Send) -> None:
        self._finish, self._send = finish, send
        self._running: dict[int, Job] = {}

    def start(self, job: Job) -> None:
        """Start `install_model`."""
        self._running[job.id] = job
        threading.Thread(target=self._fetch, args=(job,), name="download", daemon=True).start()

    def cancel(self, number: int | None) -> None:
        """Cancel a download (None: all); the part received is kept for the next attempt."""
        for job in list(self._running.values()):
            if number in (None, job.id):
                job.is_cancelled = True

    def _fetch(self, job: Job) -> None:
        from medsam2_core.engine.catalogue import Catalogue
        from medsam2_core.engine.download import fetch

        sent = 0.0

        def progress(done: int, total: int | None) -> None:
            nonlocal sent
            if time.monotonic() - sent >= _PAUSE_S or done == total:
                sent = time.monotonic()
                self._send(job, {"type": "progress", "what": "downloading", "done": done, "total": total})

        try:
            entry = Catalogue.load().find(checked(job.fields, "name", str))
            path = fetch(entry, progress, should_cancel=lambda: job.is_cancelled)
            answer: dict[str, Any] | BaseException = {"path": str(path)}
        except (MedSAM2Error, MemoryError, OSError, RuntimeError, ValueError) as error:
            answer = error
        self._running.pop(job.id, None)
        self._finish(job, answer)
