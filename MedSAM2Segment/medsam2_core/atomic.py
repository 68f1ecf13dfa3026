"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medsam2_core.errors import ExportError


def check_target(path: Path, *, overwrite: bool) -> None:
    """ExportError when a file could not be put there."""
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: the folder {path.parent} does not exist, create it first")
    if not overwrite and os.path.lexists(path):
        raise ExportError(f"{path} already exists: choose another name or allow it to be overwritten")


@contextlib.contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` when the block ends well.

    It is written under a temporary name in the same folder. Whatever ends the block early, Ctrl-C included,
    leaves neither that nor a changed ``path`` behind.

    Raises
    ------
    ExportError
        When the folder is missing, ``path`` exists and ``overwrite`` is not allowed, or the disk refuses.
    """
    check_target(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
    done = False
    try:
        # Mode "x": two writers never share a temporary file. The usual permissions apply, unlike with
        # tempfile.
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        check_target(path, overwrite=overwrite)  # somebody may have been faster
        temporary.replace(path)
        done = True
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if not done:
            temporary.unlink(missing_ok=True)
