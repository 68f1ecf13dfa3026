"""Observers on the prompt nodes of a segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import vtk
from medsam2_core.errors import GeometryError

from MedSAM2SegmentLib.Prompts import PromptNodes
from MedSAM2SegmentLib.Prompts.PromptState import PromptState, applyState, stateOf
from MedSAM2SegmentLib.Segments.Editors import ownGrid, transformToWorld

_Markups = slicer.vtkMRMLMarkupsNode
_POINT_EVENTS = (_Markups.PointAddedEvent, _Markups.PointModifiedEvent, _Markups.PointRemovedEvent)
_TOLERANCE = 1e-6  # of matrices, relative to their largest entry


@dataclass
class _ObservedNode:
    node: Any
    state: PromptState
    tags: list[int] = field(default_factory=list)
    isDragged: bool = False


class PromptObserver:
    """Reports changes that others make to the prompt nodes of a segmentation.

    Parameters
    ----------
    onChanged
        Called with the IDs of the segments whose prompts somebody else changed: once at the end of a drag,
        never in the middle of one.
    onSegments
        Called when segments were added, removed or modified.
    onGone
        Called when the segmentation was removed, or (True) when the scene is being closed.
    onHardened
        Called with the (4, 4) transform when that of the segmentation, and of its prompts, was hardened.
    """

    def __init__(
        self,
        scene: Any,
        segmentationNode: Any,
        *,
        onChanged: Callable[[tuple[str, ...]], None],
        onSegments: Callable[[], None],
        onGone: Callable[[bool], None],
        onHardened: Callable[[Any], None],
    ) -> None:
        self._scene = scene
        self._segmentationNode = segmentationNode
        self._onChanged, self._onSegments, self._onGone = onChanged, onSegments, onGone
        self._onHardened = onHardened
        self._observed: dict[str, _ObservedNode] = {}
        self._suspensions = 0
        self._isMoved = False
        self._tags: list[tuple[Any, int]] = []
        self._observe(scene, slicer.vtkMRMLScene.NodeAddedEvent, self._onNodeAdded)
        self._observe(scene, slicer.vtkMRMLScene.NodeRemovedEvent, self._onNodeRemoved)
        self._observe(scene, slicer.vtkMRMLScene.EndImportEvent, self._onImported)
        self._observe(scene, slicer.vtkMRMLScene.StartCloseEvent, self._onClosing)
        for event in ("SegmentAdded", "SegmentRemoved", "SegmentModified"):
            self._observe(segmentationNode, getattr(slicer.vtkSegmentation, event), self._onSegmentEvent)
        transformed = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._observe(segmentationNode, transformed, self._onTransform)
        self.addAll()
        self._notePlace()
        self._moveAlong(None)

    @property
    def nodes(self) -> list[Any]:
        """The prompt nodes, in the order they were added."""
        return [observed.node for observed in self._observed.values()]

    @property
    def isMoved(self) -> bool:
        """Whether a transform of its own has moved a prompt, which :meth:`update` has yet to report."""
        return self._isMoved

    def update(self) -> None:
        """Report prompts that were moved by a transform of their own.

        Not in the event: when a transform is applied to everything, prompts may get it before their
        segmentation.
        """
        self._notePlace()
        if self._isMoved and not self._suspensions:
            self._isMoved = False
            for observed in list(self._observed.values()):
                self._compare(observed)

    def addAll(self) -> None:
        """Observe every prompt node of the scene that is not observed yet."""
        for node in PromptNodes.promptNodes(self._scene, self._segmentationNode):
            self.add(node)

    def add(self, node: Any) -> None:
        """Observe a prompt node."""
        if node.GetID() in self._observed:
            return
        observed = _ObservedNode(node, stateOf(node))
        events = [vtk.vtkCommand.ModifiedEvent]
        if node.IsA("vtkMRMLMarkupsNode"):
            events += [*_POINT_EVENTS, slicer.vtkMRMLTransformableNode.TransformModifiedEvent]
            observed.tags.append(node.AddObserver(_Markups.PointStartInteractionEvent, self._onDragStart))
            observed.tags.append(node.AddObserver(_Markups.PointEndInteractionEvent, self._onDragEnd))
        observed.tags += [node.AddObserver(event, self._onNodeEvent) for event in events]
        self._observed[node.GetID()] = observed

    @contextmanager
    def suspended(self, segmentID: str | None = None) -> Iterator[None]:
        """Within, changes (of the nodes of one segment, by default of all) are our own and not reported."""
        self._suspensions += 1
        try:
            yield
        finally:
            self._suspensions -= 1
            for observed in self._observed.values():
                isMeant = segmentID is None or observed.state.segmentID in (segmentID, "")
                if isMeant and not observed.isDragged:  # a drag is reported when it ends
                    observed.state = stateOf(observed.node)

    def cleanup(self) -> None:
        """Remove every observer."""
        for caller, tag in self._tags:
            caller.RemoveObserver(tag)
        self._tags.clear()
        for nodeID in list(self._observed):
            self._remove(nodeID)

    # Events -------------------------------------------------------------------------------------------------

    def _observe(self, caller: Any, event: int, method: Callable[..., None]) -> None:
        self._tags.append((caller, caller.AddObserver(event, method)))

    def _remove(self, nodeID: str) -> _ObservedNode:
        observed = self._observed.pop(nodeID)
        for tag in observed.tags:
            observed.node.RemoveObserver(tag)
        return observed

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, _scene: Any, _event: str, node: Any) -> None:
        # While a scene is being read, references do not hold yet; its nodes are added when it has been read.
        if self._suspensions or self._scene.IsImporting() or not PromptNodes.isPrompt(node):
            return
        self._addNewNodes()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, _scene: Any, _event: str, node: Any) -> None:
        if node is self._segmentationNode:
            self._onGone(self._scene.IsClosing())
            return
        nodeID = next((nodeID for nodeID, one in self._observed.items() if one.node is node), None)
        if nodeID is not None:
            self._report({self._remove(nodeID).state.segmentID})

    def _onImported(self, *_: Any) -> None:
        self._addNewNodes()

    def _addNewNodes(self) -> None:
        before = set(self._observed)
        self.addAll()
        added = [observed.state for nodeID, observed in self._observed.items() if nodeID not in before]
        # An empty node is filled soon, by another Segment Editor.
        self._report({state.segmentID for state in added if not state.isEmpty})

    def _onClosing(self, *_: Any) -> None:
        self._onGone(True)

    def _onSegmentEvent(self, *_: Any) -> None:
        self._onSegments()

    def _onDragStart(self, node: Any, _event: str) -> None:
        if node.GetID() in self._observed:
            self._observed[node.GetID()].isDragged = True

    def _onDragEnd(self, node: Any, _event: str) -> None:
        if node.GetID() in self._observed:
            self._observed[node.GetID()].isDragged = False
            self._compare(self._observed[node.GetID()])

    def _onNodeEvent(self, node: Any, _event: str) -> None:
        observed = None if self._suspensions else self._observed.get(node.GetID())
        if observed is None or observed.isDragged:
            return
        if PromptNodes.toSegmentation(node) is not None:
            self._isMoved = True
        else:
            self._compare(observed)

    def _compare(self, observed: _ObservedNode) -> None:
        before, observed.state = observed.state, stateOf(observed.node)
        if observed.state == before:
            return
        if before.predicted and (observed.state.frame, observed.state.size) != (before.frame, before.size):
            self._suspensions += 1  # somebody has moved it: it is the user's own from now on
            PromptNodes.setPredicted(observed.node, False)
            self._suspensions -= 1
            observed.state = stateOf(observed.node)
        self._report({before.segmentID, observed.state.segmentID})

    def _report(self, segmentIDs: set[str]) -> None:
        if segmentIDs and not self._suspensions:
            self._onChanged(tuple(sorted(segmentIDs)))

    # Transforms ---------------------------------------------------------------------------------------------
    # Prompt nodes are kept under the transform of their segmentation, and hardened with it; one that somebody
    # has put under a transform of its own is left there.

    def _notePlace(self) -> None:
        """Note where the segmentation is: the next event is compared with it."""
        self._parentID = self._segmentationNode.GetTransformNodeID()
        self._toWorld = _toWorld(self._segmentationNode)
        grid = ownGrid(self._segmentationNode)
        self._grid = None if grid is None else grid[0]  # (4, 4) in the segmentation's own RAS

    def _moveAlong(self, before: str | None) -> None:
        """Put the prompts that shared a transform with the segmentation under its present one."""
        parentID = self._segmentationNode.GetTransformNodeID()
        with self.suspended():
            for node in self.nodes:
                isAlong = node.IsA("vtkMRMLTransformableNode") and node.GetTransformNodeID() == before
                if isAlong and before != parentID:
                    node.SetAndObserveTransformNodeID(parentID)

    def _onTransform(self, *_: Any) -> None:
        before, matrix, grid = self._parentID, self._toWorld, self._grid
        self._notePlace()
        if self._parentID == before:
            return
        if self._parentID is not None or not _isHardened(matrix, grid, self._grid):
            self._moveAlong(before)
            return
        with self.suspended():
            for node in self.nodes:
                if node.IsA("vtkMRMLTransformableNode") and node.GetTransformNodeID() == before:
                    _harden(node, matrix)
        if matrix is not None:
            self._onHardened(matrix)


def _harden(node: Any, matrix: Any) -> None:
    """Take a node out of its transform without moving it in the world."""
    if matrix is None:
        node.HardenTransform()
        return
    state = stateOf(node)  # in the segmentation's RAS, which is the world's already
    node.SetAndObserveTransformNodeID(None)
    if not state.isEmpty:
        applyState(node, state)


def _isHardened(matrix: Any, before: Any, after: Any) -> bool:
    """Whether a segmentation that left its transform was hardened, rather than merely taken out of it."""
    if matrix is None:
        return True  # under a warping transform nothing can be edited: the user is asked to harden it
    if before is None or after is None or np.allclose(matrix, np.eye(4), rtol=0, atol=_TOLERANCE):
        return False
    scale = max(1.0, float(np.abs(after).max()))
    return np.allclose(matrix @ before, after, rtol=0, atol=_TOLERANCE * scale)


def _toWorld(node: Any) -> Any:
    try:
        return transformToWorld(node)
    except GeometryError:
        return None
