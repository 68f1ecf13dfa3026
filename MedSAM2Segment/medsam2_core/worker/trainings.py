"""Requests to train an Auto model: each is a process of its own, so that no click waits for it."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from medsam2_core.errors import Cancelled, MedSAM2Error, ProtocolError, TrainingError
from medsam2_core.worker import children
from medsam2_core.worker.auto_requests import described
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.masks import checked

_log = logging.getLogger(__name__)
_PATIENCE_S = 90.0  # to keep what it has, once it was told to stop
_TEXTS = ("base", "decoder", "axis", "window", "device")
_COUNTS = ("shots", "steps", "folds", "threads", "image_size", "seed")


def arguments_of(fields: dict[str, Any], out: Path) -> list[str]:
    """Arguments of the command for the fields of `train_auto`. ProtocolError for fields that are none."""
    known = {"type", "id", "data", "name", "resume", "classes", "minutes", "skip_bad", *_TEXTS, *_COUNTS}
    strange = sorted(set(fields) - known)
    if strange:
        raise ProtocolError(f"train_auto knows no {strange[0][:40]!r}")
    words = [checked(fields, "data", str), "--out", str(out), "--json-progress"]
    given = {name: value for name, value in fields.items() if value is not None}
    for name in _TEXTS:
        if name in given:
            words += [children.option(name), checked(given, name, str)]
    for name in _COUNTS:
        if name in given:
            words += [children.option(name), str(checked(given, name, int))]
    if "minutes" in given:
        words += ["--minutes", f"{checked(given, 'minutes', float):g}"]
    if "classes" in given:
        names = checked(given, "classes", list)
        if not all(isinstance(one, str) and one.strip() and "," not in one for one in names):
            raise ProtocolError(f"classes must be a list of names, not {repr(names)[:60]}")
        words += ["--classes", ",".join(names)] if names else []
    if given.get("skip_bad") is True:
        words.append("--skip-bad")
    return words


def _set_aside(run: Path) -> None:
    """An unfinished training that is not gone on with makes room; the last such is kept beside."""
    if run.exists():
        aside = run.with_name(run.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        run.rename(aside)


class Trainings:
    """Auto models being trained.

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
        command: tuple[str, ...] = (*children.COMMAND, "train", "auto"),
    ) -> None:
        self._finish, self._tell, self._command = finish, tell, command
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes] | None]] = {}
        self._lock = threading.Lock()

    def start(self, job: Job) -> None:
        """`train_auto`; one at a time."""
        with self._lock:
            if self._running:
                raise TrainingError("another model is being trained: wait until it is done, or cancel it")
            self._running[job.id] = job, None
        threading.Thread(target=self._train, args=(job,), name="training", daemon=True).start()

    def cancel(self, number: int | None) -> None:
        """Stop a training (None: all) after the step it is at; it can be resumed."""
        with self._lock:
            for job, process in self._running.values():
                if number in (None, job.id):
                    job.is_cancelled = True
                    if process is not None:
                        children.ask_to_stop(process, _PATIENCE_S)

    def _train(self, job: Job) -> None:
        try:
            answer: dict[str, Any] | BaseException = self._trained(job)
        except (MedSAM2Error, MemoryError, OSError, ValueError) as error:
            answer = error
        with self._lock:
            self._running.pop(job.id, None)
        self._finish(job, answer)

    def _trained(self, job: Job) -> dict[str, Any]:
        from medsam2_core.auto.library import free_path, run_folder
        from medsam2_core.auto.model_file import read_card

        out = free_path(checked(job.fields, "name", str))
        resumes = job.fields.get("resume") is True and run_folder(out).exists()
        if not resumes:
            _set_aside(run_folder(out))
        words = [*self._command, *arguments_of(dict(job.fields), out), *(["--resume"] if resumes else [])]
        with tempfile.TemporaryFile() as messages:
            process = self._started(job, words, messages)
            notes, done = self._heard(job, process)
            code = children.ended(process)
            if code == 0 and done:
                card = read_card(out)
                model = described(out, card)
                return {"path": str(out), "report": done.get("report"), "notes": notes, "model": model}
            if job.is_cancelled or code == children.INTERRUPTED:
                raise Cancelled("the training was stopped; started again with the same data, it goes on")
            raise TrainingError(_reason(messages, code))

    def _started(self, job: Job, words: list[str], messages: IO[bytes]) -> subprocess.Popen[bytes]:
        process = children.started(words, messages)
        with self._lock:
            self._running[job.id] = job, process
            if job.is_cancelled:
                children.ask_to_stop(process, _PATIENCE_S)
        return process

    def _heard(self, job: Job, process: subprocess.Popen[bytes]) -> tuple[list[str], dict[str, Any]]:
        """Pass on what it says until its output ends; notes about the data, and its last word."""
        notes: list[str] = []
        done: dict[str, Any] = {}
        for line in process.stdout or ():
            told = _parsed(line)
            if told.get("stage") == "done":
                done = told
            elif told.get("stage") == "problem":
                notes.append(str(told.get("message", "")))
                self._note(job, 0, None, notes[-1])
            elif told:
                self._note(job, told.get("done"), told.get("total"), _in_words(told))
        return notes, done

    def _note(self, job: Job, done: Any, total: Any, message: str) -> None:
        counts = {"done": done if _is_count(done) else 0, "total": total if _is_count(total) else None}
        self._tell(job, {"type": "progress", "what": "training", **counts, "message": message})


def _parsed(line: bytes) -> dict[str, Any]:
    """What a line tells; nothing when some library has printed it."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _in_words(told: dict[str, Any]) -> str:
    message, dice = told.get("message"), told.get("dice")
    words = str(message) if isinstance(message, str) and message else str(told.get("stage", ""))
    is_known = isinstance(dice, int | float) and not isinstance(dice, bool)
    return f"{words}, Dice {dice:.2f}" if is_known else words


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _reason(messages: IO[bytes], code: int) -> str:
    """The last thing the command said."""
    own, last = children.last_words(messages)
    if own:
        return own
    _log.info("a training ended with exit code %d", code)
    reason = f" ({last})" if last else ""
    return (
        f"the training ended with exit code {code}{reason}: try fewer images at once, or see the worker's log"
    )
