"""A cohort from its cases to results: what is done already, what is to be done, what failed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medsam2_core import atomic
from medsam2_core.auto.library import find
from medsam2_core.batch import cases as names
from medsam2_core.batch.cases import DONE, FAILED, Case, Options, Task, case_folder, read_facts
from medsam2_core.batch.inputs import changed, fingerprint
from medsam2_core.batch.journal import Journal
from medsam2_core.batch.pool import Pool
from medsam2_core.engine.catalogue import Catalogue
from medsam2_core.engine.store import Store, hash_file
from medsam2_core.errors import BatchError, MedSAM2Error

_RESULT_VERSION = 1  # of the files of a case: another number makes all of them anew
_POLL_SECONDS = 0.5  # seconds between two looks whether to stop
_hash = functools.lru_cache(maxsize=64)(hash_file)  # weights are those of every case


@dataclass
class Summary:
    """How a run ended: names of cases.

    Attributes
    ----------
    kept, kept_failed
        Those that were done, or had failed, before, and were left so.
    unchecked
        Why it could not be told whether a case that was done before has changed, by name; it is kept.
    """

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    kept_failed: list[str] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


@contextlib.contextmanager
def opened(results: Path) -> Iterator[Journal]:
    """Give the journal of a folder of results, which is made; no other run can have it meanwhile.

    Raises
    ------
    BatchError
        ``results-in-use``, ``results-of-others``, or those of :class:`Journal`.
    ExportError
        ``output-not-writable``.
    """
    from filelock import FileLock, Timeout

    path = results / names.JOURNAL
    is_ours = path.exists() or (results / names.CASES).exists()
    if not is_ours and results.is_dir() and any(results.iterdir()):
        message = f"{results} holds other files: name a new folder, or the results of an earlier run"
        raise BatchError(message, code="results-of-others", path=str(results))
    atomic.make_folder(results)
    atomic.check_writable(path)
    try:
        with FileLock(results / ".lock", timeout=0):
            atomic.clean_folders(results / names.CASES)
            with contextlib.closing(Journal(path)) as journal:
                yield journal
    except Timeout as error:
        message = f"another run is writing to {results}: wait for it, or name another folder"
        raise BatchError(message, code="results-in-use", path=str(results)) from error


class Run:
    """Does the cases of a cohort that are not done yet; :func:`opened` gives the journal.

    A case that lost its process is tried again ``retries`` times.
    """

    def __init__(
        self,
        results: Path,
        journal: Journal,
        options: Options,
        *,
        retry_failed: bool = False,
        retries: int = 1,
    ) -> None:
        self._results, self._journal, self._options = results, journal, options
        self._retry_failed, self._retries = retry_failed, retries
        self.summary = Summary()

    def signature(self, case: Case) -> str:
        """Return a hash of all that a result depends on but its files: prompts, options, weights."""
        request = {name: value for name, value in case.to_dict().items() if name not in ("name", "line")}
        files = [find(case.auto)[0]] if case.auto else []
        if not case.auto or self._options.model != "embedded":
            files.append(Store.default().locate(Catalogue.load().find(self._options.model)))
        known = [_RESULT_VERSION, request, self._options.to_dict(), [_hash(file)[0] for file in files]]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode("utf-8", "replace")).hexdigest()

    def run(
        self,
        cases: Sequence[Case],
        pool: Pool,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, str], None] = lambda done, name: None,
    ) -> Summary:
        """Do them, and note in the journal what became of each.

        Raises
        ------
        MedSAM2Error
            The model cannot be loaded, or no process started: no case could be done.
        """
        self._journal.forget_others(case.name for case in cases)
        waiting = deque(cases)
        again: deque[Task] = deque()
        while True:
            stopping = should_stop()
            if not stopping:
                self._submit(waiting, again, pool)
            if not pool.in_flight and (stopping or not (waiting or again)):
                break
            for task, outcome in pool.wait(_POLL_SECONDS):
                if "lost" in outcome:
                    self._lost(task, outcome["lost"], again)
                else:
                    self._end(task, outcome)
            ended = self.summary
            progress(sum(map(len, (ended.done, ended.failed, ended.kept, ended.kept_failed))), "")
        self.summary.stopped = bool(waiting or again)
        return self.summary

    def _submit(self, waiting: deque[Case], again: deque[Task], pool: Pool) -> None:
        """Give cases away as long as a process takes one; no more are looked at than that."""
        while again and pool.submit(again[0]):
            again.popleft()
        while waiting and not again:
            if not any(process.takes(Task(waiting[0], "")) for process in pool.processes):
                return
            case = waiting.popleft()
            try:
                signature = self.signature(case)
                state = self._known(case, signature)
            except MedSAM2Error as error:  # of its Auto model, or of a store that does not answer
                self._not_checked(case, error)
                continue
            if state == DONE:
                self.summary.kept.append(case.name)
            elif state == FAILED:
                self.summary.kept_failed.append(case.name)
            else:
                self._journal.begin(case.name, signature)
                pool.submit(Task(case, signature))

    def _not_checked(self, case: Case, error: MedSAM2Error) -> None:
        """Keep a result that is there; a case without one has failed."""
        if self._journal.find(case.name).state == DONE and read_facts(case_folder(self._results, case)):
            self.summary.kept.append(case.name)
            self.summary.unchecked[case.name] = str(error)
            return
        self._journal.end(case.name, "", {"state": FAILED, "error": error.to_dict()})
        self.summary.failed.append(case.name)

    def _known(self, case: Case, signature: str) -> str | None:
        """Return ``done`` or ``failed`` for a case that need not be done again, else None."""
        entry, written = self._journal.find(case.name), read_facts(case_folder(self._results, case))
        if written and written["signature"] == signature and not changed(written["inputs"], case):
            # The run was killed before it could note a result, the journal was moved away, or the case failed
            # for a reason that is gone, and its earlier result stayed.
            if (entry.state, entry.signature) != (DONE, signature):
                outcome = {"state": DONE, "inputs": written["inputs"], "facts": written["facts"]}
                self._journal.end(case.name, signature, outcome)
            return DONE
        if (entry.state, entry.signature) != (FAILED, signature) or self._retry_failed:
            return None
        # There are no inputs where they could not be read when its process was lost.
        return None if entry.inputs and changed(entry.inputs, case) else FAILED

    def _end(self, task: Task, outcome: dict[str, Any]) -> None:
        if outcome.get("fatal"):  # not this case's fault: it stays to be done
            error = outcome["error"]
            raise BatchError(error["message"], code=error["code"], **error["fields"])
        self._journal.end(task.case.name, task.signature, outcome)
        ended = self.summary.done if outcome["state"] == DONE else self.summary.failed
        ended.append(task.case.name)

    def _lost(self, task: Task, reason: str, again: deque[Task]) -> None:
        if task.attempt < self._retries:
            self._journal.begin(task.case.name, task.signature)
            again.append(replace(task, attempt=task.attempt + 1))
            return
        message = (
            f"the process was lost {task.attempt + 1} times while it did this case ({reason}): too little "
            "memory is the usual reason; try fewer processes (--processes)"
        )
        error = BatchError(message, code="process-lost", reason=reason).to_dict()
        inputs: dict[str, Any] = {}
        with contextlib.suppress(MedSAM2Error):  # another image is another attempt
            inputs = fingerprint(task.case)
        self._end(task, {"state": FAILED, "error": error, "inputs": inputs})
