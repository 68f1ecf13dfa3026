"""Download a model, only when the user asked for it.

Addresses, credentials, proxies, offline mode and error classes are huggingface_hub's. The bytes are streamed
here and not by ``hf_hub_download``, because that (as of version 2.4) removes the partial file when a download
breaks off or is stopped, so that the next one starts anew, and reports progress only every 10 MB, too late
for cancelling on a slow line. Only a file of the right size and hash gets its real name. Plain HTTP is used,
which the Hub offers for every file; Xet is not.
"""

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsam2_core.engine.catalogue import ModelEntry
from medsam2_core.engine.store import ModelState, Receipt, Store, hash_file, part_path
from medsam2_core.errors import Cancelled, DownloadError

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

Progress = Callable[[int, "int | None"], None]

_SPARE_BYTES = 64 << 20  # left free on the disk for everybody else
_RETRIES = 5  # without a single new byte in between
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class _Remote:
    """What the Hub announces of a file before it sends it."""

    url: str
    revision: str
    size: int | None
    etag: str

    @property
    def sha256(self) -> str | None:
        """For large files the Hub's ETag is the content's SHA-256."""
        return self.etag if re.fullmatch("[0-9a-f]{64}", self.etag) else None


def fetch(
    entry: ModelEntry,
    progress: Progress = lambda done, total: None,
    *,
    store: Store | None = None,
    should_cancel: Callable[[], bool] = lambda: False,
    endpoint: str | None = None,
    retry_wait_s: float = 1.0,
) -> Path:
    """Bring a model's weights onto this machine, unless they are here already.

    Parameters
    ----------
    entry
        The model. Show its `notice` to the user first.
    progress
        Called with (bytes here, bytes in all or None), from the calling thread.
    should_cancel
        Asked after every few kilobytes. What arrived is kept, and the next call goes on from there.
    endpoint
        Address of the Hub or of a mirror; None means huggingface_hub's (``HF_ENDPOINT``).
    retry_wait_s
        Seconds before a broken connection is tried again.

    Raises
    ------
    DownloadError
        It could not be had, or was not what it should be. Nothing unusable is left behind under a usable
        name.
    CatalogueError
        The model is bundled or local, and its file is missing.
    Cancelled
        `should_cancel` returned True.
    """
    store = store or Store.default()
    if entry.repo is None or entry.file is None:
        return store.locate(entry)
    state, path = store.find(entry)
    if path is not None and (state is not ModelState.DOWNLOADED or store.has_right_size(entry, path)):
        return store.locate(entry)
    with _only_one(store.download_path(entry)), _explained(entry, endpoint, store):
        remote = _remote_file(entry, endpoint)
        _compare_with_catalogue(entry, remote)
        part = part_path(store.download_path(entry), remote.etag)
        _check_disk(part, remote.size, entry)
        _stream(remote, part, progress, should_cancel, retry_wait_s)
        return _accept(entry, remote, part, store)


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Lock a download: two processes would write into the same partial file."""
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        message = f"{target.name} is being downloaded by another process already: wait for it"
        raise DownloadError(message, code="already-downloading", file=target.name) from error
    except OSError as error:
        message = f"the models folder {target.parent} cannot be used ({error.strerror}): set MEDSAM2_MODELS"
        raise DownloadError(message, code="models-folder", folder=str(target.parent)) from error
    try:
        yield
    finally:
        lock.release()


def _remote_file(entry: ModelEntry, endpoint: str | None) -> _Remote:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    assert entry.repo is not None and entry.file is not None

    url = hf_hub_url(entry.repo, entry.file, revision=entry.revision, endpoint=endpoint)
    facts: HfFileMetadata = get_hf_file_metadata(url, timeout=_TIMEOUT_S, endpoint=endpoint)
    if not facts.commit_hash or not facts.etag:
        message = (
            f"{url} did not answer like the Hugging Face Hub: a proxy or a log-in page may be in between. "
            "Check HF_ENDPOINT and the network"
        )
        raise DownloadError(message, code="not-the-hub", url=url)
    # From here on by commit, so that a change of the repository cannot mix two versions.
    url = hf_hub_url(entry.repo, entry.file, revision=facts.commit_hash, endpoint=endpoint)
    return _Remote(url, facts.commit_hash, facts.size, facts.etag)


def _compare_with_catalogue(entry: ModelEntry, remote: _Remote) -> None:
    """Refuse another file than the catalogue's before a byte of it is fetched."""
    changed = None
    if entry.bytes is not None and remote.size not in (None, entry.bytes):
        changed = f"{remote.size} bytes instead of {entry.bytes}"
    elif entry.sha256 is not None and remote.sha256 not in (None, entry.sha256):
        changed = f"SHA-256 {remote.sha256} instead of {entry.sha256}"
    if changed is not None:
        message = (
            f"{entry.page} now offers another {entry.file} than this package knows ({changed}): not fetched. "
            "Update the package, or download it yourself and give its path if you trust it"
        )
        raise DownloadError(message, code="changed-at-source", model=entry.name)


