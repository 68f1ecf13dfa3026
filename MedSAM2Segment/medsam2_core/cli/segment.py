"""`medsam2 segment`: prompts on one or more slices in, masks in the whole volume out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core.cli.console import (
    UNCALIBRATED,
    millilitres,
    peak_memory_mb,
    print_table,
    propagate,
    report,
    volume_text,
    warn,
)
from medsam2_core.cli.inputs import check_settings
from medsam2_core.cli.options import (
    AsJson,
    AxisName,
    Out,
    WhenIrregular,
    is_given,
    options_in_order,
    pairs_given,
)
from medsam2_core.cli.outputs import Outputs
from medsam2_core.errors import Note, PromptError

if TYPE_CHECKING:
    from medsam2_core.cli.earlier_scans import OtherScans
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.slices import AxisStack
    from medsam2_core.imaging.volume import Volume
    from medsam2_core.prompts import PromptSet
    from medsam2_core.prompts.text import GivenPrompts
    from medsam2_core.session.earlier import EarlierResult
    from medsam2_core.session.session import Session


@dataclass(frozen=True)
class Segment:
    """Segment objects of a volume from boxes, points or masks on one or more slices.

    Options
    -------
    volume: NRRD, NIfTI, MetaImage, DICOM, PNG, JPEG or TIFF file, or a DICOM folder.

    Output
    ------
    out: File to write: .seg.nrrd (keeps everything), .nii.gz, .nrrd, .mha; .png for a picture.
    changes CSV: With --prior: volume and diameters of each object then and now.

    Prompts (each applies to the --object before it)
    ------------------------------------------------
    box I0,J0,I1,J1@K: Box on slice K: two opposite corners within the slice, then the slice, which a picture
        does not need. With --axis sagittal of a volume stored along i: J0,K0,J1,K1@I. Or two opposite corners
        X0,Y0,Z0,X1,Y1,Z1.
    point X,Y,Z[,+|-]: Foreground point; append ,- for background. On a picture X,Y is enough.
    mask FILE[:LABEL]: A segment on one or many slices, taken as it is: of a label map on the volume's grid
        the label named here, that of the object's name, or the only one.
    line X0,Y0,X1,Y1@K: The longest diameter of a lesion on slice K, from edge to edge; with four more numbers
        before the @ also the one across it, as RECIST measures them. On a picture @K may be left out.
    box3d X0,Y0,Z0,X1,Y1,Z1: 3-D box around the object, two opposite corners: a box on its middle slice, and
        the first and last slice to segment.
    keep all|every:N|ends: Which slices of a --mask are prompts: all, or every N-th or the first and last, and
        the model finds those between them.
    prompts FILE: File of prompts: JSON, or a .seg.nrrd of this command, which has its own.
    continued OUT.seg.nrrd: Correct this earlier result, with its settings, instead of starting from nothing.
    like SCAN SEGMENTATION: A segmented scan of the same kind as an example: its objects are looked for here.
        May be given several times.
    prior SEGMENTATION: An earlier segmentation of the patient: its objects are looked for at their old
        places.
    transform FILE: With --prior: where its positions are in VOLUME; 4 x 4 numbers in RAS mm, or an ITK .tfm.
    space: Coordinates of --box, --point, --line, --box3d and --range: array indices, or millimetres.

    Processing
    ----------
    axis: Plane of the slices, or array axis.
    window W,L|PRESET: Intensity window: width and level, or abdomen, lung, brain, mediastinum, bone, auto.
    fill_between: Segment only the slices between prompted ones, as --keep every:N and --keep ends always do.
    range A:B: First and last slice to segment, counted as K of a box; either may be left out. With
        --continue, only objects with new prompts are segmented again.
    memory: Memory bank: the most recent slices, or MedSAM-2's self-sorting bank.
    no_overlap: Where tracking finds two objects, the one with the higher logit gets the voxel.
    zoom: Crop the model's input to the object.
    """

    context: typer.Context
    volume: Path
    out: Out
    model: str = "embedded"
    box: list[str] | None = None
    point: list[str] | None = None
    mask: list[str] | None = None
    line: list[str] | None = None
    box3d: list[str] | None = None
    keep: str = "all"
    prompts: Path | None = None
    continued: Annotated[Path | None, typer.Option("--continue")] = None
    like: list[str] | None = None
    prior: Path | None = None
    transform: Path | None = None
    changes: Path | None = None
    object: list[str] | None = None
    axis: AxisName = "axial"
    space: Literal["ijk", "ras", "lps"] = "ijk"
    window: str = "auto"
    fill_between: bool = False
    range: str | None = None
    memory: Literal["recent", "self-sorting"] = "recent"
    no_overlap: bool = False
    zoom: Literal["auto", "off"] = "auto"
    device: str = "auto"
    precision: str = "auto"
    config: str | None = None
    image_size: int | None = None
    series: str | None = None
    irregular: WhenIrregular = "refuse"
    picture: Path | None = None
    probabilities: Path | None = None
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Check everything that is quick to check, segment, write the files, and report."""
        started = time.perf_counter()
        from medsam2_core import atomic
        from medsam2_core.imaging.scans import read_scan
        from medsam2_core.prompts.text import mask_file

        outputs = Outputs(self.out, self.picture, self.probabilities, self.overwrite)
        # The values of box, point, mask and object are taken from here: in the order they were given.
        given = options_in_order(self.context)
        masks = [mask_file(text)[0] for option, text in given if option == "mask"]
        others, read = self._other_scans(), (self.prompts, self.continued, self.model, self.config)
        with atomic.protect(self.volume, *masks, *read, *others.paths):
            outputs.check()
            others.check(("--out", self.out), ("--picture", self.picture))
            check_settings(self.model, self.device, self.precision, self.window)
            volume, of_scan = read_scan(self.volume, self.series, self.irregular)
            outputs.check(volume.geometry)
            earlier, settings = self._earlier(volume)
            prompts = settings._prompts(given, volume, earlier)
            session, segmentation, notes = settings._segment(volume, prompts, earlier, others)
            notes += of_scan
            notes += outputs.write(session, segmentation, session.prompts)
            changes = others.changes(segmentation)
        from medsam2_core.session.object_facts import axis_stack, diameter_facts, object_facts

        facts = {
            "volume": str(self.volume),
            **outputs.facts,
            "model": session.model.name,
            "slices": session.stack.key,
            "window": session.window.to_dict(),
            "objects": [
                object_facts(segmentation, name, session)
                | {"millilitres": millilitres(segmentation, name)}
                | diameter_facts(segmentation, name, prompts.lines, axis_stack(session))
                for name in session.object_names
            ],
            "confidence_is_calibrated": False,
            "changes": changes,
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": peak_memory_mb(),
        }
        report(facts, notes, _print, as_json=self.as_json)

    def _other_scans(self) -> OtherScans:
        from medsam2_core.cli.earlier_scans import OtherScans

        pairs = tuple((Path(scan), Path(labels)) for scan, labels in pairs_given(self.context, "like"))
        return OtherScans(pairs, self.prior, self.transform, self.changes, self.overwrite)

    def _earlier(self, volume: Volume) -> tuple[EarlierResult | None, Segment]:
        """Return the result to correct, and this command with its settings where none are given."""
        if self.continued is None:
            return None, self
        from medsam2_core.session.earlier import EarlierResult

        earlier = EarlierResult.read(self.continued, volume.geometry)
        stored = {name: value for name, value in earlier.settings.items() if not is_given(self.context, name)}
        if is_given(self.context, "model"):
            stored.pop("image_size", None)
        return earlier, replace(self, **stored)

    def _prompts(
        self, given: list[tuple[str, str]], volume: Volume, earlier: EarlierResult | None
    ) -> GivenPrompts:
        """Return the prompts, the range of slices, and the limits and diameters of objects."""
        from medsam2_core.imaging.geometry import Space
        from medsam2_core.imaging.slices import AxisStack
        from medsam2_core.prompts import PromptSet
        from medsam2_core.prompts import text as words
        from medsam2_core.prompts.shapes import kept_slices
        from medsam2_core.prompts.slice_prompts import validate

        kept_slices([], self.keep)
        if self.keep != "all" and not self.mask:
            raise PromptError(f"--keep {self.keep} is of use with --mask only", code="needs-mask")
        stack = AxisStack(volume, self.axis)
        space = words.PromptSpace(stack, Space.named(self.space))
        from_file = None
        if self.prompts is not None:
            from medsam2_core.session.earlier import prompts_in  # loads torch, too

            from_file = prompts_in(self.prompts, volume.geometry)
        known = () if earlier is None else earlier.prompts.names
        names = known or (() if from_file is None else from_file.names)
        limits, lines = words.limits_of(given, names, space), words.lines_of(given, names, space)
        if not given and from_file is None and earlier is None and (self.like or self.prior):
            prompts = PromptSet()
        else:
            prompts = words.collect_prompts(given, from_file, space, known, self.keep)
        validate(prompts, stack)
        slices = words.parse_range(self.range, space)
        words.check_in_range(prompts, slices, stack, limits)
        spans = _spans(prompts, earlier, stack)
        limits = self._limits(spans, limits, earlier)
        if self.keep != "all":  # the ends of the mask are those of the object
            masked = [name for name, option, _ in words.assigned(given, names) if option == "mask"]
            limits |= {name: spans[name] for name in masked if spans[name][0] < spans[name][1]}
        return words.GivenPrompts(prompts, slices, limits, lines)

    def _segment(
        self,
        volume: Volume,
        given: GivenPrompts,
        earlier: EarlierResult | None,
        others: OtherScans,
    ) -> tuple[Session, Segmentation, list[Note]]:
        from medsam2_core.engine.devices import choose_device
        from medsam2_core.session.session import Session  # only now: torch takes seconds to load
        from medsam2_core.worker.system import check_memory

        device, size = choose_device(self.device), volume.voxels_kji.nbytes
        if text := check_memory(self.model, device, size, self.image_size):
            warn(text)
        session = Session.open(
            volume, self.model, axis=self.axis, window=self.window, memory=self.memory, zoom=self.zoom,
            device=self.device, precision=self.precision, config=self.config, image_size=self.image_size,
            probabilities=self.probabilities is not None,
        )  # fmt: skip
        slices = given.slices
        notes = []
        if earlier is not None:
            earlier.restore_in(session, given.limits)
            notes = [note for note in [earlier.weights_note(session)] if note is not None]
            notes += earlier.new_object_notes(given.prompts)
        session.apply(given.prompts)
        notes += others.find_in(session, self.window, slices)
        limits = {**self._limits(session.prompted_spans(), {}, None), **given.limits}
        overlap = not self.no_overlap and (earlier is None or earlier.overlap)
        names = list(session.tracker.prompted_ids)
        if earlier is not None and slices != (None, None):  # else only what has changed, anyway
            old = set(earlier.prompts.names) - set(given.prompts.names)
            names = [name for name in names if name not in old]
        if names:
            propagate(session, slices, limits, overlap, names)
        made = session.segmentation()
        if drawn := self._drawn(earlier):
            made = replace(made, provenance={**made.provenance, "drawn": drawn})
        return session, made if earlier is None else earlier.described(made), notes

    def _drawn(self, earlier: EarlierResult | None) -> list[str]:
        """Return the options that made prompts of other things, also of the earlier result."""
        before = [] if earlier is None else earlier.segmentation.provenance.get("drawn", [])
        given = {
            "line": bool(self.line), "box3d": bool(self.box3d),
            "fill-between": self.fill_between or self.keep != "all",
            f"keep {self.keep}": self.keep != "all",
        }  # fmt: skip
        known = before if isinstance(before, list) else []
        return list(dict.fromkeys([*known, *(option for option, is_used in given.items() if is_used)]))

    def _limits(
        self,
        spans: Mapping[str, tuple[int, int]],
        of_boxes: Mapping[str, tuple[int, int]],
        earlier: EarlierResult | None,
    ) -> dict[str, tuple[int, int]]:
        """Return the ranges of objects that have one of their own, by the first and last prompted slice of
        each object.

        Those of an earlier result still hold, as far as no further prompt lies beyond them.
        """
        limits = dict(of_boxes)
        for name, (first, last) in (earlier.limits if earlier is not None else {}).items():
            low, high = spans.get(name, (first, last))
            limits.setdefault(name, (min(first, low), max(last, high)))
        if not self.fill_between:
            return limits
        for name, (first, last) in spans.items():
            if first == last:
                raise PromptError(
                    f"--fill-between: object {name!r} has prompts on one slice only, nothing lies between",
                    code="nothing-between", object=name,
                )  # fmt: skip
        return {**limits, **spans}


