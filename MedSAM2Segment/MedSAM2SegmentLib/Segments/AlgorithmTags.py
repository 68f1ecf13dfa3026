"""Tags of segments: how they were made, as Slicer's own DICOM export reads it.

DICOM (PS3.3, C.8.20.2) has three values: MANUAL, which Slicer assumes for a segment without tags;
SEMIAUTOMATIC, with a user's prompts; AUTOMATIC, without. Slicer saves tags with the voxels they are about,
and restores them on undo, so that a change of tags is no step of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import vtk
from medsam2_core.export.metadata import algorithm_name, to_json, without_paths
from medsam2_core.export.methods import methods_of
from medsam2_core.prompts import Box, MaskPrompt, Point, Prompt, SlicePrompts

#: What Slicer's own DICOM export reads: how a segment was made, and by what.
ALGORITHM_TYPE, ALGORITHM_NAME = "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"
#: Our own: the model and its weights, and the Auto model that found the segment.
MODEL, WEIGHTS, AUTO = "MedSAM2.model", "MedSAM2.weights_sha256", "MedSAM2.auto"
#: These tags as they were before a user prompted what somebody else, or Auto, had made.
BEFORE = "MedSAM2.before"
TERMINOLOGY = "TerminologyEntry"

AUTOMATIC, SEMIAUTOMATIC = "AUTOMATIC", "SEMIAUTOMATIC"
_NAMES = (ALGORITHM_TYPE, ALGORITHM_NAME, MODEL, WEIGHTS, AUTO)
_PREFIX = "MedSAM2Segment "
_KINDS = {Box: "box", Point: "point", MaskPrompt: "mask"}


class AlgorithmTags:
    """The algorithm tags of the segmentation being edited; segments that were only painted get none.

    Parameters
    ----------
    segment
        Returns a ``vtkSegment`` by its ID.
    writing
        Context in which changes of the segmentation are our own.
    modelInfo
        Returns ``name`` and, once known, ``weights_sha256`` of the session's model.
    """

    def __init__(
        self,
        segment: Callable[[str], Any],
        writing: Callable[[], AbstractContextManager[None]],
        modelInfo: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._segment, self._writing, self._modelInfo = segment, writing, modelInfo
        self._predicted: dict[tuple[str, int], SlicePrompts] = {}

    def setPredicted(self, segmentID: str, prompts: Mapping[int, SlicePrompts]) -> None:
        """Record the prompts an Auto model predicted, with its masks: alone, they need no other answer."""
        self._predicted.update({(segmentID, n): onSlice for n, onSlice in prompts.items()})

    def predicted(self, segmentID: str, n: int) -> SlicePrompts | None:
        """Return the prompts that were predicted on a slice; None when none were, or it is not known."""
        return self._predicted.get((segmentID, n))

    def arePredicted(self, segmentID: str, prompts: Mapping[int, SlicePrompts]) -> bool:
        """Whether prompts of a segment are all an Auto model's own."""
        for n, onSlice in prompts.items():
            isPredicted = onSlice.needs_known and len(onSlice.prompts) == 1 and not onSlice.final
            known = self.predicted(segmentID, n)
            if not isPredicted and (known is None or not onSlice.asks_same(known)):
                return False
        return True

    def isOurs(self, segmentID: str) -> bool:
        """Whether a segment is tagged as made with one of our models; tags of others are theirs."""
        return _isOurs(self._tags(segmentID))

    def isAutomatic(self, segmentID: str) -> bool:
        """Whether a segment is tagged as made by one of our models without a user."""
        tags = self._tags(segmentID)
        return tags[ALGORITHM_TYPE] == AUTOMATIC and _isOurs(tags)

    def setModel(self, segmentID: str, *, isAlone: bool, isPropagated: bool = False) -> None:
        """Tag a segment whose prompts a model has answered.

        Parameters
        ----------
        isAlone
            Whether all prompts are an Auto model's own: what that one has found is AUTOMATIC still, or again.
        isPropagated
            Whether the masks went on to other slices. Of a user's prompts, more than their slices is there
            then, and the segment cannot become AUTOMATIC again.
        """
        now = self._tags(segmentID)
        before = self._tagsBefore(segmentID)
        if now[AUTO] and isAlone:
            found = before if before.get(AUTO) else now  # the model that found it, whatever is chosen now
            self._set(segmentID, AUTOMATIC, now[AUTO], {one: found.get(one, "") for one in (MODEL, WEIGHTS)})
            return
        known = self._modelTags()
        more = {WEIGHTS: "", **known}
        if isPropagated:
            more[AUTO] = ""
            if before.get(AUTO):
                more[BEFORE] = ""
        canReturn = not _isOurs(now) or (self.isAutomatic(segmentID) and not isPropagated)
        if not before and any(now.values()) and canReturn:
            more[BEFORE] = to_json(now)
        self._set(segmentID, SEMIAUTOMATIC, known.get(MODEL, ""), more)

    def setAuto(self, segmentID: str, auto: str, *, isAlone: bool) -> None:
        """Tag a segment that an Auto model has found; not ``isAlone``: beside a part of the user's."""
        kind, now, before = AUTOMATIC if isAlone else SEMIAUTOMATIC, self._tags(segmentID), ""
        if not isAlone and not _isOurs(now):
            before = to_json(now) if any(now.values()) else ""
        elif not isAlone and not self._tagsBefore(segmentID).get(AUTO):
            before = tagOf(self._segment(segmentID), BEFORE)
        more = {MODEL: "", WEIGHTS: "", **self._modelTags(), AUTO: auto * isAlone, BEFORE: before}
        self._set(segmentID, kind, auto, more)

    def setSemiautomatic(self, segmentID: str) -> None:
        """Tag an AUTOMATIC segment that a person has edited as SEMIAUTOMATIC, for good."""
        if self.isAutomatic(segmentID):
            with self._writing():
                tags = {ALGORITHM_TYPE: SEMIAUTOMATIC, AUTO: "", BEFORE: ""}
                setTags(self._segment(segmentID), tags)

    def clear(self, segmentID: str) -> None:
        """Restore the tags from before a model's masks, of which nothing is left.

        Those of Auto are not restored: whoever paints there now, does it by hand.
        """
        before = self._tagsBefore(segmentID)
        known = {} if before.get(AUTO) else {name: before.get(name, "") for name in _NAMES}
        with self._writing():
            setTags(self._segment(segmentID), {**dict.fromkeys(_NAMES, ""), **known, BEFORE: ""})

    def _tags(self, segmentID: str) -> dict[str, str]:
        segment = self._segment(segmentID)
        return {name: tagOf(segment, name) for name in _NAMES}

    def _tagsBefore(self, segmentID: str) -> dict[str, str]:
        """The tags from before the prompts; empty when there were none, or when they cannot be read."""
        text = tagOf(self._segment(segmentID), BEFORE)
        try:
            kept = json.loads(text) if text else {}
        except ValueError:
            return {}
        return {str(name): str(value) for name, value in kept.items()} if isinstance(kept, dict) else {}

    def _modelTags(self) -> dict[str, str]:
        info = self._modelInfo()
        known = {MODEL: info.get("name"), WEIGHTS: info.get("weights_sha256")}
        return without_paths({tag: str(value) for tag, value in known.items() if value})

    def _set(self, segmentID: str, kind: str, model: str, more: dict[str, str]) -> None:
        name = algorithm_name({"model": without_paths(model)})
        tags = {ALGORITHM_TYPE: kind, ALGORITHM_NAME: name, **without_paths(more)}
        with self._writing():
            setTags(self._segment(segmentID), tags)


