"""Style: what CONTRIBUTING asks for, and no tool checks."""

import ast
import re
import subprocess
import sys

import pytest
from support.project import ROOT, core_files, lib_files, location, parsed, project_files

LONGEST_FUNCTION = 60
# Where any unexpected error becomes an exit code, the answer to a request or the end of one case of many, and
# where libraries are called that raise errors of any type for damaged files, or stores out of reach.
MAY_CATCH_EVERYTHING = {"app.py", "files.py", "inputs.py", "server.py", "probe.py", "work.py"}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_passes(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_right():
    pytest.importorskip("mypy", reason="the extra dev is not installed")
    command = [sys.executable, "-m", "mypy", "--no-error-summary"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_public_has_a_docstring():
    undocumented = []
    for path in (*core_files(), *lib_files()):
        tree = parsed(path)
        if path.name != "__main__.py" and tree.body and not ast.get_docstring(tree):
            undocumented.append(location(path, 1))
        for node in _public_definitions(tree):
            if not ast.get_docstring(node):
                undocumented.append(f"{location(path, node.lineno)}: {node.name}")
    assert not undocumented, "no docstring:\n" + "\n".join(undocumented)


def _public_definitions(tree: ast.Module):
    """Yield functions, classes and methods; methods of derived classes are documented in the base class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from (
                    method
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                    if not any(ast.unparse(one).endswith(".setter") for one in method.decorator_list)
                )


def test_functions_stay_short():
    long = []
    for path in (*core_files(), *lib_files(), *sorted((ROOT / "Testing").rglob("*.py"))):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
                if length > LONGEST_FUNCTION:
                    long.append(f"{location(path, node.lineno)}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


def _docstring_lines(node: ast.FunctionDef) -> int:
    """Return the number of lines of its docstring, which do not count."""
    if ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def test_broad_except_clauses_are_only_where_they_are_needed():
    broad = []
    for path in (*core_files(), *lib_files()):
        if path.name in MAY_CATCH_EVERYTHING:
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler) and not _re_raises(node):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                names = {getattr(one, "id", "everything") if one else "everything" for one in caught}
                if names & {"Exception", "BaseException"} or node.type is None:
                    broad.append(location(path, node.lineno))
    assert not broad, "\n".join(broad)


def _re_raises(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler ends by raising the same error again."""
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


def test_no_file_names_a_path_of_one_machine_or_a_package_registry():
    # One letter of each stands in brackets, so that this file does not name them either.
    hosts = [r"py[p]i\.org", r"python[h]osted\.org", r"npm[j]s\.org", r"deb\.debia[n]\.org"]
    hosts += [r"download\.pytorc[h]\.org"]
    places = ["/[w]ork/", "/[r]oot/", "/[o]pt/", "/[h]ome/", "/[t]mp/", r"C:\\[U]sers"]
    wanted = re.compile("|".join([*hosts, *(rf"(?<![\w.$}}/-]){place}" for place in places)]))
    found = []
    for path in project_files():
        if path.suffix in {".png", ".webp", ".nrrd", ".safetensors", ".gz", ".dcm"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if match := wanted.search(line):
                found.append(f"{location(path, number)}: {match.group()}")
    assert not found, "\n".join(found)


def test_nothing_large_is_in_the_repository():
    large = {path.name: path.stat().st_size for path in project_files() if path.stat().st_size > 2 << 20}
    weights = [name for name in large if name.endswith(".safetensors")]
    assert set(large) == set(weights), f"more than 2 MB: {large}"
    assert all(large[name] <= 25 << 20 for name in weights), large
