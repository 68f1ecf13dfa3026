"""The click-through for a real Slicer cannot run here, but everything it uses of ours is there."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

pytest.importorskip("slicer")

from support import qt_shim as a_qt

a_qt.installed()

from medsam2_core.worker.client import WorkerClient  # noqa: E402
from MedSAM2SegmentLib.Effect.EffectController import EffectController  # noqa: E402
from MedSAM2SegmentLib.Page.AutoModelsSection import AutoModelsSection  # noqa: E402
from MedSAM2SegmentLib.Page.PageController import PageController  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import AutoModelsView, PageState  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import AutoView, PanelState, Status, Tool  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeStatus  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "in_slicer"
FILES = sorted(FOLDER.glob("*.py"))
TREES = {file.name: ast.parse(file.read_text(encoding="ascii"), str(file)) for file in FILES}

#: What is behind an expression of the scripts.
OURS = {
    "self.controller": EffectController,
    "self.controller.client": WorkerClient,
    "self.state": PanelState,
    "self.state.auto": AutoView,
    "page.controller": PageController,
    "page.controller.auto": AutoModelsSection,
    "page.controller.state": PageState,
    "page.controller.state.auto": AutoModelsView,
    "installer": RuntimeInstaller,
    "sharedInstaller()": RuntimeInstaller,
    "status": RuntimeStatus,
    "installer.status()": RuntimeStatus,
}


def members_of(cls) -> set[str]:
    """Names of a class, and of the attributes its constructor makes."""
    made = ast.walk(ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))))
    stored = {
        node.attr for node in made if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return stored | set(dir(cls)) | set(getattr(cls, "__dataclass_fields__", ()))


def used_of(expression: str) -> set[str]:
    """Every attribute the scripts ask something of ours for."""
    nodes = (node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if ast.unparse(node.value) == expression}


def test_the_scripts_are_there_and_compile_anywhere():
    # Slicer reads the script in the encoding of the computer: only ASCII is the same everywhere.
    assert {"check.py", "pressing.py", "reporting.py"} <= set(TREES)


@pytest.mark.parametrize("expression", sorted(OURS))
def test_every_name_used_of_ours_exists(expression):
    used = used_of(expression)
    assert used <= members_of(OURS[expression]), f"{expression}: {used - members_of(OURS[expression])}"


def test_the_main_things_are_looked_at():
    asked = {"clearPrompts", "propagate", "autoVolume", "client", "isWaiting"}
    assert asked <= used_of("self.controller")
    assert {"status", "progress", "canKeep"} <= used_of("self.state")


def test_everything_imported_from_ours_exists():
    imports = [
        (node.module, name.name)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("MedSAM2", "medsam2"))
        for name in node.names
    ]
    assert imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


def test_every_state_and_tool_that_is_waited_for_exists():
    words = {status.value for status in Status} | {tool.value for tool in Tool}
    compared = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "self.state.status.value":
            constants = ast.walk(node.comparators[0])
            compared |= {one.value for one in constants if isinstance(one, ast.Constant)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.controller.setTool":
            compared.add(node.args[0].value)
    assert {"prompted", "ready", "worker lost", "propagating", "finding", "box"} <= compared <= words
