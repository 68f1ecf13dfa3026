"""Prompts go where their segmentation goes: they stand under the same transform, and are hardened with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import slicer
from medsam2_core.errors import GeometryError

from MedSAM2SegmentLib.Prompts.PromptSnapshots import fill, saved
from MedSAM2SegmentLib.Segments.Editors import geometryOfImage, transformToWorld

_SAME = 1e-6


class FollowTransform:
    """Keeps prompt nodes under the transform of their segmentation.

    A prompt that somebody has put under a transform of its own is left there.

    Parameters
    ----------
    segmentationNode
        ``vtkMRMLSegmentationNode``.
    nodes
        Gives the prompt nodes.
    ours
        Context in which the nodes change without anybody being told.
    onHardened
        Called with the (4, 4) transform that the segmentation's own RAS was taken through.
    """

    def __init__(
        self,
        segmentationNode: Any,
        nodes: Callable[[], list[Any]],
        ours: Callable[[], AbstractContextManager[None]],
        onHardened: Callable[[Any], None],
    ) -> None:
        self._segmentationNode, self._nodes, self._ours = segmentationNode, nodes, ours
        self._onHardened = onHardened
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        self._tag: int | None = segmentationNode.AddObserver(event, self._onTransform)
        self.look()
        self._gather(None)

    def look(self) -> None:
        """Remember where the segmentation is: what comes next is compared with it."""
        self._parentID = self._segmentationNode.GetTransformNodeID()
        self._toWorld = _toWorld(self._segmentationNode)
        self._grid = _gridOf(self._segmentationNode)

    def cleanup(self) -> None:
        """Take the observer back."""
        if self._tag is not None:
            self._segmentationNode.RemoveObserver(self._tag)
            self._tag = None

    def _gather(self, before: str | None) -> None:
        """Take the prompts that were under one transform with the segmentation along to the present one."""
        parentID = self._segmentationNode.GetTransformNodeID()
        with self._ours():
            for node in self._nodes():
                isAlong = node.IsA("vtkMRMLTransformableNode") and node.GetTransformNodeID() == before
                if isAlong and before != parentID:
                    node.SetAndObserveTransformNodeID(parentID)

    def _onTransform(self, *_: Any) -> None:
        before, matrix, grid = self._parentID, self._toWorld, self._grid
        self.look()
        if self._parentID == before:
            return
        if self._parentID is not None or not _isHardened(matrix, grid, self._grid):
            self._gather(before)
            return
        with self._ours():
            for node in self._nodes():
                if node.IsA("vtkMRMLTransformableNode") and node.GetTransformNodeID() == before:
                    _harden(node, matrix)
        if matrix is not None:
            self._onHardened(matrix)


def _harden(node: Any, matrix: Any) -> None:
    """Leave a node where it is in the world, without its transform."""
    if matrix is None:
        node.HardenTransform()
        return
    state = saved(node)  # in the segmentation's RAS, which is the world's already
    node.SetAndObserveTransformNodeID(None)
    if not state.isEmpty:
        fill(node, state)


def _isHardened(matrix: Any, before: Any, after: Any) -> bool:
    """Whether a segmentation that has left its transform was taken through it, or has merely been let go."""
    if matrix is None:
        return True  # nobody works under a transform that warps; the way out that is offered is hardening
    if before is None or after is None or np.allclose(matrix, np.eye(4), rtol=0, atol=_SAME):
        return False
    return np.allclose(matrix @ before, after, rtol=0, atol=_SAME * max(1.0, float(np.abs(after).max())))


def _toWorld(node: Any) -> Any:
    try:
        return transformToWorld(node)
    except GeometryError:
        return None


def _gridOf(segmentationNode: Any) -> Any:
    """(4, 4) of the reference geometry in the segmentation's own RAS; None when it has none."""
    converter = slicer.vtkSegmentationConverter
    name = converter.GetReferenceImageGeometryParameterName()
    text = segmentationNode.GetSegmentation().GetConversionParameter(name)
    image = slicer.vtkOrientedImageData()
    if not text or not converter.DeserializeImageGeometry(text, image, False):
        return None
    try:
        return geometryOfImage(image)[0]
    except GeometryError:
        return None
