"""Keeps the session told what the prompts say, and the segments showing what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import resolve

from MedSAM2SegmentLib.Effect.SessionLink import differences, differs
from MedSAM2SegmentLib.Effect.Signing import Signing
from MedSAM2SegmentLib.Segments.Editors import SegmentError
from MedSAM2SegmentLib.Segments.Whose import showsOurs, wasEdited

if TYPE_CHECKING:
    from medsam2_core.prompts import PixelPrompts, SlicePrompts
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.Remembering import Remembering
    from MedSAM2SegmentLib.Effect.SessionLink import Answer, SessionLink
    from MedSAM2SegmentLib.Effect.Steps import Memory, Steps
    from MedSAM2SegmentLib.Effect.Workplace import Workplace

#: Pixels round a positive click in which voxels come back that the user had erased.
_REVIVED = 10


class Conversation:
    """Compares what the prompts say with what the session was told, and says the difference.

    What is in the scene is the truth. When a session has to be told again what a segment shows already (a
    scene was loaded, Slicer undid a step, the volume changed), the segment itself is given as the answer and
    not a voxel changes.

    Parameters
    ----------
    workplace, link, steps, remembering
        Prompts and segments; the session; the way to write; what the scene remembers.

    Attributes
    ----------
    signing
        Notes in segments how they were made.
    """

    def __init__(
        self, workplace: Workplace, link: SessionLink, steps: Steps, remembering: Remembering
    ) -> None:
        self._workplace, self._link, self._steps = workplace, link, steps
        self.remembering, self.signing = remembering, Signing(workplace, link)
        self._refused: dict[tuple[str, int], SlicePrompts] = {}
        self._found: set[str] = set()  # segments whose prompts were there before us
        self._gone: set[str] = set()  # segments that were removed
        self._predicted: dict[tuple[str, int], SlicePrompts] = {}  # a model's own, and the masks it found

    # Saying -------------------------------------------------------------------------------------------------

    def sync(self, segmentIDs: Iterable[str] | None = None) -> str:
        """Say what has changed about segments, all by default; what could not be said, and why.

        Nothing happens while there is no session: what is not said now is said when it is open.
        """
        problem = ""
        self._gone |= {one for one in segmentIDs or () if self._workplace.segment(one) is None}
        if self._link.session is None or self._workplace.adapter is None:
            return problem
        for segmentID in self._known() if segmentIDs is None else segmentIDs:
            try:
                self._say(segmentID, self.words(segmentID))
            except PromptError as error:
                problem = str(error)
        return problem

    def words(self, segmentID: str) -> dict[int, SlicePrompts]:
        """What the prompts of a segment say by slice. PromptError names the prompt that says nothing."""
        return self._workplace.markups.slicePrompts(segmentID, self._workplace.adapter, self._link.stack)

    def settle(self, *, areOld: bool = False) -> None:
        """Take it that all segments show what their prompts say; ``areOld``: as found in the scene."""
        markups = self._workplace.markups
        for segmentID in markups.segmentIDs():
            try:
                words = self.words(segmentID)
            except PromptError:
                continue  # it is told when it is said
            self._steps.settled.pop(segmentID, None)
            self._steps.settle(segmentID, markups.snapshot(segmentID), words)
            if areOld:
                self._found.add(segmentID)

    def forget(self, segmentID: str) -> None:
        """The segment is gone, or its prompts were cleared: the session shall not know it any more."""
        self._link.drop(segmentID)
        self._found.discard(segmentID)
        session = self._link.session
        if session is not None and (session.words(segmentID) or session.records(segmentID)):
            session.remove_object(segmentID)

    def forgetAll(self) -> None:
        """Another segmentation, or none: its segments may have the same IDs."""
        for known in (self._refused, self._found, self._gone, self._predicted):
            known.clear()

    def predicted(self, segmentID: str, words: Mapping[int, SlicePrompts]) -> None:
        """What a model said about slices of a segment by itself, with the masks it found: said alone again,
        these are the answers."""
        self._predicted.update({(segmentID, n): said for n, said in words.items()})

    def refused(self, segmentID: str, words: Mapping[int, SlicePrompts]) -> None:
        """These words were not answered: they are not said again until something else is said there."""
        self._refused.update({(segmentID, n): said for n, said in words.items()})

    def askAgain(self) -> None:
        """Another session, or another attempt: what was refused is said again."""
        self._refused.clear()

    def _say(self, segmentID: str, wanted: Mapping[int, SlicePrompts]) -> None:
        if self._workplace.segment(segmentID) is None:
            self.forget(segmentID)
            return
        if segmentID in self._gone:  # undo has brought it back, and its prompts: it is as it was
            self._gone.discard(segmentID)
            self._steps.settle(segmentID, self._workplace.markups.snapshot(segmentID), wanted)
        changed = differences(self._link.session.words(segmentID), wanted)
        refused = {n: said for (of, n), said in self._refused.items() if of == segmentID}
        changed = {n: said for n, said in changed.items() if n not in refused or differs(refused[n], said)}
        settled = differences(self._steps.settled.get(segmentID, {}), wanted)
        again = self._withKnown(segmentID, {n: words for n, words in changed.items() if n not in settled})
        fresh = {n: words for n, words in changed.items() if n not in again}
        fresh.update(self._asPredicted(segmentID, fresh))
        finals = {n: words for n, words in fresh.items() if words.final}
        fresh.update(self._asTheyStand(segmentID, finals))
        prompts = self._workplace.markups.snapshot(segmentID)
        if again:
            self._link.say(segmentID, again, prompts, isReplay=True)
        if fresh:
            self._link.say(segmentID, fresh, prompts)

    def _withKnown(self, segmentID: str, words: Mapping[int, SlicePrompts]) -> dict[int, SlicePrompts]:
        """Words that need no new answer: with the segment as it stands as the answer.

        Of a scene that was loaded they are said plainly, so that it is known what the model had said; if the
        segment was saved without its voxels, it needs them again.
        """
        known = self._asTheyStand(segmentID, words)
        answered = [said.known for said in known.values() if said.known is not None]
        if segmentID not in self._found or not answered:
            return known
        if all(record.is_empty for record in answered):
            return {}
        return {n: known[n] if said.final or said.needs_known else said for n, said in words.items()}

    def _asPredicted(self, segmentID: str, words: Mapping[int, SlicePrompts]) -> dict[int, SlicePrompts]:
        """Of words, those that only a model said by itself: with the mask it found, which they would not give
        again; and where that is not known, with the segment as it stands."""
        alone = {n: said for n, said in words.items() if said.needs_known and len(said.prompts) == 1}
        known = {n: self._predicted.get((segmentID, n)) for n in alone}
        found = {n: said for n, said in known.items() if said is not None and not differs(said, alone[n])}
        settled = self._steps.settled.get(segmentID, {})
        strange = {n: said for n, said in alone.items() if n not in found and n not in settled}
        return {**found, **self._asTheyStand(segmentID, strange)}

    def _asTheyStand(self, segmentID: str, words: Mapping[int, SlicePrompts]) -> dict[int, SlicePrompts]:
        slices = [n for n, said in words.items() if said]
        masks = self._workplace.writer.segmentMasks(segmentID, self._link.stack, slices) if slices else {}
        return {
            n: replace(
                said, known=SliceMask.from_mask(segmentID, n, masks[n], prompted=True, final=said.final)
            )
            if said
            else said
            for n, said in words.items()
        }

    def _known(self) -> list[str]:
        """Segments with prompts, and those whose prompts are gone without the session knowing."""
        said = [segmentID for segmentID in self._steps.settled if self._link.session.words(segmentID)]
        return list(dict.fromkeys([*self._workplace.markups.segmentIDs(), *said]))

    # Hearing ------------------------------------------------------------------------------------------------

    def take(self, answer: Answer, model: str) -> bool:
        """Write an answer as a step that is left open; whether there was anything to write.

        Raises
        ------
        MedSAM2Error
            When the segment cannot be edited, or shall not be: its voxels stay as they are then.
        """
        if self._workplace.segment(answer.segmentID) is None or not answer.words:
            return False
        stack = self._link.stack
        if answer.isReplay:
            if answer.segmentID in self._found:
                known = {n: record.mask_hw for n, record in answer.records.items()}
                self._workplace.writer.adopt(answer.segmentID, known, stack)
                self.remembering.recall(answer.segmentID)
            self._steps.settle(answer.segmentID, answer.prompts, answer.words)
            return False
        self._found.discard(answer.segmentID)
        refusal = self._workplace.refusal(answer.segmentID)
        if refusal:
            self._steps.settle(answer.segmentID, answer.prompts, answer.words)
            raise SegmentError(refusal)
        revived = self._revived(answer)
        masks = {n: np.zeros(stack.shape_hw, dtype=bool) for n, words in answer.words.items() if not words}
        masks |= {n: record.mask_hw for n, record in answer.records.items() if not answer.words[n].final}
        self._steps.begin([answer.segmentID])
        self._steps.settle(answer.segmentID, answer.prompts, answer.words)
        if masks:
            self._steps.write(answer.segmentID, masks, stack, revived)
            if self._shows(answer.segmentID, list(masks)):
                self.sign(answer.segmentID, model)
        finals = [n for n, words in answer.words.items() if words.final]
        isAutomatic = bool(finals) and self.signing.isAutomatic(answer.segmentID)
        if isAutomatic and any(self._isPainted(answer.segmentID, n) for n in finals):
            self.signing.demote(answer.segmentID)
        return True

    def _revived(self, answer: Answer) -> dict[int, NDArray[np.bool_]]:
        """(H, W) by slice: near what was newly said to belong to the segment, even if erased."""
        stack, settled = self._link.stack, self._steps.settled.get(answer.segmentID, {})
        revived = {}
        for n, words in answer.words.items():
            before = settled[n].prompts if n in settled else ()
            new = [one for one in words.prompts if one not in before]
            said = resolve(new, stack).get(n) if new else None
            if said is not None:
                revived[n] = _asked(said, stack.shape_hw)
        return revived

    def sign(self, segmentID: str, model: str, *, isFollowed: bool = False) -> None:
        """Note in a segment that a model, of this name unless the worker tells another, has answered prompts.

        A segment about which nothing is said any more, and that shows nothing of what was, is what it was
        before. ``isFollowed``: the answers went on to other slices.
        """
        try:
            said = self.words(segmentID)
        except PromptError:  # of the user's own; told when it is said
            self.signing.sign(segmentID, model, isAlone=False, isFollowed=isFollowed)
            return
        if said or showsOurs(self._workplace.writer, segmentID):
            isAlone = self._areOwn(segmentID, said)
            self.signing.sign(segmentID, model, isAlone=isAlone, isFollowed=isFollowed)
        else:
            self.signing.clear(segmentID)

    def look(self) -> None:
        """Somebody else has changed the selected segment, and it was no undo: is it the user's, too, now?

        Of the others no voxels are looked at: it would take long with many, at every stroke of the brush.
        """
        segmentID = self._workplace.segmentID
        isThere = self._workplace.segment(segmentID) is not None
        if isThere and self.signing.isAutomatic(segmentID) and wasEdited(self._workplace.writer, segmentID):
            self.signing.demote(segmentID)

    def _isPainted(self, segmentID: str, n: int) -> bool:
        """Whether a slice of a segment has voxels that no model has put there."""
        stack, writer = self._link.stack, self._workplace.writer
        mask_hw = writer.segmentMasks(segmentID, stack, [n])[n]
        return bool((mask_hw & ~writer.oursMasks(segmentID, stack, [n])[n]).any())

    def _shows(self, segmentID: str, slices: list[int]) -> bool:
        """Whether a segment shows what a model has said: on these slices now, or anywhere before."""
        if self.signing.isSigned(segmentID):
            return True
        known = self._workplace.writer.knownMasks(segmentID, self._link.stack, slices)
        return any(mask_hw.any() for mask_hw in known.values())

    def isAlone(self, segmentID: str) -> bool:
        """Whether all that is said about a segment is what an Auto model would have said by itself."""
        try:
            return self._areOwn(segmentID, self.words(segmentID))
        except PromptError:
            return False

    def _areOwn(self, segmentID: str, said: Mapping[int, SlicePrompts]) -> bool:
        known = {n: self._predicted.get((segmentID, n)) for n in said}
        return all(
            (words.needs_known and len(words.prompts) == 1 and not words.final)
            or ((own := known[n]) is not None and not differs(own, words))
            for n, words in said.items()
        )

    def follow(self, memory: Memory) -> None:
        """Bring prompts and session to what belongs to the voxels Slicer brought back; no voxel changes."""
        markups, session = self._workplace.markups, self._link.session
        for segmentID, prompts in memory.prompts.items():
            self._link.drop(segmentID)
            self._found.discard(segmentID)
            markups.restore(prompts, segmentID)
            record = memory.records[segmentID]
            if session is not None and record is not None and memory.session is session:
                if record.words or record.records:
                    session.restore(segmentID, record)
                else:
                    self.forget(segmentID)
            self._steps.settled[segmentID] = {}
            if self._link.stack is None or self._workplace.adapter is None:
                continue
            try:
                self._steps.settled[segmentID] = dict(self.words(segmentID))
            except PromptError:
                continue  # it is told when it is said


def _asked(said: PixelPrompts, shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) pixels near positive points, in the box, and in the mask."""
    asked = np.zeros(shape_hw, dtype=bool) if said.mask_hw is None else said.mask_hw.copy()
    rows, columns = np.indices(shape_hw)
    for (x, y), label in zip(said.points_xy, said.labels, strict=True):
        if label:
            asked |= (columns - x) ** 2 + (rows - y) ** 2 <= _REVIVED**2
    if said.box_xyxy is not None:
        left, top, right, bottom = said.box_xyxy
        asked |= (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
    return asked
