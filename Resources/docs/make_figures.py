"""Puts the figures of `medsam2 evaluate` into the README and the model card, and draws the README's plot.

    medsam2 evaluate --cases Testing/data/benchmark.tsv --data FOLDER --out figures.json
    medsam2 evaluate --cases Testing/data/benchmark.tsv --data FOLDER --zoom off --corrections 0 -o off.json
    python Resources/docs/make_figures.py figures.json off.json [MORE.json ...]

Rows have the names of `benchmark.tsv`; those that were not measured stay as they are. The README's *What to
expect* and `--zoom auto` repeat figures of its table.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MedSAM2Segment"))

from medsam2_core.evaluation.report import RowMeans, plot  # noqa: E402

PAGES = ("README.md", "MedSAM2Segment/medsam2_core/engine/weights/embedded.md")
CLICK, BOX = 3, 4  # columns of the table
#: Which figures *What to expect* has, in its order: beginning of the row's name, and column.
EXPECTED = (
    *(("CT lesions", BOX), ("spinal cord", BOX), ("31 organs", BOX)),
    *(("CT lesions", CLICK), ("spinal cord", CLICK), ("31 organs", CLICK), ("heart muscle", BOX)),
)


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


def table(page: str) -> dict[str, list[str]]:
    """Return the cells of the README's table by the names of its rows, which are the first cells."""
    lines = re.findall(r"^\| ([^|]+ \| \d+ \| 0\.\d.*) \|$", page, re.MULTILINE)
    return {cells[0]: cells for cells in ([cell.strip(" *") for cell in one.split("|")] for one in lines)}


def repeated(page: str, unzoomed: Mapping[str, str]) -> str:
    """Return the README with the figures of its table wherever it repeats them.

    `unzoomed` are those of one box with `--zoom off`, by row; what it lacks stays.
    """
    cells = table(page)

    def figure(start: str, column: int) -> str:
        (found,) = (one for name, one in cells.items() if name.startswith(start))
        return found[column]

    about, begin, rest = page.partition("**What to expect.**")
    text, end, rest = rest.partition("The larger published")
    figures = iter(
        Decimal(figure(*one)).quantize(Decimal("0.01"), ROUND_HALF_UP).to_eng_string()[1:] for one in EXPECTED
    )
    text, count = re.subn(r"(?<!\d)\.\d\d", lambda found: next(figures, found[0]), text)
    heads = re.search(r"^\| \|((?: [a-zA-Z ]+\|)+)\n\|[-|]+\n\| `--zoom off` \|(.+)\|$", rest, re.MULTILINE)
    if count != len(EXPECTED) or heads is None:
        raise SystemExit(
            f"README: {count} figures in What to expect, {len(EXPECTED)} are needed; or no table of zooms"
        )
    names = [name.strip() for name in heads[1].strip("|").split("|")]
    before = [one.strip() for one in heads[2].split("|")]
    off = [
        next((value for row, value in unzoomed.items() if row.startswith(name)), known)
        for name, known in zip(names, before, strict=True)
    ]
    for zoom, values in (("off", off), ("auto", [figure(name, BOX) for name in names])):
        row = f"| `--zoom {zoom}` | {' | '.join(values)} |"
        rest = re.sub(rf"^\| `--zoom {zoom}` \|.*$", row, rest, count=1, flags=re.MULTILINE)
    return about + begin + text + end + rest


def main(files: list[str]) -> None:
    """Replace the rows of all files; the plot needs all rows of the README's table."""
    documents = [json.loads(Path(file).read_text()) for file in files]
    rows, unzoomed = [], {}
    for document in documents:
        found = [RowMeans(**row) for row in document["rows"]]
        if document["about"].get("zoom") == "off":
            unzoomed |= {row.row: f"{row.dice[0]:.3f}" for row in found}
        else:
            rows += found
    for name in PAGES:
        page = ROOT / name
        page.write_text(replaced(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    page = ROOT / PAGES[0]
    readme = repeated(page.read_text(encoding="utf-8"), unzoomed)
    page.write_text(readme, encoding="utf-8")
    names, by_name = list(table(readme)), {row.row: row for row in rows}
    if missing := [name for name in names if name not in by_name]:
        raise SystemExit(
            f"dice.png and these rows are as before, of other weights perhaps: {', '.join(missing)}"
        )
    picture = ROOT / "Resources/docs/figures/dice.png"
    plot(picture, [by_name[name] for name in names], overwrite=True)
    # A third of the size: the history keeps every version.
    Image.open(picture).convert("RGB").quantize(32, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
