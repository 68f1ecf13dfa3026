"""Which images and labels to measure on: one pair, or a table of many."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam2_core.atomic import reason
from medsam2_core.errors import EvaluationError, GeometryError
from medsam2_core.evaluation.simulated_user import largest_piece
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.imaging.volume import Volume

COLUMNS = ("row", "image", "labels", "axis", "window")


@dataclass(frozen=True)
class Case:
    """An image with its label map, not yet read.

    Attributes
    ----------
    row
        Name under which results are averaged.
    """

    row: str
    image: Path
    labels: Path
    axis: str = "axial"
    window: str = "auto"


@dataclass(frozen=True)
class MeasuredObject:
    """One object of a case: one label, or the largest connected piece of it."""

    case: Case
    label: int
    truth_kji: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """Short name for tables: the file and the label."""
        return f"{self.case.image.name}:{self.label}"


def read_table(path: str | Path, data: str | Path | None = None) -> list[Case]:
    """Read a tab-separated table of cases.

    Columns: row, image, labels and, if wanted, axis and window. ``image`` may hold a ``*``; the labels'
    file then follows by replacing in ``labels`` the same ``*``.

    Parameters
    ----------
    data
        Folder that file names are relative to; the table's own folder by default.

    Raises
    ------
    EvaluationError
        If a column or a file is missing.
    """
    path = Path(path)
    folder = Path(data) if data else path.parent
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"the table of cases {path} cannot be read: {reason(error)}"
        raise EvaluationError(message, code="cases-unreadable", path=str(path)) from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    cases = []
    try:
        entries = list(csv.DictReader(lines, delimiter="\t"))
    except csv.Error as error:
        message = f"{path} is not a table: {error}"
        raise EvaluationError(message, code="cases-not-a-table", path=str(path)) from error
    for entry in entries:
        missing = [column for column in COLUMNS[:3] if not entry.get(column)]
        if missing:
            message = f"{path}: a line lacks {', '.join(missing)}; columns are {', '.join(COLUMNS)}"
            raise EvaluationError(message, code="case-incomplete", path=str(path), missing=missing)
        axis, window = entry.get("axis") or Case.axis, entry.get("window") or Case.window
        cases += [
            Case(entry["row"], image, labels, axis, window)
            for image, labels in _pairs(folder, entry["image"], entry["labels"])
        ]
    if not cases:
        raise EvaluationError(f"{path} names no case", code="no-case", path=str(path))
    return cases


def only(cases: Sequence[Case], rows: Sequence[str] = (), most: int | None = None) -> list[Case]:
    """Return the cases of some rows, of each at most so many; EvaluationError ``unknown-row``."""
    known = list(dict.fromkeys(case.row for case in cases))
    if unknown := [row for row in rows if row not in known]:
        message = f"--row {unknown[0]!r} is not in the table, which has {', '.join(known)}"
        raise EvaluationError(message, code="unknown-row", row=unknown[0], known=known)
    kept, counts = [], dict.fromkeys(known, 0)
    for case in cases:
        if (not rows or case.row in rows) and (most is None or counts[case.row] < most):
            counts[case.row] += 1
            kept.append(case)
    return kept


def objects_of(
    case: Case, volume: Volume, smallest: int = 30, whole: bool = False
) -> Iterator[MeasuredObject]:
    """Yield the objects of a case, label by label: the largest piece of each, or the ``whole`` label.

    Those of fewer than ``smallest`` voxels are left out.

    Raises
    ------
    EvaluationError
        If image and labels do not lie on one grid.
    """
    try:
        voxels = read_segmentation(case.labels).on_grid(volume.geometry).labels_kji()
    except GeometryError as error:
        raise EvaluationError(
            f"{case.labels} and {case.image}: {error}",
            code="labels-on-another-grid", labels=str(case.labels), image=str(case.image),
        ) from error  # fmt: skip
    for label in np.unique(voxels):
        if label == 0:
            continue
        truth = voxels == label if whole else largest_piece(voxels == label)
        if truth.sum() >= smallest:
            yield MeasuredObject(case, int(label), truth)


def _pairs(folder: Path, image: str, labels: str) -> Iterator[tuple[Path, Path]]:
    if "*" not in image:
        found = [("", folder / image)]
    else:
        if image.count("*") > 1:
            message = f"{image}: one * can be used, in the name of the file"
            raise EvaluationError(message, code="pattern", pattern=image)
        before, after = image.split("*")
        prefix = len(str(folder / before)) if before and not before.endswith("/") else None
        found = []
        for path in sorted((folder / image).parent.glob(Path(image).name)):
            start = prefix if prefix is not None else len(str(path.parent)) + 1
            found.append((str(path)[start : len(str(path)) - len(after)], path))
    for star, path in found:
        beside = folder / labels.replace("*", star)
        for file in (path, beside):
            if not file.exists():
                message = f"{file} does not exist: is --data the folder the table was made for?"
                raise EvaluationError(message, code="case-missing", path=str(file))
        yield path, beside
    if not found:
        message = f"no file matches {folder / image}: is --data the folder the table was made for?"
        raise EvaluationError(message, code="case-missing", path=str(folder / image))