def _isOurs(tags: Mapping[str, str]) -> bool:
    return bool(tags[MODEL] or tags[AUTO] or tags[ALGORITHM_NAME].startswith(_PREFIX))


def methodsOf(segment: Any, prompts: Sequence[Prompt], session: Mapping[str, Any], *, isPicture: bool) -> str:
    """Return how a ``vtkSegment`` was made, as text for a paper.

    Parameters
    ----------
    prompts
        Those it has now.
    session
        What else is known of how its masks are made, as in the provenance of a segmentation.
    isPicture
        Whether the volume has one slice only.

    Raises
    ------
    ExportError
        ``no-provenance``: its tags do not say that this program made it.
    """
    kinds = [{"type": _KINDS[type(prompt)]} for prompt in prompts]
    known = {"model": tagOf(segment, MODEL), "weights_sha256": tagOf(segment, WEIGHTS), **session}
    if kinds:
        known["prompts"] = {"objects": [{"prompts": kinds}]}
    auto = tagOf(segment, AUTO)
    return methods_of(known, [segment.GetName()], [auto] if auto else [], is_single_image=isPicture)


def tagOf(segment: Any, name: str) -> str:
    """Return a tag of a ``vtkSegment``; empty when it has none."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def setTags(segment: Any, tags: Mapping[str, str]) -> None:
    """Set tags of a ``vtkSegment``, and remove the empty ones; without an event where nothing changes."""
    for name, text in tags.items():
        # The divider of tags in Slicer's files cannot be escaped; in JSON it can be written as a code.
        value = text.replace("|", "\\u007c") if text.startswith("{") else text
        if not value and segment.HasTag(name):
            segment.RemoveTag(name)
        elif value and tagOf(segment, name) != value:
            segment.SetTag(name, value)
