"""The appearance of prompts in slice views, and their folder in the subject hierarchy.

Prompts are small, in the colour of their segment, and readable on bright and dark tissue and on the segment
itself. Points are a black or white disc with a coloured rim and a coloured plus or minus sign; since one
glyph has one colour, there are three display nodes, drawn in this order: rim, disc, sign. Boxes have handles
at their corners and their centre; background scribbles are dotted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import slicer

from MedSAM2SegmentLib.Prompts import PromptNodes

# Sizes are in percent of a fifth of the view's diagonal, so prompts keep their size on any screen.
_RIM, _DISC, _SIGN = 4.0, 3.3, 2.2
_HANDLE, _CENTRE = 2.0, 1.2
_STROKE, _DOT = 0.8, 1.6
_LINE, _THIN = 1.0, 0.02  # thickness of a stroke as a part of its glyphs' size
_BRIGHT = 0.25  # luminance of a segment's colour above which its discs are black


def addDisplayNodes(node: Any) -> None:
    """Create the display nodes of a new prompt node."""
    role = PromptNodes.roleOf(node)
    if role == PromptNodes.NOTES:
        return
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    _plain(display)
    if role == PromptNodes.BOX:
        display.SetGlyphScale(_CENTRE)
        display.SetFillVisibility(False)
        display.SetHandlesInteractive(True)
        display.SetTranslationHandleVisibility(False)
        display.SetRotationHandleVisibility(False)
        display.SetScaleHandleVisibility(True)
        display.SetScaleHandleComponentVisibility([False, False, False, True])  # corners, not edges
        display.SetInteractionHandleScale(_HANDLE)
    elif role == PromptNodes.SCRIBBLE:
        display.SetGlyphScale(_STROKE)
        display.SetLineThickness(_LINE)
    elif role == PromptNodes.NEGATIVE_SCRIBBLE:
        display.SetGlyphType(display.Circle2D)
        display.SetGlyphScale(_DOT)
        display.SetLineThickness(_THIN)
    else:
        sign = display.ThickCross2D if role == PromptNodes.POSITIVE else display.Dash2D
        for glyph, scale in ((display.Circle2D, _RIM), (display.Circle2D, _DISC), (sign, _SIGN)):
            if scale != _RIM:
                display = node.GetScene().AddNewNodeByClass(display.GetClassName())
                node.AddAndObserveDisplayNodeID(display.GetID())
                _plain(display)
            display.SetGlyphType(glyph)
            display.SetGlyphScale(scale)


def _plain(display: Any) -> None:
    display.SetVisibility3D(False)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetSliceProjection(False)
    display.SetHandlesInteractive(False)
    display.SetUseGlyphScale(True)


def setColor(node: Any, color: tuple[float, float, float]) -> None:
    """Draw a prompt in the colour of its segment, lighter while the mouse is over it."""
    red, green, blue = color
    ink = (0.0, 0.0, 0.0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _BRIGHT else (1.0, 1.0, 1.0)
    for n, display in enumerate(_displays(node)):
        isDisc = n == 1
        wanted = ink if isDisc else color
        if display.GetSelectedColor() != wanted:
            wasModifying = display.StartModify()
            display.SetColor(*wanted)
            display.SetSelectedColor(*wanted)
            display.SetActiveColor(*(ink if isDisc else ((1 + value) / 2 for value in color)))
            display.EndModify(wasModifying)


def drawAgain(node: Any) -> None:
    """Draw a prompt above everything that is shown by now."""
    scene, displays = node.GetScene(), _displays(node)
    for display in displays:
        scene.RemoveNode(display)
    for display in displays:
        scene.AddNode(display)
        node.AddAndObserveDisplayNodeID(display.GetID())


def setVisible(node: Any, visible: bool) -> None:
    """Show or hide a prompt."""
    for display in _displays(node):
        display.SetVisibility(visible)


def _displays(node: Any) -> list[Any]:
    if not node.IsA("vtkMRMLDisplayableNode"):
        return []
    return [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]


_FOLDER = "MedSAM2.prompts"


def addToFolder(scene: Any, segmentationNode: Any, node: Any, others: Iterable[Any]) -> None:
    """Move a prompt node into the folder of ``others``, or into a new one beside the segmentation."""
    hierarchy = _hierarchy(scene)
    if hierarchy is None:
        return
    folder = next((item for item in (_folderOf(hierarchy, other) for other in others) if item), 0)
    if not folder:
        segmentation = hierarchy.GetItemByDataNode(segmentationNode)
        parent = hierarchy.GetItemParent(segmentation) if segmentation else hierarchy.GetSceneItemID()
        folder = hierarchy.CreateFolderItem(parent, f"{segmentationNode.GetName()} prompts")
        hierarchy.SetItemAttribute(folder, _FOLDER, "1")
        hierarchy.SetItemExpanded(folder, False)
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, folder)
    else:
        hierarchy.CreateItem(folder, node)


def removeNode(scene: Any, node: Any) -> None:
    """Remove a prompt node from the scene, with its item, and with the folder when it was the last."""
    hierarchy = _hierarchy(scene)
    folder = _folderOf(hierarchy, node) if hierarchy is not None else 0
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)  # the item alone: the node follows
    own = []
    if node.IsA("vtkMRMLDisplayableNode"):
        own = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    own.append(node.GetStorageNode())
    scene.RemoveNode(node)
    for other in own:
        if other is not None and scene.IsNodePresent(other):
            scene.RemoveNode(other)
    if folder and hierarchy.GetNumberOfItemChildren(folder) == 0:
        hierarchy.RemoveItem(folder)


def _hierarchy(scene: Any) -> Any:
    """The scene's subject hierarchy; None in a scene that is being closed."""
    if scene is None or scene.IsClosing():
        return None
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def _folderOf(hierarchy: Any, node: Any) -> int:
    item = hierarchy.GetItemByDataNode(node)
    parent = hierarchy.GetItemParent(item) if item else 0
    return parent if parent and hierarchy.GetItemAttribute(parent, _FOLDER) else 0
