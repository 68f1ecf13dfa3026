"""Prompted, propagated and automatic segmentation of medical volumes with SAM 2, without a user interface.

The public API. Its names are imported when they are first used, so that importing this package stays cheap
and needs no package beyond the standard library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsam2_core.version import __version__

if TYPE_CHECKING:
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.model import load_model
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError
    from medsam2_core.imaging.image_set import ImageSet
    from medsam2_core.imaging.intensity import Window
    from medsam2_core.imaging.reading import read_images, read_volume
    from medsam2_core.imaging.segmentation import Segment, Segmentation
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.imaging.volume import Volume
    from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet, SlicePrompts
    from medsam2_core.session import Session
    from medsam2_core.session.examples import Example

_MODULES = {
    "Catalogue": "engine.catalogue",
    "SegmentationModel": "engine.segmentation_model",
    "load_model": "engine.model",
    "Cancelled": "errors",
    "MedSAM2Error": "errors",
    "PromptError": "errors",
    "Window": "imaging.intensity",
    "ImageSet": "imaging.image_set",
    "read_images": "imaging.reading",
    "read_volume": "imaging.reading",
    "Segment": "imaging.segmentation",
    "Segmentation": "imaging.segmentation",
    "SliceMask": "imaging.slice_mask",
    "SliceStack": "imaging.slices",
    "Volume": "imaging.volume",
    "Box": "prompts",
    "MaskPrompt": "prompts",
    "Point": "prompts",
    "PromptSet": "prompts",
    "SlicePrompts": "prompts",
    "Session": "session",
    "Example": "session.examples",
}

__all__ = [
    "Box",
    "Cancelled",
    "Catalogue",
    "Example",
    "ImageSet",
    "MaskPrompt",
    "MedSAM2Error",
    "Point",
    "PromptError",
    "PromptSet",
    "Segment",
    "Segmentation",
    "SegmentationModel",
    "Session",
    "SliceMask",
    "SlicePrompts",
    "SliceStack",
    "Volume",
    "Window",
    "__version__",
    "load_model",
    "read_images",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access finds it without asking here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
