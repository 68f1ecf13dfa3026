"""What became of every case, in one SQLite file: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam2_core.batch.cases import RUNNING, WAITING
from medsam2_core.errors import BatchError

_VERSION = 1
_LOCK_SECONDS = 30.0  # to wait for another program that has the file
_TABLE = """
CREATE TABLE IF NOT EXISTS cases (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, signature TEXT NOT NULL, attempts INTEGER NOT NULL,
    inputs TEXT NOT NULL, outcome TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Entry:
    """What is known of a case.

    Attributes
    ----------
    state
        ``done``, ``failed``, ``waiting``, or ``running``: begun, and not ended when the run was stopped.
    signature
        Of the request: prompts, options, models.
    inputs
        Its files as :func:`medsam2_core.batch.inputs.fingerprint` gives them.
    outcome
        ``facts`` of what was made, or the ``error``; and the ``seconds`` that it took.
    """

    name: str
    state: str = WAITING
    signature: str = ""
    attempts: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What was found, of a case that is done."""
        return list((self.outcome.get("facts") or {}).get("objects", ()))

    @property
    def error(self) -> dict[str, Any]:
        """Why it failed, if it did."""
        return self.outcome.get("error") or {}


class Journal:
    """The journal of a folder of results. One process writes it; others may read it meanwhile.

    A change survives any process that is killed once the call returns. There is no write-ahead log: it needs
    memory that is shared, which network file systems do not have.

    Parameters
    ----------
    path
        Is made, unless it is there or ``read_only``.

    Raises
    ------
    BatchError
        ``journal-damaged``, ``journal-version``; ``journal-unreadable`` for a file that another program has
        locked, that may not be written, or whose disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        # A reader may be one who may not write there.
        name, is_uri = (f"{path.absolute().as_uri()}?mode=ro", True) if read_only else (path, False)
        with self._errors("journal-unreadable", "opened"):
            self._database = sqlite3.connect(name, timeout=_LOCK_SECONDS, uri=is_uri)
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                message = f"{path} was written by a newer release (version {version}): use that one"
                raise BatchError(message, code="journal-version", path=str(path), version=version)
            (verdict,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            if read_only:
                return
            self._database.execute("PRAGMA journal_mode=DELETE")
            # Without power the last entries may be gone; the results they are about are taken over then.
            self._database.execute("PRAGMA synchronous=NORMAL")
            with self._database:
                self._database.execute(_TABLE)
                self._database.execute(f"PRAGMA user_version={_VERSION}")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def begin(self, name: str, signature: str) -> None:
        """Note that a case is begun."""
        self._write(Entry(name, RUNNING, signature, self.find(name).attempts + 1))

    def end(self, name: str, signature: str, outcome: dict[str, Any]) -> None:
        """Note how a case ended: ``state``, ``inputs``, and ``facts`` or ``error``."""
        rest = {key: value for key, value in outcome.items() if key not in ("state", "inputs")}
        attempts, inputs = self.find(name).attempts, outcome.get("inputs") or {}
        self._write(Entry(name, outcome["state"], signature, attempts, inputs, rest))

    def forget_others(self, names: Iterable[str]) -> None:
        """Forget all cases but these; their results stay, and are found there when they come back."""
        gone = {entry.name for entry in self} - set(names)
        self._change("DELETE FROM cases WHERE name = ?", [(name,) for name in gone])

    def find(self, name: str) -> Entry:
        """Return what is known of a case."""
        return next(iter(list(self._read("WHERE name = ?", name))), Entry(name))

    def __iter__(self) -> Iterator[Entry]:
        return self._read("ORDER BY name")

    def _read(self, which: str, *values: str) -> Iterator[Entry]:
        columns = "name, state, signature, attempts, inputs, outcome"
        with self._errors("journal-unreadable", "read"):
            for row in self._database.execute(f"SELECT {columns} FROM cases {which}", values):
                name, state, signature, attempts, inputs, outcome = row
                yield Entry(name, state, signature, attempts, json.loads(inputs), json.loads(outcome))

    def _write(self, entry: Entry) -> None:
        row = (entry.name, entry.state, entry.signature, entry.attempts,
               json.dumps(entry.inputs), json.dumps(entry.outcome, default=str))  # fmt: skip
        self._change("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?, ?)", [row])

    def _change(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._errors("journal-not-writable", "written"), self._database:
            self._database.executemany(statement, rows)

    @contextmanager
    def _errors(self, code: str, what: str) -> Iterator[None]:
        """Raise the errors of SQLite, and of entries that are no JSON, as a BatchError."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            path, reason = str(self.path), str(error)
            text = f"cannot be {what}: {reason}. It was not changed; remove the cause and try again"
            # What is locked, full or forbidden is an OperationalError.
            if isinstance(error, ValueError) or type(error) is sqlite3.DatabaseError:
                code = "journal-damaged"
                text = (
                    f"is damaged ({reason}): move it away, and run the same command again; results in cases/ "
                    "are taken over, only failed cases are done again"
                )
            raise BatchError(f"{path} {text}", code=code, path=path, reason=reason) from error
