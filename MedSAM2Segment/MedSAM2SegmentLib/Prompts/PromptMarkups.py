"""The prompts of one segmentation: nodes of the scene on one side, words for the session on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import GeometryError, PromptError
from medsam2_core.prompts import MaskPrompt, Prompt, SlicePrompts

from MedSAM2SegmentLib.Prompts import MarkupNodes, PlacedPrompts, PromptFolder, PromptLooks, PromptWords
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, Gesture, PointGesture
from MedSAM2SegmentLib.Prompts.NodeWatch import NodeWatch
from MedSAM2SegmentLib.Prompts.PromptNotes import MaskNote, Notes
from MedSAM2SegmentLib.Prompts.PromptPicking import PromptHandle, pick
from MedSAM2SegmentLib.Prompts.PromptSnapshots import SavedNode, fill, saved
from MedSAM2SegmentLib.Segments.Editors import transformToWorld

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import ArrayLike, NDArray

    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

#: All prompts of a segmentation at one moment; to be kept for undo.
Snapshot = tuple[SavedNode, ...]


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
        prompt was added or removed, here or by somebody else, or moved (at the end of the drag).
        :meth:`restore` and what is done within :meth:`quiet` call nobody.
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
        self._isQuiet = False
        self._segmentIDs = set(self._presentSegments())
        self._removed: dict[
            str, Snapshot
        ] = {}  # prompts of removed segments: undo may bring the segment back
        self._watch = NodeWatch(
            *(scene, segmentationNode),
            *(self._onChanged, self._onSegments, self._onGone, self._onHardened),
        )
        self._paint()

    # What is there ------------------------------------------------------------------------------------------

    def segmentIDs(self) -> tuple[str, ...]:
        """IDs of the segments that have prompts."""
        return tuple(sorted({MarkupNodes.segmentOf(node) for node in self._watch.nodes}))

    def isEmpty(self, segmentID: str) -> bool:
        """Whether nothing was said about a segment."""
        return all(saved(node).isEmpty for node in self._nodes(segmentID))

    def words(self, segmentID: str, adapter: VolumeAdapter, stack: SliceStack) -> dict[int, SlicePrompts]:
        """What is said about each slice of a stack, prompts in the order they were given; slices ascending.

        Raises
        ------
        PromptError
            When a prompt is not on the volume, a box does not lie on one slice, a slice has two boxes; the
            message names the prompt and the way out.
        """
        placed: list[PlacedPrompts.Placed] = []
        final: set[int] = set()
        for node in self._nodes(segmentID):
            if MarkupNodes.roleOf(node) == MarkupNodes.NOTES:
                notes = Notes.fromText(node.GetText() or "")
                final = {n for key, n in notes.final if key == stack.key and 0 <= n < len(stack)}
                placed += PlacedPrompts.ofMasks(notes, stack)
            else:
                placed += PlacedPrompts.of(saved(node), adapter.geometry, stack, self._toWorld())
        placed.sort(key=lambda one: one[0])  # stable: points of one scribble keep their order
        PromptWords.checkBoxes(placed, stack)
        said: dict[int, list[Prompt]] = {n: [] for n in final}
        for _, n, prompt in placed:
            said.setdefault(n, []).append(prompt)
        return {n: SlicePrompts(tuple(said[n]), n in final) for n in sorted(said)}

    def check(self, gesture: Gesture, adapter: VolumeAdapter, stack: SliceStack) -> tuple[int, ...]:
        """The slices a gesture would speak about; PromptError when it cannot be understood.

        To refuse a gesture before it becomes a node of the scene.
        """
        return tuple(
            sorted(
                {
                    n
                    for _, n, _ in PlacedPrompts.of(
                        PlacedPrompts.savedGesture(gesture), adapter.geometry, stack
                    )
                }
            )
        )

    # What the user does -------------------------------------------------------------------------------------

    def add(self, segmentID: str, gesture: Gesture) -> PromptHandle:
        """Put what was drawn into the scene. A box takes the place of an earlier one on the same plane."""
        if self.segmentationNode is None:
            raise PromptError("the segmentation is not in the scene any more: choose another one")
        number = self._nextOrder()
        with self._edit(segmentID):
            if isinstance(gesture, PointGesture):
                node = self._only(
                    segmentID, MarkupNodes.POSITIVE if gesture.positive else MarkupNodes.NEGATIVE
                )
                return self._handle(node, MarkupNodes.addPoint(node, gesture.ras, number))
            if isinstance(gesture, BoxGesture):
                for other in [one for one in self._boxes(segmentID) if _isOnPlane(one, gesture)]:
                    self._delete(other)
                node = self._new(segmentID, MarkupNodes.BOX)
                MarkupNodes.setBox(node, gesture)
            else:
                role = MarkupNodes.SCRIBBLE if gesture.positive else MarkupNodes.NEGATIVE_SCRIBBLE
                node = self._new(segmentID, role)
                MarkupNodes.setCurve(node, gesture.ras)
            MarkupNodes.setOrder(node, number)
            return self._handle(node)

    def addPredicted(self, segmentID: str, gestures: Iterable[Gesture]) -> None:
        """Put into the scene what a model would have said: boxes that refine a mask until they are moved."""
        number = self._nextOrder()
        with self._edit(segmentID):
            for count, gesture in enumerate(gestures):
                if isinstance(gesture, BoxGesture):
                    node = self._new(segmentID, MarkupNodes.BOX)
                    MarkupNodes.setBox(node, gesture)
                    MarkupNodes.setOrder(node, number + count)
                    MarkupNodes.setPredicted(node, True)
                else:
                    role = MarkupNodes.POSITIVE if gesture.positive else MarkupNodes.NEGATIVE
                    MarkupNodes.addPoint(self._only(segmentID, role), gesture.ras, number + count)

    def addMask(self, segmentID: str, n: int, maskPrompt: MaskPrompt, stackKey: str = "") -> None:
        """Say which voxels belong to the segment on slice ``n``, in place of an earlier mask there.

        ``stackKey`` is the key of the stack that ``n`` counts slices of; on other stacks, and when it is
        empty, the mask speaks about the slices its voxels lie on.
        """
        self._note(
            segmentID, lambda notes: notes.withMask(MaskNote(self._nextOrder(), stackKey, n, maskPrompt))
        )

    def setFinal(self, segmentID: str, stackKey: str, n: int, final: bool) -> None:
        """Mark a slice of a stack as final, or not any more."""
        self._note(segmentID, lambda notes: notes.withFinal(stackKey, n, final))

    def remove(self, handle: PromptHandle) -> bool:
        """Delete a prompt; False when it is not there any more."""
        node = next((one for one in self._watch.nodes if one.GetID() == handle.nodeID), None)
        if node is None or (handle.index >= 0 and handle.index >= node.GetNumberOfControlPoints()):
            return False
        with self._edit(handle.segmentID):
            if handle.index >= 0 and node.GetNumberOfControlPoints() > 1:
                node.RemoveNthControlPoint(handle.index)
            else:
                self._delete(node)
        return True

    def removeAt(self, sliceNode: Any, xyz: ArrayLike) -> bool:
        """Delete the prompt under a position in a slice view; False when there is none."""
        handle = pick(self._watch.nodes, sliceNode, xyz, lines=True)
        return handle is not None and self.remove(handle)

    def hit(self, sliceNode: Any, xyz: ArrayLike) -> PromptHandle | None:
        """The prompt that a press at a position in a slice view would begin to drag; None when none is near.

        ``xyz`` as :func:`SliceViews.mousePosition` gives it; (x, y) will do.
        """
        return pick(self._watch.nodes, sliceNode, xyz, lines=False)

    def clearSlice(self, segmentID: str, n: int, adapter: VolumeAdapter, stack: SliceStack) -> None:
        """Delete what is said about a segment on one slice of a stack; nobody is told."""
        states = self.snapshot(segmentID)
        left = PlacedPrompts.without(states, n, adapter.geometry, stack, self._toWorld())
        if left != states:
            self.restore(left, segmentID)

    def clear(self, segmentID: str) -> None:
        """Delete all prompts of a segment."""
        with self._edit(segmentID):
            for node in self._nodes(segmentID):
                self._delete(node)

    # Undo ---------------------------------------------------------------------------------------------------

    def snapshot(self, segmentID: str | None = None) -> Snapshot:
        """All prompts (of one segment) as they are now."""
        nodes = self._watch.nodes if segmentID is None else self._nodes(segmentID)
        states = (saved(node) for node in nodes)
        return tuple(state for state in states if not state.isEmpty)

    def restore(self, snapshot: Snapshot, segmentID: str | None = None) -> None:
        """Bring back exactly what a snapshot (of the same segment) holds; nobody is told."""
        with self._watch.ours():
            nodes = self._watch.nodes if segmentID is None else self._nodes(segmentID)
            for state in snapshot:
                node = next((one for one in nodes if _place(saved(one)) == _place(state)), None)
                if node is None:
                    node = self._new(state.segmentID, state.role)
                else:
                    nodes.remove(node)
                if saved(node) != state:
                    fill(node, state)
            for node in nodes:
                self._delete(node)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, :attr:`changed` is not called: whoever does it knows."""
        before, self._isQuiet = self._isQuiet, True
        try:
            yield
        finally:
            self._isQuiet = before

    # Looks --------------------------------------------------------------------------------------------------

    def setVisible(self, visible: bool) -> None:
        """Show or hide all prompts, also those to come."""
        self._isVisible = visible
        for node in self._watch.nodes:
            PromptLooks.show(node, visible)

    def look(self) -> None:
        """Notice prompts that were moved by a transform of their own; to be called now and then."""
        if self.segmentationNode is not None:
            self._watch.look()

    def cleanup(self) -> None:
        """Take every observer back; the nodes stay in the scene."""
        self._watch.cleanup()
        self.changed.clear()
        self.hardened.clear()

    # Inside -------------------------------------------------------------------------------------------------

    def _toWorld(self) -> NDArray[np.float64] | None:
        """(4, 4) from the segmentation's RAS, or None; PromptError under a transform that warps."""
        if self.segmentationNode is None or self.segmentationNode.GetTransformNodeID() is None:
            return None
        try:
            return transformToWorld(self.segmentationNode)
        except GeometryError as error:
            raise PromptError(str(error)) from error

    def _nodes(self, segmentID: str) -> list[Any]:
        return [node for node in self._watch.nodes if MarkupNodes.segmentOf(node) == segmentID]

    def _boxes(self, segmentID: str) -> list[Any]:
        return [node for node in self._nodes(segmentID) if MarkupNodes.roleOf(node) == MarkupNodes.BOX]

    def _only(self, segmentID: str, role: str) -> Any:
        found = [node for node in self._nodes(segmentID) if MarkupNodes.roleOf(node) == role]
        return found[0] if found else self._new(segmentID, role)

    def _new(self, segmentID: str, role: str) -> Any:
        node = MarkupNodes.create(self.scene, self.segmentationNode, segmentID, role, self.volumeNode)
        PromptLooks.style(node)
        PromptLooks.paint(node, self._colour(segmentID))
        PromptLooks.show(node, self._isVisible)
        PromptFolder.file(self.scene, self.segmentationNode, node, self._watch.nodes)
        self._watch.add(node)
        return node

    def _delete(self, node: Any) -> None:
        PromptFolder.remove(self.scene, node)

    def _handle(self, node: Any, index: int = -1) -> PromptHandle:
        return PromptHandle(node.GetID(), MarkupNodes.segmentOf(node), MarkupNodes.roleOf(node), index)

    def _nextOrder(self) -> int:
        orders = [MarkupNodes.highestOrder(node) for node in self._watch.nodes]
        notes = [node for node in self._watch.nodes if MarkupNodes.roleOf(node) == MarkupNodes.NOTES]
        orders += [note.order for node in notes for note in Notes.fromText(node.GetText() or "").masks]
        return max(orders, default=0) + 1

    def _note(self, segmentID: str, change: Callable[[Notes], Notes]) -> None:
        found = [node for node in self._nodes(segmentID) if MarkupNodes.roleOf(node) == MarkupNodes.NOTES]
        before = Notes.fromText(found[0].GetText() or "") if found else Notes()
        after = change(before)
        if after == before:
            return
        with self._edit(segmentID):
            if after.isEmpty:
                self._delete(found[0])
            else:
                node = found[0] if found else self._new(segmentID, MarkupNodes.NOTES)
                node.SetText(after.toText())

    @contextmanager
    def _edit(self, segmentID: str) -> Iterator[None]:
        with self._watch.ours():
            yield
        self._tell((segmentID,))

    def _tell(self, segmentIDs: tuple[str, ...]) -> None:
        if not self._isQuiet:
            for callback in list(self.changed):
                callback(segmentIDs)

    # Events -------------------------------------------------------------------------------------------------

    def _onChanged(self, segmentIDs: tuple[str, ...]) -> None:
        with self._watch.ours():
            for node in [one for segmentID in segmentIDs for one in self._nodes(segmentID)]:
                self._tidy(node)
        self._tell(segmentIDs)

    def _tidy(self, node: Any) -> None:
        """Number points that somebody placed in our nodes; drop nodes whose last point was deleted."""
        role = MarkupNodes.roleOf(node)
        if role in MarkupNodes.POINT_ROLES:
            for index in range(node.GetNumberOfControlPoints()):
                if MarkupNodes.isSet(node, index) and not MarkupNodes.pointOrder(node, index):
                    MarkupNodes.numberPoint(node, index, self._nextOrder())
        elif saved(node).isEmpty:
            self._delete(node)

    def _onSegments(self) -> None:
        present = set(self._presentSegments())
        gone, come = self._segmentIDs - present, present - self._segmentIDs
        self._segmentIDs = present
        for segmentID in gone & set(self.segmentIDs()):
            self._removed[segmentID] = self.snapshot(segmentID)
            self.clear(segmentID)
        for segmentID in come & set(self._removed):
            self.restore(self._removed.pop(segmentID), segmentID)
            self._tell((segmentID,))
        self._paint()

    def _onHardened(self, matrix: Any) -> None:
        self._removed = {
            segmentID: tuple(state.moved(matrix) for state in snapshot)
            for segmentID, snapshot in self._removed.items()
        }
        for callback in list(self.hardened):
            callback(matrix)

    def _onGone(self, isClosing: bool) -> None:
        nodes = self._watch.nodes
        self._watch.cleanup()
        self.segmentationNode = None
        for node in nodes if not isClosing else []:
            self._delete(node)

    def _presentSegments(self) -> tuple[str, ...]:
        return tuple(self.segmentationNode.GetSegmentation().GetSegmentIDs())

    def _colour(self, segmentID: str) -> tuple[float, float, float]:
        segment = self.segmentationNode.GetSegmentation().GetSegment(segmentID)
        return tuple(segment.GetColor()) if segment else (1.0, 1.0, 0.0)

    def _paint(self) -> None:
        for node in self._watch.nodes:
            PromptLooks.paint(node, self._colour(MarkupNodes.segmentOf(node)))


def _place(state: SavedNode) -> tuple[str, str, int]:
    """What makes two states belong to the same node."""
    return state.segmentID, state.role, state.order


def _isOnPlane(box: Any, gesture: BoxGesture) -> bool:
    frame, _ = MarkupNodes.boxFrame(box)
    distances = (gesture.rasCorners - frame[:3, 3]) @ frame[:3, 0]
    return bool(np.abs(distances).max() < gesture.thickness / 2)
