"""Watches the prompt nodes of a segmentation and says when somebody changed what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import slicer
import vtk

from MedSAM2SegmentLib.Prompts import MarkupNodes
from MedSAM2SegmentLib.Prompts.FollowTransform import FollowTransform
from MedSAM2SegmentLib.Prompts.PromptSnapshots import SavedNode, saved

_Markups = slicer.vtkMRMLMarkupsNode
_POINT_EVENTS = (_Markups.PointAddedEvent, _Markups.PointModifiedEvent, _Markups.PointRemovedEvent)


@dataclass
class _Watched:
    node: Any
    state: SavedNode
    tags: list[int] = field(default_factory=list)
    isDragged: bool = False


class NodeWatch:
    """Observers on the prompt nodes, on their segmentation and on the scene.

    Parameters
    ----------
    scene, segmentationNode
        Whose prompts.
    onChanged
        Called with the IDs of the segments whose prompts somebody else changed: once at the end of a drag,
        never in the middle of one.
    onSegments
        Called when segments came, went, or look different.
    onGone
        Called when the segmentation left the scene, or (True) the scene is being closed.
    onHardened
        Called with the (4, 4) transform when that of the segmentation was hardened, and of its prompts.
    """

    def __init__(
        self,
        scene: Any,
        segmentationNode: Any,
        onChanged: Callable[[tuple[str, ...]], None],
        onSegments: Callable[[], None],
        onGone: Callable[[bool], None],
        onHardened: Callable[[Any], None],
    ) -> None:
        self._scene = scene
        self._segmentationNode = segmentationNode
        self._onChanged, self._onSegments, self._onGone = onChanged, onSegments, onGone
        self._watched: dict[str, _Watched] = {}
        self._ours = 0
        self._isMoved = False
        self._observed: list[tuple[Any, int]] = []
        self._observe(scene, slicer.vtkMRMLScene.NodeAddedEvent, self._onNodeAdded)
        self._observe(scene, slicer.vtkMRMLScene.NodeRemovedEvent, self._onNodeRemoved)
        self._observe(scene, slicer.vtkMRMLScene.EndImportEvent, self._onImported)
        self._observe(scene, slicer.vtkMRMLScene.StartCloseEvent, self._onClosing)
        for event in ("SegmentAdded", "SegmentRemoved", "SegmentModified"):
            self._observe(segmentationNode, getattr(slicer.vtkSegmentation, event), self._onSegmentEvent)
        self.find()
        self._follow = FollowTransform(segmentationNode, lambda: self.nodes, self.ours, onHardened)

    @property
    def nodes(self) -> list[Any]:
        """The prompt nodes, in the order they came."""
        return [watched.node for watched in self._watched.values()]

    def look(self) -> None:
        """Tell who was moved by a transform of its own.

        Not at once: when a transform is put over everything, prompts may get it before their segmentation.
        """
        self._follow.look()
        if self._isMoved and not self._ours:
            self._isMoved = False
            for watched in list(self._watched.values()):
                self._compare(watched)

    def find(self) -> None:
        """Watch every prompt node of the scene that is not watched yet."""
        for node in MarkupNodes.promptNodes(self._scene, self._segmentationNode):
            self.add(node)

    def add(self, node: Any) -> None:
        """Watch a prompt node."""
        if node.GetID() in self._watched:
            return
        watched = _Watched(node, saved(node))
        events = [vtk.vtkCommand.ModifiedEvent]
        if node.IsA("vtkMRMLMarkupsNode"):
            events += [*_POINT_EVENTS, slicer.vtkMRMLTransformableNode.TransformModifiedEvent]
            watched.tags.append(node.AddObserver(_Markups.PointStartInteractionEvent, self._onDragStart))
            watched.tags.append(node.AddObserver(_Markups.PointEndInteractionEvent, self._onDragEnd))
        watched.tags += [node.AddObserver(event, self._onNodeEvent) for event in events]
        self._watched[node.GetID()] = watched

    @contextmanager
    def ours(self) -> Iterator[None]:
        """What happens to the nodes within is our own doing: nobody is told."""
        self._ours += 1
        try:
            yield
        finally:
            self._ours -= 1
            for watched in self._watched.values():
                if not watched.isDragged:  # that is told when it is let go
                    watched.state = saved(watched.node)

    def cleanup(self) -> None:
        """Take every observer back."""
        self._follow.cleanup()
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed.clear()
        for nodeID in list(self._watched):
            self._drop(nodeID)

    # Events -------------------------------------------------------------------------------------------------

    def _observe(self, caller: Any, event: int, method: Callable[..., None]) -> None:
        self._observed.append((caller, caller.AddObserver(event, method)))

    def _drop(self, nodeID: str) -> _Watched:
        watched = self._watched.pop(nodeID)
        for tag in watched.tags:
            watched.node.RemoveObserver(tag)
        return watched

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, _scene: Any, _event: str, node: Any) -> None:
        # While a scene is being read, references do not hold yet; all is found when it has been read.
        if self._ours or self._scene.IsImporting() or not MarkupNodes.isPrompt(node):
            return
        self._findAndTell()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, _scene: Any, _event: str, node: Any) -> None:
        if node is self._segmentationNode:
            self._onGone(self._scene.IsClosing())
            return
        nodeID = next((nodeID for nodeID, one in self._watched.items() if one.node is node), None)
        if nodeID is not None:
            watched = self._drop(nodeID)
            self._tell({watched.state.segmentID})

    def _onImported(self, *_: Any) -> None:
        self._findAndTell()

    def _findAndTell(self) -> None:
        before = set(self._watched)
        self.find()
        found = [watched.state for nodeID, watched in self._watched.items() if nodeID not in before]
        self._tell(
            {state.segmentID for state in found if not state.isEmpty}
        )  # else another editor fills it soon

    def _onClosing(self, *_: Any) -> None:
        self._onGone(True)

    def _onSegmentEvent(self, *_: Any) -> None:
        self._onSegments()

    def _onDragStart(self, node: Any, _event: str) -> None:
        if node.GetID() in self._watched:
            self._watched[node.GetID()].isDragged = True

    def _onDragEnd(self, node: Any, _event: str) -> None:
        if node.GetID() in self._watched:
            self._watched[node.GetID()].isDragged = False
            self._compare(self._watched[node.GetID()])

    def _onNodeEvent(self, node: Any, _event: str) -> None:
        watched = self._watched.get(node.GetID())
        if watched is None or watched.isDragged or self._ours:
            return
        if MarkupNodes.toSegmentation(node) is not None:
            self._isMoved = True
        else:
            self._compare(watched)

    def _compare(self, watched: _Watched) -> None:
        before, watched.state = watched.state, saved(watched.node)
        if watched.state == before:
            return
        if before.predicted and (watched.state.frame, watched.state.size) != (before.frame, before.size):
            self._ours += 1  # somebody has moved it: it is the user's own from now on
            MarkupNodes.setPredicted(watched.node, False)
            self._ours -= 1
            watched.state = saved(watched.node)
        self._tell({before.segmentID, watched.state.segmentID})

    def _tell(self, segmentIDs: set[str]) -> None:
        if segmentIDs and not self._ours:
            self._onChanged(tuple(sorted(segmentIDs)))
