"""Segments with codes, colours and tags, as the tests of DICOM SEG write them."""

import numpy as np
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.terminology import Code, Terminology

ANATOMY, ABNORMAL = (
    Code("SCT", "123037004", "Anatomical Structure"),
    Code("SCT", "49755003", "Morphologically Altered Structure"),
)
LIVER = Terminology(ANATOMY, Code("SCT", "10200004", "Liver"))
LEFT_KIDNEY = Terminology(ANATOMY, Code("SCT", "64033007", "Kidney"), Code("SCT", "7771000", "Left"))
MASS = Terminology(ABNORMAL, Code("SCT", "4147007", "Mass"), region=Code("SCT", "10200004", "Liver"))
PROMPTED = {
    "DICOM.SegmentAlgorithmType": "SEMIAUTOMATIC",
    "DICOM.SegmentAlgorithmName": "MedSAM2Segment 0.1.0 embedded",
}
PAINTED = {"DICOM.SegmentAlgorithmType": "MANUAL"}


def some_segments(geometry, *, overlapping=True, seed=0):
    """Three objects that are on some of the slices only: no symmetry forgives a flip."""
    rng = np.random.default_rng(seed)
    shape = geometry.shape_ijk[::-1]
    masks = []
    for n in range(3):
        mask = np.zeros(shape, dtype=bool)
        depth = max(1, shape[0] - 1)
        first = n % 2 if shape[0] > 1 else 0
        rows, columns = shape[1] // 4 * (n % 2) + shape[1] // 8, shape[2] // 4 * (n // 2) + shape[2] // 8
        box = mask[first : first + depth, rows : rows + shape[1] // 3, columns : columns + shape[2] // 2]
        box[...] = rng.random(box.shape) < 0.7
        if not overlapping:
            for other in masks:
                mask &= ~other
        masks.append(mask)
    described = [
        ("liver", LIVER, PROMPTED),
        ("left kidney", LEFT_KIDNEY, PAINTED),
        ("Läsion 肝", MASS, PROMPTED),
    ]
    colours = [(0.86, 0.08, 0.24), (0.0, 0.5, 0.25), (1.0, 1.0, 0.0)]
    segments = [
        Segment(name, colour, mask, terminology, tags)
        for (name, terminology, tags), colour, mask in zip(described, colours, masks, strict=True)
    ]
    return Segmentation(geometry, tuple(segments), {"model": "embedded", "weights_sha256": "ab" * 32})
