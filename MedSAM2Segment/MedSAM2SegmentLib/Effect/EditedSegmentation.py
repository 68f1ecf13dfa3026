"""The segmentation being edited, as chosen in the Segment Editor: one action of the user is one step of undo.

Undo is Slicer's own, and restores voxels only. :class:`~MedSAM2SegmentLib.Segments.EditHistory.EditHistory`
detects afterwards which of our steps were undone; what belongs to a step besides voxels is kept here.

During a propagation a step stays open: all masks until it is closed belong to it. A click in the middle of a
propagation is a step of its own; the masks after it are one for the history, but not for Slicer, where they
are undone together with the click.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import slicer
from medsam2_core.errors import GeometryError
from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.messages import ObjectSnapshot

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
from MedSAM2SegmentLib.Segments.AlgorithmTags import AlgorithmTags
from MedSAM2SegmentLib.Segments.EditHistory import UNDONE, EditHistory
from MedSAM2SegmentLib.Segments.Editors import SegmentError, transformToWorld
from MedSAM2SegmentLib.Segments.ProvenanceStore import ProvenanceStore
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.worker.session_client import SessionClient
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Segments.EditHistory import Step
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

_SEGMENTATION_EVENTS = (
    "SegmentAdded",
    "SegmentRemoved",
    "SegmentModified",
    "SegmentsOrderModified",
    "SourceRepresentationModified",
    "RepresentationModified",
)

#: By segmentation node, the number of the last claim by an effect: the entry goes with the node.
_claims: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_claimNumbers = itertools.count(1)


class Change(Enum):
    """What :meth:`EditedSegmentation.update` found changed."""

    SEGMENTATION = "segmentation"
    SEGMENT = "segment"
    VOLUME = "volume"
    POSE = "pose"  # the same volume lies differently on the segmentation
    MOVED_TOGETHER = "moved together"  # the same volume was moved, and the segmentation with it


class SessionHolder(Protocol):
    """What is needed of :class:`~MedSAM2SegmentLib.Effect.WorkerSession.WorkerSession`; see there."""

    stack: SliceStack | None

    @property
    def session(self) -> SessionClient | None: ...

    @property
    def requested(self) -> SessionClient | None: ...

    @property
    def origin(self) -> Any: ...

    @property
    def modelInfo(self) -> Mapping[str, Any]: ...


@dataclass
class UndoState:
    """What belongs to the voxels of some segments at one moment.

    Attributes
    ----------
    prompts
        By segment: a snapshot of its prompts.
    objects
        By segment: all the session knows of it; None when there was no session.
    session
        The session that knew it: another one cannot restore it.
    owner
        What the step belongs to: a propagation, for example.
    range
        The range of slices to propagate through at that moment, and the one that the step, or its undo,
        replaces with it; None when the step does not set it.
    """

    prompts: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, ObjectSnapshot | None] = field(default_factory=dict)
    session: Any = None
    owner: Any = None
    range: tuple[str, str] | None = None

    def update(self, other: UndoState) -> None:
        """Take over segments of another state."""
        self.prompts.update(other.prompts)
        self.objects.update(other.objects)

    def of(self, segmentID: str) -> UndoState:
        """Return the part about one segment."""
        return UndoState(
            {segmentID: self.prompts[segmentID]}, {segmentID: self.objects[segmentID]}, self.session
        )


class EditedSegmentation:
    """The user's choices in the Segment Editor, and the segmentation that is written in steps of undo.

    Parameters
    ----------
    editor
        Slicer's edit functions.

    Attributes
    ----------
    onPrompts
        Called with the IDs of segments whose prompts somebody changed.
    onClosing
        Called when the scene is about to be closed.
    isActive
        Whether the effect is the one the user has chosen.
    segmentation, segmentID, volumeNode
        What is chosen; None and "" for nothing.
    adapter, volumeProblem
        The volume as the core sees it, or why it cannot be segmented.
    markups, writer, store
        Of the segmentation: its prompts, voxels and provenance; None without one.
    tags
        The DICOM algorithm tags of its segments.
    applied
        By segment and slice, the prompts whose answers are in its voxels.
    loaded
        Segments whose prompts were in the scene before this session.
    ranges
        By segment, the range of slices before and after an ROI set it, until its answer opens a step.
    moved
        (4, 4) of the last movement of the volume in the world, the segmentation with it.
    isTouched
        Whether somebody else changed the segmentation since this was last set to False.
    wasAsked
        Whether the step opened last asked for voxels to change, even if Slicer's masking refused it.
    """

    def __init__(self, editor: SegmentEditor, session: SessionHolder, clock: Callable[[], float]) -> None:
        self.editor = editor
        self._session, self._clock = session, clock
        self.onPrompts: Callable[[tuple[str, ...]], None] = lambda segmentIDs: None
        self.onClosing: Callable[[], None] = lambda: None
        self.isActive = False
        self.segmentation: Any = None
        self.segmentID = ""
        self.volumeNode: Any = None
        self.adapter: VolumeAdapter | None = None
        self.volumeProblem = ""
        self.markups: PromptMarkups | None = None
        self.writer: SegmentWriter | None = None
        self.store: ProvenanceStore | None = None
        self.tags = AlgorithmTags(self.segment, self.writing, lambda: session.modelInfo)
        self.applied: dict[str, dict[int, SlicePrompts]] = {}
        self.loaded: set[str] = set()
        self.ranges: dict[str, tuple[str, str]] = {}
        self.moved = np.eye(4)
        self.isTouched = self.wasAsked = False
        self._content: Any = None  # the ``vtkSegmentation`` of the node
        self._volumeKey = ""
        self._pose: Any = None  # (4, 4) of the volume in the segmentation's own RAS
        self._agreedPose: Any = None
        self._claim = 0
        self._writing = 0
        self._tags: list[tuple[Any, int]] = []
        self._history: EditHistory | None = None
        self._snapshots: dict[str, Any] = {}  # by segment, of the prompts that are applied
        self._current: dict[str, UndoState] = {}  # by segment
        self._open: set[str] | None = None  # segments of the open step
        self._before: UndoState | None = None  # the open step
        self._newest: Step | None = None
        self._isUndoStepDue = False

    # Changes ------------------------------------------------------------------------------------------------

    def update(self) -> set[Change]:
        """Follow the user's choices, and return what changed; while active, claim a new segmentation."""
        changed = set()
        segmentation = self.editor.segmentationNode()
        if segmentation is not self.segmentation or self.isReplaced:
            self._bind(segmentation)
            if self.isActive:
                self._claimSegmentation()
            changed.add(Change.SEGMENTATION)
        segmentID = self._selectedSegmentID()
        if segmentID != self.segmentID:
            self.segmentID = segmentID
            changed.add(Change.SEGMENT)
        before, voxelsBefore = self.adapter, self._volumeKey.rpartition(":")[0]
        if self._updateVolume():
            changed.add(Change.VOLUME)
        isSame = bool(voxelsBefore) and voxelsBefore == self._volumeKey.rpartition(":")[0]
        isSame = isSame and Change.SEGMENTATION not in changed
        if self._updatePose(isSame):
            changed.add(Change.POSE)
        elif Change.VOLUME in changed and isSame and self._pose is not None:
            changed.add(Change.MOVED_TOGETHER)
            self.moved = self.adapter.geometry.ijk_to_ras @ np.linalg.inv(before.geometry.ijk_to_ras)
        return changed

    def stamp(self) -> tuple[Any, ...]:
        """Return a value that changes whenever :meth:`update`, or a slice view, has something new; cheap."""
        node = self.editor.parameterSetNode()
        if node is None:
            return (None,)
        segmentation, volume = node.GetSegmentationNode(), node.GetSourceVolumeNode()
        times = [node.GetMTime()]
        for one in (segmentation, volume):
            if one is not None:
                times.append(one.GetMTime())
                transform = one.GetParentTransformNode()
                if transform is not None:
                    times.append(transform.GetTransformToWorldMTime())
        if segmentation is not None and segmentation.GetSegmentation() is not None:
            times.append(segmentation.GetSegmentation().GetMTime())
        if volume is not None and volume.GetImageData() is not None:
            times.append(volume.GetImageData().GetMTime())
        scene, count, browsers = node.GetScene(), 0, 0
        if scene is not None:
            browsers = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
            views = scene.GetNodesByClass("vtkMRMLSliceNode")
            views.UnRegister(None)
            count = views.GetNumberOfItems()
            for index in range(count):
                times.append(views.GetItemAsObject(index).GetMTime())
        return node, segmentation, volume, max(times), count, browsers, self.isInCharge

    # Several Segment Editors --------------------------------------------------------------------------------

    def takeCharge(self) -> None:
        """Of several Segment Editors on one segmentation, be the one that answers its prompts from now on.

        What another one has done is not known here: the next :meth:`update` takes the segmentation as one of
        a scene that was loaded.
        """
        if self.isInCharge:
            self._claimSegmentation()
        else:
            self._bind(None)

    @property
    def isInCharge(self) -> bool:
        """Whether no other Segment Editor has taken charge of the segmentation."""
        return self.segmentation is None or _claims.get(self.segmentation, self._claim) == self._claim

    @property
    def isReplaced(self) -> bool:
        """Whether the node was given another ``vtkSegmentation`` since the last update."""
        return self.segmentation is not None and self.segmentation.GetSegmentation() is not self._content

    @property
    def isOutOfDate(self) -> bool:
        """Whether another segmentation was chosen since the last update, or another editor took charge."""
        isOther = self.editor.segmentationNode() is not self.segmentation or self.isReplaced
        return isOther or not self.isInCharge

    def _claimSegmentation(self) -> None:
        if self.segmentation is not None:
            self._claim = _claims[self.segmentation] = next(_claimNumbers)

    # Pose of the volume -------------------------------------------------------------------------------------

    @property
    def isPoseAgreed(self) -> bool:
        """Whether volume and segmentation lie on each other as at the user's last prompt."""
        return _isSamePose(self._pose, self._agreedPose)

    def agreePose(self) -> None:
        """Take the present pose of the volume on the segmentation for what the user's prompts mean."""
        self._agreedPose = self._pose

    # Segments -----------------------------------------------------------------------------------------------

    def segment(self, segmentID: str | None = None) -> Any:
        """Return a ``vtkSegment``, the selected one by default; None when it is not there."""
        if self.segmentation is None or self.segmentation.GetSegmentation() is None:
            return None
        return self.segmentation.GetSegmentation().GetSegment(
            self.segmentID if segmentID is None else segmentID
        )

    def checkEditable(self, segmentID: str | None = None) -> None:
        """Raise SegmentError when a segment, the selected one by default, is marked as completed."""
        if self._isCompleted(segmentID):
            name = self.segment(segmentID).GetName()
            raise SegmentError(
                _("{name!r} is marked as completed: set its status to in progress to change it").format(
                    name=name
                ),
                code="segment-completed",
                segment=name,
            )

    @property
    def isPrompted(self) -> bool:
        """Whether any segment has prompts."""
        return self.markups is not None and bool(self.markups.segmentIDs())

    def isEditable(self, segmentID: str) -> bool:
        """Whether a segment is there, and not marked as completed."""
        return self.segment(segmentID) is not None and not self._isCompleted(segmentID)

    def isPropagated(self, segmentID: str) -> bool:
        """Whether a propagation includes a segment: it is selected, or visible and not completed."""
        if segmentID == self.segmentID:
            return True
        display = self.segmentation.GetDisplayNode()
        isVisible = display is None or bool(display.GetSegmentVisibility(segmentID))
        return isVisible and not self._isCompleted(segmentID)

    def saveProvenance(self) -> None:
        """Save to the scene what has changed; what another Segment Editor has saved since is not replaced."""
        if self.store is not None and self.isInCharge:
            self.store.update(self._session.session, self._session.origin)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, changes of the segmentation are our own."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1

    def release(self) -> None:
        """Let go of everything; the prompts stay in the scene."""
        self._bind(None)
        self.segmentID, self.volumeNode, self.adapter = "", None, None
        self.volumeProblem, self._volumeKey = "", ""

    def _isCompleted(self, segmentID: str | None) -> bool:
        logic, segment = slicer.vtkSlicerSegmentationsModuleLogic, self.segment(segmentID)
        return segment is not None and logic.GetSegmentStatus(segment) == logic.Completed

    def _selectedSegmentID(self) -> str:
        segmentID = self.editor.selectedSegmentID() if self.segmentation is not None else ""
        return segmentID if segmentID and self.segment(segmentID) is not None else ""

    # Writing ------------------------------------------------------------------------------------------------

    def openStep(self, segmentIDs: Iterable[str], *, owner: Any = None, newUndo: bool = True) -> None:
        """Open a step about segments, or go on with the open one of the same owner.

        ``newUndo`` makes it a step of Slicer's undo, too; without, it is undone with the step before.
        """
        if self._open is None or owner is None or self._before.owner is not owner:
            self.closeStep()
            self._open = set()
            self._before = UndoState(session=self._session.requested, owner=owner)
            self._history.begin(self._before)
            self._isUndoStepDue, self.wasAsked = newUndo, False
        for segmentID in set(segmentIDs) - self._open:
            self._open.add(segmentID)
            self._before.update(self._lastState(segmentID))
            self._before.range = self.ranges.pop(segmentID, self._before.range)

    def addCreated(self, segmentIDs: Iterable[str]) -> None:
        """Record segments that the open step has created: undo removes them."""
        self._history.addCreated(segmentIDs)
        for segmentID in segmentIDs:
            self.markApplied(segmentID, (), {})

    def isKnown(self, segmentID: str) -> bool:
        """Whether it is known what belongs to the voxels of a segment."""
        return segmentID in self._current

    def write(
        self,
        segmentID: str,
        masks: Mapping[int, NDArray[np.bool_]],
        stack: SliceStack,
        revived: Mapping[int, NDArray[np.bool_]] | None = None,
    ) -> bool:
        """Write into the open step (see ``SegmentWriter.write``); whether any voxel was asked to change."""
        newStep, self._isUndoStepDue = self._isUndoStepDue, False
        with self.writing():
            isAsked = self.writer.write(segmentID, masks, stack, newStep=newStep, revived=revived)
        self.wasAsked |= isAsked
        return isAsked

    def closeStep(self) -> Step | None:
        """Close the open step; None when none was open, or when it changed no voxel.

        A change of prompts without voxels (a click inside the mask) is not in Slicer's undo: it becomes part
        of the step before.
        """
        if self._open is None:
            return None
        segmentIDs, before = self._open, self._before
        self._open, self._before = None, None
        after = self.stateOf(segmentIDs)
        after.owner, after.range = before.owner, before.range and before.range[::-1]
        step = self._history.end(after)
        if step is not None:
            self._newest = step
        elif self._newest is not None and self._newest.done:
            self._newest.payloadAfter.update(after)
            if before.range:
                self._newest.payloadBefore.range, self._newest.payloadAfter.range = before.range, after.range
        for segmentID in segmentIDs:
            self._current[segmentID] = after.of(segmentID)
        return step

    def revert(self, steps: list[Step]) -> None:
        """Undo steps within the open one, except where voxels were changed since."""
        self._isUndoStepDue = False
        with self.writing():
            self._history.revert(steps)

    def stepsOf(self, owner: Any) -> list[Step]:
        """Return the steps of an owner that are not undone."""
        steps = [] if self._history is None else self._history.steps
        return [step for step in steps if step.done and step.payloadAfter.owner is owner]

    # Prompts that are applied -------------------------------------------------------------------------------

    def markApplied(self, segmentID: str, snapshot: Any, prompts: Mapping[int, SlicePrompts]) -> None:
        """Record that the voxels of a segment show these prompts, on their slices."""
        applied = self.applied.setdefault(segmentID, {})
        applied.update(prompts)
        for n in [n for n, onSlice in applied.items() if not onSlice]:
            del applied[n]
        self._snapshots[segmentID] = snapshot
        if self._open is None or segmentID not in self._open:
            self._current[segmentID] = self.stateOf((segmentID,))

    def slicePrompts(self, segmentID: str) -> dict[int, SlicePrompts]:
        """Return the prompts of a segment by slice; PromptError names the prompt that cannot be used."""
        return self.markups.slicePrompts(segmentID, self.adapter, self._session.stack)

    def markAllOutdated(self) -> None:
        """Let all prompts be answered anew: the voxels show answers of another session."""
        self.applied.clear()

    def removePrompts(self, segmentID: str) -> None:
        """Record that a segment has no prompts any more."""
        self.applied.pop(segmentID, None)
        self._snapshots.pop(segmentID, None)

    def stateOf(self, segmentIDs: Iterable[str]) -> UndoState:
        """Return what belongs to the voxels of segments now, without prompts that are not answered yet."""
        session = self._session.session
        state = UndoState(session=self._session.requested)
        for segmentID in segmentIDs:
            state.prompts[segmentID] = self._snapshots.get(segmentID, ())
            state.objects[segmentID] = None
            if session is not None:
                known = session.snapshot(segmentID)
                applied = self.applied.get(segmentID, {})
                state.objects[segmentID] = ObjectSnapshot(applied, known.masks, known.propagated)
        return state

    # Undo ---------------------------------------------------------------------------------------------------

    def detectUndo(self) -> list[UndoState]:
        """Return the states of segments that Slicer's undo or redo has restored; mostly none."""
        self.closeStep()
        found = self._history.reconcile()
        states = [step.payloadBefore if what == UNDONE else step.payloadAfter for step, what in found]
        for state in states:
            for segmentID, snapshot in state.prompts.items():
                self._current[segmentID] = state.of(segmentID)
                self._snapshots[segmentID] = snapshot
        if found:
            done = [step for step in self._history.steps if step.done]
            self._newest = done[-1] if done else None
        return states

    # Inside -------------------------------------------------------------------------------------------------

    def _bind(self, segmentation: Any) -> None:
        """Edit another segmentation, or none: what is known of the one before is saved to its scene."""
        if self.store is not None and not self.store.isInScene:
            self.store.remove()
        self.saveProvenance()
        for caller, tag in self._tags:
            caller.RemoveObserver(tag)
        self._tags = []
        if self.markups is not None:
            self.markups.cleanup()
        isReplaced = self.isReplaced and segmentation is self.segmentation
        self.segmentation = segmentation
        self._content = None if segmentation is None else segmentation.GetSegmentation()
        self.markups = self.writer = self.store = self._history = None
        for known in (self.applied, self.loaded, self._snapshots, self._current, self.ranges):
            known.clear()
        self.tags = AlgorithmTags(self.segment, self.writing, lambda: self._session.modelInfo)
        self._open, self._before, self._newest = None, None, None
        self.isTouched = False
        if segmentation is None:
            return
        scene = segmentation.GetScene()
        self.markups = PromptMarkups(scene, segmentation)
        self.markups.volumeNode = self.volumeNode
        self.markups.changed.append(self.onPrompts)
        self.markups.hardened.append(self._onHardened)
        self.writer = SegmentWriter(self.editor)
        self.store = ProvenanceStore(segmentation, self.writer, self._clock)
        self.store.isReplaced = isReplaced
        self.writer.recall = self.store.recall
        self._history = EditHistory(self.writer)
        events = [getattr(slicer.vtkSegmentation, name) for name in _SEGMENTATION_EVENTS]
        self._tags = [(segmentation, segmentation.AddObserver(event, self._onTouched)) for event in events]
        self._tags.append((scene, scene.AddObserver(scene.StartCloseEvent, self._onScene)))

    def _onTouched(self, *_args: Any) -> None:
        if not self._writing:
            self.isTouched = True

    def _onScene(self, *_args: Any) -> None:
        self.onClosing()

    def _onHardened(self, matrix: NDArray[np.float64]) -> None:
        """Follow the segmentation's own RAS, in which prompts are kept, through a transform (4, 4).

        Slicer's undo would restore voxels without the transform: earlier steps are out of reach.
        """
        self.writer.hardened(matrix)
        if self._pose is not None:
            self._pose, self._agreedPose = matrix @ self._pose, matrix @ self._agreedPose
        self._history.clear()
        self._newest = None
        for state in self._current.values():
            state.prompts = {one: _transformed(prompts, matrix) for one, prompts in state.prompts.items()}
        self._snapshots = {one: _transformed(prompts, matrix) for one, prompts in self._snapshots.items()}

    def _updatePose(self, isSame: bool) -> bool:
        """Whether the same volume lies differently on the same segmentation than before."""
        pose = None
        if self.adapter is not None and self.segmentation is not None:
            try:
                toWorld = transformToWorld(self.segmentation)
                pose = np.linalg.inv(toWorld) @ self.adapter.geometry.ijk_to_ras
            except GeometryError:
                pose = None  # under a transform that warps it cannot be edited
        before, self._pose = self._pose, pose
        if pose is None:
            return False
        if not isSame or before is None:
            self._agreedPose = pose
            return False
        return not _isSamePose(before, pose)

    def _updateVolume(self) -> bool:
        node = self.editor.sourceVolumeNode()
        problem = VolumeAdapter.problemOf(node) if node is not None else ""
        key = VolumeAdapter.keyOf(node) if node is not None and not problem else ""
        if (node, problem, key) == (self.volumeNode, self.volumeProblem, self._volumeKey):
            return False
        self.adapter = VolumeAdapter(node) if key else None
        self.volumeNode, self.volumeProblem, self._volumeKey = node, problem, key
        if self.markups is not None:
            self.markups.volumeNode = node
        return True

    def _lastState(self, segmentID: str) -> UndoState:
        state = UndoState()
        known = self._current.get(segmentID)
        state.prompts[segmentID] = known.prompts[segmentID] if known else ()
        isSame = known is not None and known.session is self._session.requested
        state.objects[segmentID] = known.objects[segmentID] if isSame else None
        return state


def _isSamePose(one: Any, other: Any) -> bool:
    """Whether two poses (4, 4), in mm, are the same but for rounding."""
    return (one is None) == (other is None) and (one is None or np.allclose(one, other, rtol=1e-7, atol=1e-5))


def _transformed(snapshot: Any, matrix: NDArray[np.float64]) -> Any:
    return tuple(state.transformed(matrix) for state in snapshot)
