"""Cohorts: a CSV or a folder, checked as far as that is quick, before any work begins."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from medsam2_core.auto.fewshot.data import LABEL_ENDINGS, SUFFIXES, stem_of
from medsam2_core.batch.cases import Case, folder_name
from medsam2_core.batch.inputs import is_results, is_url, mask_place, name_in_url
from medsam2_core.errors import BatchError, MedSAM2Error, Note
from medsam2_core.imaging import dicom, pictures
from medsam2_core.imaging.segmentation_files import is_segmentation
from medsam2_core.prompts.prompt_set import PromptSet
from medsam2_core.prompts.text import UNNAMED, check_syntax, mask_file

#: Columns of a CSV, and those that `--list` prints.
COLUMNS = (
    "case", "image", "series", "object", "box", "point", "mask", "line", "box3d", "prompts", "auto",
    "classes", "like_scan", "like_segmentation",
)  # fmt: skip
_PROMPTS = ("box", "point", "mask", "line", "box3d")
_SEVERAL = ";"  # between values of one cell
_PROMPTS_ENDINGS = (".prompts.json", "_prompts.json")  # a plain .json may be a sidecar of BIDS
_VOLUMES = tuple(one for one in SUFFIXES if one != ".seg.nrrd" and one not in pictures.SUFFIXES)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line of a CSV, or a case of a folder (line 0)."""

    line: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


@dataclass
class Cohort:
    """Cases in order, and what the user should know of them."""

    cases: list[Case]
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class Defaults:
    """What cases without prompts of their own take."""

    auto: str = ""
    classes: str = ""
    like: tuple[tuple[str, str], ...] = ()


def read_cohort(
    source: str | Path,
    defaults: Defaults | None = None,
    results: Path | None = None,
    *,
    needs_prompts: bool = True,
    find_auto: Callable[[str], Any] | None = None,
) -> Cohort:
    """Read the cases of a CSV, or find those of a folder.

    Parameters
    ----------
    source
        A CSV with :data:`COLUMNS`, of which ``image`` is needed; paths are relative to it. Lines with one
        ``case``, or one ``image`` without it, are objects of one case. Or a folder: volumes, pictures and
        DICOM series in it and below, with prompts beside them (``NAME.prompts.json``).
    results
        Is passed over in a folder.
    needs_prompts
        Whether a case without any is a problem; it is none where cases are only listed.
    find_auto
        Raises MedSAM2Error for the name of an Auto model that there is not.

    Raises
    ------
    BatchError
        ``cohort-not-found``, ``cohort-unreadable``, ``no-cases``; ``cohort-problems``, whose field
        ``problems`` has all of them as (line, code, message).
    """
    source = Path(source).expanduser()
    problems: list[Problem] = []
    if source.is_dir():
        cohort = _from_folder(source, results)
    elif source.is_file():
        cohort = _from_csv(source, problems)
    else:
        message = f"{source}: no such CSV or folder"
        raise BatchError(message, code="cohort-not-found", path=str(source))
    complete = [_with_defaults(case, defaults or Defaults()) for case in cohort.cases]
    found = [problem for case in complete for problem in _checked(case)]
    problems += [one for one in found if needs_prompts or one.code != "no-prompt"]
    if find_auto is not None:
        problems += _unknown_models(complete, find_auto)
    of_folder: dict[str, Case] = {}
    for case in complete:
        other = of_folder.setdefault(case.folder.casefold(), case)
        if other is not case:
            names = f"{other.name!r} and {case.name!r}"
            message = f"the cases {names} cannot be told apart where capitals do not count: rename one"
            problems.append(Problem(case.line, "same-name", message))
    if problems:
        listed = sorted(set(problems), key=lambda one: (one.line, one.message))
        raise BatchError(
            f"{source}: {len(listed)} problems, nothing was begun: correct them, or take the lines out",
            code="cohort-problems", path=str(source),
            problems=[{"line": one.line, "code": one.code, "message": str(one)} for one in listed],
        )  # fmt: skip
    if not complete:
        message = f"{source} has no case: name a CSV with the column image, or a folder with scans"
        raise BatchError(message, code="no-cases", path=str(source))
    return replace(cohort, cases=complete)