def _check_disk(part: Path, size: int | None, entry: ModelEntry) -> None:
    total = size or entry.bytes
    if total is None:
        return
    missing = total - _size(part)
    free = shutil.disk_usage(part.parent).free
    if free < missing + _SPARE_BYTES:
        message = (
            f"not enough disk space for {entry.file}: {_megabytes(missing + _SPARE_BYTES)} are needed in "
            f"{part.parent}, {_megabytes(free)} are free. Free some space, or set MEDSAM2_MODELS to another "
            "folder"
        )
        raise DownloadError(
            message, code="disk-space", folder=str(part.parent), needed=missing + _SPARE_BYTES, free=free
        )


def _stream(
    remote: _Remote, part: Path, progress: Progress, should_cancel: Callable[[], bool], retry_wait_s: float
) -> None:
    """Append to the partial file until it is complete, reconnecting where the connection broke."""
    from huggingface_hub.errors import HfHubHTTPError

    failures = 0
    while True:
        before = _size(part)
        if remote.size is not None and before > remote.size:
            part.unlink()
            continue
        if before == remote.size:
            progress(before, remote.size)
            return
        broken = None
        try:
            _stream_once(remote, part, before, progress, should_cancel)
        except HfHubHTTPError:  # an answer, not a broken connection
            raise
        except _connection_errors() as error:
            broken = error
        if remote.size is None and broken is None:
            return
        # The connection broke, or the server ended early without an error: ask for the rest.
        failures = 1 if _size(part) > before else failures + 1
        if failures > _RETRIES and _size(part) != remote.size:
            raise broken or DownloadError(
                f"{remote.url} ended after {_size(part)} of {remote.size} bytes: try again later",
                code="download-interrupted", bytes=_size(part), total=remote.size,
            )  # fmt: skip
        if broken is not None:
            time.sleep(retry_wait_s)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _stream_once(
    remote: _Remote, part: Path, start: int, progress: Progress, should_cancel: Callable[[], bool]
) -> None:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # Compressed on the way, a byte range would count other bytes than ours.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", remote.url, headers=headers, timeout=_TIMEOUT_S) as response:
        if response.status_code == 416:  # what we have is longer than the file
            part.unlink()
            return
        hf_raise_for_status(response)
        resumed = response.status_code == 206 and _starts_at(response.headers.get("Content-Range"), start)
        done = start if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes():  # as they come: a broken connection loses nothing
                file.write(chunk)
                done += len(chunk)
                progress(done, remote.size)
                if should_cancel():
                    raise Cancelled(f"the download was stopped after {_megabytes(done)}; it can be continued")
                if remote.size is not None and done > remote.size:
                    file.truncate(0)
                    message = f"{remote.url} sent more than the {remote.size} bytes it announced"
                    raise DownloadError(message, code="too-much-data", url=remote.url, total=remote.size)


