"""Provenance of segments, stored in the scene: voxel ownership, and what the model found on which slice.

One hidden node for each segmentation has it as text in the scene's own file: Slicer has no event before it
saves, and a node with a file of its own might be saved before it is up to date.

::

    {"version": 1, "segments": {"Segment_1": {"notes": {…}, "found": {…}}}}

``notes`` is a :class:`~MedSAM2SegmentLib.Segments.VoxelOwnership.VoxelOwnership` (see ``toJson`` there),
``found`` anything else that JSON can represent. What cannot be read is left out, with a line in the log: it
was edited by hand, or written by a later version.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import GeometryError, ProtocolError, VolumeError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.messages import ObjectSnapshot

from MedSAM2SegmentLib.Segments.Editors import nodesOf, transformToWorld
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VoxelOwnership import KNOWN, OURS, VoxelOwnership

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.worker.session_client import SessionClient
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter

#: Seconds without a change before the scene is updated: a burst of clicks is saved once.
_QUIET = 0.5
#: Seconds after which it is updated even during a propagation.
_LATEST = 10.0
#: Keys in the scene, and attributes of a mask.
_FIGURES = {"iou": "predicted_iou", "score": "object_score", "confidence": "confidence"}

_VERSION = 1
_ROLE, _IS_STORE, _TEXT = "MedSAM2.role", "memory", "MedSAM2.memory"
_SEGMENTATION_REFERENCE = "MedSAM2.segmentation"
_SAME_MM = 1e-5  # mm by which matrices of one lattice may differ after they were saved

#: What damaged data raise, binascii.Error being a ValueError.
_BROKEN = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    zlib.error,
    ProtocolError,
    VolumeError,
)


class ProvenanceStore:
    """The stored provenance of one segmentation: saved a moment after it changed, restored with the scene.

    Parameters
    ----------
    segmentationNode
        ``vtkMRMLSegmentationNode`` in a scene.
    writer
        Has the ownership of its voxels.

    Attributes
    ----------
    isReplaced
        Whether the node was given another ``vtkSegmentation`` since: what is missing there was not erased.
    """

    def __init__(
        self,
        segmentationNode: Any,
        writer: SegmentWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.segmentationNode, self._writer, self._clock = segmentationNode, writer, clock
        self.isReplaced = False
        self._saved: dict[str, Any] = {}  # by segment, the stamps of what is in the scene
        self._seen: dict[str, Any] = {}
        self._since: float | None = None  # when the scene was first seen to be behind
        self._changed = 0.0
        self._scene, self._segmentationID = segmentationNode.GetScene(), segmentationNode.GetID()
        self._latest: Any = None  # the node: with the segmentation its reference goes, too

    @property
    def isInScene(self) -> bool:
        """Whether the segmentation is still in the scene."""
        scene = self.segmentationNode.GetScene()
        return (
            scene is not None and not scene.IsClosing() and bool(scene.IsNodePresent(self.segmentationNode))
        )

    # Saving and restoring -----------------------------------------------------------------------------------

    @property
    def isPending(self) -> bool:
        """Whether something is going to be saved."""
        return self._since is not None

    def tick(self, session: SessionClient | None, origin: Any) -> None:
        """Save what has changed, as :meth:`update`, when it is time."""
        now, stamps = self._clock(), self._stamps(session)
        if stamps == self._saved:
            self._since = None
            return
        if stamps != self._seen:
            self._seen, self._changed = stamps, now
        if self._since is None:
            self._since = now
        if now - self._changed >= _QUIET or now - self._since >= _LATEST:
            self.update(session, origin)

    def update(self, session: SessionClient | None, origin: Any) -> None:
        """Save all that has changed.

        Parameters
        ----------
        session
            What the model has found; None while unknown.
        origin
            What that depends on, for JSON: it is restored only to a session with the same.
        """
        stamps = self._stamps(session) if self.isInScene else self._saved
        if stamps == self._saved:
            return
        entries = {}
        for segmentID, (stamp, figures) in stamps.items():
            before = self._saved.get(segmentID, (None, None))
            entry: dict[str, Any] = {}
            if stamp is not None and stamp != before[0]:
                ownership = self._writer.ownerships[segmentID]
                try:
                    world = transformToWorld(self.segmentationNode) @ ownership.indexToRAS
                except GeometryError:
                    continue  # under a transform that warps nothing can be written, either
                entry["notes"] = ownership.toJson(world)
            if session is not None and figures != before[1]:
                known = session.snapshot(segmentID)
                if known.masks:
                    entry["found"] = _foundOf(known, origin)
            entries[segmentID] = entry
        self.save(entries)
        self._saved, self._since = stamps, None

    def restore(self, segmentID: str, session: SessionClient, stack: SliceStack, origin: Any) -> None:
        """Give a session what another one had found about a segment whose prompts it has just answered.

        Does nothing when that one had other slices, model or window, or when it cannot be read.
        """
        found = self._entry(segmentID).get("found")
        if not isinstance(found, Mapping) or found.get("manner") != origin:
            return
        known = session.snapshot(segmentID)
        try:
            record = self._record(segmentID, found, known, stack)
        except _BROKEN as error:
            self.logDamage(f"the results of {segmentID!r}", error)
            return
        if record is not None:
            session.restore(segmentID, record)

    def _stamps(self, session: SessionClient | None) -> dict[str, tuple[Any, Any]]:
        """By segment, figures that change with what is known about it."""
        stamps: dict[str, tuple[Any, Any]] = {}
        for segmentID in self.segmentationNode.GetSegmentation().GetSegmentIDs():
            ownership = self._writer.ownerships.get(segmentID)
            figures = self._saved.get(segmentID, (None, ()))[1]
            if session is not None:
                records = sorted(session.masks(segmentID).items())
                figures = tuple(
                    (n, one.predicted_iou, one.object_score, one.confidence) for n, one in records
                )
            if ownership is not None or figures:
                stamps[segmentID] = (None if ownership is None else ownership.stamp, figures)
        return stamps

    def _record(
        self, segmentID: str, found: Mapping[str, Any], known: ObjectSnapshot, stack: SliceStack
    ) -> ObjectSnapshot | None:
        """Return all that is known of a segment, with the present prompts; None when that is nothing new."""
        prompts = known.prompts
        figures = {int(one["n"]): _parsed(one) for one in found["slices"]}
        refined = {int(one["n"]): one for one in found["refined"] if int(one["n"]) in prompts}
        wanted = [n for n in figures if (n not in prompts or n in refined) and 0 <= n < len(stack)]
        if not wanted:
            return None
        masks = self._writer.masksOf(KNOWN, segmentID, stack, wanted)
        records = dict(known.masks)
        for n in wanted:
            final = n in prompts and prompts[n].final
            records[n] = SliceMask.from_mask(
                segmentID, n, masks[n], **figures[n], prompted=n in prompts, final=final
            )
        before = {n: _maskBefore(segmentID, n, one, stack.shape_hw) for n, one in refined.items()}
        return ObjectSnapshot(prompts, records, before)

    # Reading and writing ------------------------------------------------------------------------------------

    def ownership(self, segmentID: str) -> tuple[VoxelOwnership, NDArray[np.float64]] | None:
        """Return the ownership of a segment, and where its grid was in the world (4, 4); None without any."""
        kept = self._entry(segmentID).get("notes")
        if kept is None:
            return None
        try:
            return VoxelOwnership.fromJson(kept)
        except _BROKEN as error:
            self.logDamage(f"the ownership of {segmentID!r}", error)
            return None

    def recall(self, segmentID: str, segments: SegmentVoxels) -> VoxelOwnership | None:
        """Return the ownership of a segment on the grid of ``segments``, where it still has its voxels.

        GeometryError under a transform that warps.
        """
        found = self.ownership(segmentID)
        if found is None:
            return None
        ownership, world = found
        node = self.segmentationNode
        if np.allclose(transformToWorld(node) @ segments.indexToRAS, world, rtol=0, atol=_SAME_MM):
            ownership.indexToRAS = segments.indexToRAS  # where it was, even if a transform was hardened since
        there = SegmentVoxels(node, ownership.indexToRAS).mask(segmentID, ownership.used)
        if not there.any():
            return None  # the segment was saved without its voxels: nothing was erased
        isSame = np.allclose(ownership.indexToRAS, segments.indexToRAS, rtol=0, atol=_SAME_MM)
        if isSame:
            ownership.indexToRAS = segments.indexToRAS
        if isSame and not self.isReplaced:
            bits = ownership.bitsFor(ownership.used, there)
        else:  # voxels are missing that were not erased
            bits = ownership.read(ownership.used) & np.uint8(OURS | KNOWN) & (there * np.uint8(255))
        ownership.write(ownership.used, bits)
        return ownership

    def save(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace parts of what is stored about some segments, and drop segments that are gone.

        ``entries`` has, by segment, any of ``notes`` (from ``VoxelOwnership.toJson``) and ``found`` (anything
        for JSON); a part that is None is dropped.
        """
        before = self._segments()
        kept = {}
        for segmentID in self.segmentationNode.GetSegmentation().GetSegmentIDs():
            parts = {**_mapping(before.get(segmentID)), **entries.get(segmentID, {})}
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

    def remove(self) -> None:
        """Remove the node from the scene: its segmentation is gone."""
        node = None if self._scene.IsClosing() else self._node() or self._latest
        self._latest = None
        if node is not None and self._scene.IsNodePresent(node):
            self._scene.RemoveNode(node)

    def _entry(self, segmentID: str) -> Mapping[str, Any]:
        """Return what is stored about a segment; its parts may be damaged, and any JSON value."""
        return _mapping(self._segments().get(segmentID))

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
            self.logDamage("the stored provenance", error)
            return {}
        return data["segments"]

    def logDamage(self, what: str, error: Exception) -> None:
        """Log what cannot be read."""
        name = self.segmentationNode.GetName()
        logging.warning(
            "MedSAM2: %s of the segmentation %r cannot be read (%s). Its segments are taken as they stand.",
            what,
            name,
            error,
        )

    def _node(self) -> Any:
        for node in nodesOf(self._scene, "vtkMRMLScriptedModuleNode"):
            isOurs = node.GetAttribute(_ROLE) == _IS_STORE
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
        node.SetAttribute(_ROLE, _IS_STORE)
        node.SetNodeReferenceID(_SEGMENTATION_REFERENCE, self.segmentationNode.GetID())
        self._latest = scene.AddNode(node)
        return self._latest


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _foundOf(known: ObjectSnapshot, origin: Any) -> dict[str, Any]:
    """Return what the model has found about a segment, for JSON."""
    refined = [
        {**_figures(one), "box": list(one.box), "bits": base64.b64encode(one.bits).decode("ascii")}
        for _, one in sorted(known.propagated.items())
    ]
    records = [_figures(one) for _, one in sorted(known.masks.items())]
    return {"manner": origin, "slices": records, "refined": refined}


def _figures(record: SliceMask) -> dict[str, Any]:
    return {"n": record.n, **{key: round(getattr(record, name), 6) for key, name in _FIGURES.items()}}


def _parsed(one: Mapping[str, Any]) -> dict[str, float]:
    return {"predicted_iou": float(one["iou"]), "object_score": float(one["score"])}


def _maskBefore(segmentID: str, n: int, one: Mapping[str, Any], shape_hw: tuple[int, int]) -> SliceMask:
    """Return the mask that propagation had found on a slice before prompts corrected it."""
    top, left, height, width = (int(value) for value in one["box"])
    bits = base64.b64decode(one["bits"], validate=True)
    empty = SliceMask.from_mask(segmentID, n, np.zeros(shape_hw, bool), **_parsed(one), prompted=False)
    record = dataclasses.replace(empty, box=(top, left, height, width), bits=bits)
    record.mask_hw  # noqa: B018 - VolumeError when it does not fit
    return record
