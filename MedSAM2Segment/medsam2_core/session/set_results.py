"""The masks of an image set as files in a folder; a stopped run goes on where it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core import atomic, export
from medsam2_core.errors import ExportError, Note
from medsam2_core.export.contact_sheet import MOST_IN_PICTURE, SheetEntry, thumbnail, write_contact_sheet
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.slice_mask import SliceMask

if TYPE_CHECKING:
    from medsam2_core.imaging.image_set import ImageSet
    from medsam2_core.session.session import Session

#: Beside the masks: one line an image and object, and what the masks were made from.
TABLE, SETTINGS = "masks.csv", "settings.json"
_COLUMNS = ("image", "object", "confidence", "area_pixels", "area_share", "prompted", "predicted_iou",
            "object_score", "agreement", "mask")  # fmt: skip
_SAVED_EVERY = 20  # images


class SetResults:
    """The masks of a session of an image set, and their files.

    Those of an earlier run with the same settings are taken over: the session does not look for them again.

    Parameters
    ----------
    file_format
        ``png`` or ``seg.nrrd``: a file of masks an image.
    overwrite
        Replace files of other settings.

    Attributes
    ----------
    overwrites
        Whether files may be replaced: when allowed, or when they are of the same settings.

    Raises
    ------
    ExportError
        ``output-exists`` for a folder with other files or settings.
    """

    def __init__(
        self, session: Session, folder: Path, file_format: str = "png", *, overwrite: bool = False
    ) -> None:
        self._session, self._folder, self._format = session, folder, file_format
        self._facts, self._names = session.images.facts, _file_names(session.images)
        self.masks: dict[tuple[int, str], SliceMask] = {}
        self.restored = 0
        # Images whose masks are there, corrected by hand perhaps: they are not written again.
        self._written: set[int] = set()
        self.notes: list[Note] = []
        images = [[one.name, one.content_key] for one in self._facts]
        about = {**session.provenance(), "images": images, "format": file_format}
        text = json.dumps(about, indent=2, default=str)
        self.overwrites = overwrite
        settings = folder / SETTINGS
        if settings.exists() and settings.read_text(encoding="utf-8") == text:
            self._restore()
            self.overwrites = True
        elif folder.exists() and any(folder.iterdir()) and not overwrite:
            message = f"{folder} holds other files, or masks made with other settings: choose another folder"
            raise ExportError(message, code="output-exists", path=str(folder))
        else:
            # Masks made with other settings must not pass for this run's, should it be stopped.
            (folder / TABLE).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(settings, overwrite=True) as stream:
            stream.write(text.encode())

    def add(self, mask: SliceMask) -> None:
        """Take a mask; once all objects of its image are known, write them."""
        is_new = (mask.n, mask.object) not in self.masks
        self.masks[mask.n, mask.object] = mask
        if not is_new or any((mask.n, name) not in self.masks for name in self._session.object_names):
            return
        if mask.n in self._written:
            return
        path = self._path(mask.n)
        written = export.write(self._session.segmentation(mask.n), path, overwrite=self.overwrites)
        self.notes += [replace(note, message=f"{path.name}: {note.message}") for note in written.notes]
        if len(self.masks) % _SAVED_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Write the table of the images that are complete."""
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(_COLUMNS)
        for (n, name), mask in sorted(self.masks.items()):
            if all((n, other) in self.masks for other in self._session.object_names):
                area = int(mask.mask_hw.sum())
                height, width = mask.shape_hw
                share = f"{area / (height * width):.6f}"
                scores = int(mask.prompted), mask.predicted_iou, mask.object_score, mask.agreement
                named = self._facts[n].name, name, f"{mask.confidence:.4f}"
                table.writerow((*named, area, share, *scores, self._path(n).name))
        with atomic.new_file(self._folder / TABLE, overwrite=True) as stream:
            stream.write(buffer.getvalue().encode())

    def write_review(self, path: Path, title: str) -> None:
        """Write the sheet of all images, the least confident first; a note when a picture cannot show all."""
        write_contact_sheet(self._entries(), path, title, overwrite=self.overwrites)
        if path.suffix.lower() == ".png" and len(self._facts) > MOST_IN_PICTURE:
            text = f"{path} shows {MOST_IN_PICTURE} of {len(self._facts)} images: an .html page shows all"
            self.notes.append(Note.info("review-cut", text, path=str(path), images=len(self._facts)))

    def _entries(self) -> Iterator[SheetEntry]:
        session = self._session
        worst = {
            n: min(self.masks[n, name].confidence for name in session.object_names) for n, _ in self.masks
        }
        for n in sorted(worst, key=lambda n: (worst[n], self._facts[n].name)):
            found = session.segmentation(n)
            outlines = [(one.mask_kji[0], one.colour_rgb) for one in found if not one.is_empty]
            objects = [(one.name, one.colour_rgb, self._note(self.masks[n, one.name])) for one in found]
            jpeg = thumbnail(session.tracker.source.image(n), outlines)
            yield SheetEntry(self._facts[n].name, jpeg, objects)

    @staticmethod
    def _note(mask: SliceMask) -> str:
        kind = ", prompted" if mask.prompted else ", not found" if mask.is_empty else ""
        return f"{mask.confidence:.2f}{kind}"

    def _restore(self) -> None:
        """Give the session the masks of an earlier run; they are not looked for again."""
        table = self._folder / TABLE
        if not table.exists():
            return
        numbers = {one.name: n for n, one in enumerate(self._facts)}
        with table.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        found: dict[str, dict[int, SliceMask]] = {name: {} for name in self._session.object_names}
        names = list(found)
        for line in lines:
            n, name = numbers.get(line["image"]), line["object"]
            if n is None or name not in found or not self._path(n).exists():
                continue
            self._written.add(n)
            if line["prompted"] == "1":
                continue
            stored = read_segmentation(self._path(n))
            # A PNG of one object is black and white; one of several has labels in the order of the objects.
            label = 255 if len(names) == 1 else 1 + names.index(name)
            by_name = self._format == "seg.nrrd"
            mask_hw = np.zeros(self._facts[n].shape_hw, bool)
            for segment in stored:
                if segment.name == name if by_name else segment.value == label:
                    mask_hw |= segment.mask_kji[0]
            found[name][n] = SliceMask.from_mask(
                name, n, mask_hw,
                predicted_iou=float(line["predicted_iou"]), object_score=float(line["object_score"]),
                agreement=float(line["agreement"]),
            )  # fmt: skip
        complete = set.intersection(*({*masks} for masks in found.values()))
        for name, masks in found.items():
            kept = {n: mask for n, mask in masks.items() if n in complete}
            self._session.tracker.add_tracked(name, kept)
            for n, mask in kept.items():
                self._session.finalise(name, n)
                self.masks[n, name] = mask
        self.restored = len(complete)

    def _path(self, n: int) -> Path:
        return self._folder / f"{self._names[n]}.{self._format}"


def _file_names(images: ImageSet) -> list[str]:
    """Return what the masks' files are called: as the images without suffix, or with it where two collide."""
    stems = [Path(one.name).stem for one in images.facts]
    return [
        stem if stems.count(stem) == 1 else one.name for stem, one in zip(stems, images.facts, strict=True)
    ]
