"""The click-through for a real Slicer cannot run here, but everything it uses of ours is there."""

import ast
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

slicer = pytest.importorskip("slicer")

from support import qt_shim as a_qt  # noqa: E402

qt = a_qt.installed()

from medsam2_core.worker.client import WorkerClient, WorkerState  # noqa: E402
from MedSAM2SegmentLib.Effect.EffectController import EffectController  # noqa: E402
from MedSAM2SegmentLib.Page.MyModelsSection import MyModelsSection  # noqa: E402
from MedSAM2SegmentLib.Page.PageController import PageController  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import (  # noqa: E402
    ExportView,
    MyModelsView,
    PageState,
    ReviewView,
    StatusLine,
)
from MedSAM2SegmentLib.Panels.PanelState import AutoView, PanelState, Status, Tool  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState, RuntimeStatus  # noqa: E402
from support.auto_predictions import a_model  # noqa: E402
from support.page import FakeInstaller, FakeSettings, FakeWorker, FakeWorkers  # noqa: E402

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
    "page.controller.mine": MyModelsSection,
    "page.controller.state": PageState,
    "page.controller.state.mine": MyModelsView,
    "page.controller.state.export": ExportView,
    "line()": StatusLine,
    "view()": ReviewView,
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


# Parts that can run here, on a page whose worker answers while "Slicer lives"


@pytest.fixture
def scripts(monkeypatch):
    """The scripts as modules, in an application that only counts how often it lives."""
    app = SimpleNamespace(processEvents=lambda: None, layoutManager=lambda: app.manager)
    app.manager = SimpleNamespace(layout=7, setLayout=lambda layout: vars(app.manager).update(layout=layout))
    monkeypatch.setattr(slicer, "app", app, raising=False)
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: None, raising=False)
    timer = lambda: SimpleNamespace(interval=0)  # noqa: E731
    timer.singleShot = lambda ms, main: None
    monkeypatch.setattr(qt, "QTimer", timer)
    monkeypatch.syspath_prepend(str(FOLDER))
    return SimpleNamespace(
        app=app, check=importlib.import_module("check"), finding=importlib.import_module("finding")
    )


def test_models_are_removed_although_the_page_has_no_worker_yet(scripts):
    worker = FakeWorker(WorkerState.STARTING)
    left = [a_model("one", name="click-through"), a_model("two", name="click-through"), a_model("users")]
    controller = PageController(FakeInstaller(RuntimeState.READY), FakeSettings(), FakeWorkers(worker))
    lives = []

    def live():
        lives.append(1)
        if len(lives) == 10:
            worker.become(WorkerState.READY)
        for request in [one for one in worker.asked if len(lives) % 5 == 0 and not one.isCancelled]:
            request.isCancelled = True  # answered once
            if request.type == "remove_auto_model":
                left[:] = [model for model in left if model["file"] != request.fields["model"]]
                request.answer(bytes=1)
            elif request.type == "auto_models":
                request.answer(models=list(left), damaged=[])

    class Finding(scripts.finding.Finding):
        modulePage = staticmethod(lambda: SimpleNamespace(controller=controller))
        settle = staticmethod(lambda seconds=60: None)
        widget = SimpleNamespace(setActiveEffectByName=lambda name: None, activeEffect=lambda: None)

    scripts.app.processEvents = live
    controller.enter()
    Finding().removeModel()
    assert [model["file"] for model in left] == ["users"]


def test_auto_is_pressed_again_when_the_first_time_only_started_the_worker(scripts):
    status = SimpleNamespace(value="prompted")
    pressed = []

    def press():
        pressed.append(status.value)
        status.value = "starting" if len(pressed) == 1 else "finding"

    class Finding(scripts.finding.Finding):
        state = SimpleNamespace(auto=SimpleNamespace(canFindVolume=True), status=status)
        controller = SimpleNamespace(autoVolume=press)
        quiet = staticmethod(lambda: status.value == "prompted")

    finding = Finding()
    assert not finding.startAuto()
    assert not finding.startAuto()
    status.value = "prompted"
    assert finding.startAuto()
    assert pressed == ["prompted", "prompted"]


def test_settings_and_layout_of_the_user_are_put_back(scripts, monkeypatch):
    kept = FakeSettings(
        remoteCommand="ssh host medsam2 worker", defaultModel="large", defaultWindow="lung", show3D=False
    )
    before = dict(vars(kept))
    monkeypatch.setattr("MedSAM2SegmentLib.Worker.Settings.Settings", lambda: kept)
    installer = FakeInstaller(RuntimeState.READY)
    monkeypatch.setattr("MedSAM2SegmentLib.Worker.WorkerAccess._installers", [installer])
    check = scripts.check.Check(SimpleNamespace(interpreter="", install=False), SimpleNamespace(folder=""))
    check.runtime()
    assert (kept.remoteCommand, kept.defaultModel, kept.defaultWindow) == ("", "embedded", "auto")
    assert kept.show3D is True
    scripts.app.manager.setLayout(3)
    check.putBack()
    assert vars(kept) == before
    assert scripts.app.manager.layout == 7
