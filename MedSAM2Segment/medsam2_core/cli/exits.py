"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from enum import IntEnum

from medsam2_core.errors import MedSAM2Error


class ExitCode(IntEnum):
    """What the shell sees."""

    DONE = 0
    OURS = 1
    BAD_INPUT = 2
    INTERRUPTED = 130
    TERMINATED = 143


# Where the command line has another way out than the Python API.
_WORDINGS = {"output-exists": "{path} exists already: choose another name, or add --overwrite"}


def say_error(error: MedSAM2Error) -> None:
    """Print an error as one line on stderr, worded for the command line where that differs."""
    wording = _WORDINGS.get(error.code)
    say(wording.format(**error.fields) if wording is not None else str(error))


def say(line: str) -> None:
    """One line on stderr, in the program's name."""
    print(f"medsam2: {' '.join(line.split())}", file=sys.stderr)


def say_defect(error: BaseException) -> None:
    """Tell about an error nobody foresaw, and where its traceback is.

    With ``MEDSAM2_DEBUG=1`` that is here; otherwise in a file of its own.
    """
    if os.environ.get("MEDSAM2_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
        return
    kind = type(error).__name__
    try:
        handle, path = tempfile.mkstemp(prefix="medsam2-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        path = "nowhere: no temporary file could be made; set MEDSAM2_DEBUG=1 to see them"
    say(f"{kind}: {error} (a defect of this program, not of your input; the details are in {path})")
