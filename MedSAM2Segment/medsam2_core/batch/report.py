"""A cohort's results as one table and one page: failures with their reason, then cases, the worst first."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam2_core import atomic
from medsam2_core.batch import cases as names
from medsam2_core.batch.cases import DONE, FAILED, Case, case_folder
from medsam2_core.batch.inputs import without_query
from medsam2_core.batch.journal import Journal
from medsam2_core.export.contact_sheet import figure, write_page
from medsam2_core.export.measurement_files import harmless
from medsam2_core.imaging.segmentation import default_colour

_COLUMNS = (
    "case", "image", "series", "state", "object", "voxels", "volume_ml", "longest_diameter_mm",
    "perpendicular_diameter_mm", "confidence", "least_confident_slice", "seconds", "segmentation",
    "error_code", "error",
)  # fmt: skip
_OF_OBJECTS = _COLUMNS[5:11]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes
    ----------
    state
        ``done``, ``failed``, or ``waiting``.
    facts, error
        Of a case that is done, or that failed.
    seconds
        From the beginning of its reading to the end of its writing.
    """

    case: Case
    state: str
    facts: dict[str, Any]
    error: dict[str, Any]
    seconds: float | None = None

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What is known of its objects."""
        return list(self.facts.get("objects", ()))

    @property
    def confidence(self) -> float:
        """That of the object with the least; 0 where one was not found, or there is none."""
        return min((one["confidence"] or 0.0 for one in self.objects), default=0.0)

    @property
    def rank(self) -> tuple[float, str]:
        """Sorts the worst first."""
        return self.confidence, self.case.name


def results_of(journal: Journal, cases: Sequence[Case]) -> list[Result]:
    """Return what became of cases, in their order."""
    known = {entry.name: entry for entry in journal}
    found = []
    for case in cases:
        entry = known.get(case.name)
        state = entry.state if entry is not None and entry.state in (DONE, FAILED) else "waiting"
        outcome = entry.outcome if entry is not None else {}
        facts, error = (outcome.get(name) or {} for name in ("facts", "error"))
        found.append(Result(case, state, facts, error, outcome.get("seconds")))
    return found


def write_table(results: Sequence[Result], folder: Path) -> Path:
    """Write one line an object, or a case without any; UTF-8, as spreadsheets know it."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _COLUMNS, restval="")
    writer.writeheader()
    for result in results:
        writer.writerows(_lines(result))
    with atomic.new_file(folder / names.TABLE, overwrite=True) as file:
        file.write(stream.getvalue().encode("utf-8-sig", "replace"))
    return folder / names.TABLE


def _lines(result: Result) -> Iterator[dict[str, Any]]:
    case, error = result.case, result.error
    line: dict[str, Any] = {
        "case": harmless(case.name), "image": harmless(without_query(case.image)),
        "series": harmless(case.series),
        "state": result.state, "seconds": "" if result.seconds is None else result.seconds,
        "error_code": error.get("code", ""), "error": harmless(error.get("message", "")),
    }  # fmt: skip
    if result.state == DONE:
        line["segmentation"] = f"{names.CASES}/{case.folder}/{names.SEGMENTATION}"
    for one in result.objects or [{}]:
        known = {name: "" if one.get(name) is None else one[name] for name in _OF_OBJECTS}
        yield {**line, **known, "object": harmless(one.get("name", ""))}


def write_report(results: Sequence[Result], folder: Path, title: str) -> Path:
    """Write the page, with everything in it; pictures are read one by one."""
    done = sorted((one for one in results if one.state == DONE), key=lambda one: one.rank)
    failed = [one for one in results if one.state == FAILED]
    waiting = sum(one.state not in (DONE, FAILED) for one in results)
    told = f"{len(done)} done, {len(failed)} failed" + (f", {waiting} not done yet" if waiting else "")
    above = f"<p>{told}. The least confident first; confidence is not calibrated: check.</p>"
    if failed:
        lines = "".join(
            f"<tr><td>{html.escape(one.case.name)}</td><td>{html.escape(one.error.get('message', ''))}"
            f"</td><td>{html.escape(one.error.get('code', ''))}</td></tr>"
            for one in failed
        )
        above += f"<h2>Failed</h2><table>{lines}</table>"
    write_page((_figure(one, folder) for one in done), folder / names.REPORT, title, above, overwrite=True)
    return folder / names.REPORT


def _figure(result: Result, folder: Path) -> str:
    try:
        jpeg = (case_folder(folder, result.case) / names.THUMBNAIL).read_bytes()
    except OSError:
        jpeg = b""
    lines = [
        (one["name"], tuple(one.get("colour_rgb") or default_colour(number)), _note(one))
        for number, one in enumerate(result.objects)
    ]
    return figure(result.case.name, jpeg, lines)


def _note(one: dict[str, Any]) -> str:
    if not one["voxels"]:
        return "not found"
    confidence = "" if one["confidence"] is None else f"{one['confidence']:.2f}"
    volume = "" if one["volume_ml"] is None else f"{one['volume_ml']:.3g} ml"
    return ", ".join(filter(None, (confidence, volume)))