def as_csv(cases: Iterable[Case]) -> str:
    """Return cases as a CSV that :func:`read_cohort` reads, a line an object."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in cases:
        of_case = {
            "case": case.name, "image": case.image, "series": case.series, "prompts": case.prompts,
            "auto": case.auto, "classes": case.classes,
        }  # fmt: skip
        objects: list[dict[str, str]] = []
        for option, text in case.given:
            if option == "object":
                objects.append({"object": text})
            else:
                known = objects[-1].get(option)
                objects[-1][option] = text if known is None else f"{known}{_SEVERAL}{text}"
        examples = [{"like_scan": scan, "like_segmentation": labels} for scan, labels in case.like]
        no_more: dict[str, str] = {}
        for prompts, example in zip_longest(objects or [no_more], examples, fillvalue=no_more):
            writer.writerow({**of_case, **prompts, **example})
    return stream.getvalue()


def _with_defaults(case: Case, defaults: Defaults) -> Case:
    if case.given or case.prompts or case.auto or case.like:
        return case
    classes = case.classes or defaults.classes
    return replace(case, auto=defaults.auto, classes=classes, like=defaults.like)


# CSV -------------------------------------------------------------------------------------------------------


def _from_csv(path: Path, problems: list[Problem]) -> Cohort:
    rows, unknown = _rows(path)
    found: dict[str, Case] = {}
    of_image: dict[tuple[str, str], str] = {}
    for line, row in rows:
        if None in row:
            problems.append(
                Problem(line, "too-many-cells", "more cells than columns: quote cells with commas")
            )
            continue
        cells = {name: (text or "").strip() for name, text in row.items()}
        if not any(cells.values()):
            continue
        if not cells.get("image"):
            problems.append(Problem(line, "no-image", "no image: name a file, a DICOM folder or a URL"))
            continue
        image = _place(path, cells["image"])
        series = cells.get("series", "")
        name = cells.get("case") or of_image.get((image, series)) or _name(path, cells["image"], series)
        of_image.setdefault((image, series), name)
        try:
            case = _case(path, name, image, line, cells)
        except MedSAM2Error as error:
            problems.append(Problem(line, error.code, str(error)))
            continue
        earlier = found.get(name)
        if earlier is None:
            found[name] = case
        elif (earlier.image, earlier.series) != (case.image, case.series):
            message = (
                f"case {name!r} has another image on line {earlier.line}: give each a name in the column case"
            )
            problems.append(Problem(line, "same-name", message))
        else:
            found[name] = _joined(earlier, case, problems)
    notes = []
    if unknown:
        text = f"{path.name}: columns that are not used: {', '.join(unknown)}"
        notes.append(Note.info("columns-not-used", text, columns=unknown))
    return Cohort(list(found.values()), notes)


def _rows(path: Path) -> tuple[list[tuple[int, dict[Any, Any]]], list[str]]:
    """Return (number of the line, cells) of all rows, and columns that mean nothing here."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{path} cannot be read as a CSV in UTF-8: {error}"
        raise BatchError(message, code="cohort-unreadable", path=str(path)) from error
    if "image" not in columns:
        message = f"{path} has the columns {', '.join(columns)[:200] or '(none)'}: one has to be called image"
        raise BatchError(message, code="no-image-column", path=str(path), columns=columns)
    if twice := sorted({name for name in columns if columns.count(name) > 1 and name in COLUMNS}):
        message = (
            f"{path} has the column {twice[0]} more than once: several values of a cell are divided by ;"
        )
        raise BatchError(message, code="column-twice", path=str(path), columns=twice)
    return rows, [name for name in columns if name not in COLUMNS]


def _case(path: Path, name: str, image: str, line: int, cells: dict[str, str]) -> Case:
    """Return the case of one line."""
    given: list[tuple[str, str]] = []
    for option in _PROMPTS:
        for text in filter(None, map(str.strip, cells.get(option, "").split(_SEVERAL))):
            check_syntax(option, text)
            given.append((option, _mask(path, text) if option == "mask" else text))
    named = cells.get("object", "")
    if named and not given:
        message = f"object {named!r} has no box, point, mask, line or box3d on this line"
        raise BatchError(message, code="object-without-prompt", object=named)
    if given:
        PromptSet().add_object(named or UNNAMED)
        given.insert(0, ("object", named or UNNAMED))
    like = cells.get("like_scan", ""), cells.get("like_segmentation", "")
    if any(like) and not all(like):
        message = "like_scan and like_segmentation go together: fill both, or none"
        raise BatchError(message, code="like-incomplete")
    prompts, auto = cells.get("prompts", ""), cells.get("auto", "")
    if auto and (path.parent / auto).is_file():
        auto = _place(path, auto)
    examples = ((_place(path, like[0]), _place(path, like[1])),) if all(like) else ()
    return Case(
        name, image, cells.get("series", ""), tuple(given), _place(path, prompts) if prompts else "",
        auto, cells.get("classes", ""), examples, line,
    )  # fmt: skip


