"""Results as files: segmentations and label maps other programs read, and pictures people look at."""

from medsam2_core.export.writing import SUFFIXES, Written, check, suffix_of, write

__all__ = ["SUFFIXES", "Written", "check", "suffix_of", "write"]
