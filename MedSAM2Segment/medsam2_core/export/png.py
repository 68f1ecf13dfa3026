"""PNG masks of 2-D pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medsam2_core.errors import ExportError
from medsam2_core.export import metadata

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation


def check_grid(geometry: Geometry) -> None:
    """ExportError unless there is exactly one slice."""
    if geometry.shape_ijk[2] != 1:
        raise ExportError(
            f"{geometry.shape_ijk[2]} slices do not fit a PNG: use .seg.nrrd, .nii.gz, .nrrd or .mha"
        )


def write_mask(segmentation: Segmentation, stream: BinaryIO) -> None:
    """One object as black and white (0, 255); several as label values shown in their colours (a palette).

    Reading the latter as an array gives label values, as most labelled data sets have them. With more than
    255 objects it is 16-bit grey.
    """
    from PIL import Image, PngImagePlugin

    check_grid(segmentation.geometry)
    labels_ji = segmentation.label_slice(0)
    if len(segmentation) <= 1:
        image = Image.fromarray((labels_ji != 0).astype(np.uint8) * np.uint8(255))
    else:
        image = Image.fromarray(labels_ji)
        if labels_ji.dtype == np.uint8:
            colours = [(0.0, 0.0, 0.0), *(segment.colour_rgb for segment in segmentation)]
            image.putpalette([round(part * 255) for colour in colours for part in colour])
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", metadata.SOFTWARE)
    text.add_itxt("Labels", metadata.to_json(metadata.description(segmentation)))
    image.save(stream, format="PNG", pnginfo=text, optimize=True)
