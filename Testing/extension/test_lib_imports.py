"""Packages of the module's library import only from those below them, and load nothing heavy."""

import sys
from pathlib import Path

from support.import_graph import import_graph, longest_chain
from support.project import CORE, LIB, LIGHT, imported_names, lib_files, location

# Which packages a package may import from. Reading down, each may use those above it.
MAY_IMPORT = {
    "Runtime": set(),
    "Segments": set(),
    "Prompts": {"Segments"},
    "Worker": {"Runtime"},
    "Page": {"Runtime"},
    "Panels": {"Runtime", "Worker", "Page"},
    "Effect": {"Segments", "Prompts"},
    "": {"Effect", "Panels", "Prompts", "Segments", "Worker"},  # where Slicer's effect is put together
}
# Files that import from no package, and that every package may use.
FOUNDATIONS = {"i18n.py", "Panels/PanelState.py", "Panels/QtHelpers.py"}
# All that needs Qt; everything else can be used, and tested, without a window.
WITH_QT = {
    *("SegmentEditorEffect.py", "Runtime/QProcessRunner.py"),
    *("Panels/ConfidenceStrip.py", "Panels/ModulePage.py", "Panels/ModulePanel.py", "Panels/OptionsPanel.py"),
    *("Panels/MyModelsPanel.py", "Panels/ExportPanel.py", "Panels/PromptsTable.py", "Panels/ReviewPanel.py"),
    *("Panels/QtHelpers.py", "Worker/Settings.py", "Worker/WorkerProcess.py"),
}
# Packages that do not use Slicer's scene.
WITHOUT_SCENE = {"Page", "Panels", "Runtime"}
# Scripts that run in the runtime's own Python, which has torch.
ELSEWHERE = {"Runtime/probe.py", "Runtime/helper.py", "Runtime/collect.py"}


def name_of(path: Path) -> str:
    """As in the tables above."""
    return path.relative_to(LIB).as_posix()


def package_of(name: str) -> str:
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
    """Return the module of the core; names that a package re-exports belong to the package."""
    path = CORE.joinpath(*parts)
    return ".".join(parts if path.is_dir() or path.with_suffix(".py").is_file() else parts[:-1])


def test_packages_import_only_from_those_below_them():
    wrong = []
    for path in FILES:
        name, package = name_of(path), package_of(name_of(path))
        assert package in MAY_IMPORT, f"{name}: add its package to MAY_IMPORT"
        allowed = set() if name in FOUNDATIONS else MAY_IMPORT[package] | {package}
        for line, rest in imports(path, LIB.name):
            module = "/".join(rest) + ".py"
            if module not in FOUNDATIONS and package_of(module) not in allowed:
                wrong.append(f"{location(path, line)}: {name} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_slicer_module_imports_few_levels_deep():
    graph, found, left = import_graph(), set(), {"MedSAM2SegmentLib"}
    while left:
        found |= left
        left = {other for one in left for other in graph[one]} - found
    chain = longest_chain({one: graph[one] for one in found})
    assert len(chain) <= 13, " -> ".join(chain)


def test_the_table_has_no_cycle():
    for package, below in MAY_IMPORT.items():
        for other in below:
            assert package not in MAY_IMPORT[other], f"{package} and {other} may import each other"


def test_only_the_named_files_need_qt():
    needing = {name_of(path) for path in FILES if roots(path) & {"qt", "ctk", "PythonQt"}}
    assert needing == WITH_QT
    assert not any(roots(path) & {"ctk", "PythonQt"} for path in FILES)


def test_packages_without_a_scene_do_not_use_it():
    found = [name_of(path) for path in FILES if package_of(name_of(path)) in WITHOUT_SCENE]
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
