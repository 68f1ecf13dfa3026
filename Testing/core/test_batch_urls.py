"""Cases behind URLs: one at a time in a temporary folder, done again when the store has another file."""

import tempfile

import pytest
from medsam2_core.batch.cases import Case, Options
from medsam2_core.batch.cohort import read_cohort
from medsam2_core.batch.inputs import fingerprint, inputs_of, is_url, local_copies
from medsam2_core.batch.journal import Entry
from medsam2_core.batch.report import write_table
from medsam2_core.imaging.reading import read_volume
from medsam2_core.prompts.text import mask_file
from support.cohorts import BOX, entries, few_slices, masks, run_here, write_cohort, write_rows
from support.command_line import write_nrrd
from support.errors import raises
from support.small_files import some_voxels, write_series

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in memory with a scan, and an empty temporary folder."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe("/data/far.nrrd", write_nrrd(tmp_path / "far.nrrd", few_slices()).read_bytes())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield files
    files.store.clear()


def test_a_scan_from_a_store_is_segmented_as_from_a_file(store, tmp_path, model):
    write_cohort(tmp_path, 1)
    options = Options(model=str(model), image_size=64)
    images = "memory://data/far.nrrd", "c0.nrrd"
    rows = [{"image": image, "object": "ball", "box": BOX} for image in images]
    cohort, out = write_rows(tmp_path / "c.csv", rows), tmp_path / "out"
    assert run_here(cohort, out, options).done == ["far", "c0"]
    assert masks(out, "far") == masks(out, "c0")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert run_here(cohort, out, options).kept == ["far", "c0"]
    store.pipe("/data/far.nrrd", write_nrrd(tmp_path / "other.nrrd", few_slices()[:, ::-1]).read_bytes())
    assert run_here(cohort, out, options).done == ["far"]
    store.rm("/data/far.nrrd")
    assert run_here(cohort, out, options).failed == ["far"]
    assert entries(out)["far"].outcome["error"]["code"] == "url-unreachable"


def test_a_folder_of_a_store_is_copied_and_removed(store, tmp_path):
    write_series(tmp_path / "ct", some_voxels())
    store.put(str(tmp_path / "ct"), "/data/ct", recursive=True)
    case = Case("ct", "memory://data/ct", given=(("mask", "memory://data/far.nrrd"),))
    assert inputs_of(case) == ["memory://data/ct", "memory://data/far.nrrd"]
    with local_copies(case) as local:
        assert read_volume(local.image).voxels_kji.shape == (4, 5, 6)
        assert read_volume(local.masks[0]).voxels_kji.shape == few_slices().shape
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_label_of_a_mask_is_no_part_of_its_url(store):
    given = ("object", "x"), ("mask", "memory://data/far.nrrd:liver")
    case = Case("x", "memory://data/far.nrrd", given=given)
    assert inputs_of(case)[1] == "memory://data/far.nrrd"
    with local_copies(case) as local:
        path, label = mask_file(local.masks[0])
    assert (path.name, label) == ("far.nrrd", "liver")


def test_what_a_store_raises_is_that_case_s_error(store, monkeypatch):
    class Refused(Exception):
        """As of aiohttp or botocore: no OSError."""

    def refuse(*_, **__):
        raise Refused

    monkeypatch.setattr(type(store), "isdir", refuse)
    case = Case("x", "memory://data/far.nrrd")
    with raises("url-unreachable"):
        fingerprint(case)
    with raises("url-unreachable"), local_copies(case):
        pass


def test_a_signed_url_gives_its_name_and_no_token(tmp_path):
    url = "https://127.0.0.1:1/data/far%201.nii.gz?sig=a/b"
    (case,) = read_cohort(write_rows(tmp_path / "c.csv", [{"image": url, "box": BOX}])).cases
    assert (case.name, case.image) == ("far 1", url)
    table = write_table([(case, Entry(case.name))], tmp_path).read_text(encoding="utf-8-sig")
    assert "far%201.nii.gz" in table and "sig" not in table
    pytest.importorskip("aiohttp")
    with raises("url-unreachable", url=url.partition("?")[0]) as caught, local_copies(case):
        pass
    assert "sig" not in str(caught.value)


@pytest.mark.parametrize("url", ["memory://data/none.nrrd", "nonsense://x/y.nrrd"])
def test_what_cannot_be_reached_is_named(store, url):
    with raises("url-unreachable", url=url), local_copies(Case("x", url)):
        pass


def test_paths_are_no_urls():
    assert not any(map(is_url, ["a/b.nrrd", "C://data/x.nrrd", "/abs/x", "name:1"]))
    assert all(map(is_url, ["s3://bucket/x", "https://host/x"]))
