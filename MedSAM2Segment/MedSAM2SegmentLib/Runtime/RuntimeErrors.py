"""What went wrong in a child process: the error's code, and a message that tells the way out."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.i18n import _


@dataclass(frozen=True)
class Output:
    """How a command ended: exit code (None: not started, or ended by a signal), why, and its last lines."""

    code: int | None
    reason: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The last lines as one text."""
        return "\n".join(self.lines)

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.code == 0


# Code, what pip, uv and the system print, and what it means; the first that fits is taken.
_CAUSES = (
    (
        "disk-full",
        r"No space left|not enough space|disk full|os error 28|os error 112|File too large|quota exceeded",
        _("the disk is full. Free some space, then press Install again: what was downloaded is kept"),
    ),
    (
        "hash-mismatch",
        r"hash mismatch|hashes? (?:do|does) not match|THESE PACKAGES DO NOT MATCH THE HASHES",
        _(
            "a downloaded file is not the pinned one. It may have been damaged on the way, or the index or "
            "the offline folder holds another file: press Install again, or renew the folder"
        ),
    ),
    (
        "access-denied",
        r"Permission denied|os error 13|Access is denied|os error 5\b|os error 32|used by another process",
        _(
            "a file could not be written. Close other Slicers that use the runtime, and see whether the "
            "folder may be written to"
        ),
    ),
    (
        "index-unreachable",
        r"dns error|Failed to fetch|error sending request|timed out|Could not connect|tunnel|proxy|"
        r"Network is unreachable|Connection refused|certificate|Temporary failure in name|NewConnectionError",
        _(
            "the package index could not be reached. Is this computer online? Behind a proxy set HTTPS_PROXY "
            "(and SSL_CERT_FILE for its certificate); for an index of your own set UV_DEFAULT_INDEX; without "
            "a network use an offline folder. Then press Install again"
        ),
    ),
    (
        "damaged-download",
        r"failed to (?:extract|unzip|read)|invalid (?:zip|wheel)|corrupt|BadZipFile|not a zip|"
        r"Failed to read metadata|unexpected end",
        _("a downloaded file is damaged. Press Install again, or renew the offline folder"),
    ),
    (
        "package-not-found",
        r"No solution found|no version of|not found in the (?:package registry|provided)|"
        r"No matching distribution|no wheels? with a matching|unsatisfiable",
        _(
            "a package that fits was not found where packages come from. If that is an index or a folder of "
            "your own, it lacks some: see the details"
        ),
    ),
    (
        "python-not-found",
        r"No interpreter found|No download found|no Python (?:found|installation)",
        _("no Python 3.10 to 3.13 was found, and none could be downloaded. Install one, or name one"),
    ),
)


def commandError(what: str, output: Output) -> RuntimeInstallError:
    """Return the error for a command that failed; ``what`` is as in "PyTorch could not be installed"."""
    last = next((line.strip() for line in reversed(output.lines) if line.strip()), "")
    for code, pattern, meaning in _CAUSES:
        if re.search(pattern, output.text, re.IGNORECASE):
            return RuntimeInstallError(f"{what}: {meaning}", code=code, output=last)
    cause = f"{last} ({output.reason})" if last else output.reason
    message = _("{what}: {cause}. See the details, then press Install again").format(what=what, cause=cause)
    return RuntimeInstallError(message, code="command-failed", output=last)


def diskError(error: OSError) -> RuntimeInstallError:
    """Return the error for what the disk refused."""
    path = os.fspath(error.filename) if error.filename else ""
    reason = error.strerror or str(error)
    message = _("{reason}. Free disk space or permissions may be missing; then try again").format(
        reason=f"{path}: {reason}" if path else reason
    )
    return RuntimeInstallError(message, code="disk-error", path=path)