def _joined(earlier: Case, other: Case, problems: list[Problem]) -> Case:
    """Return a case with the prompts of one more line."""
    merged: dict[str, str] = {}
    for name in ("prompts", "auto", "classes"):
        values = {getattr(one, name) for one in (earlier, other)} - {""}
        if len(values) > 1:
            message = f"case {earlier.name!r} has other {name} on line {earlier.line}: a case has one"
            problems.append(Problem(other.line, "two-values", message))
        merged[name] = next(iter(sorted(values)), "")
    if all(("object", UNNAMED) in case.given for case in (earlier, other)):
        message = (
            f"case {earlier.name!r} has several lines without an object: fill the column object, with one "
            "name where the prompts are those of one object"
        )
        problems.append(Problem(other.line, "object-unnamed", message))
    like = tuple(dict.fromkeys((*earlier.like, *other.like)))
    joined = replace(earlier, given=(*earlier.given, *other.given), like=like)
    return replace(joined, prompts=merged["prompts"], auto=merged["auto"], classes=merged["classes"])


def _place(csv_path: Path, text: str) -> str:
    """Return a path of a CSV as an absolute one; a URL as it is."""
    if is_url(text):
        return text
    return os.path.normpath(os.path.abspath(csv_path.parent / Path(text).expanduser()))


def _mask(csv_path: Path, text: str) -> str:
    if is_url(text):
        return text
    place = _place(csv_path, text)
    file, label = mask_file(place)
    return f"{file}:{label}" if label else place


def _name(csv_path: Path, image: str, series: str) -> str:
    """Return the name of a case without one: that of its image, with the folders between CSV and image."""
    if is_url(image):
        text = stem_of(Path(name_in_url(image)))
    else:
        place, folder = Path(_place(csv_path, image)), Path(os.path.abspath(csv_path.parent))
        text = stem_of(place)
        if place.is_relative_to(folder):
            text = (place.parent.relative_to(folder) / text).as_posix()
    return f"{text}/{series}" if series else text


# Folders ---------------------------------------------------------------------------------------------------


def _from_folder(folder: Path, results: Path | None) -> Cohort:
    folder = Path(os.path.abspath(folder))
    found: list[Case] = []
    series_of: dict[Path, list[dicom.SeriesInfo]] = {}
    notes: list[Note] = []
    for path, names in _walk(folder, results, notes):
        files = [path / name for name in names]
        scans = [one for one in files if _is_scan(one)]
        found += [_scan_case(folder, one) for one in scans]
        if not any(dicom.is_dicom(one) for one in files if one not in scans):
            continue
        try:
            series_of[path] = dicom.list_series(path, deep=False)
        except MedSAM2Error as error:
            if error.code == "no-dicom-images":  # segmentations, reports, structure sets
                notes.append(Note.info("no-images-in-folder", f"passed over: {error}", path=str(path)))
            else:  # to be reported as any other case that fails
                found.append(Case(_below(folder, path), str(path)))
    found += _series_cases(folder, series_of, results)
    counts = Counter(case.name for case in found)
    found = [
        case if counts[case.name] == 1 else replace(case, name=_below(folder, Path(case.image)))
        for case in found
    ]
    return Cohort(sorted(found, key=lambda case: case.name), notes)


