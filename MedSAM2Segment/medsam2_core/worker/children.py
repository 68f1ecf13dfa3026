"""Commands as child processes: started, told to stop, waited for, and what they said last.

What runs there holds up nobody: neither clicks nor the computation. See `child` for the other end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import IO

#: What is run, before the words of the command line.
COMMAND = (sys.executable, "-m", "medsam2_core.worker.child")
#: Exit code of a command that was stopped.
INTERRUPTED = 130
_LAST_LINES = 40


def option(name: str) -> str:
    """How the command line calls the field of a message."""
    return "--" + name.replace("_", "-")


def started(words: list[str], messages: IO[bytes]) -> subprocess.Popen[bytes]:
    """A command, with pipes for its input and output; what it says on standard error goes to a file."""
    windows = {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)} if os.name == "nt" else {}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, **windows)


def ask_to_stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Close its input: it keeps what it has and ends; if it does not in time, it is ended."""
    try:
        if process.stdin is not None:
            process.stdin.close()
    except OSError:  # it is gone already
        return
    timer = threading.Timer(patience_s, process.kill)
    timer.daemon = True
    timer.start()


def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for its end; the exit code."""
    if process.stdout is not None:
        process.stdout.close()
    code = process.wait()
    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()
    return code


def last_words(messages: IO[bytes]) -> tuple[str, str]:
    """The last line it said in its own name, without that; and the last line of all. Empty for none."""
    messages.seek(0)
    lines = [line.strip() for line in messages.read().decode(errors="replace").splitlines() if line.strip()]
    own = [line.partition(": ")[2] for line in lines[-_LAST_LINES:] if line.startswith("medsam2: ")]
    return (own[-1] if own else ""), (lines[-1][:200] if lines else "")
