"""A command of the command line as a child process that ends when whoever started it does.

    python -m medsam2_core.worker.child train auto DATA --out …

Its standard input carries nothing: when it ends, be it that it is closed or that the other end died, the
command is interrupted as by Ctrl-C, and has some time to keep what it has.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import runpy
import sys
import threading
import time

_GRACE_S = 60.0
_INTERRUPTED = 130


def _end_with_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 10):
            pass
    _thread.interrupt_main()
    time.sleep(_GRACE_S)
    os._exit(_INTERRUPTED)


def main() -> None:
    """Run the command that the arguments say; never returns."""
    threading.Thread(target=_end_with_input, name="watcher", daemon=True).start()
    sys.argv[0] = "medsam2"
    runpy.run_module("medsam2_core.cli", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
