"""`medsam2 worker`: serves 3D Slicer, or any other client, over standard input and output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def worker(
    verbose: Annotated[bool, typer.Option(help="Write more into the log.")] = False,
) -> None:
    """Segment for a client that speaks over standard input and output; ends when the input ends.

    The protocol is described in Resources/docs/worker-protocol.md. Nothing is printed to standard output.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        message = "this is for programs, which speak frames over standard input: nothing will be said here"
        print(f"medsam2: {message} (Ctrl-C ends it)", file=sys.stderr)
    from medsam2_core.worker.system import take_standard_streams

    streams = take_standard_streams()
    from medsam2_core.worker.server import serve

    serve(streams, verbose)
