"""Slices the user has corrected or marked as final, kept on this computer to improve a model with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core import atomic

from MedSAM2SegmentLib.Runtime.RuntimeFolder import applicationData

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 500_000_000  # bytes of the folder
_MOST = 4000  # slices
_SUFFIX = ".npz"
_OURS = re.compile(r"[0-9a-f]{32}\.npz")  # names of our files: the user's own may lie beside them
_HALF = re.compile(r"\.[0-9a-f]{32}\.npz\.[0-9a-f]+\.part")  # a process that was killed leaves it
_SAMPLE = 1 << 16  # voxels that tell volumes apart


def defaultFolder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of corrections: MEDSAM2_CORRECTIONS, else in the user's application data."""
    named = environment.get("MEDSAM2_CORRECTIONS")
    return Path(named).expanduser() if named else applicationData(environment) / "corrections"


class Corrections:
    """A folder of corrected slices, each a file with image, mask and prompts in the form of MedSAM2's data.

    Files are named by hashes of the voxels and of where the slice lies, so that a slice corrected again takes
    the place of the earlier one. They hold the slice as the model saw it, and no name, number or date of a
    patient, volume or segment. When the folder is full, the oldest are deleted.

    Parameters
    ----------
    folder
        It is made with the first slice; the user's own by default.
    settings
        The user's Settings; without them nothing is to be kept.
    largest
        Bytes that the folder may hold.
    """

    def __init__(self, folder: Path | None = None, settings: Any = None, largest: int = LARGEST) -> None:
        self.folder, self._settings, self._largest = folder or defaultFolder(), settings, largest

    @property
    def isOn(self) -> bool:
        """Whether the user wants corrections to be kept; of this computer, never of a scene."""
        return self._settings is not None and self._settings.learns

    @isOn.setter
    def isOn(self, isOn: bool) -> None:
        self._settings.learns = isOn

    def keep(
        self,
        voxels_kji: NDArray[Any],
        place: Sequence[object],
        image_hw: NDArray[np.uint8],
        mask_hw: NDArray[np.bool_],
        spacing: tuple[float, float, float],
        prompts: Mapping[str, Any],
    ) -> None:
        """Keep a slice, in place of an earlier one of the same place.

        Parameters
        ----------
        voxels_kji
            Of the volume: slices of one volume are never divided between training and measuring.
        place
            What tells the slice and the segment apart from others of the volume.
        image_hw
            (H, W) or (H, W, 3) grey values or colours.
        spacing
            Of columns, rows and slices in mm.
        prompts
            In pixels, as JSON.

        Raises
        ------
        ExportError
            ``output-not-writable``.
        """
        group = _digest(voxels_kji)
        name = hashlib.sha256(repr((group, *place)).encode()).hexdigest()[:32]
        grey = image_hw if image_hw.ndim == 2 else np.rint(image_hw.mean(-1)).astype(np.uint8)
        if not self.folder.exists():
            atomic.make_folder(self.folder)
            with contextlib.suppress(OSError):  # the file system may know no permissions
                self.folder.chmod(0o700)  # images of patients: for no other user of the computer
        with atomic.new_file(self.folder / (name + _SUFFIX), overwrite=True) as stream:
            np.savez_compressed(
                stream,
                imgs=grey[np.newaxis],
                gts=mask_hw[np.newaxis].astype(np.uint8),
                spacing=np.array(spacing, dtype=np.float64),
                group=np.array(group),
                prompts=np.array(json.dumps(prompts)),
            )
        self._makeRoom()

    def size(self) -> tuple[int, int]:
        """Return the number of slices, and their bytes."""
        found = self._files()
        return len(found), sum(size for _, size, _ in found)

    def remove(self) -> None:
        """Delete all of them. OSError when a file cannot be deleted."""
        for _, _, path in (*self._files(), *self._files(_HALF)):
            path.unlink(missing_ok=True)

    def _makeRoom(self) -> None:
        found = sorted(self._files())
        total = sum(size for _, size, _ in found)
        while len(found) > 1 and (total > self._largest or len(found) > _MOST):
            _, size, path = found.pop(0)
            path.unlink(missing_ok=True)
            total -= size

    def _files(self, names: re.Pattern[str] = _OURS) -> list[tuple[int, int, Path]]:
        """Return time, size and path of every file with such a name."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if not names.fullmatch(path.name):
                continue
            try:
                facts = path.stat()
            except OSError:  # deleted by another Slicer
                continue
            found.append((facts.st_mtime_ns, facts.st_size, path))
        return found


def _digest(voxels_kji: NDArray[Any]) -> str:
    flat = voxels_kji.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    about = f"{voxels_kji.shape}{voxels_kji.dtype}".encode()
    return hashlib.sha256(about + np.ascontiguousarray(sample).tobytes()).hexdigest()[:16]
