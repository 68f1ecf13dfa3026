"""Imports go one way, without cycles, and modules used by others load no more than they need."""

import sys

import pytest
from support.import_graph import cycles, import_graph, longest_chain
from support.project import (
    CORE,
    LIGHT,
    core_files,
    core_modules,
    imported_names,
    importing,
    location,
    run_python,
)

# Which packages a package may import from. Reading down, each may use those above it.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "atomic": {"errors"},
    "imaging": {"errors"},
    "prompts": {"errors", "imaging"},
    "export": {"atomic", "errors", "version", "imaging", "prompts"},
    "engine": {"errors", "version", "imaging", "prompts"},
    "auto": {"atomic", "errors", "version", "imaging", "prompts", "engine"},
    "training": {"atomic", "errors", "version", "imaging", "prompts", "engine", "auto"},
    "session": {"atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto"},
    "evaluation": {
        *("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session")
    },
    "worker": {*("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session")},
    "batch": {
        *("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session"),
        "worker",
    },
    "cli": {
        *("atomic", "errors", "version", "imaging", "prompts", "export", "engine", "auto", "session"),
        *("training", "evaluation", "worker", "batch"),
    },
}


def package_of(module: str) -> str:
    """Return the key of `MAY_IMPORT` for a module's import name."""
    return module.split(".")[1] if "." in module else "version"  # the package itself gives its version


def test_packages_import_only_from_those_below_them():
    wrong = []
    for path in core_files():
        parts = path.relative_to(CORE).with_suffix("").parts
        if parts == ("__init__",):
            continue  # the public API is made of all packages
        package = parts[0]
        assert package in MAY_IMPORT, f"{path.name}: add the package {package} to MAY_IMPORT"
        for line, name in imported_names(path):
            if name.partition(".")[0] == "medsam2_core":
                other = package_of(name)
                if other != package and other not in MAY_IMPORT[package]:
                    wrong.append(f"{location(path, line)}: {package} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_packages_has_no_cycle():
    for package, below in MAY_IMPORT.items():
        for other in below:
            assert package not in MAY_IMPORT[other], f"{package} and {other} may import each other"
            assert MAY_IMPORT[other] <= below | {"version"}, f"{package} reaches more through {other}"


def test_modules_do_not_import_each_other():
    found = cycles(import_graph())
    assert not found, "import cycles:\n" + "\n".join(" <-> ".join(together) for together in found)


def test_imports_are_few_levels_deep():
    chain = longest_chain(import_graph())
    assert len(chain) <= 15, " -> ".join(chain)


def test_cycles_of_imports_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert cycles(graph) == [["a", "b", "c"], ["e", "f"]]


def test_the_core_imports_where_slicer_vtk_qt_and_torchvision_are_refused():
    refused = "{'slicer', 'vtk', 'vtkmodules', 'qt', 'ctk', 'PythonQt', 'torchvision', 'torchaudio'}"
    done = importing(core_modules(), f"root in {refused}")
    assert done.returncode == 0, done.stderr


def test_what_slicer_loads_needs_only_numpy():
    allowed = "root not in sys.stdlib_module_names | {'numpy', 'medsam2_core'}"
    done = importing([f"medsam2_core.{module}" for module in LIGHT], allowed)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["imaging", "prompts", "export"])
def test_these_packages_never_import_torch(package):
    paths = sorted((CORE / package).rglob("*.py"))
    assert paths
    found = [location(path, line) for path in paths for line, name in imported_names(path) if _is_torch(name)]
    assert not found, "\n".join(found)


def _is_torch(name: str) -> bool:
    return name.partition(".")[0] in {"torch", "sam2", "monai"}


def test_a_torchvision_that_cannot_be_imported_does_no_harm(tmp_path):
    """sam2 declares torchvision, and its wheel fails to import beside another build of torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    done = run_python(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from medsam2_core.engine.model import build_module\n"
        "build_module('embedded')\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_segmenting_a_picture_needs_neither_scipy_nor_auto():
    """They take a third of a second to import."""
    modules = "medsam2_core.session.session, medsam2_core.session.earlier"
    shown = "[name in sys.modules for name in ('scipy', 'medsam2_core.auto.model')]"
    done = run_python(f"import sys, {modules}; print({shown})")
    assert done.stdout.strip() == "[False, False]", done.stderr


def test_the_package_itself_imports_nothing_heavy():
    done = run_python("import sys, medsam2_core; print(sorted({m.partition('.')[0] for m in sys.modules}))")
    loaded = set(eval(done.stdout))
    heavy = {"numpy", "torch", "SimpleITK", "pydicom", "matplotlib", "huggingface_hub"}
    assert not loaded & heavy, f"{sys.executable} loaded {loaded & heavy}"
