"""What the user works on: segmentation, segment and volume as chosen in the editor, and their tools."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.errors import GeometryError

from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
from MedSAM2SegmentLib.Segments.EditLedger import EditLedger
from MedSAM2SegmentLib.Segments.Editors import transformToWorld
from MedSAM2SegmentLib.Segments.SegmentMemory import SegmentMemory
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

SEGMENTATION, SEGMENT, VOLUME = "segmentation", "segment", "volume"
PLACE = "place"  # the same volume lies otherwise on the segmentation than before
ALONG = "along"  # the same volume was moved, and the segmentation with it

_TOUCHED = (
    "SegmentAdded",
    "SegmentRemoved",
    "SegmentModified",
    "SegmentsOrderModified",
    "SourceRepresentationModified",
    "RepresentationModified",
)


#: By segmentation, the number of the last take-over by a workplace.
_turns: dict[str, int] = {}
_turnNumbers = itertools.count(1)


class Workplace:
    """The user's choices, noticed when they change, with what is needed to work on them.

    Parameters
    ----------
    editor
        Slicer's edit functions.
    onPrompts
        Called with the IDs of segments whose prompts somebody changed.
    onClosing
        Called when the scene is about to be closed.

    Attributes
    ----------
    segmentation, segmentID, volumeNode
        What is chosen; None and "" for nothing.
    adapter, volumeProblem
        The volume as the core sees it, or why it cannot be segmented.
    markups, writer, ledger, memory
        Of the segmentation; None without one.
    onLeaving
        Called before the segmentation is let go of.
    onHardened
        Called with the (4, 4) transform of the segmentation when it was hardened.
    moved
        (4, 4) by which the volume was moved in the world when it was moved last, the segmentation with it.
    isTouched
        Whether somebody else changed the segmentation since this was last set to False.
    """

    def __init__(
        self,
        editor: SegmentEditor,
        onPrompts: Callable[[tuple[str, ...]], None],
        onClosing: Callable[[], None],
    ) -> None:
        self.editor = editor
        self._onPrompts, self._onClosing = onPrompts, onClosing
        self.segmentation: Any = None
        self.segmentID = ""
        self.volumeNode: Any = None
        self.adapter: VolumeAdapter | None = None
        self.volumeProblem = ""
        self.markups: PromptMarkups | None = None
        self.writer: SegmentWriter | None = None
        self.ledger: EditLedger | None = None
        self.memory: SegmentMemory | None = None
        self.onLeaving: Callable[[], None] = lambda: None
        self.onHardened: Callable[[Any], None] = lambda matrix: None
        self.isTouched = False
        self._volumeKey = ""
        self._place: Any = None  # of the volume in the segmentation's own RAS
        self._agreed: Any = None
        self.moved = np.eye(4)
        self._turn = 0
        self._isWriting = 0
        self._tags: list[tuple[Any, int]] = []

    def look(self, *, isActive: bool = False) -> set[str]:
        """What has changed since the last look; who is active takes charge of a segmentation that comes."""
        changed = set()
        segmentation = self.editor.segmentationNode()
        if segmentation is not self.segmentation:
            self._bind(segmentation)
            if isActive:
                self._claim()
            changed.add(SEGMENTATION)
        segmentID = self._selected()
        if segmentID != self.segmentID:
            self.segmentID = segmentID
            changed.add(SEGMENT)
        before = self.adapter
        voxels = self._volumeKey.rpartition(":")[0]
        if self._lookAtVolume():
            changed.add(VOLUME)
        isSame = bool(voxels) and voxels == self._volumeKey.rpartition(":")[0]
        if self._lookAtPlace(SEGMENTATION not in changed and isSame):
            changed.add(PLACE)
        elif VOLUME in changed and isSame and self._place is not None and SEGMENTATION not in changed:
            changed.add(ALONG)
            self.moved = self.adapter.geometry.ijk_to_ras @ np.linalg.inv(before.geometry.ijk_to_ras)
        return changed

    @property
    def isTogether(self) -> bool:
        """Whether volume and segmentation lie on each other as when the user spoke last."""
        return _same(self._place, self._agreed)

    def agree(self) -> None:
        """The user speaks about the volume as it lies on the segmentation now."""
        self._agreed = self._place

    def takeCharge(self) -> None:
        """Of several Segment Editors on one segmentation, be the one that answers its prompts from now on.

        What another one has done is not known here: the next :meth:`look` finds all as in a scene that was
        loaded.
        """
        if self.isInCharge:
            self._claim()
        else:
            self._bind(None)

    @property
    def isInCharge(self) -> bool:
        """Whether no other Segment Editor has taken charge of the segmentation."""
        return self.segmentation is None or _turns.get(self.segmentation.__this__, self._turn) == self._turn

    def release(self) -> None:
        """Let go of everything; the prompts stay in the scene."""
        self._bind(None)
        self.segmentID, self.volumeNode, self.adapter = "", None, None
        self.volumeProblem, self._volumeKey = "", ""

    def segment(self, segmentID: str | None = None) -> Any:
        """A ``vtkSegment``, the selected one by default; None when it is not there."""
        if self.segmentation is None or self.segmentation.GetSegmentation() is None:
            return None
        return self.segmentation.GetSegmentation().GetSegment(
            self.segmentID if segmentID is None else segmentID
        )

    @property
    def isOutOfDate(self) -> bool:
        """Whether another segmentation was chosen since the last look, or another editor took charge."""
        return self.editor.segmentationNode() is not self.segmentation or not self.isInCharge

    def refusal(self, segmentID: str | None = None) -> str:
        """Why a segment, the selected one by default, shall not be changed; empty when it may be."""
        logic, segment = slicer.vtkSlicerSegmentationsModuleLogic, self.segment(segmentID)
        if segment is None or logic.GetSegmentStatus(segment) != logic.Completed:
            return ""
        return f"{segment.GetName()!r} is marked as completed: set its status to in progress to change it"

    def isTakenAlong(self, segmentID: str) -> bool:
        """Whether a propagation takes a segment along: it is selected, or visible and not completed."""
        if segmentID == self.segmentID:
            return True
        display = self.segmentation.GetDisplayNode()
        isVisible = display is None or bool(display.GetSegmentVisibility(segmentID))
        return isVisible and not self.refusal(segmentID)

    def writing(self) -> _Writing:
        """Context: what happens to the segmentation within is our own doing."""
        return _Writing(self)

    def _claim(self) -> None:
        if self.segmentation is not None:
            self._turn = _turns[self.segmentation.__this__] = next(_turnNumbers)

    def _selected(self) -> str:
        segmentID = self.editor.selectedSegmentID() if self.segmentation is not None else ""
        return segmentID if segmentID and self.segment(segmentID) is not None else ""

    def _bind(self, segmentation: Any) -> None:
        self.onLeaving()
        for caller, tag in self._tags:
            caller.RemoveObserver(tag)
        self._tags = []
        if self.markups is not None:
            self.markups.cleanup()
        self.segmentation = segmentation
        self.markups = self.writer = self.ledger = self.memory = None
        self.isTouched = False
        if segmentation is None:
            return
        self.markups = PromptMarkups(segmentation.GetScene(), segmentation)
        self.markups.volumeNode = self.volumeNode
        self.markups.changed.append(self._onPrompts)
        self.markups.hardened.append(self._onHardened)
        self.memory = SegmentMemory(segmentation)
        self.writer = SegmentWriter(self.editor)
        self.writer.recall = self.memory.recall
        self.ledger = EditLedger(self.writer)
        events = [getattr(slicer.vtkSegmentation, name) for name in _TOUCHED]
        self._tags = [(segmentation, segmentation.AddObserver(event, self._onTouched)) for event in events]
        scene = segmentation.GetScene()
        self._tags.append((scene, scene.AddObserver(scene.StartCloseEvent, self._onScene)))

    def _onTouched(self, *_: Any) -> None:
        if not self._isWriting:
            self.isTouched = True

    def _onScene(self, *_: Any) -> None:
        self._onClosing()

    def _onHardened(self, matrix: Any) -> None:
        self.writer.hardened(matrix)
        if self._place is not None:
            self._place, self._agreed = matrix @ self._place, matrix @ self._agreed
        self.onHardened(matrix)

    def _lookAtPlace(self, isSame: bool) -> bool:
        """Whether the same volume lies otherwise on the same segmentation than before."""
        place = None
        if self.adapter is not None and self.segmentation is not None:
            try:
                toWorld = transformToWorld(self.segmentation)
                place = np.linalg.inv(toWorld) @ self.adapter.geometry.ijk_to_ras
            except GeometryError:
                place = None  # under a transform that warps it cannot be edited
        before, self._place = self._place, place
        if place is None:
            return False
        if not isSame or before is None:
            self._agreed = place
            return False
        return not _same(before, place)

    def _lookAtVolume(self) -> bool:
        node = self.editor.sourceVolumeNode()
        problem = VolumeAdapter.problemOf(node) if node is not None else ""
        key = VolumeAdapter(node).key if node is not None and not problem else ""
        if (node, problem, key) == (self.volumeNode, self.volumeProblem, self._volumeKey):
            return False
        self.adapter = VolumeAdapter(node) if key else None
        self.volumeNode, self.volumeProblem, self._volumeKey = node, problem, key
        if self.markups is not None:
            self.markups.volumeNode = node
        return True


def _same(one: Any, other: Any) -> bool:
    """Whether two places (4, 4), in mm, are the same but for rounding."""
    return (one is None) == (other is None) and (one is None or np.allclose(one, other, rtol=1e-7, atol=1e-5))


class _Writing:
    """See :meth:`Workplace.writing`."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace

    def __enter__(self) -> None:
        self._workplace._isWriting += 1

    def __exit__(self, *_: Any) -> None:
        self._workplace._isWriting -= 1
