"""The catalogue says for each model what it is, where it comes from and what its licence asks."""

import json
import random
import subprocess
import sys

import pytest
from medsam2_core.engine.architecture import OWN_CONFIGS, STOCK_CONFIGS
from medsam2_core.engine.catalogue import _RECIPE_FIELDS, Catalogue
from medsam2_core.engine.store import ModelState, Store
from medsam2_core.errors import CatalogueError
from support.errors import raises

A_MODEL = {
    "name": "m",
    "title": "t",
    "config": "sam2_hiera_t",
    "image_size": 512,
    "repo": "o/r",
    "file": "m.pt",
}


def catalogue_of(tmp_path, *models, **top):
    (tmp_path / "catalogue.json").write_text(json.dumps({"models": list(models)} | top))
    return Catalogue.load(tmp_path / "catalogue.json")


def test_it_knows_the_published_models_in_both_sizes():
    catalogue = Catalogue.load()
    for family in ("sam2", "sam2.1"):
        for size, letter in (("tiny", "t"), ("small", "s"), ("base-plus", "b+"), ("large", "l")):
            full, half = catalogue.find(f"{family}-{size}"), catalogue.find(f"{family}-{size}-512")
            assert full.config == half.config == f"{family}_hiera_{letter}"
            assert (full.image_size, half.image_size) == (1024, 512)
            assert (full.repo, full.file, full.sha256) == (half.repo, half.file, half.sha256)
            assert full.repo == f"facebook/{family}-hiera-{size}"
            assert full.file == f"{family}_hiera_{size.replace('-', '_')}.pt"
            assert full.licence == "Apache-2.0" and full.sha256 and full.bytes


def test_larger_models_and_images_need_more_memory():
    catalogue = Catalogue.load()
    for family in ("sam2", "sam2.1"):
        for end in ("", "-512"):
            needs = [
                catalogue.find(f"{family}-{size}{end}").memory
                for size in ("tiny", "small", "base-plus", "large")
            ]
            assert needs == sorted(needs)
        for size in ("tiny", "small", "base-plus", "large"):
            full, half = catalogue.find(f"{family}-{size}"), catalogue.find(f"{family}-{size}-512")
            assert full.bytes < half.memory < full.memory
    for entry in catalogue:
        assert entry.memory >= catalogue.find("embedded").memory
        assert entry.needed_bytes(1_000_000) == entry.memory + 1_000_000


def test_medical_models_carry_their_licence_and_a_notice():
    catalogue = Catalogue.load()
    wang_lab = [entry for entry in catalogue if entry.repo == "wanglab/MedSAM2"]
    assert len({entry.file for entry in wang_lab}) == 6
    for entry in wang_lab:
        assert (entry.config, entry.image_size, entry.licence) == ("sam2.1_hiera_t", 512, "CC-BY-SA-4.0")
        assert "same licence" in entry.notice and "Wang Lab" in entry.attribution
    medical = catalogue.find("medical-sam2")
    assert medical.config == "sam2_hiera_t" and medical.licence is None and "no licence" in medical.notice


def test_the_embedded_model_is_bundled_and_everything_else_comes_from_the_hub():
    for entry in Catalogue.load():
        assert (entry.bundled is None) == (entry.repo is not None)
        assert entry.config in STOCK_CONFIGS + OWN_CONFIGS
        assert entry.attribution
    embedded = Catalogue.load().find("embedded")
    assert embedded.bundled == "weights/embedded.safetensors" and embedded.image_size == 256


def test_one_file_name_never_means_two_contents():
    sources: dict[str, tuple] = {}
    for entry in Catalogue.load():
        assert sources.setdefault(entry.filename, (entry.repo, entry.file)) == (entry.repo, entry.file)


def test_an_unknown_name_suggests_the_closest():
    closest = ["sam2.1-tiny", "sam2-tiny", "sam2.1-tiny-512"]
    with raises("unknown-model", CatalogueError, model="sam2.1-tinny", closest=closest):
        Catalogue.load().find("sam2.1-tinny")


def test_a_missing_file_is_reported():
    with raises("no-such-checkpoint", CatalogueError, path="weights/x.pt"):
        Catalogue.load().find("weights/x.pt")


def test_a_file_of_the_users_is_an_entry_too(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"x")
    entry = Catalogue.load().find(tmp_path / "mine.pt")
    assert entry.is_local and entry.config is None and entry.path == tmp_path / "mine.pt"


