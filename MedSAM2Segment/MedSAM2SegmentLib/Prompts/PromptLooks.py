"""How prompts look in slice views: small, in the colour of their segment, readable on bright and dark tissue.

Points are a disc with a plus or a minus sign on it. One glyph has one colour, so the sign is drawn by a
second display node, which comes after the disc's. Boxes have handles at their corners and their centre; a
stroke that says "outside" is dotted.
"""

from __future__ import annotations

from typing import Any

from MedSAM2SegmentLib.Prompts import MarkupNodes

# Sizes are in percent of a fifth of the view's diagonal, so prompts keep their size on any screen.
_DISC, _SIGN = 3.2, 2.4
_HANDLE, _CENTRE = 2.0, 1.2
_STROKE, _DOT = 0.8, 1.6
_LINE, _THIN = 1.0, 0.02  # thickness of a stroke as a part of its glyphs' size
_BRIGHT = 0.25  # luminance above which a sign is black


def style(node: Any) -> None:
    """Give a new prompt node its display nodes."""
    role = MarkupNodes.roleOf(node)
    if role == MarkupNodes.NOTES:
        return
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    _plain(display)
    if role == MarkupNodes.BOX:
        display.SetGlyphScale(_CENTRE)
        display.SetFillVisibility(False)
        display.SetHandlesInteractive(True)
        display.SetTranslationHandleVisibility(False)
        display.SetRotationHandleVisibility(False)
        display.SetScaleHandleVisibility(True)
        display.SetScaleHandleComponentVisibility([False, False, False, True])  # corners, not edges
        display.SetInteractionHandleScale(_HANDLE)
    elif role == MarkupNodes.SCRIBBLE:
        display.SetGlyphScale(_STROKE)
        display.SetLineThickness(_LINE)
    elif role == MarkupNodes.NEGATIVE_SCRIBBLE:
        display.SetGlyphType(display.Circle2D)
        display.SetGlyphScale(_DOT)
        display.SetLineThickness(_THIN)
    else:
        display.SetGlyphType(display.Circle2D)
        display.SetGlyphScale(_DISC)
        sign = node.GetScene().AddNewNodeByClass(display.GetClassName())
        node.AddAndObserveDisplayNodeID(sign.GetID())
        _plain(sign)
        sign.SetGlyphType(sign.ThickCross2D if role == MarkupNodes.POSITIVE else sign.Dash2D)
        sign.SetGlyphScale(_SIGN)


def _plain(display: Any) -> None:
    display.SetVisibility3D(False)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetSliceProjection(False)
    display.SetHandlesInteractive(False)
    display.SetUseGlyphScale(True)


def paint(node: Any, color: tuple[float, float, float]) -> None:
    """Give a prompt the colour of its segment; lighter while the mouse is over it."""
    red, green, blue = color
    ink = (0.0, 0.0, 0.0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _BRIGHT else (1.0, 1.0, 1.0)
    for display in _displays(node):
        isSign = display is not node.GetDisplayNode()
        wanted = ink if isSign else color
        if display.GetSelectedColor() != wanted:
            wasModifying = display.StartModify()
            display.SetColor(*wanted)
            display.SetSelectedColor(*wanted)
            display.SetActiveColor(*(ink if isSign else ((1 + value) / 2 for value in color)))
            display.EndModify(wasModifying)


def show(node: Any, visible: bool) -> None:
    """Show or hide a prompt."""
    for display in _displays(node):
        display.SetVisibility(visible)


def _displays(node: Any) -> list[Any]:
    if not node.IsA("vtkMRMLDisplayableNode"):
        return []
    return [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
