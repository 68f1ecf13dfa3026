"""Downloads against a local server that stands in for the Hub only."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from medsam2_core.engine.catalogue import Catalogue, ModelEntry
from medsam2_core.engine.download import fetch
from medsam2_core.engine.store import ModelState, Store, receipt_path
from medsam2_core.errors import Cancelled, CatalogueError, CheckpointError, DownloadError
from support.errors import raises
from support.hub import COMMIT, Hub

CONTENT = bytes(os.urandom(1 << 16)) * 48 + b"the end"  # 3 MiB and a bit: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def an_entry(**changes) -> ModelEntry:
    facts = dict(
        name="tiny", title="t", config="sam2.1_hiera_t", image_size=512, repo="owner/repo", file="tiny.pt"
    )
    return ModelEntry(**(facts | dict(licence="MIT", attribution="somebody") | changes))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub(CONTENT).running() as hub:
        yield hub


def get(entry: ModelEntry, store: Store, hub: Hub, **options) -> Path:
    return fetch(entry, store=store, endpoint=hub.endpoint, retry_wait_s=0.01, **options)


def files_in(store: Store) -> set[str]:
    found = {path.name for path in store.models_folder.iterdir()} if store.models_folder.exists() else set()
    return {name for name in found if not name.endswith(".lock")}


def test_a_model_arrives_whole_with_its_receipt_and_progress(store, hub):
    steps = []
    path = get(an_entry(), store, hub, progress=lambda done, total: steps.append((done, total)))
    assert path == store.models_folder / "tiny.pt"
    assert path.read_bytes() == CONTENT
    assert files_in(store) == {"tiny.pt", "tiny.pt.json"}
    assert steps == sorted(steps) and steps[-1] == (len(CONTENT), len(CONTENT))
    receipt = json.loads(receipt_path(path).read_text())
    assert receipt["sha256"] == SHA256 and receipt["revision"] == COMMIT and receipt["licence"] == "MIT"
    assert store.find(an_entry()) == (ModelState.DOWNLOADED, path)


def test_the_pinned_revision_is_what_is_asked_for(store, hub):
    get(an_entry(revision="f" * 40), store, hub)
    assert hub.requests[0][:2] == ("HEAD", f"/owner/repo/resolve/{'f' * 40}/tiny.pt")


def test_what_is_here_is_not_fetched_again(store, hub):
    get(an_entry(), store, hub)
    asked = len(hub.requests)
    assert get(an_entry(), store, hub).is_file()
    assert len(hub.requests) == asked


def test_a_broken_connection_is_resumed_where_it_broke(store, hub):
    hub.drop_after = [1_000_000, 700_000, 0]
    assert get(an_entry(sha256=SHA256), store, hub).read_bytes() == CONTENT
    assert hub.bodies == [None, "bytes=1000000-", "bytes=1700000-", "bytes=1700000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(store, hub):
    hub.drop_after = [1_500_000]
    hub.ignores_ranges = True
    assert get(an_entry(sha256=SHA256), store, hub).read_bytes() == CONTENT


def test_a_stopped_download_goes_on_next_time(store, hub):
    seen = []
    with raises("cancelled", Cancelled):
        get(an_entry(), store, hub, progress=lambda done, _: seen.append(done), should_cancel=lambda: True)
    assert store.find(an_entry()) == (ModelState.MISSING, None)
    assert len(files_in(store)) == 1 and files_in(store).pop().endswith(".part")
    assert get(an_entry(), store, hub).read_bytes() == CONTENT
    assert hub.bodies[1] == f"bytes={seen[-1]}-"


def test_a_connection_that_never_recovers_is_an_error_and_keeps_what_came(store, hub):
    hub.drop_after = [500_000] + [0] * 20
    with pytest.raises(DownloadError):
        get(an_entry(), store, hub)
    assert store.find(an_entry())[0] is ModelState.MISSING
    hub.drop_after = []
    assert get(an_entry(), store, hub).read_bytes() == CONTENT
    assert hub.bodies[-1] == "bytes=500000-"


def test_a_killed_download_leaves_nothing_that_looks_whole(store, hub):
    script = (
        "import sys; from medsam2_core.engine.download import fetch\n"
        "from medsam2_core.engine.catalogue import ModelEntry; from medsam2_core.engine.store import Store\n"
        "entry = ModelEntry('tiny', 't', 'c', 512, repo='owner/repo', file='tiny.pt')\n"
        "fetch(entry, store=Store(sys.argv[1]), endpoint=sys.argv[2])\n"
    )
    hub.stall_after = 2_000_000
    process = subprocess.Popen([sys.executable, "-c", script, str(store.models_folder), hub.endpoint])
    try:
        assert hub.stalled.wait(60)
    finally:
        process.kill()
        process.wait()
    hub.stall_after = None
    hub.go_on.set()
    assert store.find(an_entry()) == (ModelState.MISSING, None)
    assert get(an_entry(), store, hub).read_bytes() == CONTENT


def test_credentials_go_to_the_hub_and_not_to_the_host_of_the_content(store, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(an_entry(), store, hub)
    sent = {path.split("/")[1]: credential for path, credential in hub.credentials}
    assert sent == {"owner": "Bearer hf_secret", "cdn": None}


def test_the_rest_of_another_content_is_not_appended(store, hub):
    with pytest.raises(Cancelled):
        get(an_entry(), store, hub, should_cancel=lambda: True)
    hub.content = CONTENT[::-1]
    hub.announced_etag = hashlib.sha256(hub.content).hexdigest()
    assert get(an_entry(), store, hub).read_bytes() == hub.content
    store.remove(an_entry())
    assert files_in(store) == set()


def test_damage_on_the_way_is_thrown_away(store, hub):
    hub.content = CONTENT[:-1] + b"X"  # the Hub still announces the hash of the good content
    with raises("damaged-download", DownloadError):
        get(an_entry(), store, hub)
    assert files_in(store) == set()


def test_a_wrong_hash_is_refused_also_when_the_hub_announces_none(store, hub):
    hub.announced_etag = "a-plain-etag"
    with raises("damaged-download", DownloadError):
        get(an_entry(sha256="0" * 64), store, hub)
    assert files_in(store) == set()


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"bytes": 12}])
def test_another_file_than_the_catalogues_is_refused_before_it_is_fetched(store, hub, changes):
    with raises("changed-at-source", DownloadError):
        get(an_entry(**changes), store, hub)
    assert hub.bodies == [] and files_in(store) == set()


def test_a_short_file_is_never_taken_for_the_whole(store, hub):
    hub.announced_size = len(CONTENT) + 1000
    with pytest.raises(DownloadError):
        get(an_entry(), store, hub)
    assert store.find(an_entry())[0] is ModelState.MISSING


def test_a_long_file_is_refused(store, hub):
    hub.announced_size = len(CONTENT) - 1000
    with raises("too-much-data", DownloadError):
        get(an_entry(), store, hub)
    assert store.find(an_entry())[0] is ModelState.MISSING


@pytest.mark.parametrize(
    ("status", "hub_code", "code"),
    [
        (401, "GatedRepo", "gated-repository"),
        (403, "GatedRepo", "gated-repository"),
        (401, "", "repository-not-found"),
        (404, "RepoNotFound", "repository-not-found"),
        (404, "RevisionNotFound", "revision-gone"),
        (404, "EntryNotFound", "file-gone"),
        (403, "", "refused-by-hub"),
        (500, "", "refused-by-hub"),
    ],
)
def test_refusals_name_what_to_do(store, hub, status, hub_code, code):
    hub.error = (status, hub_code)
    with raises(code, DownloadError):
        get(an_entry(revision="a" * 40), store, hub)
    assert files_in(store) == set()


def test_without_a_network_the_way_to_do_without_is_given(store):
    told = {"hub": "http://127.0.0.1:9", "folder": str(store.models_folder)}
    with raises("no-connection", DownloadError, **told):
        fetch(an_entry(), store=store, endpoint="http://127.0.0.1:9", retry_wait_s=0)
    assert files_in(store) == set()


def test_something_that_is_not_the_hub_is_noticed(store, hub):
    hub.commit = "None"
    with raises("not-the-hub", DownloadError):
        get(an_entry(), store, hub)


def test_offline_mode_is_respected(store, hub):
    script = (
        "import sys; from medsam2_core.engine.download import fetch\n"
        "from medsam2_core.engine.catalogue import ModelEntry; from medsam2_core.engine.store import Store\n"
        "from medsam2_core.errors import DownloadError\n"
        "entry = ModelEntry('t', 't', 'c', 512, repo='o/r', file='tiny.pt')\n"
        "try: fetch(entry, store=Store(sys.argv[1]), endpoint=sys.argv[2])\n"
        "except DownloadError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(store.models_folder), hub.endpoint]
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert "HF_HUB_OFFLINE is set" in done.stdout and hub.requests == []


def test_missing_disk_space_is_reported_before_the_first_byte(store, hub, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 50_000_000, 50_000_000))
    with raises("disk-space", DownloadError, free=50_000_000):
        get(an_entry(), store, hub)
    assert hub.bodies == [] and files_in(store) == set()


def test_a_full_disk_in_the_middle_is_an_error(store, hub, monkeypatch):
    real_open = Path.open

    def full(self, mode="r", *args, **kwargs):
        return (
            real_open(Path("/dev/full"), mode)
            if self.suffix == ".part"
            else real_open(self, mode, *args, **kwargs)
        )

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to try a full disk on")
    monkeypatch.setattr(Path, "open", full)
    with raises("disk-full", DownloadError):
        get(an_entry(), store, hub)
    monkeypatch.undo()
    assert store.find(an_entry())[0] is ModelState.MISSING


def test_a_models_folder_that_cannot_be_made_is_named(tmp_path, hub):
    (tmp_path / "file").write_text("")
    with raises("models-folder", DownloadError):
        get(an_entry(), Store(tmp_path / "file" / "models"), hub)


def test_two_processes_do_not_write_the_same_file(store, hub):
    from filelock import FileLock

    store.models_folder.mkdir()
    with FileLock(store.models_folder / ".tiny.pt.lock"), raises("already-downloading", DownloadError):
        get(an_entry(), store, hub)


def test_a_download_that_was_cut_off_on_disk_is_noticed_and_fetched_again(store, hub):
    path = get(an_entry(), store, hub)
    path.write_bytes(CONTENT[:1000])
    with raises("wrong-size", CheckpointError, bytes=1000, expected=len(CONTENT)):
        store.locate(an_entry())
    assert get(an_entry(), store, hub).read_bytes() == CONTENT


def test_verify_finds_changed_content_of_the_same_size(store, hub):
    path = get(an_entry(), store, hub)
    assert store.verify(an_entry()).against == "receipt"
    assert store.verify(an_entry(sha256=SHA256)).against == "catalogue"
    path.write_bytes(CONTENT[:-1] + b"X")
    with raises("wrong-hash", CheckpointError):
        store.verify(an_entry())


def test_remove_deletes_only_what_was_downloaded(store, hub, tmp_path):
    offline = tmp_path / "offline"
    offline.mkdir()
    (offline / "tiny.pt").write_bytes(b"by hand")
    both = Store(store.models_folder, [offline])
    with raises("not-downloaded", CatalogueError):
        both.remove(an_entry())
    get(an_entry(), store, hub)
    both.remove(an_entry())
    assert files_in(store) == set() and (offline / "tiny.pt").exists()


def test_a_file_dropped_into_the_offline_folder_needs_no_network(tmp_path):
    offline = tmp_path / "offline"
    (offline / "owner" / "repo").mkdir(parents=True)
    (offline / "owner" / "repo" / "tiny.pt").write_bytes(b"by hand")
    environment = {
        "MEDSAM2_MODELS": str(tmp_path / "models"),
        "MEDSAM2_OFFLINE_MODELS": f"/nowhere:{offline}",
    }
    store = Store.default(environment=environment)
    assert fetch(an_entry(), store=store, endpoint="http://127.0.0.1:9").read_bytes() == b"by hand"
    assert store.verify(an_entry()).against is None


def test_the_bundled_model_is_never_downloaded(store):
    entry = Catalogue.load().find("embedded")
    if entry.bundled_path().is_file():
        assert fetch(entry, store=store) == entry.bundled_path()
    else:
        with raises("model-not-here", CatalogueError):
            fetch(entry, store=store)
