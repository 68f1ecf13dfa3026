"""How segments were made, noted in them as Slicer's own DICOM export wants to know it.

DICOM (PS3.3, C.8.20.2) knows three ways: MANUAL, which is what Slicer says of a segment without such a note;
SEMIAUTOMATIC, with a user's prompts; AUTOMATIC, without. Notes are tags, and so no step of undo: Slicer
brings them back together with the voxels they are about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsam2_core.export.metadata import algorithm_name, without_paths

from MedSAM2SegmentLib.Segments.SegmentTags import (
    ALGORITHM_NAME,
    ALGORITHM_TYPE,
    AUTO,
    MODEL,
    WEIGHTS,
    putTags,
    tagOf,
)

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Workplace import Workplace

AUTOMATIC, SEMIAUTOMATIC = "AUTOMATIC", "SEMIAUTOMATIC"


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
        """Whether a segment says how it was made."""
        return bool(tagOf(self._workplace.segment(segmentID), ALGORITHM_TYPE))

    def isAutomatic(self, segmentID: str) -> bool:
        """Whether a segment is signed as made without a user."""
        return tagOf(self._workplace.segment(segmentID), ALGORITHM_TYPE) == AUTOMATIC

    def sign(self, segmentID: str, model: str, *, isAlone: bool) -> None:
        """A model has answered prompts of a segment.

        Parameters
        ----------
        model
            Its name, if the worker has not told it.
        isAlone
            Whether all the prompts there are were an Auto model's own: what that one had found is
            AUTOMATIC still, or again.
        """
        auto = tagOf(self._workplace.segment(segmentID), AUTO)
        if auto and isAlone:
            self._put(segmentID, AUTOMATIC, auto, {})
        else:
            name = self._told().get(MODEL) or model
            self._put(segmentID, SEMIAUTOMATIC, name, {MODEL: name, WEIGHTS: "", **self._told()})

    def found(self, segmentID: str, auto: str, *, isAlone: bool) -> None:
        """An Auto model has found a segment, or if not ``isAlone`` a part of it beside the user's."""
        kind = AUTOMATIC if isAlone else SEMIAUTOMATIC
        self._put(segmentID, kind, auto, {MODEL: "", WEIGHTS: "", **self._told(), AUTO: auto * isAlone})

    def clear(self, segmentID: str) -> None:
        """Nothing is left of what a model had said: who paints there now, does it by hand."""
        names = (ALGORITHM_TYPE, ALGORITHM_NAME, MODEL, WEIGHTS, AUTO)
        with self._workplace.writing():
            putTags(self._workplace.segment(segmentID), dict.fromkeys(names, ""))

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
