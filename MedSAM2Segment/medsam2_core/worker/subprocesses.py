"""Exports and trainings: commands in separate processes, so that clicks do not wait for them.

    python -m medsam2_core.worker.subprocesses export SEGMENTATION --out FILE --json

Such a process prints JSON on its standard output; if it fails, with an ``error`` of ``code``, ``message`` and
``fields``. Its standard input carries no data; when that ends, for example because the worker died, the
command is interrupted as by Ctrl-C and has some time to save its state.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from medsam2_core.errors import Cancelled, ExportError, MedSAM2Error, TrainingError
from medsam2_core.worker.job_messages import (
    ExportRequest,
    FineTuneRequest,
    TrainAutoRequest,
    TrainRequest,
)
from medsam2_core.worker.jobs import Finish, Job, Send
from medsam2_core.worker.protocol import dataclass_from_json, field_error

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "medsam2_core.worker.subprocesses")
_INTERRUPTED = 130  # exit code of a cancelled command
_GRACE_S = 60.0  # for a command to end once it was interrupted
_MESSAGE_FIELDS = ("type", "id", "re", "arrays")


class CommandRunner:
    """Carries out requests of one type as child processes, one after the other."""

    command: tuple[str, ...]
    patience_s = 30.0  # time for a command to end once it was cancelled
    stopped: str  # message for the user after that
    failure: type[MedSAM2Error]

    def __init__(self, finish: Finish, send: Send, command: tuple[str, ...] | None = None) -> None:
        self._finish, self._send, self._command = finish, send, command or self.command
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, job: Job) -> None:
        """Queue a request."""
        with self._lock:
            self._waiting.append(job)
            if self._running is not None:
                return
            self._running = self._waiting.popleft()
        threading.Thread(target=self._work, args=(job,), name=job.type, daemon=True).start()

    def cancel(self, number: int | None) -> None:
        """Cancel a request (None: all)."""
        with self._lock:
            dropped = [job for job in self._waiting if number in (None, job.id)]
            for job in dropped:
                self._waiting.remove(job)
            if self._running is not None and number in (None, self._running.id):
                self._running.is_cancelled = True
                self._stop_process()
        for job in dropped:
            self._finish(job, Cancelled(self.stopped))

    def run(self, job: Job) -> dict[str, Any]:
        """Return the result of a request; called in a thread."""
        raise NotImplementedError

    def _work(self, job: Job | None) -> None:
        while job is not None:
            try:
                answer: dict[str, Any] | BaseException = self.run(job)
            except (MedSAM2Error, MemoryError, OSError, ValueError) as error:
                answer = error
            with self._lock:
                self._process = None
                done, self._running = job, self._waiting.popleft() if self._waiting else None
                job = self._running
            self._finish(done, answer)

    def _execute(
        self, job: Job, arguments: list[str], take_line: Callable[[bytes], None] = lambda line: None
    ) -> list[bytes]:
        """Run the command and return the lines it prints, each also passed to `take_line`.

        If it fails, raises the class `failure` with the code and fields of the command's error.
        """
        output: list[bytes] = []
        with tempfile.TemporaryFile() as messages:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # 0 but on Windows
            )
            with self._lock:
                self._process = process
                if job.is_cancelled:
                    self._stop_process()
            for line in process.stdout or ():
                output.append(line)
                take_line(line)
            code = _wait(process)
            last_line = _last_line(messages)
        if code == 0:
            return output
        _log.info("%s %d ended with exit code %d", job.type, job.id, code)
        if job.is_cancelled or code == _INTERRUPTED:
            raise Cancelled(self.stopped)
        # The output is one JSON document, or one per line, of which the last has the error.
        error = (parse_json(b"".join(output)) or parse_json(output[-1] if output else b"")).get("error")
        if isinstance(error, dict):
            fields = error.get("fields")
            values = fields if isinstance(fields, dict) else {}
            raise self.failure(str(error.get("message")), code=str(error.get("code") or ""), **values)
        reason = f" ({last_line})" if last_line else ""
        raise self.failure(
            f"the command ended with exit code {code}{reason}: see the worker's log",
            code="command-died",
            exit_code=code,
            last_line=last_line,
        )

    def _stop_process(self) -> None:
        """Close the input of the process so that it ends, and kill it if it takes too long."""
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.close()
        except OSError:  # it has ended already
            return
        timer = threading.Timer(self.patience_s, process.kill)
        timer.daemon = True
        timer.start()


class Exports(CommandRunner):
    """Carries out `export`."""

    command = (*COMMAND, "export")
    stopped = "the export was stopped; no file is left half written"
    failure = ExportError

    def run(self, job: Job) -> dict[str, Any]:
        """Write the files of the request, run the command, and return what it printed."""
        request = dataclass_from_json(ExportRequest, job.fields, "export")
        scratch = None if request.scratch is None else _absolute(request.scratch, "scratch")
        # The client removes its folder even if this process is killed.
        with tempfile.TemporaryDirectory(prefix="medsam2-export-", dir=scratch) as made:
            folder = Path(made)
            arguments = export_arguments(request, folder)
            self._send(job, {"type": "progress", "what": "exporting", "done": 0, "total": None})
            try:
                summary = parse_json(b"".join(self._execute(job, arguments)))
            except ExportError as error:
                # The user does not know the list of files, which stands for the series.
                message = str(error).replace(str(folder / "dicom.txt"), "the series")
                raise ExportError(message, code=error.code, **error.fields) from error
        if not summary:
            raise ExportError("the export ended without a summary: see the worker's log", code="no-summary")
        return {name: value for name, value in summary.items() if name not in _MESSAGE_FIELDS}


def export_arguments(request: ExportRequest, folder: Path) -> list[str]:
    """Return the arguments of `medsam2 export`; what is too long for arguments is written to `folder`.

    ProtocolError for a path that is not absolute or a text that cannot be an argument.
    """
    arguments = [_absolute(request.segmentation, "segmentation"), "--json"]
    for name in ("out", "measurements", "report"):
        if (path := getattr(request, name)) is not None:
            arguments.append(f"{_option(name)}={_absolute(path, name)}")
    for name in ("kind", "compression", "series_description", "creator"):
        if (text := getattr(request, name)) is not None:
            arguments.append(f"{_option(name)}={_text(text, name)}")
    arguments += [_option(name) for name in ("generic", "overwrite") if getattr(request, name)]
    if request.dicom is not None:
        listed = "".join(f"{_absolute(path, 'dicom')}\n" for path in request.dicom)
        (folder / "dicom.txt").write_text(listed, encoding="utf-8", newline="\n")
        # The series is that of the volume, so a different grid is that of a finer segmentation.
        arguments += [f"--dicom={folder / 'dicom.txt'}", "--resample"]
    if request.drawn_on is not None:
        (folder / "drawn_on.json").write_text(json.dumps(request.drawn_on), encoding="utf-8")
        arguments.append(f"--drawn-on={folder / 'drawn_on.json'}")
    return arguments


class Trainings(CommandRunner):
    """Carries out `train_auto` and `train_finetune`, one at a time."""

    kinds: Mapping[str, type[TrainRequest]] = MappingProxyType(
        {"train_auto": TrainAutoRequest, "train_finetune": FineTuneRequest}
    )
    command = (*COMMAND, "train")
    patience_s = 90.0
    stopped = "the training was stopped; to continue it, start it again with the same data"
    failure = TrainingError

    def start(self, job: Job) -> None:
        """Start a training; TrainingError when one is running."""
        if self._running is not None:
            raise TrainingError(
                "another model is being trained: wait until it is done, or cancel it", code="already-training"
            )
        super().start(job)

    def run(self, job: Job) -> dict[str, Any]:
        """Train a model in the folder of its kind; return its path, report and card."""
        from medsam2_core.auto.library import run_folder

        request = dataclass_from_json(self.kinds[job.type], job.fields, job.type)
        out = _free_path(request)
        is_resumed = request.resume and run_folder(out).exists()
        if not is_resumed:
            _set_aside(run_folder(out))
        notes: list[str] = []
        last: dict[str, Any] = {}

        def take_line(line: bytes) -> None:
            progress = parse_json(line)
            if progress.get("stage") == "done":
                last.update(progress)
            elif progress.get("stage") == "problem":
                notes.append(str(progress.get("message", "")))
                self._send(job, _training_progress({}, notes[-1]))
            elif progress and "error" not in progress:
                self._send(job, _training_progress(progress, _in_words(progress)))

        arguments = [*request.arguments(str(out)), *(["--resume"] if is_resumed else [])]
        self._execute(job, [job.type.removeprefix("train_"), *arguments], take_line)
        if not last:
            raise TrainingError(
                "the training ended without a result: see the worker's log", code="no-summary"
            )
        return {"path": str(out), "report": last.get("report"), "notes": notes, "model": _model_to_json(out)}


def _free_path(request: TrainRequest) -> Path:
    from medsam2_core.auto.library import free_path
    from medsam2_core.engine.catalogue import OWN_SUFFIX, Catalogue, own_folder

    if isinstance(request, TrainAutoRequest):
        return free_path(request.name)
    return free_path(request.name, own_folder(), OWN_SUFFIX, Catalogue.load().names)


def _model_to_json(path: Path) -> dict[str, Any]:
    """Return a trained model as an item of `auto_models` or `models`."""
    from medsam2_core.auto.model_file import SUFFIX, read_card
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store
    from medsam2_core.worker.model_requests import auto_model_to_json, model_to_json

    if path.suffix == SUFFIX:
        return auto_model_to_json(path, read_card(path))
    return model_to_json(Catalogue.load().find(path.stem), Store.default())


def _training_progress(progress: Mapping[str, Any], message: str) -> dict[str, Any]:
    done, total = (
        value if type(value) is int and value >= 0 else None
        for value in (progress.get("done"), progress.get("total"))
    )
    return {"type": "progress", "what": "training", "done": done or 0, "total": total, "message": message}


def _in_words(progress: Mapping[str, Any]) -> str:
    message, dice, left = (progress.get(name) for name in ("message", "dice", "seconds_left"))
    text = message if isinstance(message, str) and message else str(progress.get("stage", ""))
    if isinstance(dice, int | float) and not isinstance(dice, bool):
        text = f"{text}, Dice {dice:.2f}"
    if isinstance(left, int | float) and not isinstance(left, bool) and left > 0:
        text = (
            f"{text}, about {round(left)} s left"
            if left < 90
            else f"{text}, about {round(left / 60)} min left"
        )
    return text


def _set_aside(run: Path) -> None:
    """Rename the folder of an unfinished training that is not resumed; only the latest is kept."""
    if run.exists():
        aside = run.with_name(run.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        run.rename(aside)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _absolute(path: str, name: str) -> str:
    if not Path(_text(path, name)).is_absolute() or "\n" in path:
        raise field_error(name, path, "must be an absolute path on one line")
    return path


def _text(text: str, name: str) -> str:
    """Return a text after checking that it can be an argument and be written to a file."""
    try:
        if "\0" not in text and text.encode("utf-8") is not None:
            return text
    except UnicodeEncodeError:
        pass
    raise field_error(name, ascii(text), "must be a text")


def parse_json(text: bytes) -> dict[str, Any]:
    """Parse a JSON object, with None for NaN and infinity; return {} for any other text."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _wait(process: subprocess.Popen[bytes]) -> int:
    if process.stdout is not None:
        process.stdout.close()
    code = process.wait()
    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()
    return code


def _last_line(messages: IO[bytes]) -> str:
    messages.seek(0)
    lines = [line.strip() for line in messages.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


# In the child process ---------------------------------------------------------------------------------------


def _end_with_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 10):
            pass
    _thread.interrupt_main()
    time.sleep(_GRACE_S)
    os._exit(_INTERRUPTED)


def main() -> None:
    """Run the command in the arguments, and exit with its code."""
    threading.Thread(target=_end_with_input, name="watcher", daemon=True).start()
    runpy.run_module("medsam2_core.cli", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
