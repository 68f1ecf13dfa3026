"""What the CMake lists install is all that the module and the worker need."""

import os
import shutil
import site
import subprocess
import sys
import time

import pytest
from support.installed_tree import (
    MODULE,
    PLACE,
    builtPatterns,
    contents,
    coreFiles,
    corePatterns,
    installedByCMake,
    installedByTheLists,
    listed,
    sampleFiles,
    sourceFiles,
)

AGAIN = "or run `python Testing/support/installed_tree.py`"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return installedByTheLists(tmp_path_factory.mktemp("Slicer 5.12"))


def test_the_lists_name_every_file_of_the_module_once():
    named = listed("MODULE_PYTHON_SCRIPTS") + listed("MODULE_PYTHON_RESOURCES")
    missing = sorted(set(sourceFiles()) - set(named))
    unknown = sorted(set(named) - set(sourceFiles()))
    assert not missing, f"add to MedSAM2Segment/CMakeLists.txt ({AGAIN}):\n" + "\n".join(missing)
    assert not unknown, "listed in MedSAM2Segment/CMakeLists.txt, but not there:\n" + "\n".join(unknown)
    assert len(named) == len(set(named))


def test_python_files_are_scripts_and_others_are_resources():
    assert all(name.endswith(".py") for name in listed("MODULE_PYTHON_SCRIPTS"))
    assert not any(name.endswith(".py") for name in listed("MODULE_PYTHON_RESOURCES"))


def test_every_file_of_the_core_is_installed(tree):
    installed = {name for name in contents(tree) if name.startswith("medsam2_core/")}
    assert installed == set(coreFiles())
    assert "medsam2_core/engine/catalogue.json" in installed
    assert "medsam2_core/engine/weights/embedded.safetensors" in installed
    assert sorted(corePatterns()) == sorted(builtPatterns()), "a built tree and an installed one differ"


def test_cmake_installs_the_same(tree, tmp_path):
    if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("cl"))):
        pytest.skip("cmake with a compiler is not installed here: the lists were only read, not run")
    installed = contents(installedByCMake(tmp_path / "build", tmp_path / "prefix"))
    expected = contents(tree)
    assert installed.keys() == expected.keys()
    assert installed == expected
    # The extension also runs from where it was built.
    assert contents(tmp_path / "build" / PLACE) == expected


def test_the_sample_volume_is_installed_with_its_licence(tree):
    assert sorted(sampleFiles()) == ["LICENSE-MNI152.txt", "mni152_t1.nrrd"]
    code = (
        "from MedSAM2SegmentLib.SampleData import THUMBNAIL, sampleFile\n"
        "print(sampleFile()); print(THUMBNAIL.is_file())"
    )
    found, hasThumbnail = _python(tree, "-c", code).stdout.split("\n")[:2]
    assert found == str(tree / "Resources" / "SampleData" / "mni152_t1.nrrd")
    assert hasThumbnail == "True"


def test_the_installed_module_finds_its_lists(tree):
    code = (
        "from MedSAM2SegmentLib.Runtime import RuntimePlan as plan\n"
        "names = (*plan.LOCKS, 'uv.txt', 'probe.py', 'helper.py', 'collect.py')\n"
        "print(all((plan.FILES / name).is_file() for name in names))\n"
        "print(plan.FILES)"
    )
    known, folder = _python(tree, "-c", code).stdout.split("\n")[:2]
    assert (known, folder) == ("True", str(tree / "MedSAM2SegmentLib" / "Runtime"))


def test_the_installed_tree_alone_starts_the_worker(tree):
    from medsam2_core.worker.client import WorkerState
    from support.subprocess_transport import PumpedClient, SubprocessTransport

    command = [sys.executable, "-S", "-m", "medsam2_core.worker"]
    client = PumpedClient(lambda: SubprocessTransport(command, _environment(tree)))
    answers = []
    client.start()
    try:
        _until(client, lambda: client.state is not WorkerState.STARTING, 60)
        assert client.state is WorkerState.READY, client.report
        client.request("models", done=answers.append, failed=answers.append)
        _until(client, lambda: answers, 30)
    finally:
        client.stop()
    embedded = {model["name"]: model for model in answers[0]["models"]}["embedded"]
    assert embedded["installed"]
    assert os.path.realpath(embedded["path"]).startswith(os.path.realpath(tree))


def test_the_package_of_this_checkout_cannot_help_the_installed_tree(tree):
    found = _python(tree, "-c", "import medsam2_core; print(medsam2_core.__file__)").stdout.strip()
    assert os.path.realpath(found).startswith(os.path.realpath(tree))
    assert str(MODULE) not in _python(tree, "-c", "import sys; print(sys.path)").stdout


def _environment(tree) -> dict[str, str]:
    """Third-party packages by their folder alone: what points to this checkout there is not followed (-S)."""
    packages = [path for path in site.getsitepackages() if os.path.isdir(path)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _python(tree, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-S", *words]
    return subprocess.run(
        command, env=_environment(tree), cwd=tree, capture_output=True, text=True, check=True
    )


def _until(client, reached, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, client.report
        client.pump(0.1)
