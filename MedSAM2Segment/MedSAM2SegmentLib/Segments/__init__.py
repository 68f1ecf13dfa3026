"""Volumes and segments: volumes for the core, masks written through Slicer's own edits, ownership and undo.

Begin with ``VolumeAdapter`` (in) and ``SegmentWriter`` (out). ``VoxelOwnership`` has the contract about the
user's voxels; ``EditHistory`` detects Slicer's undo.
"""
