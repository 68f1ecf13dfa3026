"""The worker's log: what was asked and how it ended, never what was in it.

No names of patients, objects or files are written: requests are told by their type and number, errors by
their kind, defects by where in the code they happened.
"""

from __future__ import annotations

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

_MOST_BYTES = 1 << 20  # of one file; there are two old ones beside it
_FORMAT = f"%(asctime)s {os.getpid()} %(levelname)s %(message)s"


def log_path() -> Path:
    """Where the log is written: in the user's folder for logs, or where ``MEDSAM2_LOG`` says."""
    named = os.environ.get("MEDSAM2_LOG")
    if named:
        return Path(named)
    from platformdirs import user_log_dir

    return Path(user_log_dir("MedSAM2Segment", appauthor=False)) / "worker.log"


def start_log(verbose: bool = False) -> Path | None:
    """Write log messages of this package to a file of bounded size.

    Returns
    -------
    Path or None
        The file; None when there can be none. A disk that gets full later does not matter either.
    """
    logging.raiseExceptions = False  # a message that cannot be written is lost, and that is all
    ours = logging.getLogger("medsam2_core")
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)
    ours.propagate = False
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(
            path, maxBytes=_MOST_BYTES, backupCount=2, encoding="utf-8", errors="replace"
        )
    except OSError:
        ours.addHandler(logging.NullHandler())
        return None
    handler.setFormatter(logging.Formatter(_FORMAT))
    ours.addHandler(handler)
    return path
