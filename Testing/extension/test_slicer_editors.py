"""The editor of a running Slicer makes only calls that its Python bridge can make."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from MedSAM2SegmentLib.Segments.Editors import ScriptedEffectEditor  # noqa: E402
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter  # noqa: E402
from support.scene import box_mask  # noqa: E402
from support.writer_setup import WriterSetup  # noqa: E402


class AnEffect:
    """A scripted effect as Slicer gives it to Python: no call takes an extent, unknown names are loud."""

    NotConfirmed, ConfirmedWithoutDialog, ConfirmedWithDialog = 0, 1, 2
    ModificationModeAdd = slicer.vtkSlicerSegmentEditorLogic.ModificationModeAdd
    ModificationModeRemove = slicer.vtkSlicerSegmentEditorLogic.ModificationModeRemove

    def __init__(self, editor):
        self.editor, self.answer = editor, 1

    def parameterSetNode(self):
        return self.editor.node

    def saveStateForUndo(self):
        self.editor.saveStateForUndo()

    def modifySegmentByLabelmap(self, segmentationNode, segmentID, labelmap, mode):
        self.editor.logic.ModifySegmentByLabelmap(segmentationNode, segmentID, labelmap, mode, True, False)

    def referenceGeometryImage(self):
        self.editor.logic.UpdateReferenceGeometryImage()
        return self.editor.logic.GetReferenceGeometryImage()

    def parameterDefined(self, name):
        return bool(self.editor.parameter(name))

    def parameter(self, name):
        assert self.parameterDefined(name), "Slicer prints an error here"
        return self.editor.parameter(name)

    def setParameter(self, name, value):
        self.editor.setParameter(name, value)

    def confirmCurrentSegmentVisible(self):
        return self.answer


@pytest.fixture
def desk(scene, monkeypatch):
    monkeypatch.setattr(slicer, "qSlicerSegmentEditorAbstractEffect", AnEffect, raising=False)
    desk = WriterSetup(scene)
    desk.effect = AnEffect(desk.editor)
    desk.writer = SegmentWriter(ScriptedEffectEditor(desk.effect))
    return desk


def test_it_writes_undoes_and_masks_as_the_logic_does(desk):
    desk.write(2, (2, 9), (3, 15))
    desk.write(2, (4, 11), (3, 15), "B")
    assert np.array_equal(desk.voxels("A"), box_mask((2, 2), (2, 3), (3, 15)))
    assert np.array_equal(desk.voxels("B"), box_mask((2, 2), (4, 11), (3, 15)))
    desk.editor.undo()
    assert np.array_equal(desk.voxels("A"), box_mask((2, 2), (2, 9), (3, 15)))
    assert desk.effect.editor.selectedSegmentID() == "A"


def test_it_knows_what_is_selected(desk):
    editor = desk.writer.editor
    assert editor.segmentationNode() is desk.segmentation
    assert editor.sourceVolumeNode() is desk.volume_node
    assert editor.selectedSegmentID() == "A"
    matrix, extent = editor.referenceGeometry()
    assert np.array_equal(matrix, np.eye(4)) and tuple(extent) == (0, 19, 0, 13, 0, 8)
    desk.editor.node.SetSelectedSegmentID(None)
    assert editor.selectedSegmentID() == ""


def test_parameters_that_were_never_set_are_empty(desk):
    editor = desk.writer.editor
    assert editor.parameter("model") == ""
    editor.setParameter("model", "embedded")
    assert editor.parameter("model") == "embedded"


@pytest.mark.parametrize("answer, allowed", [(0, False), (1, True), (2, False)])
def test_a_hidden_segment_is_edited_only_when_slicer_did_not_have_to_ask(desk, answer, allowed):
    desk.effect.answer = answer
    assert desk.writer.editor.confirmSegmentVisible() is allowed
