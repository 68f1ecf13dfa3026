"""Where Auto models lie: found by name, file or path, never overwritten, removed with their reports."""

from dataclasses import replace
from pathlib import Path

import pytest
from medsam2_core.auto import library
from medsam2_core.auto.model_file import AutoCard
from medsam2_core.errors import CheckpointError, ExportError
from support.auto_model import an_auto_model
from support.errors import raises
from support.project import run_python
from support.tiny_model import tiny_model


@pytest.fixture(scope="module")
def auto():
    return an_auto_model(tiny_model())


@pytest.fixture
def place(auto, tmp_path):
    """A folder with two models, one that is damaged, and other things."""
    for file, name in (("nerve", "Nerves"), ("vessel", "Vessels")):
        replace(auto, card=replace(auto.card, name=name)).save(tmp_path / f"{file}.medsam2auto")
    (tmp_path / "broken.medsam2auto").write_bytes(b"no model")
    (tmp_path / ".hidden.medsam2auto").write_bytes(b"half a copy")
    (tmp_path / "folder.medsam2auto").mkdir()
    (tmp_path / "readme.txt").write_text("not a model")
    return tmp_path


def test_the_folder_is_named_by_the_environment_or_lies_beside_the_models(tmp_path):
    assert library.folder({"MEDSAM2_AUTO_MODELS": "~/mine"}) == Path("~/mine").expanduser()
    assert library.folder({"MEDSAM2_MODELS": str(tmp_path)}) == tmp_path / "auto"


def test_what_can_be_used_is_listed_and_what_cannot_is_reported(place):
    found = library.listing(place)
    assert [(path.name, card.name) for path, card in found.models] == [
        ("nerve.medsam2auto", "Nerves"),
        ("vessel.medsam2auto", "Vessels"),
    ]
    ((path, reason),) = found.damaged
    assert path.name == "broken.medsam2auto"
    assert "not an Auto model" in reason


def test_a_folder_that_is_not_there_yet_is_empty(tmp_path):
    assert library.listing(tmp_path / "nowhere") == library.Listing()


@pytest.mark.parametrize("name", ["nerve", "nerve.medsam2auto", "Nerves", " nerve "])
def test_a_model_is_found_by_any_of_its_names(place, name):
    path, card = library.find(name, place)
    assert (path, card.name) == (place / "nerve.medsam2auto", "Nerves")


def test_a_model_is_found_by_its_path_wherever_it_lies(place, tmp_path_factory):
    path = place / "vessel.medsam2auto"
    assert library.find(path, tmp_path_factory.mktemp("other"))[0] == path


@pytest.mark.parametrize("name", ["liver", "../nerve", "", "."])
def test_what_is_missing_is_reported_with_what_is_there(place, name):
    with raises("unknown-auto-model", CheckpointError, known=["nerve", "vessel"]):
        library.find(name, place)


def test_a_name_that_two_have_is_not_guessed(auto, place):
    replace(auto, card=replace(auto.card, name="Nerves")).save(place / "again.medsam2auto")
    with raises("ambiguous-auto-model", files=["again.medsam2auto", "nerve.medsam2auto"]):
        library.find("Nerves", place)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Liver", "Liver"),
        ("nerve", "nerve 2"),
        ("left/right: a<b", "left_right_ a_b"),
        (" ..hidden. ", "hidden"),
        ("Größe 3.5 (neu)", "Größe 3.5 (neu)"),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_new_model_gets_a_name_of_its_own(place, name, file):
    assert library.free_path(name, place) == place / f"{file}.medsam2auto"


def test_a_third_of_a_name_is_numbered_too(place):
    (place / "nerve 2.medsam2auto").write_bytes(b"")
    assert library.free_path("nerve", place).name == "nerve 3.medsam2auto"


@pytest.mark.parametrize("name", ["", " . ", "///", "?"])
def test_a_name_of_nothing_is_refused(place, name):
    with raises("bad-model-name", ExportError):
        library.free_path(name, place)


def test_a_folder_that_cannot_be_made_is_reported_with_the_way_out(place):
    with raises("output-not-writable", ExportError):
        library.free_path("new", place / "readme.txt" / "auto")


def test_a_model_is_removed_with_its_report(place):
    report, run = place / "nerve-report", library.run_folder(place / "nerve.medsam2auto")
    for folder in (report, run):
        folder.mkdir()
        (folder / "figures.txt").write_bytes(b"1" * 1000)
    size = (place / "nerve.medsam2auto").stat().st_size
    assert library.remove("nerve", place) == size + 2000
    assert [path.name for path, _ in library.listing(place).models] == ["vessel.medsam2auto"]
    assert not report.exists()
    assert not run.exists()
    assert (place / "readme.txt").exists()


@pytest.mark.parametrize("name", ["broken", "Vessels", "vessel.medsam2auto"])
def test_any_model_of_the_folder_can_be_removed(place, name):
    assert library.remove(name, place) > 0


def test_what_lies_elsewhere_is_not_removed(place, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name in (place / "nerve.medsam2auto", "nothing"):
        with pytest.raises(CheckpointError):
            library.remove(name, other)
    with pytest.raises(CheckpointError):
        library.remove(other / "nerve.medsam2auto", place)
    assert (place / "nerve.medsam2auto").exists()


@pytest.mark.parametrize(
    ("axis", "modality", "is_picture", "seen", "suits"),
    [
        ("picture", "", True, "", True),
        ("picture", "US", True, "", True),
        ("picture", "US", True, "us", True),
        ("picture", "US", True, "MR", False),
        ("picture", "", False, "", False),
        ("axial", "", True, "", False),
        ("axial", "CT", False, "CT", True),
        ("coronal", "", False, "MR", True),
    ],
)
def test_a_model_suits_what_it_was_trained_on(axis, modality, is_picture, seen, suits):
    card = AutoCard("x", (), "embedded", "0", 64, axis=axis, modality=modality)
    assert library.fits(card, is_picture=is_picture, modality=seen) is suits


def test_listing_needs_neither_torch_nor_numpy(place):
    code = (
        "import sys; from pathlib import Path; from medsam2_core.auto import library; "
        f"print(len(library.listing(Path({str(place)!r})).models), {{'torch', 'numpy'}} & set(sys.modules))"
    )
    assert run_python(code).stdout.split() == ["2", "set()"]