def test_a_published_file_kept_elsewhere_takes_over_its_image_size(tmp_path):
    (tmp_path / "MedSAM2_latest.pt").write_bytes(b"x")
    entry = Catalogue.load().find(tmp_path / "MedSAM2_latest.pt")
    assert entry.is_local and entry.image_size == 512 and entry.sha256 is None
    assert entry.licence == "CC-BY-SA-4.0"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "A B", "lower case letters, digits and . + _ -"),
        ("name", None, "a str"),
        ("image_size", 500, "a positive multiple of 32"),
        ("image_size", "512", "a int"),
        ("image_size", True, "a int"),
        ("sha256", "abc", "64 hex digits"),
        ("revision", "main", "40 hex digits"),
        ("bytes", -1, "positive"),
        ("repo", "just-a-name", "owner/name"),
        ("file", "../../etc/passwd", "a relative path without .."),
        ("file", "/etc/passwd", "a relative path without .."),
        ("recipe", {"magic": 1}, f"made of {', '.join(_RECIPE_FIELDS)}"),
        ("succeeds", ["abc"], "keys of 64 hex digits"),
        ("succeeds", "abc", "a list"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field_and_value(tmp_path, field, value, expected):
    where = f"{tmp_path / 'catalogue.json'}, model 1"
    with raises("bad-catalogue-entry", CatalogueError, where=where, field=field, expected=expected):
        catalogue_of(tmp_path, A_MODEL | {field: value})


def test_fields_that_do_not_go_together_are_named(tmp_path):
    with raises("bad-catalogue-entry", CatalogueError, field="repo", expected="given together with file"):
        catalogue_of(tmp_path, A_MODEL | {"file": None})
    rule = "given exactly when repo is not"
    with raises("bad-catalogue-entry", CatalogueError, field="bundled", expected=rule):
        catalogue_of(tmp_path, A_MODEL | {"bundled": "weights/x.safetensors"})
    with raises("bad-catalogue-entry", CatalogueError, unknown=["colour"]):
        catalogue_of(tmp_path, A_MODEL | {"colour": "red"})


def test_recipes_have_the_fields_of_the_engine():
    from dataclasses import fields

    from medsam2_core.engine.recipe import PromptRecipe

    assert tuple(one.name for one in fields(PromptRecipe)) == _RECIPE_FIELDS


def test_a_name_given_twice_is_refused(tmp_path):
    with raises("duplicate-model", CatalogueError):
        catalogue_of(tmp_path, A_MODEL, A_MODEL)


def test_a_broken_catalogue_is_an_error_and_nothing_else(tmp_path, campaign, record_property):
    whole = json.dumps({"models": [A_MODEL, A_MODEL | {"name": "n", "sha256": "0" * 64}]}).encode()
    path = tmp_path / "catalogue.json"
    record_property("mutated inputs", 200 * campaign)
    for seed in range(200 * campaign):
        chance = random.Random(seed)
        content = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(chance.randrange(4)):
            if content:
                content[chance.randrange(len(content))] = chance.choice(b'{}[]",:0x\xff')
        path.write_bytes(content)
        try:
            assert all(entry.image_size % 32 == 0 for entry in Catalogue.load(path))
        except CatalogueError:
            continue


def test_the_list_needs_no_torch(tmp_path):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from medsam2_core.engine.catalogue import Catalogue; from medsam2_core.engine.store import Store\n"
        "print([Store.default().find(entry)[0].value for entry in Catalogue.load()][1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"MEDSAM2_MODELS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ModelState.MISSING.value


def test_for_a_missing_model_the_way_to_get_it_is_given(tmp_path):
    store = Store(tmp_path / "models")
    with raises("model-not-here", CatalogueError, model="sam2.1-tiny") as error:
        store.locate(Catalogue.load().find("sam2.1-tiny"))
    assert "`medsam2 models get sam2.1-tiny`" in str(error.value)
    assert not store.models_folder.exists()


def test_folders_come_from_the_environment_else_from_the_system(tmp_path):
    environment = {"MEDSAM2_MODELS": str(tmp_path / "a"), "MEDSAM2_OFFLINE_MODELS": str(tmp_path / "b")}
    assert Store.default(environment=environment).models_folder == tmp_path / "a"
    assert Store.default(environment=environment).offline_folders == (tmp_path / "b",)
    assert "MedSAM2Segment" in Store.default(environment={}).models_folder.parts
