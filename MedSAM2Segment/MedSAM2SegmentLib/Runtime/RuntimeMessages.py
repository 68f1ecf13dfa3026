"""What went wrong in a child process, in words that say what to do."""

from __future__ import annotations

import re

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.Runtime.RuntimeTask import Output

# What tools print, and what it means; the first that fits is taken.
_MEANINGS = (
    (
        r"No space left|not enough space|disk full|os error 28|os error 112|File too large|quota exceeded",
        "the disk is full. Free some space, then press Install again: what was downloaded is kept",
    ),
    (
        r"hash mismatch|hashes? (?:do|does) not match|THESE PACKAGES DO NOT MATCH THE HASHES|Hash mismatch",
        "a downloaded file is not the pinned one. It may have been damaged on the way, or the index or the "
        "offline folder holds another file: press Install again, or renew the folder",
    ),
    (
        r"Permission denied|os error 13|Access is denied|os error 5\b|os error 32|used by another process",
        "a file could not be written. Close other Slicers that use the runtime, and see whether the folder "
        "may be written to",
    ),
    (
        r"dns error|Failed to fetch|error sending request|timed out|Could not connect|tunnel|proxy|"
        r"Network is unreachable|Connection refused|certificate|Temporary failure in name|NewConnectionError",
        "the package index could not be reached. Is this computer online? Behind a proxy set HTTPS_PROXY "
        "(and SSL_CERT_FILE for its certificate); for an index of your own set UV_DEFAULT_INDEX; without a "
        "network use an offline folder. Then press Install again",
    ),
    (
        r"failed to (?:extract|unzip|read)|invalid (?:zip|wheel)|corrupt|BadZipFile|not a zip|"
        r"Failed to read metadata|unexpected end",
        "a downloaded file is damaged. Press Install again, or renew the offline folder",
    ),
    (
        r"No solution found|no version of|not found in the (?:package registry|provided)|"
        r"No matching distribution|no wheels? with a matching|unsatisfiable",
        "a package that fits was not found where packages come from. If that is an index or a folder of your "
        "own, it lacks some: see the details",
    ),
    (
        r"No interpreter found|No download found|no Python (?:found|installation)",
        "no Python 3.10 to 3.13 was found, and none could be downloaded. Install one, or name one",
    ),
)


def explained(what: str, output: Output) -> RuntimeInstallError:
    """The error for a command that failed.

    Parameters
    ----------
    what
        What was being done, as in "PyTorch could not be installed".
    output
        How the command ended.
    """
    text = output.text
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, text, re.IGNORECASE):
            return RuntimeInstallError(f"{what}: {meaning}")
    last = next((line.strip() for line in reversed(output.lines) if line.strip()), "")
    told = f"{last} ({output.reason})" if last else output.reason
    return RuntimeInstallError(f"{what}: {told}. See the details, then press Install again")
