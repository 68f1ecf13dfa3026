"""Pin what the worker's own environment in Slicer is made of: run it after pyproject.toml's list changed.

    python requirements/lock_runtime.py

It needs `uv` (in the extra "slicer") and the package index. It writes into MedSAM2SegmentLib/Runtime:

    requirements.lock   what pyproject.toml asks for, without torch, and what torch itself needs
    build.lock          what builds those that come as source
    torch.lock          torch as the package index has it: for Macs, and Windows without an NVIDIA card
    uv.txt              the tool that installs them
    sam2.txt            the same as requirements/sam2.txt

All with hashes, for Python 3.10 to 3.13 on every platform. No address of an index is written.
"""

import re
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "MedSAM2Segment" / "MedSAM2SegmentLib" / "Runtime"
OLDEST_PYTHON = "3.10"
BUILD = ["setuptools>=77.0.3,<82"]


def main() -> None:
    """Write all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [line for line in project["dependencies"] if name_of(line) != "torch"]
    of_torch = [line for line in requires("torch") if ";" not in line and name_of(line) != "setuptools"]
    lock("requirements.lock", [*wanted, *of_torch])
    lock("build.lock", BUILD)
    lock("torch.lock", [f"torch=={version('torch').partition('+')[0]}"], "--no-deps")
    lock("uv.txt", [f"uv=={version('uv')}"], "--no-deps")
    shutil.copyfile(ROOT / "requirements" / "sam2.txt", TARGET / "sam2.txt")


def lock(name: str, requirements: list[str], *options: str) -> None:
    """Resolve and write one of them; what is pinned already stays unless it must change."""
    words = ["pip", "compile", "--universal", "--generate-hashes", "--python-version", OLDEST_PYTHON]
    words += [
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
        "--quiet",
        *options,
        "-",
        "-o",
        str(TARGET / name),
    ]
    subprocess.run([find_uv(), *words], input="\n".join(requirements), text=True, check=True)
    path = TARGET / name
    head = f"# {', '.join(requirements)}\n# Written by requirements/lock_runtime.py.\n"
    path.write_text(head + path.read_text(encoding="utf-8"), encoding="utf-8", newline="\n")


def find_uv() -> str:
    """The program uv of this environment, or of the PATH."""
    beside = Path(sys.executable).with_name("uv.exe" if sys.platform == "win32" else "uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        sys.exit("uv is missing: pip install uv")
    return found


def name_of(requirement: str) -> str:
    """The package a requirement is about."""
    return re.split(r"[^\w.-]", requirement)[0].lower()


if __name__ == "__main__":
    main()
