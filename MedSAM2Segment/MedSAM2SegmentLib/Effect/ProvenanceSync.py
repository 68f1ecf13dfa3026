"""Keeps in the scene what neither voxels nor prompts contain, and restores it when a scene is loaded.

Which voxels are ours; and what the model found on which slice, with its predicted IoU and confidence, and
what it had found before prompts corrected it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import GeometryError, ProtocolError, VolumeError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.messages import ObjectSnapshot

if TYPE_CHECKING:
    from medsam2_core.prompts import SlicePrompts

    from MedSAM2SegmentLib.Effect.EditorContext import EditorContext

#: Seconds without a change before the scene is updated: a burst of clicks is saved once.
_QUIET = 0.5
#: Seconds after which it is updated even during a propagation.
_LATEST = 10.0

#: Keys in the scene, and attributes of a mask.
_FIGURES = {"iou": "predicted_iou", "score": "object_score", "confidence": "confidence"}
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    binascii.Error,
    ProtocolError,
    VolumeError,
)


class ProvenanceSync:
    """Saves the provenance of the segmentation to the scene, a moment after it changed, and restores it.

    Slicer has no event before a scene is saved.

    Parameters
    ----------
    context
        Segments, prompts and the worker's session.
    clock
        Monotonic seconds.
    """

    def __init__(self, context: EditorContext, clock: Callable[[], float]) -> None:
        self._context, self._session, self._clock = context, context.session, clock
        self._saved: dict[str, Any] = {}  # by segment, the stamps of what is in the scene
        self._seen: dict[str, Any] = {}
        self._since: float | None = None  # when the scene was first seen to be behind
        self._changed = 0.0
        context.onLeaving = self._onLeaving

    @property
    def isPending(self) -> bool:
        """Whether something is going to be saved."""
        return self._since is not None

    def tick(self) -> None:
        """Save what has changed, when it is time."""
        if self._context.store is None:
            self._since = None
            return
        now, stamps = self._clock(), self._stamps()
        if stamps == self._saved:
            self._since = None
            return
        if stamps != self._seen:
            self._seen, self._changed = stamps, now
        if self._since is None:
            self._since = now
        if now - self._changed >= _QUIET or now - self._since >= _LATEST:
            self.save()

    def save(self) -> None:
        """Save all that has changed; what another Segment Editor has saved since is not replaced."""
        if not self._context.isInCharge:
            return
        store, segmentation = self._context.store, self._context.segmentation
        stamps = self._stamps() if store is not None and store.isInScene else self._saved
        if stamps == self._saved:
            return
        ownerships = self._context.writer.ownerships(segmentation)
        entries = {}
        for segmentID, (stamp, figures) in stamps.items():
            before = self._saved.get(segmentID, (None, None))
            entry: dict[str, Any] = {}
            if stamp is not None and stamp != before[0]:
                try:
                    entry["notes"] = store.packed(ownerships[segmentID])
                except GeometryError:
                    continue  # under a transform that warps nothing can be written, either
            found = self._found(segmentID) if figures != before[1] else None
            if found is not None:
                entry["found"] = found
            entries[segmentID] = entry
        store.save(entries)
        self._saved, self._since = stamps, None

    def remove(self, segmentID: str) -> None:
        """Remove what is stored about a segment."""
        if self._context.store is not None:
            self._context.store.save({segmentID: {"notes": None, "found": None}})

    def restore(self, segmentID: str) -> None:
        """Give the session what another one had found about a segment whose prompts it has just answered.

        Does nothing when that one had other slices, model or window, or when it cannot be read.
        """
        session, store = self._session.session, self._context.store
        found = store.found(segmentID) if store is not None and session is not None else None
        if not found or not isinstance(found, Mapping) or found.get("manner") != self._config():
            return
        known = session.snapshot(segmentID)
        try:
            record = self._record(segmentID, found, known)
        except _DAMAGE as error:
            store.logDamage(f"the results of {segmentID!r}", error)
            return
        if record is not None:
            session.restore(segmentID, record)

    # Inside -------------------------------------------------------------------------------------------------

    def _onLeaving(self) -> None:
        """Save before another segmentation is edited; or remove the node, if this one was removed."""
        store = self._context.store
        if store is not None:
            if store.isInScene:
                self.save()
            else:
                store.remove()
        self._saved, self._seen, self._since = {}, {}, None

    def _stamps(self) -> dict[str, tuple[Any, Any]]:
        """By segment, figures that change with what is known about it."""
        context, session = self._context, self._session.session
        ownerships = context.writer.ownerships(context.segmentation)
        stamps: dict[str, tuple[Any, Any]] = {}
        for segmentID in context.segmentation.GetSegmentation().GetSegmentIDs():
            ownership = ownerships.get(segmentID)
            figures = self._saved.get(segmentID, (None, ()))[1]
            if session is not None:
                records = sorted(session.masks(segmentID).items())
                figures = tuple(
                    (n, one.predicted_iou, one.object_score, one.confidence) for n, one in records
                )
            if ownership is not None or figures:
                stamps[segmentID] = (None if ownership is None else ownership.stamp, figures)
        return stamps

    def _config(self) -> Any:
        config = self._session.config
        if config is None:
            return None
        settings = config.settings
        return {"stack": config.stack.to_json(), "model": settings.model, "window": settings.window}

    def _found(self, segmentID: str) -> dict[str, Any] | None:
        session = self._session.session
        known: ObjectSnapshot = session.snapshot(segmentID) if session is not None else ObjectSnapshot()
        if not known.masks:
            return None
        refined = [
            {**_figures(one), "box": list(one.box), "bits": base64.b64encode(one.bits).decode("ascii")}
            for _, one in sorted(known.propagated.items())
        ]
        records = [_figures(one) for _, one in sorted(known.masks.items())]
        return {"manner": self._config(), "slices": records, "refined": refined}

    def _record(
        self, segmentID: str, found: Mapping[str, Any], known: ObjectSnapshot
    ) -> ObjectSnapshot | None:
        """Return all that is known of a segment, with the present prompts; None when that is nothing new."""
        stack, prompts = self._session.stack, known.prompts
        figures = {int(one["n"]): _parsed(one) for one in found["slices"]}
        refined = {int(one["n"]): one for one in found["refined"] if int(one["n"]) in prompts}
        wanted = [n for n in figures if (n not in prompts or n in refined) and 0 <= n < len(stack)]
        if not wanted:
            return None
        masks = self._context.writer.knownMasks(segmentID, stack, wanted)
        records = dict(known.masks)
        for n in wanted:
            records[n] = SliceMask.from_mask(
                segmentID, n, masks[n], **figures[n], prompted=n in prompts, final=_isFinal(prompts, n)
            )
        before = {n: _maskBefore(segmentID, n, one, stack.shape_hw) for n, one in refined.items()}
        return ObjectSnapshot(prompts, records, before)


def _isFinal(prompts: Mapping[int, SlicePrompts], n: int) -> bool:
    return n in prompts and prompts[n].final


def _figures(record: SliceMask) -> dict[str, Any]:
    return {"n": record.n, **{key: round(getattr(record, name), 6) for key, name in _FIGURES.items()}}


def _parsed(one: Mapping[str, Any]) -> dict[str, float]:
    return {"predicted_iou": float(one["iou"]), "object_score": float(one["score"])}


def _maskBefore(segmentID: str, n: int, one: Mapping[str, Any], shape_hw: tuple[int, int]) -> SliceMask:
    """Return the mask that propagation had found on a slice before prompts corrected it."""
    top, left, height, width = (int(value) for value in one["box"])
    bits = base64.b64decode(one["bits"], validate=True)
    empty = SliceMask.from_mask(segmentID, n, np.zeros(shape_hw, bool), **_parsed(one), prompted=False)
    record = dataclasses.replace(empty, box=(top, left, height, width), bits=bits)
    record.mask_hw  # noqa: B018 - VolumeError when it does not fit
    return record
