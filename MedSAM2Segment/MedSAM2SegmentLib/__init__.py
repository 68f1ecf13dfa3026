"""The packages of the extension that know 3D Slicer; ``medsam2_core``'s worker does the heavy work."""

__all__ = ["SegmentEditorEffect"]


def __getattr__(name: str):
    """Return the effect's class, under the name Slicer looks for in this package, loaded on demand.

    Everything else here works without Slicer's effects (and without Qt), so that importing the package costs
    nothing at start-up.
    """
    if name != "SegmentEditorEffect":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from MedSAM2SegmentLib.SegmentEditorEffect import SegmentEditorEffect

    globals()[name] = SegmentEditorEffect  # instead of the file of the same name
    return SegmentEditorEffect
