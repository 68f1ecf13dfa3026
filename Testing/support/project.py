"""The project's files, and what their code contains without running it: for tests of imports and style."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "MedSAM2Segment" / "medsam2_core"
LIB = ROOT / "MedSAM2Segment" / "MedSAM2SegmentLib"

# What is imported in Slicer's own Python, which has numpy and nothing heavier.
LIGHT = [
    *("errors", "version", "atomic"),
    *("prompts", "prompts.prompt_set", "prompts.slice_prompts", "prompts.types", "prompts.shapes"),
    *("imaging.geometry", "imaging.volume", "imaging.slices", "imaging.intensity"),
    *("imaging.segmentation", "imaging.slice_mask", "imaging.terminology"),
    *("auto", "auto.model_file", "auto.predictions", "auto.library"),
    *("export", "export.metadata", "export.methods", "batch", "batch.review"),
    *("worker", "worker.protocol", "worker.messages", "worker.job_messages", "worker.measuring"),
    "worker.requests",
    *("worker.transports", "worker.uploads", "worker.connection", "worker.session_client", "worker.client"),
]


def core_files() -> list[Path]:
    """Return every Python file of the core."""
    return sorted(CORE.rglob("*.py"))


def lib_files() -> list[Path]:
    """Return every Python file of the module's library, and the module itself."""
    return sorted([*LIB.rglob("*.py"), *LIB.parent.glob("*.py")])


def core_modules() -> list[str]:
    """Return the import names of all modules of the core, without ``__main__``."""
    names = []
    for path in core_files():
        parts = path.relative_to(CORE.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def project_files() -> list[Path]:
    """Return every file that is, or would be, part of the repository.

    Without git, or outside a checkout (an unpacked archive), the test is skipped.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files of the project: {error}")
    listed = done.stdout.splitlines()
    return sorted(path for path in (ROOT / name for name in listed) if path.is_file())


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of each import in a file: at its top, in functions, for types only."""
    package = path.relative_to(CORE.parent).parent.parts
    packages = ("medsam2_core", "MedSAM2SegmentLib")
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            if module.startswith(packages) and (CORE.parent / module.replace(".", "/")).is_dir():
                # `from medsam2_core import prompts` imports a module
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def location(path: Path, line: int) -> str:
    """Return ``file:line``, as editors understand it."""
    return f"{path.relative_to(ROOT)}:{line}"


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def importing(modules: list[str], refuse: str) -> subprocess.CompletedProcess:
    """Import modules in a new interpreter that refuses others.

    ``refuse`` is an expression of ``root``, the first part of a module's name; where true, it is refused.
    """
    return run_python(
        "import importlib, sys\n"
        "class Refusal:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        root = name.partition('.')[0]\n"
        f"        if {refuse}:\n"
        "            raise ModuleNotFoundError(f'{name} is refused here', name=name)\n"
        "sys.meta_path.insert(0, Refusal())\n"
        f"for name in {modules!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        sys.exit(f'{name}: {error}')\n"
    )
