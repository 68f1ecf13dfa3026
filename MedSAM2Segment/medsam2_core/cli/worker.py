"""`medsam2 worker`: serve 3D Slicer, or another client, over standard input and output."""

from __future__ import annotations

import sys

from medsam2_core.cli.console import warn


def worker(
    verbose: bool = False,
) -> None:
    """Serve a client over standard input and output until the input ends.

    The protocol is described in Resources/docs/worker-protocol.md. Standard output carries nothing else.

    Options
    -------
    verbose: Log more.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        warn("this command is for programs that send messages over standard input; Ctrl-C ends it")
    from medsam2_core.worker.system import take_standard_streams

    streams = take_standard_streams()
    from medsam2_core.worker.server import serve

    serve(streams, verbose)
