"""Puts the figures of `medsam2 evaluate` into the README and the model card, and draws the README's plot.

    medsam2 evaluate --cases Testing/data/benchmark.tsv --data FOLDER --out figures.json
    python Resources/docs/make_figures.py figures.json [MORE.json ...]

Rows have the names of `benchmark.tsv`; those that were not measured stay as they are.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MedSAM2Segment"))

from medsam2_core.evaluation.report import RowMeans, plot  # noqa: E402

PAGES = ("README.md", "MedSAM2Segment/medsam2_core/engine/weights/embedded.md")


def line(row: RowMeans) -> str:
    """Return a row of the table: name, objects, baseline, one click, one box, corrections."""
    box, *corrected = (f"{value:.3f}" for value in row.dice)
    cells = [row.row, str(row.objects), f"{row.baseline:.3f}", f"{row.click:.3f}", f"**{box}**", *corrected]
    return "| " + " | ".join(cells) + " |"


def replaced(page: str, rows: list[RowMeans]) -> str:
    """Return a page with the figures of `rows` in its table."""
    for row in rows:
        pattern = re.compile(rf"^\| {re.escape(row.row)} \| \d.*$", flags=re.MULTILINE)
        page, found = pattern.subn(lambda _, row=row: line(row), page)
        if found != 1:
            raise SystemExit(f"{found} rows named {row.row!r}: one is needed")
    return page


def main(files: list[str]) -> None:
    """Replace the rows of all files; the plot needs all rows of the README's table."""
    rows = [RowMeans(**row) for file in files for row in json.loads(Path(file).read_text())["rows"]]
    for name in PAGES:
        page = ROOT / name
        page.write_text(replaced(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    readme = (ROOT / PAGES[0]).read_text(encoding="utf-8")
    table = re.findall(r"^\| ([^|]+) \| \d+ \| 0\.\d", readme, re.MULTILINE)
    by_name = {row.row: row for row in rows}
    if missing := [name for name in table if name not in by_name]:
        raise SystemExit(
            f"dice.png and these rows are as before, of other weights perhaps: {', '.join(missing)}"
        )
    plot(ROOT / "Resources/docs/figures/dice.png", [by_name[name] for name in table])


if __name__ == "__main__":
    main(sys.argv[1:])