def _series_cases(
    folder: Path, series_of: dict[Path, list[dicom.SeriesInfo]], results: Path | None
) -> Iterator[Case]:
    """Yield the case of each series; one in several folders is read from the folder that they share."""
    places: dict[str, list[Path]] = {}
    for path, listed in series_of.items():
        for one in listed:
            places.setdefault(one.uid or f"{path}:{one.number}", []).append(path)
    for key, paths in places.items():
        shared = Path(os.path.commonpath(paths))
        name = _below(folder, shared)
        below = (one for one in shared.iterdir() if one.is_dir() and not _is_left_out(one, results))
        is_alone = len(series_of.get(shared, ())) == 1 and not any(below)
        if is_alone:
            yield Case(name, str(shared), prompts=_beside(shared.parent, shared.name))
        else:
            series = key.removeprefix(f"{shared}:")
            yield Case(f"{name}/{series}", str(shared), series, prompts=_beside(shared, series))


def _below(folder: Path, path: Path) -> str:
    relative = path.relative_to(folder).as_posix()
    return folder.name if relative == "." else relative


def _is_left_out(folder: Path, results: Path | None) -> bool:
    """Return whether no scan is looked for in a folder: it is hidden, or holds results."""
    is_own = results is not None and folder == Path(os.path.abspath(results))
    return folder.name.startswith(".") or is_own or is_results(folder)


def _walk(folder: Path, results: Path | None, notes: list[Note]) -> Iterator[tuple[Path, list[str]]]:
    def pass_over(error: OSError) -> None:
        text = f"passed over, it cannot be read: {error.filename}: {error.strerror}"
        notes.append(Note.warning("folder-unreadable", text, path=str(error.filename)))

    for place, folders, names in os.walk(folder, onerror=pass_over):
        folders[:] = sorted(one for one in folders if not _is_left_out(Path(place) / one, results))
        if is_results(Path(place)):
            folders.clear()
            continue
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def _is_scan(path: Path) -> bool:
    name = path.name.lower()
    if not name.endswith((*_VOLUMES, *pictures.SUFFIXES)) or is_segmentation(path):
        return False
    return not stem_of(path).lower().endswith(LABEL_ENDINGS)


def _scan_case(folder: Path, path: Path) -> Case:
    stem = stem_of(path)
    name = (path.parent.relative_to(folder) / stem).as_posix()
    return Case(name, str(path), prompts=_beside(path.parent, stem))


def _beside(folder: Path, stem: str) -> str:
    found = (folder / f"{stem}{ending}" for ending in _PROMPTS_ENDINGS)
    return next((str(path) for path in found if path.is_file()), "")


# Checks ----------------------------------------------------------------------------------------------------


def _checked(case: Case) -> Iterator[Problem]:
    """Yield what is wrong with a case, as far as it can be told without reading images."""
    name = "" if case.line else f"{case.name}: "
    if not (case.given or case.prompts or case.auto or case.like):
        message = (
            f"{name}nothing says what to segment: give box, point, mask, prompts, auto or like_scan, "
            "or --auto or --like for all cases"
        )
        yield Problem(case.line, "no-prompt", message)
    for what, text in _files(case):
        if not is_url(text) and not Path(text).exists():
            yield Problem(case.line, "no-such-file", f"{name}{what} {text}: no such file")
    try:
        "/".join((case.name, folder_name(case.name))).encode()
    except UnicodeEncodeError:
        yield Problem(case.line, "name-not-text", f"the name {case.name!r} is not UTF-8: rename the file")
    if case.prompts.endswith(".json") and not is_url(case.prompts) and Path(case.prompts).is_file():
        try:
            PromptSet.from_json(Path(case.prompts).read_bytes(), None)
        except MedSAM2Error as error:
            if error.code != "needs-geometry":
                yield Problem(case.line, error.code, f"{name}prompts {case.prompts}: {error}")
        except OSError as error:
            yield Problem(case.line, "prompts-unreadable", f"{name}prompts {case.prompts}: {error.strerror}")


def _files(case: Case) -> Iterator[tuple[str, str]]:
    yield "image", case.image
    if case.prompts:
        yield "prompts", case.prompts
    for text in case.masks:
        yield "mask", mask_place(text)[0]
    for scan, labels in case.like:
        yield "like_scan", scan
        yield "like_segmentation", labels


def _unknown_models(cases: Iterable[Case], find_auto: Callable[[str], Any]) -> Iterator[Problem]:
    """Yield the Auto models that cases name and that are not found, each once."""
    first = {case.auto: case.line for case in reversed(list(cases)) if case.auto}
    for name, line in first.items():
        try:
            find_auto(name)
        except MedSAM2Error as error:
            yield Problem(line, error.code, str(error))
