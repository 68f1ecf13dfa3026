"""What is known about segments, kept in the scene: so that a scene that was saved goes on where it was.

One hidden node a segmentation holds it, as text that is written into the scene's own file: Slicer tells
nobody before it saves, and a node with a file of its own might be saved before it is up to date.

::

    {"version": 1, "segments": {"Segment_1": {"notes": {…}, "found": {…}}}}

``notes`` are :class:`SegmentNotes` (see :func:`packedNotes`), ``found`` is whatever the effect wants to keep
beside them. What cannot be read is left out, with a line in the log: it was made by hand, or by a later
version.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM2SegmentLib.Segments.Editors import transformToWorld
from MedSAM2SegmentLib.Segments.SegmentNotes import KNOWN, NOTED_BITS, OURS, SegmentNotes
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VoxelSets import Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VERSION = 1
_ROLE, _IS_MEMORY, _TEXT = "MedSAM2.role", "memory", "MedSAM2.memory"
_SEGMENTATION_REFERENCE = "MedSAM2.segmentation"
_LARGEST = 1 << 30  # voxels of a box: more are not believed
_MOST_RUNS = 1 << 26
_SAME_MM = 1e-5  # mm by which matrices of one lattice may differ after they were saved

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, binascii.Error, zlib.error)


class SegmentMemory:
    """The memory of one segmentation.

    Parameters
    ----------
    segmentationNode
        ``vtkMRMLSegmentationNode`` in a scene.
    """

    def __init__(self, segmentationNode: Any) -> None:
        self.segmentationNode = segmentationNode
        self._scene, self._segmentationID = segmentationNode.GetScene(), segmentationNode.GetID()
        self._latest: Any = None  # the node: with the segmentation its reference goes, too

    @property
    def isInScene(self) -> bool:
        """Whether there is anything left to remember: not when the segmentation was removed."""
        scene = self.segmentationNode.GetScene()
        return (
            scene is not None and not scene.IsClosing() and bool(scene.IsNodePresent(self.segmentationNode))
        )

    def notes(self, segmentID: str) -> tuple[SegmentNotes, NDArray[np.float64]] | None:
        """The notes about a segment, and where their grid was in the world (4, 4); None without any."""
        entry = self._segments().get(segmentID)
        kept = entry.get("notes") if isinstance(entry, Mapping) else None
        if kept is None:
            return None
        try:
            return unpackedNotes(kept), _matrix(kept["world"])
        except _BROKEN as error:
            self.complain(f"notes about {segmentID!r}", error)
            return None

    def recall(self, segmentID: str, segments: SegmentVoxels) -> SegmentNotes | None:
        """The notes about a segment on the grid of ``segments``, as far as the segment still has its voxels.

        GeometryError under a transform that warps.
        """
        found = self.notes(segmentID)
        if found is None:
            return None
        notes, world = found
        node = self.segmentationNode
        if np.allclose(transformToWorld(node) @ segments.indexToRAS, world, rtol=0, atol=_SAME_MM):
            notes.indexToRAS = segments.indexToRAS  # where it was, even if a transform was hardened since
        there = SegmentVoxels(node, notes.indexToRAS).mask(segmentID, notes.used)
        if not there.any():
            return None  # the segment was saved without its voxels: nothing was erased
        if np.allclose(notes.indexToRAS, segments.indexToRAS, rtol=0, atol=_SAME_MM):
            notes.indexToRAS = segments.indexToRAS
            bits = notes.looked(notes.used, there)
        else:  # on another lattice voxels are missing that nobody erased
            bits = notes.read(notes.used) & np.uint8(OURS | KNOWN) & (there * np.uint8(255))
        notes.write(notes.used, bits)
        return notes

    def found(self, segmentID: str) -> Any:
        """What else was kept about a segment; None for nothing. It may be anything that JSON can say."""
        entry = self._segments().get(segmentID)
        return entry.get("found") if isinstance(entry, Mapping) else None

    def keep(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace parts of what is kept about some segments; a part that is None is dropped.

        ``entries`` has, by segment, any of ``notes`` (from :meth:`packed`) and ``found`` (anything for JSON).
        What is kept about segments that are gone is dropped.
        """
        before = self._segments()
        kept = {}
        for segmentID in self.segmentationNode.GetSegmentation().GetSegmentIDs():
            old = before.get(segmentID)
            parts = {**(old if isinstance(old, Mapping) else {}), **entries.get(segmentID, {})}
            parts = {name: part for name, part in parts.items() if part is not None}
            if parts:
                kept[segmentID] = parts
        node = self._node()
        if not kept:
            self.remove()
            return
        text = json.dumps({"version": _VERSION, "segments": kept}, separators=(",", ":"))
        node = node or self._newNode()
        if node.GetAttribute(_TEXT) != text:
            node.SetAttribute(_TEXT, text)

    def packed(self, notes: SegmentNotes) -> dict[str, Any] | None:
        """Notes for :meth:`keep`; None when nothing is noted. GeometryError under a warping transform."""
        world = transformToWorld(self.segmentationNode) @ notes.indexToRAS
        return packedNotes(notes, world)

    def remove(self) -> None:
        """Take the memory out of the scene: its segmentation is gone."""
        node = None if self._scene.IsClosing() else self._node() or self._latest
        self._latest = None
        if node is not None and self._scene.IsNodePresent(node):
            self._scene.RemoveNode(node)

    def _segments(self) -> Mapping[str, Any]:
        node = self._node()
        text = (node.GetAttribute(_TEXT) or "") if node is not None else ""
        if not text:
            return {}
        try:
            data = json.loads(text)
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']!r}, this program reads {_VERSION}")
            if not isinstance(data["segments"], Mapping):
                raise ValueError("no segments")
        except _BROKEN as error:
            self.complain("what was kept", error)
            return {}
        return data["segments"]

    def complain(self, what: str, error: Exception) -> None:
        """Say in the log what cannot be read."""
        name = self.segmentationNode.GetName()
        logging.warning(
            "MedSAM2: %s of the segmentation %r cannot be read (%s). Its segments are taken as they stand.",
            *(what, name, error),
        )

    def _node(self) -> Any:
        nodes = self._scene.GetNodesByClass("vtkMRMLScriptedModuleNode")
        nodes.UnRegister(None)
        for index in range(nodes.GetNumberOfItems()):
            node = nodes.GetItemAsObject(index)
            isOurs = node.GetAttribute(_ROLE) == _IS_MEMORY
            if isOurs and node.GetNodeReferenceID(_SEGMENTATION_REFERENCE) == self._segmentationID:
                self._latest = node
                return node
        return None

    def _newNode(self) -> Any:
        scene = self._scene
        node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetName(scene.GenerateUniqueName(f"{self.segmentationNode.GetName()} MedSAM2 memory"))
        node.SetHideFromEditors(True)
        node.SetAttribute(_ROLE, _IS_MEMORY)
        node.SetNodeReferenceID(_SEGMENTATION_REFERENCE, self.segmentationNode.GetID())
        self._latest = scene.AddNode(node)
        return self._latest


