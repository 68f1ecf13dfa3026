"""The queue of a cohort's cases to look at, the worst first, and what was decided. Standard library only.

``review.json`` lies beside the results; corrected segmentations in ``review/``, where no later run of
`medsam2 batch` reaches them; ``accepted.csv`` lists what models can be trained on.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsam2_core import atomic
from medsam2_core.errors import BatchError

_VERSION = 1
QUEUE, ACCEPTED_TABLE, CORRECTIONS = "review.json", "accepted.csv", "review"
ACCEPTED, CORRECTED, SKIPPED = "accepted", "corrected", "skipped"
_DECISIONS = ("", ACCEPTED, CORRECTED, SKIPPED)
_CASES, _FACTS, _SEGMENTATION = "cases", "case.json", "segmentation.seg.nrrd"


@dataclass(frozen=True)
class ReviewCase:
    """A case in the queue.

    Attributes
    ----------
    folder
        Name of its folder of results.
    confidence
        That of its least confident object; 0 where one was not found.
    signature, content
        Of the request and of the image: a case that was done again is looked at again.
    decision
        ``accepted``, ``corrected``, ``skipped``, or empty.
    seconds, clicks
        Time that it was open, and prompts that were added meanwhile.
    """

    case: str
    folder: str
    image: str
    series: str
    confidence: float
    signature: str
    content: str = ""
    decision: str = ""
    seconds: float = 0.0
    clicks: int = 0


@dataclass(frozen=True)
class ReviewFiles:
    """What a viewer opens.

    Attributes
    ----------
    image
        File, or folder of a DICOM series; None for a URL.
    slice_files
        Of a DICOM series: its files in order; else empty.
    segmentation
        The corrected one, if there is one.
    prompts
        As JSON in IJK.
    """

    image: Path | None
    slice_files: tuple[str, ...]
    segmentation: Path
    prompts: str


class ReviewQueue:
    """The queue of a folder of results.

    Parameters
    ----------
    results
        Folder of `medsam2 batch`.

    Raises
    ------
    BatchError
        ``no-results``; ``review-damaged``.
    """

    def __init__(self, results: str | Path) -> None:
        self.results = Path(results)
        if not (self.results / _CASES).is_dir():
            message = f"{self.results} has no folder cases: name the folder of results of `medsam2 batch`"
            raise BatchError(message, code="no-results", path=str(self.results))
        decided = {one.case: one for one in self._stored()}
        found = [_merged(one, decided.get(one.case)) for one in self._done()]
        self.cases = sorted(found, key=lambda one: (one.confidence, one.case))

    def next(self) -> ReviewCase | None:
        """Return the worst case that nothing was decided about; None when there is none."""
        return next((one for one in self.cases if not one.decision), None)

    def counts(self) -> dict[str, int]:
        """Return how many cases were accepted, corrected and skipped, and how many wait."""
        counted = Counter(one.decision for one in self.cases)
        return {"waiting": counted[""], **{name: counted[name] for name in _DECISIONS[1:]}}

    def files(self, case: ReviewCase) -> ReviewFiles:
        """Return what is to be opened for a case. BatchError ``case-damaged`` when its facts are gone."""
        known = self._facts(self.results / _CASES / case.folder)
        if known is None:
            message = f"the result of {case.case!r} is gone or damaged: run `medsam2 batch` again"
            raise BatchError(message, code="case-damaged", case=case.case)
        corrected = self.corrected_path(case)
        own = self.results / _CASES / case.folder / _SEGMENTATION
        return ReviewFiles(
            None if "://" in case.image else Path(case.image),
            tuple(map(str, known.get("slice_files") or ())),
            corrected if case.decision == CORRECTED and corrected.exists() else own,
            str(known.get("prompts") or ""),
        )

    def corrected_path(self, case: ReviewCase) -> Path:
        """Return where the corrected segmentation of a case belongs; the folder is made."""
        atomic.make_folder(self.results / CORRECTIONS)
        return self.results / CORRECTIONS / f"{case.folder}.seg.nrrd"

    def decide(self, name: str, decision: str, seconds: float = 0.0, clicks: int = 0) -> None:
        """Note a decision about a case, and save the queue.

        Raises
        ------
        BatchError
            ``unknown-decision``, ``unknown-case``; ``no-correction`` for ``corrected`` without its file.
        ExportError
            ``output-not-writable``.
        """
        if decision not in _DECISIONS:
            message = f"unknown decision {decision!r}: one of {', '.join(_DECISIONS[1:])}"
            raise BatchError(message, code="unknown-decision", decision=decision)
        place = next((n for n, one in enumerate(self.cases) if one.case == name), None)
        if place is None:
            raise BatchError(f"there is no case {name!r}", code="unknown-case", case=name)
        case = self.cases[place]
        if decision == CORRECTED and not self.corrected_path(case).is_file():
            message = f"{self.corrected_path(case)} is not there: save the corrected segmentation first"
            raise BatchError(message, code="no-correction", case=name)
        before = self.cases
        total = case.seconds + max(0.0, seconds), case.clicks + max(0, clicks)
        decided = replace(case, decision=decision, seconds=round(total[0], 1), clicks=total[1])
        self.cases = [*before[:place], decided, *before[place + 1 :]]
        try:
            self.save()
        except BaseException:
            self.cases = before
            raise

    def reset_skipped(self) -> None:
        """Put skipped cases back into the queue."""
        self.cases = [replace(one, decision="") if one.decision == SKIPPED else one for one in self.cases]

    def save(self) -> None:
        """Write the queue, and the table of accepted cases."""
        content = {"version": _VERSION, "cases": [asdict(one) for one in self.cases]}
        with atomic.together():
            with atomic.new_file(self.results / QUEUE, overwrite=True) as stream:
                stream.write(json.dumps(content, indent=1).encode())
            with atomic.new_file(self.results / ACCEPTED_TABLE, overwrite=True) as stream:
                stream.write(self._table().encode())

    def _table(self) -> str:
        """Return the CSV that `medsam2 train auto` and `medsam2 train finetune` take."""
        stream = io.StringIO(newline="")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("image", "label", "series", "group"))
        for one in self.cases:
            labels = {
                ACCEPTED: f"{_CASES}/{one.folder}/{_SEGMENTATION}",
                CORRECTED: f"{CORRECTIONS}/{one.folder}.seg.nrrd",
            }.get(one.decision)
            if labels is not None and "://" not in one.image:
                table.writerow((one.image, labels, one.series, one.case))
        return stream.getvalue()

    def _stored(self) -> list[ReviewCase]:
        path = self.results / QUEUE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["version"] != _VERSION:
                raise ValueError(f"version {stored['version']}")
            found = [ReviewCase(**one) for one in stored["cases"]]
            if any(one.decision not in _DECISIONS for one in found):
                raise ValueError("an unknown decision")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path} is damaged, or of another release ({error}): move it away, and review again"
            raise BatchError(message, code="review-damaged", path=str(path)) from error
        return found

    def _done(self) -> Iterator[ReviewCase]:
        for folder in sorted((self.results / _CASES).iterdir()):
            known = None if folder.name.startswith(".") else self._facts(folder)
            if known is None:
                continue
            case, objects = known["case"], known["facts"]["objects"]
            image = known["inputs"].get(case["image"]) or {}
            confidence = min((one["confidence"] or 0.0 for one in objects), default=0.0)
            yield ReviewCase(
                case["name"], folder.name, case["image"], case["series"], confidence, known["signature"],
                image.get("sha256") or str(image.get("state") or ""),
            )  # fmt: skip

    @staticmethod
    def _facts(folder: Path) -> dict[str, Any] | None:
        try:
            known = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            is_whole = known.keys() >= {"case", "facts", "inputs", "signature"}
        except (OSError, ValueError, AttributeError):
            return None
        return known if is_whole and (folder / _SEGMENTATION).is_file() else None


def _merged(case: ReviewCase, known: ReviewCase | None) -> ReviewCase:
    """Return a case with what was decided before; a correction stays unless the image is another one."""
    if known is None or known.content != case.content:
        return case
    if known.decision != CORRECTED and known.signature != case.signature:
        return case
    return replace(case, decision=known.decision, seconds=known.seconds, clicks=known.clicks)