def _spans(prompts: PromptSet, earlier: EarlierResult | None, stack: AxisStack) -> dict[str, tuple[int, int]]:
    """Return the first and last slice of each object's prompts, with those of an earlier result."""
    from medsam2_core.prompts.slice_prompts import by_slice

    slices: dict[str, set[int]] = {}
    for known in (prompts,) if earlier is None else (prompts, earlier.prompts):
        for name, given in known:
            slices.setdefault(name, set()).update(by_slice(given, stack))
    return {name: (min(found), max(found)) for name, found in slices.items() if found}


def _print(facts: dict[str, Any]) -> None:
    rows = [
        (
            item["name"],
            volume_text(item["millilitres"]),
            f"{item['voxels']} voxels",
            "slices {} to {}".format(*item["slices"]) if item["slices"] else "nothing found",
            "" if item["confidence"] is None else f"confidence {item['confidence']:.2f}{UNCALIBRATED}",
        )
        for item in facts["objects"]
    ]
    print_table(rows)
    for one in facts["objects"]:
        unit = "pixels" if "drawn_pixels" in one else "mm"
        if one[f"drawn_{unit}"]:
            found, drawn = (
                " x ".join(f"{length:.1f}" for length in one[f"{part}_{unit}"])
                for part in ("diameters", "drawn")
            )
            print(f"{one['name']}: diameters {found or 'none'} {unit}, drawn {drawn} {unit}")
    for one in facts["changes"] or []:
        grown = one["change_percent"]["longest_diameter_mm"]
        length = "" if grown is None or one["state"] != "present" else f", longest diameter {grown:+.0f} %"
        print(f"{one['object']}: {one['state']}{length}")
    memory = f", at most {facts['peak_memory_mb']:.0f} MB of memory" if facts["peak_memory_mb"] else ""
    print(f"{facts['out']}: written after {facts['seconds']:.1f} s{memory}")
    Outputs.print_extra(facts)
