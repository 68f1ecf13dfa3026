"""A cohort's results as one table and one page: failures with their reason, then cases, the worst first."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medsam2_core import atomic
from medsam2_core.batch import cases as names
from medsam2_core.batch.cases import DONE, FAILED, WAITING, Case, case_folder, least_confidence
from medsam2_core.batch.inputs import without_query
from medsam2_core.batch.journal import Entry, Journal
from medsam2_core.export.contact_sheet import SheetEntry, write_contact_sheet
from medsam2_core.export.measurement_files import harmless

_COLUMNS = (
    "case", "image", "series", "state", "object", "voxels", "volume_ml", "longest_diameter_mm",
    "perpendicular_diameter_mm", "confidence", "least_confident_slice", "seconds", "segmentation",
    "error_code", "error",
)  # fmt: skip
_OF_OBJECTS = _COLUMNS[5:11]


#: A case, and what is known of it.
Result = tuple[Case, Entry]


def results_of(journal: Journal, cases: Sequence[Case]) -> list[Result]:
    """Return what became of cases, in their order."""
    known = {entry.name: entry for entry in journal}
    return [(case, known.get(case.name, Entry(case.name))) for case in cases]


def write_table(results: Sequence[Result], folder: Path) -> Path:
    """Write one line an object, or a case without any; UTF-8, as spreadsheets know it."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _COLUMNS, restval="")
    writer.writeheader()
    for case, entry in results:
        writer.writerows(_lines(case, entry))
    with atomic.new_file(folder / names.TABLE, overwrite=True) as file:
        file.write(stream.getvalue().encode("utf-8-sig", "replace"))
    return folder / names.TABLE


def _lines(case: Case, entry: Entry) -> Iterator[dict[str, Any]]:
    line: dict[str, Any] = {
        "case": harmless(case.name), "image": harmless(without_query(case.image)),
        "series": harmless(case.series), "state": _state(entry), "seconds": entry.outcome.get("seconds"),
        "error_code": entry.error.get("code", ""), "error": harmless(entry.error.get("message", "")),
    }  # fmt: skip
    if entry.state == DONE:
        line["segmentation"] = f"{names.CASES}/{case.folder}/{names.SEGMENTATION}"
    for one in entry.objects or [{}]:
        known = {name: one.get(name) for name in _OF_OBJECTS}  # an empty cell for None
        yield {**line, **known, "object": harmless(one.get("name", ""))}


def _state(entry: Entry) -> str:
    return entry.state if entry.state in (DONE, FAILED) else WAITING


def write_report(results: Sequence[Result], folder: Path, title: str) -> Path:
    """Write the page, with everything in it; pictures are read one by one."""
    counts = Counter(_state(entry) for _, entry in results)
    told = f"{counts[DONE]} done, {counts[FAILED]} failed"
    told += f", {counts[WAITING]} not done yet" if counts[WAITING] else ""
    above = f"<p>{told}. The least confident first; confidence is not calibrated: check.</p>"
    lines = "".join(
        f"<tr><td>{html.escape(case.name)}</td><td>{html.escape(entry.error.get('message', ''))}"
        f"</td><td>{html.escape(entry.error.get('code', ''))}</td></tr>"
        for case, entry in results
        if entry.state == FAILED
    )
    if lines:
        above += f"<h2>Failed</h2><table>{lines}</table>"
    done = [(case, entry) for case, entry in results if entry.state == DONE]
    done.sort(key=lambda one: (least_confidence(one[1].objects), one[0].name))
    entries = (_entry(case, entry, folder) for case, entry in done)
    write_contact_sheet(entries, folder / names.REPORT, title, above, overwrite=True)
    return folder / names.REPORT


def _entry(case: Case, entry: Entry, folder: Path) -> SheetEntry:
    try:
        jpeg = (case_folder(folder, case) / names.THUMBNAIL).read_bytes()
    except OSError:
        jpeg = b""
    return SheetEntry(
        case.name, jpeg, [(one["name"], tuple(one["colour_rgb"]), _note(one)) for one in entry.objects]
    )


def _note(one: dict[str, Any]) -> str:
    if not one["voxels"]:
        return "not found"
    confidence = "" if one["confidence"] is None else f"{one['confidence']:.2f}"
    volume = "" if one["volume_ml"] is None else f"{one['volume_ml']:.3g} ml"
    return ", ".join(filter(None, (confidence, volume)))
