"""One case of a cohort, what holds for all, and the files of a result. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Files of the folder of results.
CASES, JOURNAL, TABLE, REPORT = "cases", "journal.sqlite", "results.csv", "report.html"
#: Files of a case; those of :data:`FACTS` say from what it was made.
SEGMENTATION, DICOM_SEG, MEASUREMENTS = "segmentation.seg.nrrd", "segmentation.dcm", "measurements.json"
THUMBNAIL, FACTS = "thumbnail.jpg", "case.json"
#: How a case ended; that it was begun, or not yet.
DONE, FAILED, RUNNING, WAITING = "done", "failed", "running", "waiting"

_LONGEST = 120  # bytes; systems allow 255, endings and temporary names included
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows


@dataclass(frozen=True)
class Case:
    """One scan and what is to be found in it.

    Attributes
    ----------
    name
        Unique in the cohort.
    image
        Path of a file or a DICOM folder, or a URL.
    series
        Number or UID, where the image holds several.
    given
        Prompts as (option of `medsam2 segment`, value), each after the ``object`` it belongs to.
    prompts
        A file of prompts, or empty.
    auto, classes
        An Auto model, or empty; its classes that are wanted, comma-separated, or empty for all.
    like
        Segmented scans as examples, as (scan, segmentation).
    line
        Where it stands in the CSV; 0 for a folder.
    """

    name: str
    image: str
    series: str = ""
    given: tuple[tuple[str, str], ...] = ()
    prompts: str = ""
    auto: str = ""
    classes: str = ""
    like: tuple[tuple[str, str], ...] = ()
    line: int = 0

    @property
    def folder(self) -> str:
        """Name of its folder of results."""
        return folder_name(self.name)

    @property
    def masks(self) -> list[str]:
        """The values of its ``mask`` prompts."""
        return [text for option, text in self.given if option == "mask"]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-serialisable values."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """What holds for all cases: the options of `medsam2 batch` of the same names.

    Where ``axis`` and ``window`` are None, an Auto model takes its own; else they are ``axial`` and ``auto``.
    """

    model: str = "embedded"
    config: str | None = None
    image_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    axis: str | None = None
    window: str | None = None
    memory: str = "recent"
    zoom: str = "auto"
    space: str = "ijk"
    no_overlap: bool = False
    irregular: str = "refuse"
    dicom_seg: bool = False
    generic: bool = False
    threads: int = 1

    #: These change how fast a mask is made, and not which.
    _SPEED = ("device", "threads")

    def to_dict(self) -> dict[str, Any]:
        """Return those that a result depends on."""
        return {name: value for name, value in asdict(self).items() if name not in self._SPEED}


@dataclass(frozen=True)
class Task:
    """A case to be done; the signature of the request is kept beside the result, attempts count from 0."""

    case: Case
    signature: str
    attempt: int = 0


def folder_name(name: str) -> str:
    """Return a file name for a case on any system: where letters had to be replaced, with a hash of the name.

    Two names have one folder only when they differ in nothing but capitals.
    """
    text = unicodedata.normalize("NFC", name)
    kept = re.sub(r"[^\w.+=@-]+", "_", text).encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")
    kept = kept.rstrip(".").lstrip(".-")
    if kept != text or not kept or _RESERVED.fullmatch(kept):
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return f"{kept or 'case'}-{digest}"
    return kept


def case_folder(results: str | Path, case: Case) -> Path:
    """Return the folder of a case's results."""
    return Path(results) / CASES / case.folder


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return what stands beside the result of a case; None where there is no whole result."""
    try:
        known = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(known, dict) and known.keys() >= {"case", "signature", "inputs", "facts"}
    return known if is_whole and (folder / SEGMENTATION).is_file() else None


def least_confidence(objects: Iterable[Mapping[str, Any]]) -> float:
    """Return that of the object with the least; 0 where one was not found, or there is none."""
    return min((one["confidence"] or 0.0 for one in objects), default=0.0)