def _starts_at(content_range: str | None, start: int) -> bool:
    return content_range is not None and content_range.startswith(f"bytes {start}-")


def _accept(entry: ModelEntry, remote: _Remote, part: Path, store: Store) -> Path:
    """Check the complete file, write its receipt, and only then give it its name."""
    sha256, size = hash_file(part)
    wanted = entry.sha256 or remote.sha256
    if (wanted is not None and sha256 != wanted) or (entry.bytes is not None and size != entry.bytes):
        part.unlink()
        message = (
            f"what arrived for {entry.file} is damaged (SHA-256 {sha256}, {size} bytes; expected "
            f"{wanted or 'unknown'}, {entry.bytes or remote.size or 'unknown'}) and was deleted: try again"
        )
        raise DownloadError(message, code="damaged-download", model=entry.name, sha256=sha256, bytes=size)
    target = store.download_path(entry)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    assert entry.repo is not None and entry.file is not None
    receipt = Receipt(sha256, size, entry.repo, entry.file, remote.revision, entry.licence, entry.attribution)
    store.write_receipt(target, receipt)
    part.replace(target)
    return target


def _connection_errors() -> tuple[type[Exception], ...]:
    # The HTTP library under huggingface_hub changes its name; this class is the root of its errors.
    from huggingface_hub import errors

    return (errors.HTTPError, ConnectionError, TimeoutError)


@contextlib.contextmanager
def _explained(entry: ModelEntry, endpoint: str | None, store: Store) -> Iterator[None]:
    """Turn what huggingface_hub, the network and the disk raise into one line and a way out."""
    from huggingface_hub import constants, errors

    explained: tuple[type[Exception], ...] = (OSError, errors.EntryNotFoundError, *_connection_errors())
    try:
        yield
    except explained as error:
        hub = endpoint or constants.ENDPOINT
        code, message = _explanation(error, entry, hub, store.models_folder)
        facts = {"model": entry.name, "repo": entry.repo, "file": entry.file, "hub": hub}
        raise DownloadError(message, code=code, folder=str(store.models_folder), **facts) from error


def _explanation(error: Exception, entry: ModelEntry, hub: str, folder: Path) -> tuple[str, str]:
    """Return code and message for what a download raised."""
    from huggingface_hub import errors

    by_hand = f"or get {entry.file} from {entry.page} yourself and put it into {folder}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    # The Hub answers 401 for what does not exist, too.
    missing = (errors.RepositoryNotFoundError, errors.DisabledRepoError)
    if isinstance(error, errors.GatedRepoError):
        code, problem = "gated-repository", f"{entry.repo} is gated"
        advice = (
            f"accept its terms on {entry.page}, log in with `hf auth login` (or set HF_TOKEN), and try again"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        code, problem = "revision-gone", f"{entry.repo} does not have the revision {entry.revision} any more"
        advice = "update the package"
    elif isinstance(error, errors.EntryNotFoundError):
        code, problem = "file-gone", f"{entry.repo} has no file {entry.file} any more"
        advice = f"look at {entry.page}, update the package"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        code, problem = "offline-mode", "HF_HUB_OFFLINE is set, so nothing is downloaded"
        advice = "unset it"
    elif isinstance(error, missing) or status == 401:
        code, problem = "repository-not-found", f"{entry.repo} was not found on {hub}, or is private"
        advice = f"look at {entry.page}; if it needs an account, log in with `hf auth login`"
    elif status is not None:
        code, problem = "refused-by-hub", f"{hub} refused {entry.file} (HTTP {status})"
        advice = "try again later" if status == 429 or status >= 500 else "check your account and the network"
    elif isinstance(error, _connection_errors()):
        code, problem = "no-connection", f"no connection to {hub} ({str(error) or type(error).__name__})"
        advice = "check the network and the proxy and try again (what has arrived is kept)"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "disk-full", f"the disk of {folder} is full: free some space and try again"
    else:
        return "models-folder", f"{folder} cannot be written to: {error}"
    return code, f"{problem}: {advice}, {by_hand}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
