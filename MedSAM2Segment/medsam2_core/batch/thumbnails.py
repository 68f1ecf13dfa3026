"""The picture of a case in the report: the slice that shows most of its objects, with their outlines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core import atomic
from medsam2_core.export.contact_sheet import thumbnail
from medsam2_core.imaging.intensity import to_display

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.session.session import Session


def write_thumbnail(session: Session, segmentation: Segmentation, path: Path) -> None:
    """Write the picture as a JPEG."""
    stack, n = session.stack, _slice(session)
    outlines = [
        (stack.mask_of(segment.part_kji, n, segment.offset_ijk), segment.colour_rgb)
        for segment in segmentation
        if not segment.is_empty
    ]
    jpeg = thumbnail(to_display(stack.image_hw(n), session.window), outlines, _aspect(session))
    with atomic.new_file(path, overwrite=False) as stream:
        stream.write(jpeg)


def _slice(session: Session) -> int:
    """Return the slice with most pixels of objects; the middle one where nothing was found."""
    areas: dict[int, int] = {}
    for name in session.object_names:
        for mask in session.results(name):
            areas[mask.n] = areas.get(mask.n, 0) + int(mask.mask_hw.sum())
    best = max(areas, key=lambda n: (areas[n], -n), default=0)
    return best if areas.get(best) else len(session.stack) // 2


def _aspect(session: Session) -> float:
    """Return the height of a pixel by its width, in mm."""
    corner, right, below = session.stack.to_ijk([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    matrix = session.stack.volume.geometry.ijk_to_ras[:3, :3]
    width, height = (np.linalg.norm(matrix @ (one - corner)) for one in (right, below))
    return float(np.clip(height / width, 0.1, 10))
