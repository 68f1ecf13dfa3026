"""Imports go one way, and what others load needs no more than it says."""

import sys

import pytest
from support.house import CORE, LIGHT, core_files, core_modules, imported_names, importing, place, run_python

# Which rooms a room may look into. Reading down, each may use those above it.
FLOORS = {
    "errors": set(),
    "version": set(),
    "atomic": {"errors"},
    "imaging": {"errors"},
    "prompts": {"errors", "imaging"},
    "export": {"atomic", "errors", "version", "imaging", "prompts"},
    "engine": {"errors", "version", "imaging", "prompts"},
    "auto": {"atomic", "errors", "version", "imaging", "prompts", "engine"},
    "training": {"atomic", "errors", "version", "imaging", "prompts", "engine"},
    "session": {"atomic", "errors", "version", "imaging", "prompts", "engine", "auto"},
    "evaluation": {
        *("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session"),
    },
    "worker": {
        *("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session"),
    },
    "cli": {
        *("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session"),
        *("training", "evaluation", "worker"),
    },
}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "version"  # the package itself tells its version


def test_rooms_import_only_from_the_floors_below_them():
    wrong = []
    for path in core_files():
        parts = path.relative_to(CORE).with_suffix("").parts
        if parts == ("__init__",):
            continue  # the public API names what lies in all of them
        room = parts[0]
        assert room in FLOORS, f"{path.name} is a room this table does not know: which may it import?"
        for line, name in imported_names(path):
            if name.partition(".")[0] == "medsam2_core":
                other = room_of(name)
                if other != room and other not in FLOORS[room]:
                    wrong.append(f"{place(path, line)}: {room} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_floors_have_no_circle():
    for room, below in FLOORS.items():
        for other in below:
            assert room not in FLOORS[other], f"{room} and {other} may import each other"
            assert FLOORS[other] <= below | {"version"}, f"{room} reaches more through {other}"


def test_the_core_imports_where_slicer_vtk_and_qt_are_refused():
    done = importing(core_modules(), "root in {'slicer', 'vtk', 'vtkmodules', 'qt', 'ctk', 'PythonQt'}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", LIGHT)
def test_what_slicer_loads_needs_only_numpy(module):
    allowed = "root not in sys.stdlib_module_names | {'numpy', 'medsam2_core'}"
    done = importing([f"medsam2_core.{module}"], allowed)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["imaging", "prompts", "export"])
def test_these_rooms_never_import_torch(room):
    paths = [CORE / f"{room}.py"] if (CORE / f"{room}.py").exists() else sorted((CORE / room).rglob("*.py"))
    found = [place(path, line) for path in paths for line, name in imported_names(path) if _is_torch(name)]
    assert not found, "\n".join(found)


def _is_torch(name: str) -> bool:
    return name.partition(".")[0] in {"torch", "sam2", "monai"}


def test_nothing_needs_torchvision():
    build = (
        "import sys\n"
        "sys.modules['torchvision'] = None\n"  # importing it raises from here on
        "from medsam2_core.engine.model import build_module\n"
        "build_module('embedded')\n"
    )
    for done in (importing(core_modules(), "root in {'torchvision', 'torchaudio'}"), run_python(build)):
        assert done.returncode == 0, done.stderr


def test_the_package_itself_imports_nothing_heavy():
    done = run_python("import sys, medsam2_core; print(sorted({m.partition('.')[0] for m in sys.modules}))")
    loaded = set(eval(done.stdout))
    heavy = {"numpy", "torch", "SimpleITK", "pydicom", "matplotlib", "huggingface_hub"}
    assert not loaded & heavy, f"{sys.executable} loaded {loaded & heavy}"
