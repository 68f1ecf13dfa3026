"""Interface of transports, which carry bytes to a worker and back, and splitting of command lines."""

from __future__ import annotations

import os
import shlex
from typing import Protocol


class Listener(Protocol):
    """Receives the events of a transport, in the thread that owns the transport."""

    def on_bytes(self, data: bytes) -> None:
        """Handle bytes of the worker's standard output."""

    def on_stderr(self, data: bytes) -> None:
        """Handle bytes of its standard error."""

    def on_end(self, reason: str, code: int | None) -> None:
        """Handle the end of the worker, or its failure to start; called once, last."""


class Transport(Protocol):
    """Starts one worker and carries bytes to and from it."""

    def start(self, listener: Listener) -> None:
        """Start the worker; problems are reported to `on_end` and not raised."""

    def write(self, data: bytes) -> None:
        """Queue bytes for its standard input, without blocking."""

    def pending(self) -> int:
        """Return how many bytes of `write` have not been passed to the operating system yet."""

    def close_input(self) -> None:
        """Close its standard input once everything queued is written."""

    def kill(self) -> None:
        """Kill it with its child processes; may be called at any time, and repeatedly."""


def split_command(line: str, windows: bool = os.name == "nt") -> list[str]:
    """Split a command line as a POSIX shell or Windows does, without variables, wildcards or pipes.

    On Windows, backslashes are part of paths, except before a quotation mark. ValueError when a quote is not
    closed.
    """
    if not windows:
        return shlex.split(line)
    lexer = shlex.shlex(line.replace('\\"', "\0"), posix=True)
    lexer.whitespace_split, lexer.escape, lexer.quotes, lexer.commenters = True, "", '"', ""
    return [word.replace("\0", '"') for word in lexer]
