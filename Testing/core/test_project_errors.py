"""Errors are data: wherever one is made, it gets a stable code."""

import ast
import re
from collections.abc import Iterator

from support.project import core_files, location, parsed

# What these mean is in their names.
HAVE_ONE_MEANING = {"Cancelled", "Interrupted"}

CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def error_classes() -> set[str]:
    """Return the names of `MedSAM2Error` and of all classes derived from it that take a code."""
    bases = {
        node.name: ({base.id for base in node.bases if isinstance(base, ast.Name)}, _sets_its_code(node))
        for path in core_files()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    }
    found = {"MedSAM2Error"}
    while more := {name for name, (over, _) in bases.items() if over & found} - found:
        found |= more
    return {name for name in found if not bases[name][1]} - HAVE_ONE_MEANING


def _sets_its_code(node: ast.ClassDef) -> bool:
    """Whether a class has its own ``__init__`` that passes the code on: it has one problem only."""
    made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    calls = [one for method in made for one in ast.walk(method) if isinstance(one, ast.Call)]
    return node.name != "MedSAM2Error" and any(_code_of(call) is not None for call in calls)


def _code_of(call: ast.Call) -> ast.expr | None:
    return next((one.value for one in call.keywords if one.arg in ("code", None)), None)


def errors_made() -> Iterator[tuple[str, ast.Call]]:
    """Yield (location, call) of every error that the core makes."""
    names = error_classes()
    for path in core_files():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield location(path, node.lineno), node


def test_every_error_has_a_code():
    without = [
        f"{where}: {ast.unparse(call.func)} has no code"
        for where, call in errors_made()
        if _code_of(call) is None
    ]
    assert not without, "\n".join(without)


def test_codes_are_kebab_case():
    wrong = [
        f"{where}: {code.value!r}"
        for where, call in errors_made()
        if isinstance(code := _code_of(call), ast.Constant) and not CODE.fullmatch(str(code.value))
    ]
    assert not wrong, "\n".join(wrong)
