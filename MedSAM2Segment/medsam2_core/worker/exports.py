"""Requests to export: each is a command of its own, so that no click waits for files to be written."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medsam2_core.errors import Cancelled, ExportError, MedSAM2Error, ProtocolError
from medsam2_core.worker import children
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.masks import checked

_log = logging.getLogger(__name__)
_PATIENCE_S = 30.0  # to tidy up, once it was told to stop
_STOPPED = "the export was stopped; no file is left half written"
_PATHS = ("segmentation", "out", "measurements", "report")
_TEXTS = ("kind", "compression", "series_description", "creator")
_SWITCHES = ("generic", "overwrite")
_OTHERS = ("dicom", "drawn_on", "scratch")
_SOURCES, _GRID = "dicom.txt", "drawn_on.json"
_OF_THE_FRAME = ("type", "id", "re", "arrays")


def arguments_of(fields: dict[str, Any], folder: Path) -> list[str]:
    """Arguments of the command for the fields of `export`.

    Parameters
    ----------
    fields
        Of the message; what is null counts as absent.
    folder
        Where :func:`write_files` puts what is too long for arguments.

    Raises
    ------
    ProtocolError
        Fields that are none, or not what they must be. Paths are absolute: where the worker was started is
        nobody's business.
    """
    strange = sorted(set(fields) - {"type", "id", *_OTHERS, *_PATHS, *_TEXTS, *_SWITCHES})
    if strange:
        raise ProtocolError(f"export knows no {strange[0][:40]!r}")
    given = {name: value for name, value in fields.items() if value is not None}
    paths = {name: _path(given.get(name), name) for name in _PATHS if name in given or name in _PATHS[:2]}
    words = [paths.pop("segmentation"), "--json"]
    texts = {name: _text(checked(given, name, str), name) for name in _TEXTS if name in given}
    words += [f"{children.option(name)}={value}" for name, value in {**paths, **texts}.items()]
    words += [children.option(name) for name in _SWITCHES if name in given and checked(given, name, bool)]
    files = {"dicom": _SOURCES, "drawn_on": _GRID}
    return words + [
        f"{children.option(name)}={folder / file}" for name, file in files.items() if name in given
    ]


def write_files(fields: dict[str, Any], folder: Path) -> None:
    """Put the list of source files, and the grid that was drawn on, where :func:`arguments_of` says.

    ProtocolError when they are none.
    """
    (folder / _SOURCES).write_text(list_of(fields), encoding="utf-8", newline="\n")
    if fields.get("drawn_on") is not None:
        (folder / _GRID).write_text(json.dumps(grid_of(fields)), encoding="utf-8")


def grid_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The grid the user drew on: (4, 4) ``ijk_to_ras``, 3 sizes ``shape_ijk``. ProtocolError for another."""
    given = checked(fields, "drawn_on", dict)
    try:
        matrix = [[float(value) for value in row] for row in given["ijk_to_ras"]]
        shape = [int(size) for size in given["shape_ijk"]]
        known = all(math.isfinite(value) for row in matrix for value in row) and min(shape) > 0
    except (KeyError, TypeError, ValueError, OverflowError):
        known = False
    if not known or [len(row) for row in matrix] != [4] * 4 or len(shape) != 3:
        raise ProtocolError("drawn_on must be ijk_to_ras, 4 x 4 numbers, and shape_ijk, 3 sizes")
    return {"ijk_to_ras": matrix, "shape_ijk": shape}


def list_of(fields: dict[str, Any]) -> str:
    """The text of the file that lists the source files, one a line. ProtocolError when they are no paths."""
    files = [] if fields.get("dicom") is None else checked(fields, "dicom", list)
    return "".join(f"{_path(one, 'a file of dicom')}\n" for one in files)


def _path(value: Any, name: str) -> str:
    path = _text(value, name)
    if not Path(path).is_absolute() or "\n" in path:
        raise ProtocolError(f"{name} must be an absolute path on one line, not {path[:60]!r}")
    return path


