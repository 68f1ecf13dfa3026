"""Packaging: what is declared is what is needed, and versions and descriptions agree."""

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import medsam2_core
import pytest
from support.project import ROOT, project_files

tomllib = importlib.import_module(
    "tomllib" if sys.version_info >= (3, 11) else "tomli"
)  # pytest brings tomli
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_installed_package_has_the_version_of_the_source():
    assert importlib.metadata.version("medsam2-core") == medsam2_core.__version__


def test_the_changelog_starts_with_this_version():
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+|Unreleased)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest
    assert newest.group(1) in (medsam2_core.__version__, "Unreleased")


def test_distribution_and_import_package_have_the_same_name():
    assert PROJECT["name"].replace("-", "_") == medsam2_core.__name__


def test_sam2_is_the_pinned_release():
    pinned = re.search(r"^sam2==(\S+) --hash=sha256:[0-9a-f]{64}$", _text("requirements/sam2.txt"), re.M)
    assert pinned
    assert importlib.metadata.version("sam2") == pinned.group(1)
    assert PROJECT["optional-dependencies"]["sam2"] == [f"sam2=={pinned.group(1)}"]


def test_only_the_extra_sam2_brings_torchvision():
    """`make setup` and the runtime in Slicer install sam2 without it."""
    names = {_name(line) for line in PROJECT["dependencies"]}
    assert not names & {"sam2", "torchvision"}


def test_what_sam2_needs_is_declared_here():
    # Requirements with `extra == …` are for its notebooks, its server and its own training.
    lines = [line for line in importlib.metadata.requires("sam2") or [] if "extra ==" not in line]
    required = {_name(line) for line in lines} - {"torchvision"}
    declared = {_name(line) for line in PROJECT["dependencies"]}
    assert required, "sam2 declares nothing: was it installed from its own archive?"
    assert required <= declared, required - declared


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower()


def test_the_container_is_built_from_what_is_copied_into_it(tmp_path):
    """Its package, made of the copied files alone, is whole; its commands are those of the instructions."""
    docker, instructions = _text("Dockerfile"), _text("Resources/docs/install.md")
    for words in re.findall(r"^COPY (.+)$", docker, re.M):
        *sources, target = words.split()
        for source in sources:
            assert f"!{source}\n" in _text(".dockerignore")
            place = tmp_path / target.lstrip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            else:
                place = place / Path(source).name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, place)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", tmp_path / "wheels", tmp_path / "source"], check=True
    )
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("medsam2_core/")}
    core = ROOT / "MedSAM2Segment" / "medsam2_core"
    ours = [path for path in project_files() if path.is_relative_to(core)]
    assert names == {path.relative_to(core.parent).as_posix() for path in ours}
    commands = re.findall(r"^RUN (.*pip install .+)$", docker.replace(" --no-cache-dir", ""), re.M)
    assert len(commands) == 3 and commands[2].startswith("pip install /source")
    assert commands[0] in instructions
    assert commands[1].replace("/requirements/", "requirements/") in instructions


def test_make_and_ci_do_the_same():
    assert "make test" in _text(".ci/run")
    assert re.search(r"^set -euo pipefail$", _text(".ci/run"), re.M)


def test_a_machine_without_git_can_run_the_tests(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="git cannot list"):
        project_files()


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_both_descriptions_of_the_extension_agree():
    said = dict(re.findall(r'^set\(EXTENSION_(\w+) "(.*)"\)$', _text("CMakeLists.txt"), re.M))
    listed = dict(re.findall(r"^(\w+) (.+)$", _text("MedSAM2Segment.s4ext"), re.M))
    names = ("homepage", "category", "contributors", "description", "iconurl", "screenshoturls", "depends")
    for name in names:
        assert said[name.upper()] == listed[name]
    assert len(listed["description"]) < 128


def test_the_icon_is_what_the_extensions_index_asks_for():
    from PIL import Image

    with Image.open(ROOT / "Resources" / "MedSAM2Segment.png") as icon:
        assert (icon.size, icon.format) == ((128, 128), "PNG")
