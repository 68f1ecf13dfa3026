"""The prompts of one segmentation, as nodes of the scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import GeometryError, PromptError

from MedSAM2SegmentLib.Prompts import PromptAppearance, PromptConversion, PromptNodes
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, Gesture, PointGesture
from MedSAM2SegmentLib.Prompts.PromptObserver import PromptObserver
from MedSAM2SegmentLib.Prompts.PromptState import MaskNote, MaskNotes, Snapshot, applyState, stateOf
from MedSAM2SegmentLib.Prompts.SliceViews import PromptHandle, pick
from MedSAM2SegmentLib.Segments.Editors import transformToWorld

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import MaskPrompt, SlicePrompts
    from numpy.typing import ArrayLike, NDArray

    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter


class PromptMarkups:
    """Prompts of the segments of one segmentation, as nodes of the scene.

    Attributes
    ----------
    segmentationNode
        The segmentation the prompts belong to; None when it is gone (removed, or the scene was closed).
    volumeNode
        The volume that new prompts name as the one they were made on; None for none.
    changed
        Called with a tuple of the IDs of segments whose prompts changed, once for each action of the user: a
        prompt was added or removed, here or by somebody else, or moved (at the end of the drag). Not called
        by :meth:`restore`, nor within :meth:`silenced`.
    hardened
        Called with the (4, 4) transform after the segmentation's transform was hardened, and its prompts with
        it: snapshots from before are in the RAS it had then.
    """

    def __init__(self, scene: Any, segmentationNode: Any) -> None:
        self.scene = scene
        self.segmentationNode = segmentationNode
        self.volumeNode: Any = None
        self.changed: list[Callable[[tuple[str, ...]], None]] = []
        self.hardened: list[Callable[[Any], None]] = []
        self._isVisible = True
        self._isSilenced = False
        self._segmentIDs = set(self._presentSegments())
        self._labelmaps = self._presentLabelmaps()
        self._names: dict[tuple[str, str, int], str] = {}  # of removed nodes, which undo may bring back
        self._removed: dict[str, Snapshot] = {}  # of removed segments: undo may bring the segment back
        self._observer = PromptObserver(
            scene,
            segmentationNode,
            onChanged=self._onChanged,
            onSegments=self._onSegments,
            onGone=self._onGone,
            onHardened=self._onHardened,
        )
        self._updateColors()

    # Reading ------------------------------------------------------------------------------------------------

    def segmentIDs(self) -> tuple[str, ...]:
        """Return the IDs of the segments that have prompts."""
        return tuple(sorted({PromptNodes.segmentOf(node) for node in self._observer.nodes}))

    def isEmpty(self, segmentID: str) -> bool:
        """Whether a segment has no prompt."""
        return all(stateOf(node).isEmpty for node in self._nodes(segmentID))

    def drawnLengths(self, segmentID: str) -> tuple[float, ...]:
        """Return the lengths in mm of the lines that the last such box of a segment was made of."""
        boxes = [node for node in self._nodes(segmentID, PromptNodes.BOX) if PromptNodes.drawnOf(node)]
        return PromptNodes.drawnOf(max(boxes, key=PromptNodes.order)) if boxes else ()

    def slicePrompts(
        self, segmentID: str, adapter: VolumeAdapter, stack: SliceStack
    ) -> dict[int, SlicePrompts]:
        """Return the prompts of a segment by slice of a stack, in the order given; slices ascending.

        Raises
        ------
        PromptError
            As :func:`PromptConversion.slicePrompts`.
        """
        states = [stateOf(node) for node in self._nodes(segmentID)]
        return PromptConversion.slicePrompts(states, adapter.geometry, stack, self._toWorld())

    def check(self, gesture: Gesture, adapter: VolumeAdapter, stack: SliceStack) -> tuple[int, ...]:
        """Return the slices a gesture is about, to refuse it before it becomes a node of the scene.

        Raises
        ------
        PromptError
            It is outside the volume, or does not lie on one slice.
        """
        state = PromptConversion.stateOfGesture(gesture)
        return tuple(
            sorted({n for _, n, _ in PromptConversion.placedPrompts(state, adapter.geometry, stack)})
        )

    # Editing ------------------------------------------------------------------------------------------------

    def add(self, segmentID: str, gesture: Gesture) -> PromptHandle:
        """Add what was drawn to the scene. A box replaces an earlier one on the same plane."""
        if self.segmentationNode is None:
            raise PromptError(
                "the segmentation is not in the scene any more: choose another one", code="segmentation-gone"
            )
        number = self._nextOrder()  # higher than that of a box it replaces
        with self._edit(segmentID):
            if isinstance(gesture, BoxGesture):
                for other in self._nodes(segmentID, PromptNodes.BOX):
                    if _isOnPlane(other, gesture):
                        self._removeNode(other)
            return self._place(segmentID, gesture, number)

    def addPredicted(self, segmentID: str, gestures: Iterable[Gesture]) -> None:
        """Add the prompts a model predicted: boxes that refine a mask until somebody moves them."""
        with self._edit(segmentID):
            for gesture in gestures:
                self._place(segmentID, gesture, self._nextOrder(), predicted=True)

    def _place(
        self, segmentID: str, gesture: Gesture, number: int, *, predicted: bool = False
    ) -> PromptHandle:
        """Add a point to the node of its kind, or a node for what was drawn."""
        state = replace(PromptConversion.stateOfGesture(gesture), order=number)
        if isinstance(gesture, PointGesture):
            nodes = self._nodes(segmentID, state.role)
            node = nodes[0] if nodes else self._newNode(segmentID, state.role)
            return self._handle(node, PromptNodes.addPoint(node, gesture.ras, state.order))
        node, toWorld = self._newNode(segmentID, state.role), self._toWorld()
        if toWorld is not None:
            state = state.transformed(np.linalg.inv(toWorld))
        applyState(node, replace(state, predicted=predicted))
        return self._handle(node)

    def addMask(self, segmentID: str, n: int, maskPrompt: MaskPrompt, stackKey: str = "") -> None:
        """Add a mask as the prompt of slice ``n``, in place of an earlier one there.

        ``stackKey`` is the key of the stack that ``n`` counts slices of; on other stacks, and when it is
        empty, the mask applies to the slices its voxels lie on.
        """
        self.addMasks(segmentID, {n: maskPrompt}, stackKey)

    def addMasks(self, segmentID: str, masks: Mapping[int, MaskPrompt], stackKey: str = "") -> None:
        """Add masks by slice, as :meth:`addMask` does."""
        number = self._nextOrder()

        def change(notes: MaskNotes) -> MaskNotes:
            for count, (n, mask) in enumerate(sorted(masks.items())):
                notes = notes.withMask(MaskNote(number + count, stackKey, n, mask))
            return notes

        self._changeNotes(segmentID, change)

    def setFinal(self, segmentID: str, stackKey: str, n: int, final: bool) -> None:
        """Mark a slice of a stack as final, or not any more."""
        self._changeNotes(segmentID, lambda notes: notes.withFinal(stackKey, n, final))

    def remove(self, handle: PromptHandle) -> bool:
        """Delete a prompt; False when it is not there any more."""
        node = next((one for one in self._observer.nodes if one.GetID() == handle.nodeID), None)
        if node is None or (handle.index >= 0 and handle.index >= node.GetNumberOfControlPoints()):
            return False
        with self._edit(handle.segmentID):
            if handle.index >= 0 and node.GetNumberOfControlPoints() > 1:
                node.RemoveNthControlPoint(handle.index)
            else:
                self._removeNode(node)
        return True

    def removeAt(self, sliceNode: Any, xyz: ArrayLike) -> bool:
        """Delete the prompt under a position in a slice view; False when there is none."""
        handle = pick(self._observer.nodes, sliceNode, xyz, lines=True)
        return handle is not None and self.remove(handle)

    def hit(self, sliceNode: Any, xyz: ArrayLike) -> PromptHandle | None:
        """Return the prompt that a press at a position in a slice view would drag; None when none is near.

        ``xyz`` as :func:`SliceViews.mousePosition` gives it; (x, y) will do.
        """
        return pick(self._observer.nodes, sliceNode, xyz, lines=False)

    def clearSlice(self, segmentID: str, n: int, adapter: VolumeAdapter, stack: SliceStack) -> None:
        """Delete the prompts of a segment on one slice of a stack, without calling :attr:`changed`."""
        states = self.snapshot(segmentID)
        left = PromptConversion.withoutSlice(states, n, adapter.geometry, stack, self._toWorld())
        if left != states:
            self.restore(left, segmentID)

    def clear(self, segmentID: str) -> None:
        """Delete all prompts of a segment."""
        with self._edit(segmentID):
            for node in self._nodes(segmentID):
                self._removeNode(node)

    # Undo ---------------------------------------------------------------------------------------------------

    def snapshot(self, segmentID: str | None = None) -> Snapshot:
        """Return all prompts (of one segment) as they are now."""
        nodes = self._observer.nodes if segmentID is None else self._nodes(segmentID)
        states = (stateOf(node) for node in nodes)
        return tuple(state for state in states if not state.isEmpty)

    def restore(self, snapshot: Snapshot, segmentID: str | None = None) -> None:
        """Restore exactly the prompts of a snapshot (of one segment), without calling :attr:`changed`."""
        with self._observer.suspended():
            nodes = self._observer.nodes if segmentID is None else self._nodes(segmentID)
            for state in snapshot:
                node = next((one for one in nodes if stateOf(one).key == state.key), None)
                if node is None:
                    node = self._newNode(state.segmentID, state.role)
                    node.SetName(self._names.get(state.key, node.GetName()))
                else:
                    nodes.remove(node)
                if stateOf(node) != state:
                    applyState(node, state)
            for node in nodes:
                self._removeNode(node)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Within, :attr:`changed` is not called."""
        before, self._isSilenced = self._isSilenced, True
        try:
            yield
        finally:
            self._isSilenced = before

    # Appearance and life ------------------------------------------------------------------------------------

    def setVisible(self, visible: bool) -> None:
        """Show or hide all prompts, also later ones."""
        self._isVisible = visible
        for node in self._observer.nodes:
            PromptAppearance.setVisible(node, visible)

    @property
    def isMoved(self) -> bool:
        """Whether a prompt was moved by a transform of its own, which :meth:`update` has yet to report."""
        return self._observer.isMoved

    def update(self) -> None:
        """Report prompts that were moved by a transform of their own, and keep prompts above the segments.

        To be called now and then. Views draw in the order in which things were added, and when Slicer's undo
        exchanges the labelmaps of a segmentation, they are added again.
        """
        if self.segmentationNode is None:
            return
        self._observer.update()
        before, self._labelmaps = self._labelmaps, self._presentLabelmaps()
        if any(labelmap not in before for labelmap in self._labelmaps):
            with self._observer.suspended():
                for node in self._observer.nodes:
                    PromptAppearance.drawAgain(node)

    def cleanup(self) -> None:
        """Remove every observer; the nodes stay in the scene."""
        self._observer.cleanup()
        self.changed.clear()
        self.hardened.clear()
        self._labelmaps = []

    # Inside -------------------------------------------------------------------------------------------------

    def _toWorld(self) -> NDArray[np.float64] | None:
        """(4, 4) from the segmentation's RAS, or None; PromptError under a transform that warps."""
        if self.segmentationNode is None or self.segmentationNode.GetTransformNodeID() is None:
            return None
        try:
            return transformToWorld(self.segmentationNode)
        except GeometryError as error:
            raise PromptError(str(error), code=error.code, **error.fields) from error

    def _nodes(self, segmentID: str, role: str | None = None) -> list[Any]:
        nodes = [node for node in self._observer.nodes if PromptNodes.segmentOf(node) == segmentID]
        return nodes if role is None else [node for node in nodes if PromptNodes.roleOf(node) == role]

    def _newNode(self, segmentID: str, role: str) -> Any:
        node = PromptNodes.create(self.scene, self.segmentationNode, segmentID, role, self.volumeNode)
        PromptAppearance.addDisplayNodes(node)
        PromptAppearance.setColor(node, self._color(segmentID))
        PromptAppearance.setVisible(node, self._isVisible)
        PromptAppearance.addToFolder(self.scene, self.segmentationNode, node, self._observer.nodes)
        self._observer.add(node)
        return node

    def _removeNode(self, node: Any) -> None:
        self._names[stateOf(node).key] = node.GetName()
        PromptAppearance.removeNode(self.scene, node)

    def _handle(self, node: Any, index: int = -1) -> PromptHandle:
        return PromptHandle(node.GetID(), PromptNodes.segmentOf(node), PromptNodes.roleOf(node), index)

    def _nextOrder(self) -> int:
        highest = 0
        for node in self._observer.nodes:
            if PromptNodes.roleOf(node) == PromptNodes.NOTES:
                masks = MaskNotes.fromText(node.GetText() or "").masks
                highest = max([highest, *(note.order for note in masks)])
            else:
                highest = max(highest, PromptNodes.highestOrder(node))
        return highest + 1

    def _changeNotes(self, segmentID: str, change: Callable[[MaskNotes], MaskNotes]) -> None:
        nodes = self._nodes(segmentID, PromptNodes.NOTES)
        before = MaskNotes.fromText(nodes[0].GetText() or "") if nodes else MaskNotes()
        after = change(before)
        if after == before:
            return
        with self._edit(segmentID):
            if after.isEmpty:
                self._removeNode(nodes[0])
            else:
                node = nodes[0] if nodes else self._newNode(segmentID, PromptNodes.NOTES)
                node.SetText(after.toText())

    @contextmanager
    def _edit(self, segmentID: str) -> Iterator[None]:
        with self._observer.suspended(segmentID):
            yield
        self._notify((segmentID,))

    def _notify(self, segmentIDs: tuple[str, ...]) -> None:
        if not self._isSilenced:
            for callback in list(self.changed):
                callback(segmentIDs)

    # Events -------------------------------------------------------------------------------------------------

    def _onChanged(self, segmentIDs: tuple[str, ...]) -> None:
        with self._observer.suspended():
            for node in [one for segmentID in segmentIDs for one in self._nodes(segmentID)]:
                self._tidy(node)
        self._notify(segmentIDs)

    def _tidy(self, node: Any) -> None:
        """Number points that somebody placed in our nodes; drop nodes whose last point was deleted."""
        if PromptNodes.roleOf(node) in PromptNodes.POINT_ROLES:
            for index in range(node.GetNumberOfControlPoints()):
                if PromptNodes.isSet(node, index) and not PromptNodes.pointOrder(node, index):
                    PromptNodes.numberPoint(node, index, self._nextOrder())
        elif stateOf(node).isEmpty:
            self._removeNode(node)

    def _onSegments(self) -> None:
        present = set(self._presentSegments())
        removed, added = self._segmentIDs - present, present - self._segmentIDs
        self._segmentIDs = present
        for segmentID in removed & set(self.segmentIDs()):
            self._removed[segmentID] = self.snapshot(segmentID)
            self.clear(segmentID)
        for segmentID in added & set(self._removed):
            self.restore(self._removed.pop(segmentID), segmentID)
            self._notify((segmentID,))
        self._updateColors()

    def _onHardened(self, matrix: Any) -> None:
        self._removed = {
            segmentID: tuple(state.transformed(matrix) for state in snapshot)
            for segmentID, snapshot in self._removed.items()
        }
        for callback in list(self.hardened):
            callback(matrix)

    def _onGone(self, isClosing: bool) -> None:
        nodes = self._observer.nodes
        self._observer.cleanup()
        self.segmentationNode = None
        for node in nodes if not isClosing else []:
            PromptAppearance.removeNode(self.scene, node)

    def _presentSegments(self) -> tuple[str, ...]:
        return tuple(self.segmentationNode.GetSegmentation().GetSegmentIDs())

    def _presentLabelmaps(self) -> list[Any]:
        """The labelmaps of the segmentation: kept, so that another one cannot have the same address."""
        known = self.segmentationNode.GetSegmentation()
        return [known.GetLayerDataObject(n) for n in range(known.GetNumberOfLayers())]

    def _color(self, segmentID: str) -> tuple[float, float, float]:
        segment = self.segmentationNode.GetSegmentation().GetSegment(segmentID)
        return tuple(segment.GetColor()) if segment else (1.0, 1.0, 0.0)

    def _updateColors(self) -> None:
        for node in self._observer.nodes:
            PromptAppearance.setColor(node, self._color(PromptNodes.segmentOf(node)))


def _isOnPlane(box: Any, gesture: BoxGesture) -> bool:
    frame, _ = PromptNodes.boxFrame(box)
    distances = (gesture.rasCorners - frame[:3, 3]) @ frame[:3, 0]
    return bool(np.abs(distances).max() < gesture.thickness / 2)
