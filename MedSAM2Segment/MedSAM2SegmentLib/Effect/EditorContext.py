"""Segmentation, segment and volume as chosen in the Segment Editor, and the objects that work on them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.errors import GeometryError

from MedSAM2SegmentLib.Effect.EditTransaction import EditTransaction
from MedSAM2SegmentLib.Effect.Parameters import Parameters
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
from MedSAM2SegmentLib.Segments.Editors import SegmentError, transformToWorld
from MedSAM2SegmentLib.Segments.ProvenanceStore import ProvenanceStore
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

_SEGMENTATION_EVENTS = (
    "SegmentAdded",
    "SegmentRemoved",
    "SegmentModified",
    "SegmentsOrderModified",
    "SourceRepresentationModified",
    "RepresentationModified",
)

#: By segmentation node, the number of the last claim by a context: the entry goes with the node.
_claims: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_claimNumbers = itertools.count(1)


class Change(Enum):
    """What :meth:`EditorContext.update` found changed."""

    SEGMENTATION = "segmentation"
    SEGMENT = "segment"
    VOLUME = "volume"
    POSE = "pose"  # the same volume lies differently on the segmentation
    MOVED_TOGETHER = "moved together"  # the same volume was moved, and the segmentation with it


class EditorContext:
    """The user's choices in the Segment Editor, and the objects that work on them.

    Parameters
    ----------
    editor
        Slicer's edit functions.
    session
        The session in the worker.
    onPrompts
        Called with the IDs of segments whose prompts somebody changed.
    onClosing
        Called when the scene is about to be closed.

    Attributes
    ----------
    parameters
        The user's choices for this effect.
    segmentation, segmentID, volumeNode
        What is chosen; None and "" for nothing.
    adapter, volumeProblem
        The volume as the core sees it, or why it cannot be segmented.
    markups, writer, store
        Of the segmentation: its prompts, voxels and provenance; None without one.
    transaction
        Writes its segments as steps of undo.
    onLeaving
        Called before another segmentation is taken.
    moved
        (4, 4) of the last movement of the volume in the world, the segmentation with it.
    isTouched
        Whether somebody else changed the segmentation since this was last set to False.
    """

    def __init__(
        self,
        editor: SegmentEditor,
        session: WorkerSession,
        onPrompts: Callable[[tuple[str, ...]], None],
        onClosing: Callable[[], None],
    ) -> None:
        self.editor, self.session = editor, session
        self.parameters = Parameters(editor)
        self.transaction = EditTransaction(session, self.writing)
        self._onPrompts, self._onClosing = onPrompts, onClosing
        self.segmentation: Any = None
        self.segmentID = ""
        self.volumeNode: Any = None
        self.adapter: VolumeAdapter | None = None
        self.volumeProblem = ""
        self.markups: PromptMarkups | None = None
        self.writer: SegmentWriter | None = None
        self.store: ProvenanceStore | None = None
        self.onLeaving: Callable[[], None] = lambda: None
        self.moved = np.eye(4)
        self.isTouched = False
        self._volumeKey = ""
        self._pose: Any = None  # (4, 4) of the volume in the segmentation's own RAS
        self._agreedPose: Any = None
        self._claim = 0
        self._writing = 0
        self._tags: list[tuple[Any, int]] = []

    # Changes ------------------------------------------------------------------------------------------------

    def update(self, *, isActive: bool = False) -> set[Change]:
        """Follow the user's choices, and return what changed.

        ``isActive``: claim a segmentation that is new here.
        """
        changed = set()
        segmentation = self.editor.segmentationNode()
        if segmentation is not self.segmentation:
            self._bind(segmentation)
            if isActive:
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
    def isOutOfDate(self) -> bool:
        """Whether another segmentation was chosen since the last update, or another editor took charge."""
        return self.editor.segmentationNode() is not self.segmentation or not self.isInCharge

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

    # Inside -------------------------------------------------------------------------------------------------

    def _bind(self, segmentation: Any) -> None:
        self.onLeaving()
        for caller, tag in self._tags:
            caller.RemoveObserver(tag)
        self._tags = []
        if self.markups is not None:
            self.markups.cleanup()
        self.segmentation = segmentation
        self.markups = self.writer = self.store = None
        self.transaction.bind(None)
        self.isTouched = False
        if segmentation is None:
            return
        self.markups = PromptMarkups(segmentation.GetScene(), segmentation)
        self.markups.volumeNode = self.volumeNode
        self.markups.changed.append(self._onPrompts)
        self.markups.hardened.append(self._onSegmentationHardened)
        self.store = ProvenanceStore(segmentation)
        self.writer = SegmentWriter(self.editor)
        self.writer.recall = self.store.recall
        self.transaction.bind(self.writer)
        events = [getattr(slicer.vtkSegmentation, name) for name in _SEGMENTATION_EVENTS]
        self._tags = [(segmentation, segmentation.AddObserver(event, self._onTouched)) for event in events]
        scene = segmentation.GetScene()
        self._tags.append((scene, scene.AddObserver(scene.StartCloseEvent, self._onScene)))

    def _onTouched(self, *_args: Any) -> None:
        if not self._writing:
            self.isTouched = True

    def _onScene(self, *_args: Any) -> None:
        self._onClosing()

    def _onSegmentationHardened(self, matrix: Any) -> None:
        self.writer.hardened(matrix)
        if self._pose is not None:
            self._pose, self._agreedPose = matrix @ self._pose, matrix @ self._agreedPose
        self.transaction.hardened(matrix)

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


def _isSamePose(one: Any, other: Any) -> bool:
    """Whether two poses (4, 4), in mm, are the same but for rounding."""
    return (one is None) == (other is None) and (one is None or np.allclose(one, other, rtol=1e-7, atol=1e-5))