def packedNotes(notes: SegmentNotes, indexToWorld: NDArray[np.float64]) -> dict[str, Any] | None:
    """Notes as JSON can say them; None when nothing is noted.

    Runs of equal notes in the box that is used, i fastest. Contours change little from row to row: what is
    kept is how much longer a run is than the run before the last.
    """
    if notes.used.isEmpty:
        return None
    bits = np.ascontiguousarray(notes.read(notes.used)).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(bits[1:] != bits[:-1]) + 1])
    values = bits[starts]
    if not values.any():
        return None
    lengths = np.diff(starts, append=bits.size)
    steps = lengths.copy()
    steps[2:] -= lengths[:-2]
    steps = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u4")  # small ones have few bits, any sign
    return {
        "grid": notes.indexToRAS.ravel().tolist(),
        "world": indexToWorld.ravel().tolist(),
        "box": list(notes.used),
        "runs": _asText(steps.view(np.uint8).reshape(-1, 4).T),  # bytes of one weight together
        "values": _asText(values),
    }


def unpackedNotes(kept: Mapping[str, Any]) -> SegmentNotes:
    """The notes again, on their box alone. ValueError (and its like) when they were damaged."""
    box = Extent(*(int(value) for value in kept["box"]))
    size = int(np.prod(box.shape, dtype=np.int64))
    if not 0 < size <= _LARGEST or max(map(abs, box)) > _LARGEST:
        raise ValueError(f"a box of {size} voxels")
    steps = _fromText(kept["runs"]).reshape(4, -1).T
    lengths = np.ascontiguousarray(steps).reshape(-1).view("<u4").astype(np.int64)
    lengths = np.where(lengths & 1, -(lengths + 1) // 2, lengths // 2)
    for first in (0, 1):
        lengths[first::2] = np.cumsum(lengths[first::2])
    values = _fromText(kept["values"])
    if values.size != lengths.size or lengths.size == 0 or lengths.min() < 1 or lengths.sum() != size:
        raise ValueError("the runs do not fill the box")
    if (values & ~np.uint8(NOTED_BITS)).any():
        raise ValueError("unknown notes")
    notes = SegmentNotes(_matrix(kept["grid"]), box)
    notes.write(box, np.repeat(values, lengths).reshape(box.shape))
    return notes


def _matrix(values: Any) -> NDArray[np.float64]:
    matrix = np.array(values, dtype=np.float64).reshape(4, 4)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("a grid that is none")
    return matrix


def _asText(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode("ascii")


def _fromText(text: str) -> NDArray[np.uint8]:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(text, validate=True), 4 * _MOST_RUNS)
    if not unpacking.eof:
        raise ValueError("the data are cut off, or too long")
    return np.frombuffer(data, np.uint8)
