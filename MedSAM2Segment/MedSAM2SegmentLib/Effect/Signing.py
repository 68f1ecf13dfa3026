"""How segments were made, noted in them as Slicer's own DICOM export wants to know it.

DICOM (PS3.3, C.8.20.2) knows three ways: MANUAL, which is what Slicer says of a segment without such a note;
SEMIAUTOMATIC, with a user's prompts; AUTOMATIC, without. Notes are tags, and so no step of undo: Slicer
brings them back together with the voxels they are about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from medsam2_core.export.metadata import algorithm_name, to_json, without_paths

from MedSAM2SegmentLib.Segments.SegmentTags import (
    ALGORITHM_NAME,
    ALGORITHM_TYPE,
    AUTO,
    BEFORE,
    MODEL,
    WEIGHTS,
    putTags,
    tagOf,
)

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Workplace import Workplace

AUTOMATIC, SEMIAUTOMATIC = "AUTOMATIC", "SEMIAUTOMATIC"
_NAMES = (ALGORITHM_TYPE, ALGORITHM_NAME, MODEL, WEIGHTS, AUTO)
_OURS = "MedSAM2Segment "


class Signing:
    """Signs segments of the segmentation being edited; what was only painted is never signed.

    Parameters
    ----------
    workplace, link
        The segments; the session, which knows its model.
    """

    def __init__(self, workplace: Workplace, link: SessionLink) -> None:
        self._workplace, self._link = workplace, link

    def isSigned(self, segmentID: str) -> bool:
        """Whether a segment says that one of our models had a part in it; what others sign is theirs."""
        return _isOurs(self._tags(segmentID))

    def isAutomatic(self, segmentID: str) -> bool:
        """Whether a segment is signed as made by one of our models without a user."""
        tags = self._tags(segmentID)
        return tags[ALGORITHM_TYPE] == AUTOMATIC and _isOurs(tags)

    def sign(self, segmentID: str, model: str, *, isAlone: bool, isFollowed: bool = False) -> None:
        """A model has answered prompts of a segment.

        Parameters
        ----------
        model
            Its name, if the worker has not told it.
        isAlone
            Whether all the prompts there are were an Auto model's own: what that one had found is
            AUTOMATIC still, or again.
        isFollowed
            Whether the answers went on to other slices: of the user's, more than the prompts is there then,
            and AUTOMATIC it will not be again.
        """
        now = self._tags(segmentID)
        before = self._before(segmentID)
        if now[AUTO] and isAlone:
            found = before if before.get(AUTO) else now  # the model that found it, whatever is asked now
            self._put(segmentID, AUTOMATIC, now[AUTO], {one: found.get(one, "") for one in (MODEL, WEIGHTS)})
            return
        name = self._told().get(MODEL) or model
        more = {MODEL: name, WEIGHTS: "", **self._told()}
        if isFollowed:
            more[AUTO] = ""
            if before.get(AUTO):
                more[BEFORE] = ""
        comesBack = not _isOurs(now) or (self.isAutomatic(segmentID) and not isFollowed)
        if not before and any(now.values()) and comesBack:
            more[BEFORE] = to_json(now)
        self._put(segmentID, SEMIAUTOMATIC, name, more)

    def found(self, segmentID: str, auto: str, *, isAlone: bool) -> None:
        """An Auto model has found a segment, or if not ``isAlone`` a part of it beside the user's."""
        kind, now, before = AUTOMATIC if isAlone else SEMIAUTOMATIC, self._tags(segmentID), ""
        if not isAlone and not _isOurs(now):
            before = to_json(now) if any(now.values()) else ""
        elif not isAlone and not self._before(segmentID).get(AUTO):
            before = tagOf(self._workplace.segment(segmentID), BEFORE)
        more = {MODEL: "", WEIGHTS: "", **self._told(), AUTO: auto * isAlone, BEFORE: before}
        self._put(segmentID, kind, auto, more)

    def demote(self, segmentID: str) -> None:
        """A person has worked on what Auto had found: it is not AUTOMATIC any more, and will not be again."""
        if self.isAutomatic(segmentID):
            with self._workplace.writing():
                putTags(
                    self._workplace.segment(segmentID), {ALGORITHM_TYPE: SEMIAUTOMATIC, AUTO: "", BEFORE: ""}
                )

    def clear(self, segmentID: str) -> None:
        """Nothing is left of what a model had said: what the segment said before, it says again.

        Who paints there now, does it by hand.
        """
        before = self._before(segmentID)
        known = {} if before.get(AUTO) else {name: before.get(name, "") for name in _NAMES}
        with self._workplace.writing():
            putTags(self._workplace.segment(segmentID), {**dict.fromkeys(_NAMES, ""), **known, BEFORE: ""})

    def _tags(self, segmentID: str) -> dict[str, str]:
        segment = self._workplace.segment(segmentID)
        return {name: tagOf(segment, name) for name in _NAMES}

    def _before(self, segmentID: str) -> dict[str, str]:
        """What the tags said before prompts came; empty when nothing, or when it cannot be read."""
        text = tagOf(self._workplace.segment(segmentID), BEFORE)
        try:
            kept = json.loads(text) if text else {}
        except ValueError:
            return {}
        return {str(name): str(value) for name, value in kept.items()} if isinstance(kept, dict) else {}

    def _told(self) -> dict[str, str]:
        """Of the session's model, what the worker has told."""
        told = self._link.modelTold
        known = {MODEL: told.get("name"), WEIGHTS: told.get("weights_sha256")}
        return without_paths({tag: str(value) for tag, value in known.items() if value})

    def _put(self, segmentID: str, kind: str, model: str, more: dict[str, str]) -> None:
        name = algorithm_name({"model": without_paths(model)})
        with self._workplace.writing():
            putTags(
                self._workplace.segment(segmentID),
                {ALGORITHM_TYPE: kind, ALGORITHM_NAME: name, **without_paths(more)},
            )


def _isOurs(tags: Mapping[str, str]) -> bool:
    return bool(tags[MODEL] or tags[AUTO] or tags[ALGORITHM_NAME].startswith(_OURS))
