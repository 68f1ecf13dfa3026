"""What cannot be read off segments and prompts, kept in the scene and found again when it is loaded.

Which voxels are ours, and what the model found on which slice, how sure it was, and what it had found before
words corrected it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import GeometryError, ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.messages import ObjectRecord

if TYPE_CHECKING:
    from medsam2_core.prompts import SlicePrompts

    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Workplace import Workplace

#: Seconds without a change before the scene is told: a burst of clicks is told once.
_QUIET = 0.5
#: Seconds after which it is told even while slices are being filled in.
_LATEST = 10.0

# What the scene calls the attributes of a mask.
_NUMBERS = {"iou": "predicted_iou", "score": "object_score", "confidence": "confidence"}
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, binascii.Error, ProtocolError, GeometryError)


class Remembering:
    """Keeps the scene's memory of the segmentation up to date, and reads it.

    Slicer tells nobody that it is about to save; so the memory is always a moment old at most.

    Parameters
    ----------
    workplace, link
        Segments and prompts; the session.
    clock
        Seconds, only ever growing.
    """

    def __init__(self, workplace: Workplace, link: SessionLink, clock: Callable[[], float]) -> None:
        self._workplace, self._link, self._clock = workplace, link, clock
        self._kept: dict[str, Any] = {}  # by segment, the stamps of what is in the scene
        self._seen: dict[str, Any] = {}
        self._since: float | None = None  # when it was first seen that the scene is behind
        self._changed = 0.0
        workplace.onLeaving = self.leave

    def tick(self) -> None:
        """Write what has changed, when it is time; cheap when nothing has."""
        if self._workplace.memory is None:
            return
        now, stamps = self._clock(), self._stamps()
        if stamps == self._kept:
            self._since = None
            return
        if stamps != self._seen:
            self._seen, self._changed = stamps, now
        if self._since is None:
            self._since = now
        if now - self._changed >= _QUIET or now - self._since >= _LATEST:
            self.save()

    def save(self) -> None:
        """Write all that has changed; what another Segment Editor has written since is not replaced."""
        if not self._workplace.isInCharge:
            return
        memory, segmentation = self._workplace.memory, self._workplace.segmentation
        stamps = self._stamps() if memory is not None and memory.isInScene else self._kept
        if stamps == self._kept:
            return
        noted = self._workplace.writer.noted(segmentation)
        entries = {}
        for segmentID, (stamp, told) in stamps.items():
            before = self._kept.get(segmentID, (None, None))
            entry: dict[str, Any] = {}
            if stamp is not None and stamp != before[0]:
                try:
                    entry["notes"] = memory.packed(noted[segmentID])
                except GeometryError:
                    continue  # under a transform that warps it nothing can be written, either
            found = self._found(segmentID) if told != before[1] else None
            if found is not None:
                entry["found"] = found
            entries[segmentID] = entry
        memory.keep(entries)
        self._kept, self._since = stamps, None

    def leave(self) -> None:
        """Another segmentation comes: what is known about this one goes into the scene, or with it."""
        memory = self._workplace.memory
        if memory is not None:
            if memory.isInScene:
                self.save()
            else:
                memory.remove()
        self._kept, self._seen, self._since = {}, {}, None

    def forget(self, segmentID: str) -> None:
        """Nothing is known about a segment any more."""
        if self._workplace.memory is not None:
            self._workplace.memory.keep({segmentID: {"notes": None, "found": None}})

    def recall(self, segmentID: str) -> None:
        """Tell the session what another one had found about a segment whose words it has just answered.

        Nothing happens when it was cut or seen in another way, or when it cannot be read.
        """
        session, memory = self._link.session, self._workplace.memory
        found = memory.found(segmentID) if memory is not None and session is not None else None
        if not found or not isinstance(found, Mapping) or found.get("manner") != self._manner():
            return
        known = session.snapshot(segmentID)
        try:
            record = self._record(segmentID, found, known)
        except _BROKEN as error:
            memory.complain(f"what was found about {segmentID!r}", error)
            return
        if record is not None:
            session.restore(segmentID, record)

    # Inside -------------------------------------------------------------------------------------------------

    def _stamps(self) -> dict[str, tuple[Any, Any]]:
        """By segment, numbers that change with what is known about it."""
        workplace, session = self._workplace, self._link.session
        noted = workplace.writer.noted(workplace.segmentation)
        stamps: dict[str, tuple[Any, Any]] = {}
        for segmentID in workplace.segmentation.GetSegmentation().GetSegmentIDs():
            notes = noted.get(segmentID)
            told = self._kept.get(segmentID, (None, ()))[1]
            if session is not None:
                records = sorted(session.records(segmentID).items())
                told = tuple((n, one.predicted_iou, one.object_score, one.confidence) for n, one in records)
            if notes is not None or told:
                stamps[segmentID] = (None if notes is None else notes.stamp, told)
        return stamps

    def _manner(self) -> Any:
        if self._link.manner is None:
            return None
        choice, settings = self._link.manner
        return {"stack": choice.to_json(), "model": settings.model, "window": settings.window}

    def _found(self, segmentID: str) -> dict[str, Any] | None:
        session = self._link.session
        known: ObjectRecord = session.snapshot(segmentID) if session is not None else ObjectRecord()
        if not known.records:
            return None
        refined = [
            {**_numbers(one), "box": list(one.box), "bits": base64.b64encode(one.bits).decode("ascii")}
            for _, one in sorted(known.refined.items())
        ]
        records = [_numbers(one) for _, one in sorted(known.records.items())]
        return {"manner": self._manner(), "slices": records, "refined": refined}

    def _record(self, segmentID: str, found: Mapping[str, Any], known: ObjectRecord) -> ObjectRecord | None:
        """All that is known of a segment, with the present words; None when that is nothing new."""
        stack, words = self._link.stack, known.words
        numbers = {int(one["n"]): _read(one) for one in found["slices"]}
        refined = {int(one["n"]): one for one in found["refined"] if int(one["n"]) in words}
        wanted = [n for n in numbers if (n not in words or n in refined) and 0 <= n < len(stack)]
        if not wanted:
            return None
        masks = self._workplace.writer.knownMasks(segmentID, stack, wanted)
        records = dict(known.records)
        for n in wanted:
            records[n] = SliceMask.from_mask(
                segmentID, n, masks[n], **numbers[n], prompted=n in words, final=_isFinal(words, n)
            )
        beneath = {n: _beneath(segmentID, n, one, stack.shape_hw) for n, one in refined.items()}
        return ObjectRecord(words, records, beneath)


def _isFinal(words: Mapping[int, SlicePrompts], n: int) -> bool:
    return n in words and words[n].final


def _numbers(record: SliceMask) -> dict[str, Any]:
    return {"n": record.n, **{key: round(getattr(record, name), 6) for key, name in _NUMBERS.items()}}


def _read(one: Mapping[str, Any]) -> dict[str, float]:
    return {"predicted_iou": float(one["iou"]), "object_score": float(one["score"])}


def _beneath(segmentID: str, n: int, one: Mapping[str, Any], shape_hw: tuple[int, int]) -> SliceMask:
    """The mask tracking had found on a slice before words corrected it."""
    top, left, height, width = (int(value) for value in one["box"])
    bits = base64.b64decode(one["bits"], validate=True)
    empty = SliceMask.from_mask(segmentID, n, np.zeros(shape_hw, bool), **_read(one), prompted=False)
    record = dataclasses.replace(empty, box=(top, left, height, width), bits=bits)
    record.mask_hw  # noqa: B018 - ProtocolError when it does not fit
    return record
