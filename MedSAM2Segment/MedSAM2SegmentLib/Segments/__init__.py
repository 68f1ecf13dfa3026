"""Volumes and segments: the volume as the core sees it, masks written through Slicer's own edits, and undo.

Begin with ``VolumeAdapter`` (in), ``SegmentWriter`` (out) and ``EditLedger`` (what undo takes back).
"""
