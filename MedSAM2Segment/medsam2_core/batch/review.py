"""The queue of a cohort's cases to look at, the worst first, and what was decided. Needs no torch.

``review.json`` lies beside the results; accepted and corrected segmentations in ``review/``, where no later
run of `medsam2 batch` reaches them; ``accepted.csv`` lists what models can be trained on. Several people may
go through one queue: each change is made to what the file holds at that moment.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsam2_core import atomic
from medsam2_core.batch.cases import CASES, DONE, JOURNAL, SEGMENTATION, least_confidence, read_facts
from medsam2_core.batch.inputs import image_changed, is_url
from medsam2_core.batch.journal import Journal
from medsam2_core.errors import BatchError

_VERSION = 2
QUEUE, ACCEPTED_TABLE, CORRECTIONS = "review.json", "accepted.csv", "review"
ACCEPTED, CORRECTED, SKIPPED = "accepted", "corrected", "skipped"
_DECISIONS = ("", ACCEPTED, CORRECTED, SKIPPED)
_LOCK = ".review.lock"


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
        Of the request with all its files, and of the image: a case that was done again is looked at again.
    decision
        ``accepted``, ``corrected``, ``skipped``, or empty.
    labels
        Where the accepted or corrected segmentation is, from the results; else empty.
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
    labels: str = ""
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
        That which was accepted or corrected, if there is one.
    prompts
        As JSON in IJK.
    """

    image: Path | None
    slice_files: tuple[str, ...]
    segmentation: Path
    prompts: str


