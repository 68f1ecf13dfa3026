"""Where prompts stand in the subject hierarchy: in one closed folder beside their segmentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import slicer

_FOLDER = "MedSAM2.prompts"


def file(scene: Any, segmentationNode: Any, node: Any, others: Iterable[Any]) -> None:
    """Put a prompt node into the folder ``others`` are in, or into a new one beside the segmentation."""
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


def remove(scene: Any, node: Any) -> None:
    """Take a prompt node out of the scene, its item with it, and the folder after the last one."""
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
