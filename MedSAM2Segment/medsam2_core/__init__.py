"""Prompted, propagated and automatic segmentation of medical volumes with SAM 2, without a user interface."""

from medsam2_core.version import __version__

__all__ = ["__version__"]
