"""A Segment Editor without a window: Slicer's own editing logic behind the port the effect writes through."""

from __future__ import annotations

import slicer
from MedSAM2SegmentLib.Segments.Editors import ADD, REMOVE, SegmentEditor, geometryOfImage, selected

_LOGIC = slicer.vtkSlicerSegmentEditorLogic
_MODES = {ADD: _LOGIC.ModificationModeAdd, REMOVE: _LOGIC.ModificationModeRemove}


class LogicEditor(SegmentEditor):
    """`SegmentEditor` over a real `vtkSlicerSegmentEditorLogic`, with a parameter node of its own.

    Counts what was asked of it: `savedStates`, and `edits` as (segment ID, mode, extent).
    """

    def __init__(self, segmentationNode, volumeNode, segmentID: str = "", undoStates: int = 10) -> None:
        scene = segmentationNode.GetScene()
        self.logic = _LOGIC()
        self.logic.SetMRMLScene(scene)
        self.node = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic.SetSegmentEditorNode(self.node)
        self.logic.SetMaximumNumberOfUndoStates(undoStates)  # what the Segment Editor module sets
        self.logic.SetSegmentationNode(segmentationNode)
        self.logic.SetSourceVolumeNode(volumeNode)
        if segmentID:
            self.logic.SetCurrentSegmentID(segmentID)
        self.savedStates = 0
        self.edits = []

    # What the effect asks for -----------------------------------------------------------------------------

    def saveStateForUndo(self):
        self.savedStates += 1
        self.logic.SaveStateForUndo()

    def modifySegment(self, segmentID, labelmap, mode):
        self.edits.append((segmentID, mode, labelmap.GetExtent()))
        with selected(self.node, segmentID):
            self.logic.ModifySegmentByLabelmap(
                self.segmentationNode(), segmentID, labelmap, _MODES[mode], True, False
            )

    def referenceGeometry(self):
        known = self.logic.UpdateReferenceGeometryImage()
        return geometryOfImage(self.logic.GetReferenceGeometryImage() if known else None)

    def parameterSetNode(self):
        return self.node

    def parameter(self, name):
        return self.node.GetAttribute(f"MedSAM2.{name}") or ""

    def setParameter(self, name, value):
        if self.parameter(name) != value:
            self.node.SetAttribute(f"MedSAM2.{name}", value)

    def confirmSegmentVisible(self):
        return self.logic.IsSelectedSegmentVisible()

    # What the user does -----------------------------------------------------------------------------------

    def undo(self):
        self.logic.Undo()

    def redo(self):
        self.logic.Redo()
