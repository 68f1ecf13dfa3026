"""Many runs of `medsam2` that are stopped at chosen moments.

Each is a process of its own, forked from one that has loaded everything, so that all of its time is work and
none is waiting for imports.

As a program it is that first process: it reads command lines (JSON lists) from stdin, and for each prints the
number of the process that runs it, then how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class ForkedRuns:
    """Starts runs; see the module.

    Attributes
    ----------
    child
        Number of the process that runs the last command line.
    """

    def __init__(self, model: str) -> None:
        self.child = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def run(self, words: list, number: int | None = None, moment: Callable[[], None] | None = None) -> int:
        """Run a command line, send signal `number` when `moment` returns.

        The exit code; negative for a signal.
        """
        self._process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._process.stdin.flush()
        self.child = int(self._process.stdout.readline())
        if moment is not None:
            moment()
            # Not reaped until we ask for it, so the number cannot belong to somebody else by now.
            os.kill(self.child, number)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the first process."""
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def after(seconds: float) -> Callable[[], None]:
    """Some time after the start."""
    return lambda: time.sleep(seconds)


def once_writing(folder: Path, seconds: float, patience: float = 60) -> Callable[[], None]:
    """Some time after a temporary file has appeared in a folder."""

    def moment() -> None:
        end = time.monotonic() + patience
        while not any(folder.glob(".*.part")) and time.monotonic() < end:
            time.sleep(0.0002)
        time.sleep(seconds)

    return moment


def _main(model: str) -> None:
    import torch
    from medsam2_core.cli import main
    from medsam2_core.engine.model import load_model

    # Threads would not survive the fork.
    torch.set_num_threads(1)
    _held = load_model(model, "cpu")
    print("ready", flush=True)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            quiet = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(quiet, number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(main(json.loads(line)))
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
