"""A volume, a segmentation, Slicer's editing logic and our writer, ready to write rectangles."""

from __future__ import annotations

import numpy as np
from medsam2_core.imaging.slices import SliceStack
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

from support.scene import a_segmentation, a_volume, an_editor, geometries, voxels_of


class WriterSetup:
    """A volume, a segmentation with segments A, B, C, an editor on A and a writer."""

    def __init__(self, scene, segments=("A", "B", "C"), matrix=None, **options):
        self.volume_node = a_volume(scene, geometries()["plain"] if matrix is None else matrix)
        self.segmentation = a_segmentation(scene, self.volume_node, segments, **options)
        self.editor = an_editor(self.segmentation, self.volume_node)
        self.writer = SegmentWriter(self.editor)
        self.volume = VolumeAdapter(self.volume_node).volume
        self.stack = SliceStack.along(self.volume, "k")
        self.empty = np.zeros(self.stack.shape_hw, dtype=bool)

    def mask(self, rows, columns):
        """A rectangle on a slice, given by (first, last) of j and of i."""
        kji = np.zeros(self.volume.voxels_kji.shape, dtype=bool)
        kji[0, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
        return self.stack.mask_of(kji, self.n_of(0))

    def n_of(self, k):
        """The slice number of a voxel plane."""
        return round(float(self.stack.to_slice([[0, 0, k]])[0, 2]))

    def write(self, k, rows, columns, segmentID="A", **options):
        """Make a segment on plane k that rectangle, or empty."""
        mask = self.mask(rows, columns) if rows else self.empty
        options.setdefault("newStep", True)
        return self.writer.write(segmentID, {self.n_of(k): mask}, self.stack, **options)

    def voxels(self, segmentID="A"):
        """(K, J, I) as the scene has it."""
        return voxels_of(self.segmentation, segmentID)

    def both(self):
        """Of segments A and B."""
        return self.voxels("A"), self.voxels("B")

    def overwrite(self, mode):
        """Set what edits may overwrite."""
        self.editor.node.SetOverwriteMode(mode)