def _text(value: Any, name: str) -> str:
    """A text that can be an argument, and written to a file."""
    try:
        if isinstance(value, str) and "\0" not in value and value.encode("utf-8") is not None:
            return value
    except UnicodeEncodeError:
        pass
    raise ProtocolError(f"{name} must be a text, not {ascii(value)[:60]}")


class Exports:
    """Exports, one after the other, in the order they were asked for.

    Parameters
    ----------
    finish
        Gets a job with its result or its error.
    tell
        Gets a job and a message in between.
    command
        What is run, before the arguments.
    """

    def __init__(
        self,
        finish: Callable[[Job, dict[str, Any] | BaseException], None],
        tell: Callable[[Job, dict[str, Any]], None],
        command: tuple[str, ...] = (*children.COMMAND, "export"),
    ) -> None:
        self._finish, self._tell, self._command = finish, tell, command
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, job: Job) -> None:
        """`export`."""
        with self._lock:
            self._waiting.append(job)
            if self._running is not None:
                return
            self._running = self._waiting.popleft()
        threading.Thread(target=self._work, args=(job,), name="export", daemon=True).start()

    def cancel(self, number: int | None) -> None:
        """Stop an export (None: all); what it would have written does not appear."""
        with self._lock:
            dropped = [job for job in self._waiting if number in (None, job.id)]
            for job in dropped:
                self._waiting.remove(job)
            if self._running is not None and number in (None, self._running.id):
                self._running.is_cancelled = True
                if self._process is not None:
                    children.ask_to_stop(self._process, _PATIENCE_S)
        for job in dropped:
            self._finish(job, Cancelled(_STOPPED))

    def _work(self, job: Job | None) -> None:
        while job is not None:
            try:
                answer: dict[str, Any] | BaseException = self._exported(job)
            except (MedSAM2Error, MemoryError, OSError, ValueError) as error:
                answer = error
            with self._lock:
                self._process = None
                done, self._running = job, self._waiting.popleft() if self._waiting else None
                job = self._running
            self._finish(done, answer)

    def _exported(self, job: Job) -> dict[str, Any]:
        fields = dict(job.fields)
        scratch = None if fields.get("scratch") is None else _path(fields["scratch"], "scratch")
        # In the client's own folder, if it has one: it takes that away, should this process be killed.
        with tempfile.TemporaryDirectory(prefix="medsam2-export-", dir=scratch) as made:
            folder = Path(made)
            words = [*self._command, *arguments_of(fields, folder)]
            write_files(fields, folder)
            self._tell(job, {"type": "progress", "what": "exporting", "done": 0, "total": None})
            with tempfile.TemporaryFile() as messages:
                process = children.started(words, messages)
                with self._lock:
                    self._process = process
                    if job.is_cancelled:
                        children.ask_to_stop(process, _PATIENCE_S)
                said = process.stdout.read() if process.stdout is not None else b""
                code = children.ended(process)
                summary = _summary(said)
                if code == 0 and summary:
                    return summary
                if job.is_cancelled or code == children.INTERRUPTED:
                    raise Cancelled(_STOPPED)
                # Nobody knows the list: it stands for the series.
                said_last = children.last_words(messages)
                own, last = (one.replace(str(folder / _SOURCES), "the series") for one in said_last)
        _log.info("an export ended with exit code %d", code)
        reason = f" ({last})" if last else ""
        raise ExportError(own or f"the export ended with exit code {code}{reason}: see the worker's log")


def _summary(said: bytes) -> dict[str, Any]:
    """What the command printed as JSON; empty when it is none."""
    try:
        found = json.loads(said, parse_constant=lambda _: None)  # the protocol has finite numbers only
    except ValueError:
        return {}
    return {k: v for k, v in found.items() if k not in _OF_THE_FRAME} if isinstance(found, dict) else {}
