"""`medsam2 set`: prompts on one or more images of a folder in, masks of all images out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from medsam2_core import atomic
from medsam2_core.cli.console import (
    peak_memory_mb,
    print_json,
    print_notes,
    progress_bar,
    stop_on_request,
)
from medsam2_core.cli.options import AsJson, Out, options_in_order
from medsam2_core.errors import ExportError, Note, PromptError

_LABEL_KINDS = ("seg", "mask", "label")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medsam2_core.imaging.image_set import ImageSet
    from medsam2_core.prompts import Prompt, PromptSet
    from medsam2_core.session.session import Session
    from medsam2_core.session.set_results import SetResults


@dataclass(frozen=True)
class SegmentSet:
    """Segment objects on all images of a folder from prompts on one of them, or on some.

    The images need no order. Stopped and run again with the same options, it goes on where it was.

    Options
    -------
    folder: Folder of PNG, JPEG, TIFF, BMP or DICOM images.

    Output
    ------
    out: Folder for the masks, masks.csv (confidence, area) and settings.json; is made.
    format: png: 0 and 255, or labels 1, 2 …; seg.nrrd keeps all.
    review FILE: Also write a sheet of all images, the least confident first: .html, or .png for at most 250.

    Prompts (each applies to the --object before it)
    ------------------------------------------------
    prompt IMAGE: Name of an image; the prompts that follow lie on it. Prompts before the first --prompt lie
        on that.
    box X0,Y0,X1,Y1: Box in pixels.
    point X,Y[,+|-]: Foreground point; append ,- for background.
    mask FILE: Label map of the image: its label with the object's name, or its only label.

    Processing
    ----------
    memory: What an image is compared with: the prompted images; also the images before it, in order of
        similarity; or MedSAM-2's self-sorting bank of confident ones.
    window W,L|PRESET: Intensity window of all images; auto: of each image its own.
    zoom: auto: look for the object's place first; off: at whole images.
    skip_bad: Leave out files that cannot be read.
    """

    context: typer.Context
    folder: Path
    out: Out
    prompt: list[str] | None = None
    box: list[str] | None = None
    point: list[str] | None = None
    mask: list[str] | None = None
    object: list[str] | None = None
    model: str = "embedded"
    memory: Literal["prompted", "recent", "self-sorting"] = "prompted"
    window: str = "auto"
    zoom: Literal["auto", "off"] = "auto"
    skip_bad: bool = False
    device: str = "auto"
    precision: str = "auto"
    config: str | None = None
    image_size: int | None = None
    format: Literal["png", "seg.nrrd"] = "png"
    review: Path | None = None
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Check everything that is quick to check, segment, write, and report."""
        started = time.perf_counter()
        from medsam2_core.imaging.reading import read_images
        from medsam2_core.session.set_results import TABLE, SetResults

        given = options_in_order(self.context)
        masks = [text for option, text in given if option == "mask"]
        self._check_targets()
        images = read_images(self.folder, skip_bad=self.skip_bad)
        prompts = collect_prompts(given, images)
        with atomic.protect(*masks, self.model, self.config, *_paths(images)):
            session = self._session(images, prompts)
            run = SetResults(session, self.out, self.format, overwrite=self.overwrite)
            if self.review is not None:
                atomic.check_target(self.review, overwrite=run.overwrites)
            try:
                self._segment(session, run)
            finally:
                run.save()
            if self.review is not None:
                run.write_review(self.review, self.folder.name)
        notes = [
            Note.warning("image-left-out", f"{name} was left out: {error}", image=name, reason=error.code)
            for name, error in images.left_out.items()
        ] + run.notes
        if labels := _label_pictures([one.name for one in images.facts]):
            listed = ", ".join([*labels[:3], *(["…"] if len(labels) > 3 else [])])
            text = f"{len(labels)} images look like labels of others ({listed}): put labels elsewhere"
            notes.append(Note.warning("label-pictures", text, images=labels))
        confidence = [mask.confidence for mask in run.masks.values()]
        facts = {
            "images": len(images),
            "objects": list(session.object_names),
            "out": str(self.out),
            "table": str(self.out / TABLE),
            "review": str(self.review) if self.review else None,
            "resumed": run.restored,
            "confidence": round(sum(confidence) / len(confidence), 3),
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": peak_memory_mb(),
        }
        if self.as_json:
            print_json(facts, notes)
        else:
            again = f", {run.restored} of them before" if run.restored else ""
            print(f"{self.out}: masks of {len(images)} images{again}, after {facts['seconds']:.1f} s")
            if self.review:
                print(f"{self.review}: to look them through")
            print_notes(notes)

    def _check_targets(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            message = f"--out {self.out} is a file: name a folder"
            raise ExportError(message, code="output-is-file", path=str(self.out))
        if self.out.resolve() == self.folder.resolve():
            message = f"--out {self.out} is the folder of the images: name another"
            raise ExportError(message, code="output-is-input", path=str(self.out))

    def _session(self, images: ImageSet, prompts: PromptSet) -> Session:
        from medsam2_core.session.session import Session  # only now: torch takes seconds to load

        session = Session.open(
            images, self.model, window=self.window, memory=self.memory, zoom=self.zoom, device=self.device,
            precision=self.precision, config=self.config, image_size=self.image_size,
        )  # fmt: skip
        session.apply(prompts)
        return session

    def _segment(self, session: Session, run: SetResults) -> None:
        progress = session.propagate(should_cancel=stop_on_request())
        with progress_bar("segmenting", progress.total) as update:
            for result in progress:
                run.add(result)
                update(progress.done, session.images.facts[result.n].name)


def collect_prompts(given: list[tuple[str, str]], images: ImageSet) -> PromptSet:
    """Collect all prompts of a command line; see :class:`SegmentSet` for what they belong to.

    Raises
    ------
    PromptError
        ``no-image-named``, what :func:`check_complete` refuses, or what is wrong with a prompt.
    VolumeError
        There is no such image.
    """
    from medsam2_core.imaging.set_stack import SetStack
    from medsam2_core.prompts import PromptSet
    from medsam2_core.prompts.slice_prompts import validate
    from medsam2_core.prompts.text import assigned, check_complete

    prompts = PromptSet()
    for option, text in given:
        if option == "object":
            prompts.add_object(text)
    image = next((text for option, text in given if option == "prompt"), None)
    for name, option, text in assigned(given, ()):
        if option == "prompt":
            image = text
        elif image is None:
            message = f"--{option} {text}: say on which image, with --prompt IMAGE"
            raise PromptError(message, code="no-image-named", text=text)
        else:
            prompts.add(name, _prompt(option, text, name, images, images.number_of(image)))
    check_complete(prompts, "--prompt IMAGE and --box, --point or --mask")
    validate(prompts, SetStack(images))
    return prompts


def _prompt(option: str, text: str, object_name: str, images: ImageSet, n: int) -> Prompt:
    from medsam2_core.imaging.geometry import Space
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import Box, MaskPrompt, Point
    from medsam2_core.prompts.text import PromptSpace, parse_numbers, read_mask

    if option == "box":
        x0, y0, x1, y1 = parse_numbers(text, f"--box {text}", 4, "write X0,Y0,X1,Y1")
        return Box.between((x0, y0, n), (x1, y1, n))
    if option == "point":
        place, _, sign = text.rpartition(",")
        if sign.strip() not in ("+", "-"):
            place, sign = text, "+"
        x, y = parse_numbers(place, f"--point {text}", 2, "write X,Y and, if wanted, ,+ or ,-")
        return Point((x, y, n), positive=sign.strip() == "+")
    drawn = read_mask(text, object_name, PromptSpace(SliceStack.along(images[n], "k"), Space.IJK))
    return MaskPrompt(drawn.mask_kji, (*drawn.offset_ijk[:2], n))


def _label_pictures(names: Sequence[str]) -> list[str]:
    """Return the names NAME_seg, NAME_mask and NAME_label of pictures beside NAME or NAME_img."""
    stems = {name: Path(name).stem for name in names}
    found = []
    for name, stem in stems.items():
        case, _, kind = stem.rpartition("_")
        if kind in _LABEL_KINDS and {case, f"{case}_img"} & set(stems.values()):
            found.append(name)
    return found


def _paths(images: ImageSet) -> tuple[Path, ...]:
    from medsam2_core.imaging.image_set import ImageFiles

    return images.images.paths if isinstance(images.images, ImageFiles) else ()
