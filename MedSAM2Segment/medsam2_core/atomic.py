"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from medsam2_core.errors import ExportError

_DICOM_AT = 128  # bytes before the magic of a DICOM file
_LONGEST = 120  # bytes of a name that temporary ones begin with; systems allow 255 in all
_PROBE = 1 << 20  # bytes; a mask is rarely larger once it is compressed
_LOCK_SECONDS = 10.0
_IN_USE = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what systems say of a lock that somebody has
_PART, _OLD = ".part", ".old"  # endings of what is being written, and of what it replaces


#: Files and folders that are read, and that nothing may be written over.
_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


@contextlib.contextmanager
def protect(*paths: str | Path | None) -> Iterator[None]:
    """Refuse to write over these files within the block, whatever ``overwrite`` says.

    The same file under another name (a symbolic or hard link) counts, too. Of a folder, the DICOM files in it
    are protected: what else it holds is not read, and may be an earlier result.
    """
    given = tuple(Path(path).expanduser() for path in paths if path is not None)
    token = _inputs.set((*_inputs.get(), *given))
    try:
        yield
    finally:
        _inputs.reset(token)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check that a file could be written there.

    Raises
    ------
    ExportError
        ``output-is-folder``, ``output-folder-missing``, ``output-folder-is-file``, ``output-exists``;
        ``output-is-input`` for a file that is protected (see :func:`protect`).
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name a file in it", code="output-is-folder", path=str(path))
    if path.parent.exists() and not path.parent.is_dir():
        message = f"{path}: {path.parent} is a file and can hold no other: name a file in a folder"
        raise ExportError(message, code="output-folder-is-file", path=str(path), folder=str(path.parent))
    if not path.parent.is_dir():
        message = f"{path}: the folder {path.parent} does not exist, create it first"
        raise ExportError(message, code="output-folder-missing", path=str(path), folder=str(path.parent))
    if path.exists() and any(_is_same(path, one) for one in _inputs.get()):
        message = f"{path} is one of the files that are read: choose another name"
        raise ExportError(message, code="output-is-input", path=str(path))
    if not overwrite and os.path.lexists(path):
        message = f"{path} already exists: choose another name or allow it to be overwritten"
        raise ExportError(message, code="output-exists", path=str(path))


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in, unless it is there.

    Raises
    ------
    ExportError
        ``output-not-writable``.
    """
    if path.exists() and not path.is_dir():
        message = f"{path} is a file, a folder is needed: choose another name"
        raise ExportError(message, code="output-not-writable", path=str(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def check_writable(path: Path) -> None:
    """Check that the folder of a file takes one, by writing a megabyte there and removing it.

    Permissions alone do not tell: file systems are read-only, full, or beyond a quota.

    Raises
    ------
    ExportError
        ``output-not-writable``.
    """
    probe = _temporary(path)
    try:
        with probe.open("xb") as stream:
            stream.write(bytes(_PROBE))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        _remove(probe)


def _temporary(path: Path) -> Path:
    shown = path.name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    return path.with_name(f".{shown}.{secrets.token_hex(4)}{_PART}")


def _not_writable(path: Path, error: BaseException) -> ExportError:
    return ExportError(
        f"{path} cannot be written: {reason(error)}", code="output-not-writable", path=str(path)
    )


def _is_same(path: Path, input: Path) -> bool:
    try:
        if not input.is_dir():
            return path.samefile(input)
        if not path.resolve().is_relative_to(input.resolve()):
            return False
        with path.open("rb") as stream:
            return stream.read(_DICOM_AT + 4)[_DICOM_AT:] == b"DICM"
    except OSError:  # there is no such input, or it cannot be read
        return False


#: Files that are complete but wait for the others of their block, as (temporary, final, may replace).
_waiting: ContextVar[list[tuple[Path, Path, bool]] | None] = ContextVar("waiting", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Files made with :func:`new_file` in this block take their places at its end, or none of them does."""
    if _waiting.get() is not None:
        yield  # the outer block decides
        return
    files: list[tuple[Path, Path, bool]] = []
    token = _waiting.set(files)
    try:
        yield
        for _, path, overwrite in files:
            check_target(path, overwrite=overwrite)
        while files:
            temporary, path, _ = files[0]
            _take_place(temporary, path)
            del files[0]
    finally:
        _waiting.reset(token)
        for temporary, _, _ in files:
            _remove(temporary)


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
    temporary = _temporary(path)
    done = False
    try:
        # Mode "x": two writers never share a temporary file. The usual permissions apply, unlike with
        # tempfile.
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        waiting = _waiting.get()
        if waiting is None:
            check_target(path, overwrite=overwrite)  # somebody may have been faster
            _take_place(temporary, path)
        else:
            waiting.append((temporary, path, overwrite))
        done = True
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        if not done:
            _remove(temporary)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file in the block; others wait for it. The file stays, the lock ends with its process.

    Where a file system has no locks, as on some clusters, nothing is locked.

    Raises
    ------
    ExportError
        ``in-use`` when somebody else has it for ten seconds; ``output-not-writable``.
    """
    try:
        stream = path.open("ab")
    except OSError as error:
        raise _not_writable(path, error) from error
    with stream:
        last = time.monotonic() + _LOCK_SECONDS
        while not _lock(stream):
            if time.monotonic() > last:
                message = f"another program is changing files in {path.parent}: wait for it, and try again"
                raise ExportError(message, code="in-use", path=str(path))
            time.sleep(0.02)
        yield


def _lock(stream: BinaryIO) -> bool:
    """Lock an open file until it is closed; return whether that succeeded, or no file can be locked there."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _IN_USE
    return True


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of ``target`` when the block ends well.

    An earlier one is kept under another name until then, and comes back when its place cannot be taken.

    Raises
    ------
    ExportError
        ``output-not-writable``.
    """
    make_folder(target.parent)
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PART}")
    try:
        made.mkdir()
        yield made
        _replace_folder(made, target)
    except OSError as error:
        raise _not_writable(target, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _replace_folder(made: Path, target: Path) -> None:
    if not target.exists():
        made.rename(target)
        return
    old = made.with_suffix(_OLD)
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clean_folders(folder: Path) -> None:
    """Remove what processes that were killed have left among the folders in a folder.

    A result that was about to be replaced, and was not, gets its name back.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.startswith("."):
            continue
        target = path.with_name(Path(path.stem).stem[1:])
        if path.suffix == _OLD and not target.exists():
            with contextlib.suppress(OSError):
                path.rename(target)
        elif path.suffix in (_OLD, _PART):
            shutil.rmtree(path, ignore_errors=True)


def reason(error: BaseException) -> str:
    """What the system said, in a few words, whatever a library has made of it on the way."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _take_place(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # a disk that went away took it along
        temporary.unlink(missing_ok=True)
