"""What tests of the Slicer module may ask for: real MRML, and a scene of its own for every test."""

import os
import sys
from pathlib import Path

import pytest

_MODULE = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
if str(_MODULE) not in sys.path:  # Slicer puts the module's folder there; the package of the core does not
    sys.path.insert(0, str(_MODULE))

# The package `slicer` imports all modules of all folders called "slicer" on the path: not those of this one.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parents[1]]


@pytest.fixture(scope="session", autouse=True)
def _two_threads_at_most() -> None:
    """As in the other rooms, but Slicer's own Python has no torch, and these tests run there too."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture
def scene():
    """An empty scene with a subject hierarchy; everything in it goes with the test."""
    pytest.importorskip("slicer")
    from a_scene import an_empty_scene

    scene = an_empty_scene()
    yield scene
    scene.Clear(True)
