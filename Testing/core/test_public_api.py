"""The public API: names that are imported when they are first used."""

import ast
from pathlib import Path

import medsam2_core
import pytest


@pytest.mark.parametrize("name", medsam2_core.__all__)
def test_every_name_can_be_imported(name):
    value = getattr(medsam2_core, name)
    assert name == "__version__" or value.__module__.startswith("medsam2_core.")
    assert name in dir(medsam2_core)


def test_type_checkers_see_the_same_names_as_programs():
    tree = ast.parse(Path(medsam2_core.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {(alias.name, node.module) for node in typed.body for alias in node.names}
    assert imports == {(name, f"medsam2_core.{module}") for name, module in medsam2_core._MODULES.items()}
    assert {name for name, _ in imports} | {"__version__"} == set(medsam2_core.__all__)


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="Sessions"):
        medsam2_core.Sessions  # noqa: B018


def test_types_are_announced():
    assert (Path(medsam2_core.__file__).parent / "py.typed").is_file()
