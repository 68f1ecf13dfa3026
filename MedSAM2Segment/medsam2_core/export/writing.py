"""One way to write a result: the name of the file decides the format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from medsam2_core import atomic
from medsam2_core.errors import ExportError, Note
from medsam2_core.export import meta_image, nifti, png, seg_nrrd

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation

# The first suffix that fits counts.
_WRITERS: dict[str, Callable[[Segmentation, BinaryIO], None]] = {
    ".seg.nrrd": seg_nrrd.write_segmentation,
    ".nii.gz": nifti.write_packed_label_map,
    ".nii": nifti.write_label_map,
    ".nrrd": seg_nrrd.write_label_map,
    ".mha": meta_image.write_label_map,
    ".png": png.write_mask,
}

#: File name endings that can be written.
SUFFIXES = tuple(_WRITERS)


@dataclass(frozen=True)
class Written:
    """The file that was written, and what the user should know about it: one sentence each."""

    path: Path
    notes: tuple[Note, ...] = ()


def write(segmentation: Segmentation, path: str | Path, *, overwrite: bool = False) -> Written:
    """Write a segmentation, in the format its name asks for, whole or not at all.

    ``.seg.nrrd`` keeps everything. ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha`` and ``.png`` hold one label a
    voxel (1 for the first object and so on): where objects overlap the later one is stored, and a note says
    how many voxels that were. A PNG of a single object is black and white.

    Raises
    ------
    ExportError
        For an unknown suffix, more than one slice in a PNG, an existing file without ``overwrite``, a missing
        folder, or a disk that refuses.
    """
    path = Path(path)
    check(path, segmentation.geometry, overwrite=overwrite)
    if not segmentation.segments:
        raise ExportError(f"{path}: there is no object to write")
    suffix = suffix_of(path)
    with atomic.new_file(path, overwrite=overwrite) as stream:
        _WRITERS[suffix](segmentation, stream)
    return Written(path, tuple(_notes(segmentation, suffix)))


def check(path: str | Path, geometry: Geometry, *, overwrite: bool = False) -> None:
    """Raise the ExportError that :func:`write` would end in, before the work is done."""
    path = Path(path)
    if suffix_of(path) == ".png":
        png.check_grid(geometry)
    atomic.check_target(path, overwrite=overwrite)


def suffix_of(path: str | Path) -> str:
    """The ending that decides the format, in lower case; ExportError lists those that can be written."""
    name = Path(path).name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix) and name != suffix:
            return suffix
    raise ExportError(f"{path}: unknown format, the name must end with one of {', '.join(SUFFIXES)}")


def _notes(segmentation: Segmentation, suffix: str) -> Iterator[Note]:
    if suffix == ".seg.nrrd":
        return
    for earlier, later, count in segmentation.overlaps():
        yield Note.warning(
            "overlap-not-stored",
            f"{count} voxels belong to both {earlier.name!r} and {later.name!r} and are stored as "
            f"{later.name!r}: a label map holds one label a voxel, .seg.nrrd keeps both",
            voxels=count,
            segments=[earlier.name, later.name],
        )
    if suffix in (".nii", ".nii.gz") and segmentation.geometry.is_sheared:
        yield Note.warning(
            "sheared-nifti",
            "the voxel axes are not at right angles (gantry tilt): the NIfTI says so, but programs built on "
            "ITK refuse it or move its voxels; they read .seg.nrrd, .nrrd and .mha rightly",
        )
