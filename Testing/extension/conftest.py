"""Fixtures for tests of the Slicer module: real MRML, and a scene of its own for every test."""

import sys
import tempfile
from pathlib import Path

import pytest

_MODULE = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
if str(_MODULE) not in sys.path:  # Slicer puts the module's folder there; the package of the core does not
    sys.path.insert(0, str(_MODULE))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As for the other tests, but Slicer's own Python has no torch, and these tests run there too."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def scene():
    """An empty scene with a subject hierarchy; everything in it goes with the test."""
    pytest.importorskip("slicer")
    from support.scene import an_empty_scene

    scene = an_empty_scene()
    yield scene
    scene.Clear(True)


# What several files stand on. Files that need another one of that name have their own.


@pytest.fixture
def user(scene):
    """Has a volume and two empty segments; the worker has answered, and nothing is prompted yet."""
    from support.slicer_user import SlicerUser

    user = SlicerUser(scene)
    user.wait()
    yield user
    user.controller.cleanup()


@pytest.fixture
def finder(scene):
    """Has an Auto model, and no segment yet."""
    from test_slicer_auto import AutoUser

    user = AutoUser(scene, segments=())
    yield user
    user.controller.cleanup()


@pytest.fixture(scope="module")
def source():
    """A worker's own process, the same for all tests of a file."""
    from support.active_effect import RealWorkerSource

    source = RealWorkerSource()
    yield source
    source.client.stop()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary folder: what a test leaves there goes with the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def page(tmp_path):
    """The section about export, without a scene and without widgets."""
    from support.export_page import ExportPage

    return ExportPage(tmp_path)


@pytest.fixture
def actions():
    """Remembers what a panel tells its controller."""
    from support.panel import RecordingActions

    return RecordingActions()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Tiny packages under the names of the real ones: who changes them puts them back."""
    from support.wheel_folder import WheelFolder

    return WheelFolder(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def runtime(tmp_path, wheels):
    """A runtime folder in which there is nothing yet."""
    from support.runtime import Runtime

    return Runtime(tmp_path, wheels)
