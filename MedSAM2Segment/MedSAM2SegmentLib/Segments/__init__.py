"""Volumes and segments: volumes for the core, masks written through Slicer's own edits, ownership and undo.

Begin with ``VolumeAdapter`` (in) and ``SegmentWriter`` (out). The user is promised: what was painted is not
taken away, what was erased does not come back, and Slicer's undo takes back ours. ``VoxelOwnership`` has this
contract point by point, ``EditHistory`` detects undo, ``ProvenanceStore`` keeps ownership with the scene.
"""
