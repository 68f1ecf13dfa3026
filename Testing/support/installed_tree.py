"""The extension as its CMake lists install it: by reading them, and by CMake itself where there is one.

python Testing/support/installed_tree.py    brings the lists in step with the module's folder
"""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MedSAM2Segment"
PLACE = Path("lib") / "Slicer-5.12" / "qt-scripted-modules"
STUB = Path(__file__).resolve().parent / "slicer_stub"


def listed(name: str) -> list[str]:
    """The files of one of the module's lists."""
    text = _lists()
    block = re.search(rf"^set\({name}\n(.*?)\n\s*\)$", text, re.MULTILINE | re.DOTALL)
    assert block, f"MedSAM2Segment/CMakeLists.txt has no {name}"
    return [line.strip().replace("${MODULE_NAME}", "MedSAM2Segment") for line in block[1].splitlines()]


def corePatterns() -> list[str]:
    """Which files of the core are installed."""
    block = re.search(r"install\(\s*DIRECTORY medsam2_core\b(.*?)\n\s*\)", _lists(), re.DOTALL)
    return re.findall(r'PATTERN "(\*[^"]+)"\n', block[1])


def builtPatterns() -> list[str]:
    """Which files of the core are copied to where it is built."""
    return re.findall(r"^\s*medsam2_core/(\*\S+)$", _lists(), re.MULTILINE)


def sampleFiles() -> list[str]:
    """What of the demonstration is installed."""
    block = re.search(r"install\(\s*FILES (.*?)\n\s*DESTINATION (\S+)", _lists(), re.DOTALL)
    assert block[2].endswith("/Resources/SampleData")
    return re.findall(r"\$\{_demo\}/(\S+)", block[1])


def sourceFiles() -> list[str]:
    """Everything in the module's folder that is not part of the core, relative to it."""
    found = (path.relative_to(MODULE) for path in MODULE.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in found
        if path.parts[0] != "medsam2_core"
        and path.name != "CMakeLists.txt"
        and not any(
            part == "__pycache__" or part.startswith(".") or "egg-info" in part for part in path.parts
        )
    )


def coreFiles() -> list[str]:
    """Everything in the core, relative to the module's folder."""
    found = sorted((MODULE / "medsam2_core").rglob("*"))
    return [
        path.relative_to(MODULE).as_posix()
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    ]


def installedByTheLists(prefix: Path) -> Path:
    """Copy what the lists name to where Slicer has its scripted modules; returns that folder."""
    tree = prefix / PLACE
    for name in [*listed("MODULE_PYTHON_SCRIPTS"), *listed("MODULE_PYTHON_RESOURCES")]:
        _copy(MODULE / name, tree / name)
    for name in coreFiles():
        if any(fnmatch(Path(name).name, pattern) for pattern in corePatterns()):
            _copy(MODULE / name, tree / name)
    for name in sampleFiles():
        _copy(ROOT / "Resources" / "demo" / name, tree / "Resources" / "SampleData" / name)
    return tree


def installedByCMake(build: Path, prefix: Path) -> Path:
    """Configure, build and install with CMake and a stand-in for Slicer; returns the modules' folder."""
    cmake = shutil.which("cmake")
    run = (
        [cmake, "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={STUB}"],
        [cmake, "--build", str(build)],
        [cmake, "--install", str(build), "--prefix", str(prefix), "--component", "RuntimeLibraries"],
    )
    for words in run:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return prefix / PLACE


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _lists() -> str:
    return (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def bringInStep() -> None:
    """Write the module's files into its lists."""
    text = _lists()
    files = sorted({*sourceFiles(), "MedSAM2Segment.py"}, key=lambda name: (name.count("/"), name))
    lists = {
        "MODULE_PYTHON_SCRIPTS": [name for name in files if name.endswith(".py")],
        "MODULE_PYTHON_RESOURCES": [name for name in files if not name.endswith(".py")],
    }
    for variable, names in lists.items():
        lines = "".join(f"  {name.replace('MedSAM2Segment', '${MODULE_NAME}')}\n" for name in names)
        block = rf"(?ms)^set\({variable}\n.*?^  \)$"
        text = re.sub(block, lambda _, one=variable, all=lines: f"set({one}\n{all}  )", text)
    (MODULE / "CMakeLists.txt").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    bringInStep()
