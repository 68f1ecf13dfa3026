"""The pinned lists are in step with pyproject.toml, and complete for every Python and platform we support."""

import re
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT / "MedSAM2Segment" / "MedSAM2SegmentLib" / "Runtime"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PLATFORMS = {
    "linux": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
    },
    "windows": {
        **{
            "sys_platform": "win32",
            "platform_system": "Windows",
            "os_name": "nt",
            "platform_machine": "AMD64",
        },
    },
    "macos": {
        **{
            "sys_platform": "darwin",
            "platform_system": "Darwin",
            "os_name": "posix",
            "platform_machine": "arm64",
        },
    },
}
AGAIN = "run `python requirements/lock_runtime.py`"


def pinned(name: str) -> list[tuple[Requirement, list[str]]]:
    """(requirement, hashes) of one of the lists."""
    text = re.sub(r"^#.*\n", "", (LISTS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip()):
        head, *hashes = re.split(r"\s+--hash=", entry)
        found.append((Requirement(head.strip()), hashes))
    return found


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for, and what torch does."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    ours = [Requirement(one) for one in re.findall(r'^\s*"([^"]+)"', block, re.MULTILINE)]
    of_torch = [Requirement(line) for line in requires("torch") if ";" not in line]
    return [one for one in ours if one.name != "torch"] + of_torch


def for_machine(python: str, platform: str) -> dict[str, str]:
    """Versions by name that would be installed there."""
    environment = {
        **PLATFORMS[platform],
        **{"python_version": python, "python_full_version": f"{python}.4", "implementation_name": "cpython"},
        **{"platform_python_implementation": "CPython", "extra": ""},
    }
    chosen: dict[str, str] = {}
    for name in ("requirements.lock", "build.lock"):
        for one, _ in pinned(name):
            if one.marker is None or one.marker.evaluate(environment):
                key = canonicalize_name(one.name)
                assert key not in chosen, f"{key} is pinned twice for Python {python} on {platform}"
                chosen[key] = str(one.specifier).removeprefix("==")
    return chosen


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_everything_asked_for_is_pinned_once_in_a_version_that_fits(python, platform):
    chosen = for_machine(python, platform)
    for one in wanted():
        key = canonicalize_name(one.name)
        assert key in chosen, f"{key} is not pinned: {AGAIN}"
        assert one.specifier.contains(chosen[key]), f"{key} {chosen[key]} is not {one.specifier}: {AGAIN}"


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock", "torch.lock", "uv.txt", "sam2.txt"])
def test_everything_pinned_has_its_hashes(name):
    for one, hashes in pinned(name):
        assert str(one.specifier).startswith("=="), one
        assert hashes, f"{one} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)


def test_torch_and_torchvision_are_not_in_the_common_list():
    names = {canonicalize_name(one.name) for one, _ in pinned("requirements.lock")}
    assert not names & {"torch", "torchvision", "sam2", "triton"}
    assert not any(name.startswith("nvidia") for name in names)


def test_the_lists_were_made_from_what_pyproject_asks_for_now():
    head = (LISTS / "requirements.lock").read_text(encoding="utf-8").splitlines()[0]
    asked = {str(Requirement(one)) for one in head.removeprefix("# ").split(", ")}
    now = {str(one) for one in wanted() if one.name != "setuptools"}
    assert asked == now, AGAIN


def test_torch_and_sam2_are_those_that_are_tested_here():
    assert str(pinned("torch.lock")[0][0].specifier) == "==" + version("torch").partition("+")[0]
    assert (LISTS / "sam2.txt").read_bytes() == (ROOT / "requirements" / "sam2.txt").read_bytes()


def test_uv_is_pinned_for_every_platform():
    assert len(pinned("uv.txt")[0][1]) >= 15
