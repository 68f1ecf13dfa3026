"""`medsam2 replay`: make a result again from the prompts it has stored, and compare."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsam2_core.cli.console import ExitCode, peak_memory_mb, print_table, propagate, report
from medsam2_core.cli.inputs import check_settings
from medsam2_core.cli.options import AsJson, WhenIrregular
from medsam2_core.errors import Note, VolumeError

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.volume import Volume
    from medsam2_core.session.earlier import EarlierResult
    from medsam2_core.session.session import Session

# Objects that are tracked at the same time are decoded together: that changes the last bits of logits, and a
# pixel here and there.
_SAME_DICE = 0.999


@dataclass(frozen=True)
class Replay:
    """Make a result of `medsam2 segment` again from its stored prompts and settings, and compare the masks.

    The same scan, prompts, weights, device and number of threads give the same masks up to rounding, which
    depends on the objects that were propagated together, unless the prompts were found by a model. The exit
    code is 2 when an object differs: Dice below .999.

    Options
    -------
    result: A .seg.nrrd of `medsam2 segment`.
    volume: The scan it was made from.
    model: Name or checkpoint file of the model; by default the stored name.
    """

    result: Path
    volume: Path
    model: str | None = None
    config: str | None = None
    device: str = "auto"
    series: str | None = None
    irregular: WhenIrregular = "refuse"
    as_json: AsJson = False

    def run(self) -> None:
        """Segment again, and report how far the masks agree."""
        started = time.perf_counter()
        from medsam2_core.imaging.scans import read_scan
        from medsam2_core.session.earlier import EarlierResult

        check_settings(self.model, self.device, "auto")
        volume, of_scan = read_scan(self.volume, self.series, self.irregular)
        earlier = EarlierResult.read(self.result, volume.geometry)
        if "prompted_images" in earlier.segmentation.provenance:
            message = f"{self.result} is one mask of an image set: run `medsam2 set` with its prompts again"
            raise VolumeError(message, code="result-of-a-set", path=str(self.result))
        session = self._segment(volume, earlier)
        again = session.segmentation()
        objects = [_compared(earlier.segmentation, again, name) for name in earlier.prompts.names]
        facts = {
            "result": str(self.result),
            "volume": str(self.volume),
            "model": session.model.name,
            "weights_sha256": session.model.weights_sha256,
            "same": all(one["same"] for one in objects),
            "identical": all(one["identical"] for one in objects),
            "objects": objects,
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": peak_memory_mb(),
        }
        report(facts, of_scan + _notes(earlier, session), _print, as_json=self.as_json)
        if not facts["same"]:
            raise typer.Exit(ExitCode.BAD_INPUT)

    def _segment(self, volume: Volume, earlier: EarlierResult) -> Session:
        from medsam2_core.session.session import Session

        settings = {**earlier.settings, **({} if self.model is None else {"model": self.model})}
        if self.model is not None:  # the stored size is that of the other model
            settings.pop("image_size", None)
        session = Session.open(volume, device=self.device, config=self.config, **settings)
        session.apply(earlier.prompts)
        propagate(session, earlier.slices, earlier.limits, earlier.overlap)
        return session


def _compared(before: Segmentation, after: Segmentation, name: str) -> dict[str, Any]:
    if name not in before.names:
        message = f"the stored prompts are for {name!r}, but there is no such segment: was it renamed?"
        raise VolumeError(message, code="segment-missing", object=name, known=list(before.names))
    counts = [before[name].voxel_count, after[name].voxel_count]
    shared = before[name].overlap_with(after[name])
    dice = 2 * shared / sum(counts) if sum(counts) else 1.0
    return {
        "name": name,
        "same": dice >= _SAME_DICE,
        "identical": shared == counts[0] == counts[1],
        "dice": round(dice, 4),
        "voxels": counts[0],
        "voxels_again": counts[1],
    }


def _notes(earlier: EarlierResult, session: Session) -> list[Note]:
    """Return why masks may differ although nothing is wrong."""
    known = earlier.segmentation.provenance
    notes = [note for note in [earlier.weights_note(session)] if note is not None]
    if known.get("continued"):
        text = "it was corrected in several steps (--continue): made at once, the masks may differ"
        notes.append(Note.info("made-in-steps", text))
    if known.get("found_by"):
        text = (
            "its objects were found by --like or --prior: prompted by the predicted boxes, masks may differ"
        )
        notes.append(Note.info("predicted-boxes", text))
    device = str(session.model.device)
    if known.get("device") not in (None, device):
        text = f"it was made on {known['device']}, this is {device}: rounding may differ"
        notes.append(Note("other-device", text, fields={"stored": str(known["device"]), "device": device}))
    return notes


def _print(facts: dict[str, Any]) -> None:
    rows = []
    for one in facts["objects"]:
        text = "the same up to rounding" if one["same"] else "differs"
        text = f"{text}: {one['voxels_again']} now, Dice {one['dice']:.4f}"
        text = "identical" if one["identical"] else text
        rows.append((one["name"], f"{one['voxels']} voxels", text))
    print_table(rows)
