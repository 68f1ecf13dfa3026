"""How bytes get to a worker and back: what a transport is, and the command line that starts one."""

from __future__ import annotations

import os
import shlex
from typing import Protocol


class Listener(Protocol):
    """Receives what a transport brings, always in the thread that owns the transport."""

    def on_bytes(self, data: bytes) -> None:
        """Take bytes of the worker's standard output."""

    def on_stderr(self, data: bytes) -> None:
        """Take bytes of its standard error."""

    def on_end(self, reason: str, code: int | None) -> None:
        """Take the end of the worker, or that it never started; called once and last."""


class Transport(Protocol):
    """Starts one worker and carries bytes."""

    def start(self, listener: Listener) -> None:
        """Start the worker; problems go to `on_end` and are not raised."""

    def write(self, data: bytes) -> None:
        """Queue bytes for its standard input, without waiting."""

    def pending(self) -> int:
        """Return how many bytes of `write` the operating system has not taken yet."""

    def close_input(self) -> None:
        """Close its standard input behind what is queued."""

    def kill(self) -> None:
        """End it at once, with whatever it started; may be called at any time, and twice."""


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
