"""What the Extensions Index checks in public, checked here; what only publication can give is named."""

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "MedSAM2Segment"
DESCRIPTION = ROOT / f"{NAME}.json"
# Fields that need the address of the published repository; they say so until it is known.
UNKNOWN = "NA"
# The description's schema, version 1.0.1: which fields there may be, of which type.
FIELDS = {
    **{"$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str},
    **{"build_dependencies": list, "build_subdirectory": str, "enabled": bool, "tier": int},
}
REPOSITORY_PREFIXES = ("Slicer", "Slicer-", "Slicer_", "SlicerExtension-", "SlicerExtension_")


@pytest.fixture(scope="module")
def metadata() -> dict:
    return json.loads(DESCRIPTION.read_text(encoding="utf-8"))


def test_the_description_has_unix_line_ends():
    assert b"\r" not in DESCRIPTION.read_bytes()


def test_the_description_fits_its_schema(metadata):
    assert metadata.keys() <= FIELDS.keys()
    assert {"$schema", "category", "scm_url"} <= metadata.keys()
    for name, value in metadata.items():
        assert type(value) is FIELDS[name], name
    assert re.search(r"/slicer-extension-catalog-entry-schema-v1\.0\.1\.json#?$", metadata["$schema"])
    assert 1 <= metadata["tier"] <= 5
    assert metadata["build_subdirectory"] == "."


def test_the_extension_and_its_category_are_named_as_the_index_wants(metadata):
    assert not NAME.lower().startswith("slicer")
    assert metadata["category"] == "Segmentation", "one of the index's own categories"


def test_the_repository_is_named_once_it_is_known(metadata):
    url = metadata["scm_url"]
    if url == UNKNOWN:
        pytest.skip(f"{DESCRIPTION.name}: scm_url is {UNKNOWN} until the repository is published")
    assert urlsplit(url).scheme in ("https", "git")
    assert Path(urlsplit(url).path).stem.startswith(REPOSITORY_PREFIXES)
    assert _old("scmurl") == url


def test_both_descriptions_agree(metadata):
    assert _old("category") == metadata["category"]
    assert _old("scmurl") == metadata["scm_url"]
    assert _old("scmrevision") == metadata["scm_revision"]
    assert _old("scm") == metadata.get("scm_type", "git")
    assert _old("build_subdirectory") == metadata["build_subdirectory"]
    assert _old("depends").replace("NA", "").split() == metadata["build_dependencies"]
    assert bool(int(_old("enabled"))) is metadata.get("enabled", True)


def test_the_project_bears_the_extensions_name():
    assert re.search(r"^project\(\s*(\S+?)\s*\)$", _lists(), re.MULTILINE)[1] == NAME


@pytest.mark.parametrize("field", ["HOMEPAGE", "ICONURL", "SCREENSHOTURLS"])
def test_addresses_are_addresses_once_they_are_known(field):
    value = _field(field)
    if value == UNKNOWN:
        pytest.skip(f"CMakeLists.txt: EXTENSION_{field} is {UNKNOWN} until the repository is published")
    for url in value.split():
        assert urlsplit(url).scheme == "https"
        if field != "HOMEPAGE":
            assert Path(urlsplit(url).path).suffix in (".png", ".jpg", ".jpeg", ".gif")


@pytest.mark.parametrize("field", ["CONTRIBUTORS", "DESCRIPTION", "DEPENDS", "CATEGORY"])
def test_each_field_is_on_one_line(field):
    assert _field(field)


def test_a_licence_lies_at_the_top():
    assert (ROOT / "LICENSE").is_file()


def test_a_clone_with_its_history_is_small_enough(tmp_path):
    # As the index measures: the files and all of .git, which keeps every version of the weights.
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--single-branch", ROOT.as_uri(), str(clone)], check=True)
    total = sum(path.lstat().st_size for path in clone.rglob("*") if path.is_file())
    assert total < 100 * 2**20, f"{total / 2**20:.0f} MiB"


def test_the_home_page_has_what_reviewers_look_for():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {NAME}\n")
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert images and all((ROOT / image).is_file() for image in images)
    assert text.index(images[0]) < 1500, "an image near the top"
    parts = (
        "effect **MedSAM2**",
        "Module *MedSAM2Segment*",
        "tutorial.md",
        "## Cite",
        "## Licence",
        "Apache-2.0",
    )
    assert [part for part in parts if part not in text] == []
    tutorial = (ROOT / "Resources" / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert len(re.findall(r"!\[", tutorial)) >= 3, "screenshots"
    assert "Sample Data" in tutorial


def _lists() -> str:
    return (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def _field(name: str) -> str:
    """A field as the index reads it: set("…") on one line."""
    found = re.search(rf'^set\(EXTENSION_{name} "([^"]+)"\)', _lists(), re.MULTILINE)
    assert found, f"CMakeLists.txt: set(EXTENSION_{name} …) is not on one line"
    return found[1]


def _old(name: str) -> str:
    text = (ROOT / f"{NAME}.s4ext").read_text(encoding="utf-8")
    return re.search(rf"^{name} +(.+)$", text, re.MULTILINE)[1]