class ReviewQueue:
    """The queue of a folder of results of `medsam2 batch`.

    Raises
    ------
    BatchError
        ``no-results``; ``review-damaged``; those of :class:`Journal`.
    """

    def __init__(self, results: str | Path) -> None:
        self.results = Path(results)
        if not (self.results / CASES).is_dir():
            message = f"{self.results} has no folder cases: name the folder of results of `medsam2 batch`"
            raise BatchError(message, code="no-results", path=str(self.results))
        self._known = self._stored()  # as last read
        self.cases = _worst_first(_merged(one, self._known.get(one.case)) for one in self._done())
        # Their decisions are kept: they may only be unreadable at the moment.
        self._absent = self._known.keys() - {one.case for one in self.cases}

    def next(self) -> ReviewCase | None:
        """Return the worst case that nothing was decided about; None when there is none."""
        return next((one for one in self.cases if not one.decision), None)

    def counts(self) -> dict[str, int]:
        """Return how many cases were accepted, corrected and skipped, and how many wait."""
        counted = Counter(one.decision for one in self.cases)
        return {"waiting": counted[""], **{name: counted[name] for name in _DECISIONS[1:]}}

    def files(self, case: ReviewCase) -> ReviewFiles:
        """Return what is to be opened for a case.

        Raises
        ------
        BatchError
            ``case-damaged`` when its facts are gone; ``image-changed`` when its image is gone, or another.
        """
        own = self.results / CASES / case.folder
        known = read_facts(own)
        if known is None:
            message = f"the result of {case.case!r} is gone or damaged: run `medsam2 batch` again"
            raise BatchError(message, code="case-damaged", case=case.case)
        slices = tuple(dict.fromkeys(map(str, known.get("slice_files") or ())))
        if not is_url(case.image) and image_changed(known["inputs"], case.image, slices):
            message = f"{case.image} is gone, or not the image that was segmented: run `medsam2 batch` again"
            raise BatchError(message, code="image-changed", case=case.case, path=case.image)
        kept = self.results / case.labels
        return ReviewFiles(
            None if is_url(case.image) else Path(case.image),
            slices,
            kept if case.labels and kept.is_file() else own / SEGMENTATION,
            str(known.get("prompts") or ""),
        )

    def decide(
        self,
        name: str,
        decision: str,
        seconds: float = 0.0,
        clicks: int = 0,
        write: Callable[[Path], None] | None = None,
    ) -> None:
        """Note a decision about a case, keep its segmentation, and save the queue.

        What somebody else has accepted or corrected meanwhile stays, unless this is a correction. No
        segmentation that was kept before is replaced.

        Parameters
        ----------
        write
            Writes the corrected segmentation to a new file; for ``corrected``.

        Raises
        ------
        BatchError
            ``unknown-decision``, ``unknown-case``; ``no-correction`` for ``corrected`` without ``write``;
            ``case-changed`` when the case was done again since the queue was opened; ``case-damaged``.
        ExportError
            ``output-not-writable``, ``in-use``, and what ``write`` raises. Nothing has changed then.
        """
        if decision not in _DECISIONS:
            message = f"unknown decision {decision!r}: one of {', '.join(_DECISIONS[1:])}"
            raise BatchError(message, code="unknown-decision", decision=decision)
        seen = next((one for one in self.cases if one.case == name), None)
        if seen is None:
            raise BatchError(f"there is no case {name!r}", code="unknown-case", case=name)
        if decision == CORRECTED and write is None:
            message = f"there is no corrected segmentation of {name!r}: save it with the decision"
            raise BatchError(message, code="no-correction", case=name)
        with self._changing() as entries:
            now = entries[name]
            if now == seen or now.decision not in (ACCEPTED, CORRECTED) or decision == CORRECTED:
                labels = self._keep(seen, decision, write)
                entries[name] = replace(seen, decision=decision, labels=labels)
            entries[name] = replace(
                entries[name],
                seconds=round(now.seconds + max(0.0, seconds), 1),
                clicks=now.clicks + max(0, clicks),
            )

    def reset_skipped(self) -> None:
        """Put skipped cases back into the queue, and save it."""
        with self._changing() as entries:
            for name, one in entries.items():
                if one.decision == SKIPPED:
                    entries[name] = replace(one, decision="")

    def save(self) -> None:
        """Write the queue with the cases that were found, and the table of accepted cases."""
        with self._changing():
            pass

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ReviewCase]]:
        """Give all entries by case, to be changed; they are written when the block ends well. Others wait."""
        with atomic.locked(self.results / _LOCK), atomic.together():
            entries = self._stored()
            for one in self.cases:
                if one.case not in entries or entries[one.case] == self._known.get(one.case):
                    entries[one.case] = one  # unchanged on disk since it was read
            yield entries
            content = {"version": _VERSION, "cases": [asdict(one) for one in _worst_first(entries.values())]}
            with atomic.new_file(self.results / QUEUE, overwrite=True) as stream:
                stream.write(json.dumps(content, indent=1).encode())
            with atomic.new_file(self.results / ACCEPTED_TABLE, overwrite=True) as stream:
                stream.write(self._table(entries.values()).encode())
        self._known = dict(entries)
        self.cases = _worst_first(entries[one.case] for one in self.cases)

    def _keep(self, case: ReviewCase, decision: str, write: Callable[[Path], None] | None) -> str:
        """Keep the segmentation of a case in a new file; return where, or nothing when it is skipped."""
        if decision not in (ACCEPTED, CORRECTED):
            return ""
        self._check_unchanged(case, decision)
        atomic.make_folder(self.results / CORRECTIONS)
        count, labels = 1, f"{CORRECTIONS}/{case.folder}.seg.nrrd"
        while (self.results / labels).exists():
            count, labels = count + 1, f"{CORRECTIONS}/{case.folder}.{count + 1}.seg.nrrd"
        if write is not None and decision == CORRECTED:
            write(self.results / labels)
            return labels
        with (
            self.files(case).segmentation.open("rb") as source,
            atomic.new_file(self.results / labels, overwrite=False) as stream,
        ):
            shutil.copyfileobj(source, stream)
        return labels

    def _check_unchanged(self, case: ReviewCase, decision: str) -> None:
        """Refuse to accept what was not looked at; a correction need only be of the same image."""
        known = read_facts(self.results / CASES / case.folder)
        now = None if known is None else _case_of(case.folder, known)
        if now is not None and (
            now.content != case.content or (decision == ACCEPTED and now.signature != case.signature)
        ):
            message = (
                f"{case.case!r} was done again meanwhile: open the queue again, and look at the new result"
            )
            raise BatchError(message, code="case-changed", case=case.case)

    def _table(self, cases: Iterable[ReviewCase]) -> str:
        """Return the CSV that `medsam2 train auto` and `medsam2 train finetune` take."""
        stream = io.StringIO(newline="")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("image", "label", "series", "group"))
        for one in _worst_first(cases):
            if one.labels and one.case not in self._absent and not is_url(one.image):
                table.writerow((one.image, one.labels, one.series, one.case))
        return stream.getvalue()

    def _stored(self) -> dict[str, ReviewCase]:
        """Return the entries of the file by case."""
        path = self.results / QUEUE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["version"] != _VERSION:
                raise ValueError(f"version {stored['version']}")
            found = [ReviewCase(**one) for one in stored["cases"]]
            if any(one.decision not in _DECISIONS for one in found):
                raise ValueError("an unknown decision")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path} is damaged, or of another release ({error}): move it away, and review again"
            raise BatchError(message, code="review-damaged", path=str(path)) from error
        return {one.case: one for one in found}

    def _done(self) -> Iterator[ReviewCase]:
        """Yield the cases with a result; by its journal, those that have not failed since."""
        done: set[str] | None = None
        if (self.results / JOURNAL).is_file():
            with closing(Journal(self.results / JOURNAL, read_only=True)) as journal:
                done = {entry.name for entry in journal if entry.state == DONE}
        for folder in sorted((self.results / CASES).iterdir()):
            known = None if folder.name.startswith(".") else read_facts(folder)
            if known is not None and (done is None or known["case"]["name"] in done):
                yield _case_of(folder.name, known)


def _case_of(folder: str, known: dict[str, Any]) -> ReviewCase:
    """Return the case of a folder from its facts, undecided."""
    case = known["case"]
    # The hash, or of a URL what its store says: a file that was only copied has another time.
    files = {path: one.get("sha256") or one.get("state") for path, one in known["inputs"].items()}
    request = json.dumps([known["signature"], files], sort_keys=True, default=str).encode()
    return ReviewCase(
        case["name"], folder, case["image"], case["series"], least_confidence(known["facts"]["objects"]),
        hashlib.sha256(request).hexdigest(), str(files.get(case["image"]) or ""),
    )  # fmt: skip


def _worst_first(cases: Iterable[ReviewCase]) -> list[ReviewCase]:
    return sorted(cases, key=lambda one: (one.confidence, one.case))


def _merged(case: ReviewCase, known: ReviewCase | None) -> ReviewCase:
    """Return a case with what was decided before; a correction stays unless the image is another one."""
    if known is None or known.content != case.content:
        return case
    if known.decision != CORRECTED and known.signature != case.signature:
        return case
    return replace(
        case, decision=known.decision, labels=known.labels, seconds=known.seconds, clicks=known.clicks
    )
