"""The real runtime with the real PyTorch: made without a network, started, damaged, repaired, removed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from medsam2_core.worker.client import WorkerState
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller
from MedSAM2SegmentLib.Runtime.RuntimePlan import FILES, InstallOptions, torchVersion
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from support.process_runner import Outcome, SubprocessRunner
from support.subprocess_transport import PumpedClient, SubprocessTransport

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Iterator[Path]:
    """Everything the pinned lists name, as a user would collect it for a computer without a network."""
    if named := os.environ.get("MEDSAM2_TEST_WHEELS"):
        yield Path(named)
        return
    folder = tmp_path_factory.mktemp("offline")
    # Only a wheel of PyTorch that lies on this computer: elsewhere this would fetch gigabytes.
    words = [*PIP, "download", "--no-deps", "--no-index", "--dest", str(folder), f"torch=={torchVersion()}"]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip(
            "no wheel of PyTorch lies where pip looks (find-links): set MEDSAM2_TEST_WHEELS to a folder"
        )
    collecting = [sys.executable, str(FILES / "collect.py"), str(folder)]
    done = subprocess.run(collecting, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the packages cannot be collected here: {done.stderr.strip().splitlines()[-1:]}")
    yield folder
    shutil.rmtree(folder)  # pytest would keep some hundred megabytes


class Place:
    """One runtime folder, with what its children are told."""

    def __init__(self, tmp: Path, wheels: Path) -> None:
        tools = tmp / "tools"
        tools.mkdir()
        (tools / "python3").symlink_to(Path(sys.executable).resolve())
        nowhere = "http://127.0.0.1:9"
        environment = {
            **{"PATH": str(tools), "HOME": str(tmp), "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere},
            **{"PYTHONHOME": "/no/such/slicer", "PYTHONPATH": "/no/such/slicer", "OMP_NUM_THREADS": "1"},
        }
        self.folder = tmp / "Anwendungsdaten für Slicer" / "runtime"
        self.runner = SubprocessRunner()
        self.installer = RuntimeInstaller(
            self.folder, self.runner, environment=environment, helper=sys.executable
        )
        self.installer.options = InstallOptions(offlineFolder=wheels)

    def run(self, work, seconds: float = 300) -> tuple[Exception | None, float]:
        outcome = Outcome(self.runner)
        started = time.monotonic()
        work(outcome.listener)
        error = outcome.wait(seconds)
        return error, time.monotonic() - started


def test_a_real_runtime_is_made_started_damaged_repaired_and_removed(tmp_path, wheels, record_property):
    place = Place(tmp_path, wheels)
    installer = place.installer
    mine = listing()
    error, seconds = place.run(installer.install)
    assert error is None
    status = installer.status()
    assert status.state is RuntimeState.READY
    assert status.manifest["versions"]["torch"].partition("+")[0] == torchVersion()
    assert abs(status.manifest["megabytes"] - installer.plan().diskMegabytes) < 600, "the plan is about right"
    assert (place.folder / "uv").is_dir(), "there was none on the PATH"
    print(f"made in {seconds:.0f} s, {status.manifest['megabytes']} MB, {status.text}")

    assert startsAWorker(installer) == status.manifest["versions"]["torch"]

    site = next((place.folder / "env").rglob("site-packages"))
    (site / "torch" / "_tensor.py").unlink()
    look = [place.folder / "env" / "bin" / "python", FILES / "probe.py", "--files"]
    how = {"env": installer.environment(), "capture_output": True, "text": True}
    damaged = subprocess.run(look, check=False, **how)
    assert damaged.returncode == 1
    assert "_tensor" in damaged.stdout

    error, seconds = place.run(installer.install)
    assert error is None
    subprocess.run(look, check=True, **how)
    assert installer.status().state is RuntimeState.READY
    print(f"repaired in {seconds:.0f} s")

    assert listing() == mine, "the Python that stands for Slicer's was changed"
    error, seconds = place.run(installer.remove)
    assert error is None
    assert not place.folder.exists()
    print(f"removed in {seconds:.1f} s")


def startsAWorker(installer: RuntimeInstaller) -> str:
    """Greet the worker of this runtime; returns the version of its PyTorch."""
    command, environment = installer.command(), installer.environment()
    client = PumpedClient(lambda: SubprocessTransport(command, environment))
    client.start()
    try:
        end = time.monotonic() + 60
        while client.state is WorkerState.STARTING:
            assert time.monotonic() < end, client.report
            client.pump(0.1)
        assert client.state is WorkerState.READY, client.report
        return client.welcome["torch"]
    finally:
        client.stop()


def listing() -> list[str]:
    """What is installed in the present Python."""
    return sorted(f"{one.name}=={one.version}" for one in importlib.metadata.distributions())
