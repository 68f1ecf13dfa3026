"""The rooms of the module's library look only where they may, and load nothing heavy."""

import sys
from pathlib import Path

from support.project import CORE, LIB, LIGHT, imported_names, lib_files, location

# Which rooms a room may look into. Reading down, each may use those above it.
FLOORS = {
    "Runtime": set(),
    "Segments": set(),
    "Prompts": {"Segments"},
    "Worker": {"Runtime"},
    "Panels": {"Runtime", "Worker"},
    "Effect": {"Segments", "Prompts"},
    "": {"Effect", "Worker"},  # what Slicer itself asks for
}
# Files that know no other room, and that every room may use.
FOUNDATIONS = {"Panels/PanelState.py", "Panels/QtHelpers.py"}
# Where the effect is put together with its windows and its worker.
ASSEMBLY = {"Effect/EffectWindow.py": {"Panels", "Worker"}}
# All that needs Qt; everything else can be tested, and used, without a window.
WITH_QT = {
    *("SegmentEditorEffect.py", "Effect/EffectWindow.py", "Runtime/QProcessRunner.py"),
    *("Panels/ConfidenceStrip.py", "Panels/ModulePage.py", "Panels/ModulePanel.py", "Panels/OptionsPanel.py"),
    *("Panels/AutoModelsPanel.py", "Panels/AutoSection.py", "Panels/ExportPanel.py", "Panels/QtHelpers.py"),
    *("Worker/Settings.py", "Worker/WorkerAccess.py", "Worker/WorkerProcess.py"),
}
# Rooms that know nothing of Slicer's scene.
WITHOUT_SCENE = {"Panels", "Runtime"}
# Scripts for the runtime's own Python: it has torch, and they ask it.
ELSEWHERE = {"Runtime/probe.py", "Runtime/helper.py", "Runtime/collect.py"}


def name_of(path: Path) -> str:
    """As in the tables above."""
    return path.relative_to(LIB).as_posix()


def room_of(name: str) -> str:
    return name.rpartition("/")[0]


FILES = [path for path in lib_files() if path.is_relative_to(LIB) and name_of(path) not in ELSEWHERE]


def roots(path: Path) -> set[str]:
    """First parts of all names a file imports, also within functions."""
    return {name.partition(".")[0] for _, name in imported_names(path)}


def imports(path: Path, package: str):
    """(line, parts of the name after the package) of what a file imports of a package."""
    for line, name in imported_names(path):
        first, *rest = name.split(".")
        if first == package:
            yield line, rest


def module_of(parts: list[str]) -> str:
    """The module of the core; what a package offers under a name of its own belongs to the package."""
    place = CORE.joinpath(*parts)
    return ".".join(parts if place.is_dir() or place.with_suffix(".py").is_file() else parts[:-1])


def test_rooms_import_only_from_the_floors_below_them():
    wrong = []
    for path in FILES:
        name, room = name_of(path), room_of(name_of(path))
        assert room in FLOORS, f"{name} is in a room this table does not know: which may it import?"
        allowed = set() if name in FOUNDATIONS else FLOORS[room] | ASSEMBLY.get(name, set()) | {room}
        for line, rest in imports(path, LIB.name):
            module = "/".join(rest) + ".py"
            if module not in FOUNDATIONS and room_of(module) not in allowed:
                wrong.append(f"{location(path, line)}: {name} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_floors_have_no_circle():
    for room, below in FLOORS.items():
        for other in below:
            assert room not in FLOORS[other], f"{room} and {other} may import each other"


def test_only_the_named_files_need_qt():
    needing = {name_of(path) for path in FILES if roots(path) & {"qt", "ctk", "PythonQt"}}
    assert needing == WITH_QT
    assert not any(roots(path) & {"ctk", "PythonQt"} for path in FILES)


def test_rooms_without_a_scene_know_nothing_of_it():
    found = [name_of(path) for path in FILES if room_of(name_of(path)) in WITHOUT_SCENE]
    assert not [name for name in found if roots(LIB / name) & {"slicer", "vtk"}]


def test_what_is_used_of_the_core_is_light():
    heavy = []
    for path in FILES:
        used = [(line, module_of(rest)) for line, rest in imports(path, "medsam2_core")]
        heavy += [f"{location(path, line)}: {name}" for line, name in used if name not in LIGHT]
    assert not heavy, "\n".join(heavy)


def test_nothing_is_imported_that_slicer_lacks():
    """It has the standard library and numpy; the rest is its own, or ours."""
    known = {"numpy", "vtk", "slicer", "qt", "SampleData", LIB.name, "medsam2_core"}
    known |= {"SegmentEditorEffects", "qSlicerSegmentationsEditorEffectsPythonQt"}
    strange = {name_of(path): roots(path) - known - set(sys.stdlib_module_names) for path in FILES}
    assert not any(strange.values()), {name: found for name, found in strange.items() if found}
