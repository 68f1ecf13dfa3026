"""Whatever goes wrong while the runtime is installed, it is never taken for good, and can be resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from medsam2_core.errors import Cancelled, RuntimeInstallError
from MedSAM2SegmentLib.Runtime import RuntimePlan
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from MedSAM2SegmentLib.Runtime.RuntimeTask import Output, commandError
from support.process_runner import done
from support.runtime import Runtime, baseEnvironment
from support.wheel_folder import WheelFolder

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "runtime_script.py"


def recovers(runtime) -> None:
    """Another try, after a restart of Slicer, leaves a good runtime and nothing else."""
    assert done(runtime.another().install, runtime.runner) is None
    assert runtime.another().status().state is RuntimeState.READY
    assert runtime.works()
    assert runtime.names == {"env", "lock"}


# Cancelled


def test_cancelling_at_every_step_is_reported_at_once_and_can_be_resumed(tmp_path, wheels):
    steps = len(Runtime(tmp_path / "whole", wheels).installed().runner.commands)
    assert steps >= 8
    for step in range(1, steps):  # the last one only tidies up
        runtime = Runtime(tmp_path / str(step), wheels)
        outcome = runtime.outcome()
        runtime.installer.install(outcome.listener)
        while len(runtime.runner.commands) < step:
            runtime.runner.pump(0.5)
        runtime.installer.cancel()
        assert isinstance(outcome.ends[0], Cancelled), f"step {step}: {outcome.ends}"
        assert not runtime.installer.isBusy
        assert runtime.installer.status().state in (RuntimeState.NONE, RuntimeState.INTERRUPTED)
        assert not runtime.installer.status().isBusyElsewhere
        recovers(runtime)
        assert len(outcome.ends) == 1
        assert not runtime.runner.running()


def test_cancelling_nothing_does_nothing(runtime):
    runtime.installer.cancel()
    runtime.installed().installer.cancel()
    assert runtime.installer.status().state is RuntimeState.READY


def test_a_cancelled_repair_leaves_the_old_environment(runtime):
    runtime.installed()
    outcome = runtime.outcome()
    runtime.installer.install(outcome.listener)
    for _ in range(6):
        runtime.runner.pump(0.5)
    runtime.installer.cancel()
    assert runtime.installer.status().state is RuntimeState.READY
    assert runtime.works()


def test_what_was_downloaded_is_kept_for_the_next_try(runtime):
    outcome = runtime.outcome()
    runtime.installer.install(outcome.listener)
    while "sam2.txt" not in runtime.runner.words()[-1]:
        runtime.runner.pump(0.5)
    runtime.installer.cancel()
    assert any((runtime.folder / "cache").rglob("numpy"))
    status = runtime.installer.status()
    assert status.state is RuntimeState.INTERRUPTED
    assert "press Install to continue" in status.text


# Killed


def killedAt(runtime, said: str) -> str:
    """Run the installation in another process and kill it when it has said that; returns the last it said."""
    words = [sys.executable, SCRIPT, runtime.folder, runtime.wheels.folder, runtime.wheels.files]
    tools = baseEnvironment(runtime.tmp)["PATH"]
    heard = []
    with subprocess.Popen([*map(str, words), tools, said], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            heard.append(line.strip())
            if heard[-1] == said:
                child.send_signal(signal.SIGKILL)
                break
    # A child that was just being started holds the lock, too, until it runs its own program.
    end = time.monotonic() + 10
    while runtime.installer.status().isBusyElsewhere:
        assert time.monotonic() < end
        time.sleep(0.01)
    return heard[-1]


@pytest.mark.skipif(os.name == "nt", reason="kills by a POSIX signal")
def test_slicer_killed_at_every_step_is_recovered_from(tmp_path, wheels):
    steps = len(Runtime(tmp_path / "whole", wheels).installed().runner.commands)
    for step in range(1, steps):
        runtime = Runtime(tmp_path / str(step), wheels)
        assert killedAt(runtime, f"command {step}") == f"command {step}"
        assert not runtime.installer.status().isReady, f"killed at step {step}"
        recovers(runtime)


@pytest.mark.skipif(os.name == "nt", reason="kills by a POSIX signal")
def test_slicer_killed_between_the_renames_of_a_repair_has_a_whole_environment_again(runtime):
    runtime.installed()
    assert killedAt(runtime, "after") == "after"  # the old one was moved away, the new one is not in place
    assert not (runtime.folder / "env").exists()
    assert runtime.installer.status().state is RuntimeState.INTERRUPTED
    before = len(runtime.runner.commands)
    assert done(runtime.installer.install, runtime.runner) is None
    made = [words for words in runtime.runner.words()[before:] if "pip install" in words]
    assert not made, "what was whole is put in place, not made anew"
    recovers(runtime)


@pytest.mark.skipif(os.name == "nt", reason="kills by a POSIX signal")
def test_slicer_killed_before_the_rename_keeps_what_was_made(runtime):
    assert killedAt(runtime, "before") == "before"
    assert runtime.installer.status().state is RuntimeState.INTERRUPTED
    recovers(runtime)


def test_a_new_environment_without_its_manifest_is_thrown_away(runtime):
    runtime.installed()
    (runtime.folder / "env").rename(runtime.folder / "new-abc123")
    (runtime.folder / "new-abc123" / "medsam2-runtime.json").unlink()
    assert runtime.installer.status().state is RuntimeState.INTERRUPTED
    recovers(runtime)


def test_a_rename_that_is_refused_leaves_the_old_environment_and_is_done_next_time(runtime, monkeypatch):
    runtime.installed()
    rename = Path.rename

    def refuse(self, target):
        if self.name.startswith("new-"):
            raise PermissionError(13, "in use", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert done(runtime.installer.install, runtime.runner).code == "runtime-in-use"
    assert runtime.installer.status().state is RuntimeState.READY
    monkeypatch.undo()
    recovers(runtime)


# Sources that are damaged or missing


def test_a_damaged_wheel_is_refused(tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w"))
    wheel = runtime.wheels.of("numpy")
    good = wheel.read_bytes()
    wheel.write_bytes(good[:-200] + bytes([good[-200] ^ 1]) + good[-199:])
    assert runtime.install().code == "damaged-download"
    assert runtime.installer.status().state is RuntimeState.INTERRUPTED
    wheel.write_bytes(good)
    recovers(runtime)


def test_a_damaged_build_of_torch_is_refused_though_it_has_no_pinned_content(tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w"))
    wheel = runtime.wheels.of("torch")
    good = wheel.read_bytes()
    wheel.write_bytes(good[: len(good) // 2])
    error = runtime.install()
    assert error.code == "damaged-download"
    assert "PyTorch could not be installed" in str(error)
    wheel.write_bytes(good)
    recovers(runtime)


def test_a_pinned_content_that_is_another_one_is_refused(tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w"))
    lock = runtime.wheels.files / "requirements.lock"
    lock.write_text("numpy==2.0.0 --hash=sha256:" + "1" * 64)
    assert runtime.install().code == "hash-mismatch"


def test_a_package_that_is_missing_in_the_folder_is_reported(tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w"))
    runtime.wheels.of("torch").unlink()
    error = runtime.install()
    assert error.code == "package-not-found"
    assert "PyTorch could not be installed" in str(error)


def test_an_environment_that_does_not_work_is_not_taken(tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w"))
    (runtime.wheels.files / "probe.py").write_text("raise SystemExit('ImportError: libcuda is missing')")
    error = runtime.install()
    assert error.code == "unusable-interpreter"
    assert "libcuda is missing" in error.fields["reason"]
    assert not runtime.installer.status().isReady
    assert not (runtime.folder / "env").exists()


def test_without_a_network_the_message_names_what_to_set(runtime):
    runtime.installer.options = InstallOptions()
    error = runtime.install()
    assert error.code == "index-unreachable"
    for word in ("online", "HTTPS_PROXY", "UV_DEFAULT_INDEX", "offline folder"):
        assert word in str(error)
    assert runtime.installer.status().state is RuntimeState.INTERRUPTED


def test_a_uv_that_is_not_the_pinned_one_is_refused(runtime):
    (runtime.tmp / "tools" / "uv").unlink()
    shutil.copy(runtime.wheels.of("numpy"), runtime.wheels.folder / "uv-0.0.1-py3-none-any.whl")
    try:
        error = str(runtime.install())
    finally:
        (runtime.wheels.folder / "uv-0.0.1-py3-none-any.whl").unlink()
    assert "uv could not be downloaded" in error
    assert not runtime.installer.status().isReady


def test_an_old_uv_on_the_path_is_not_used(runtime):
    tool = runtime.tmp / "tools" / "uv"
    tool.unlink()
    tool.write_text("#!/bin/sh\necho uv 0.4.1\n")
    tool.chmod(0o755)
    assert "uv could not be downloaded" in str(runtime.install())
    assert any("pip download" in words for words in runtime.runner.words())


# The disk


def test_a_disk_with_too_little_space_is_reported_before(runtime, monkeypatch):
    usage = shutil.disk_usage(runtime.tmp)._replace(free=50_000_000)
    monkeypatch.setattr(RuntimePlan.shutil, "disk_usage", lambda path: usage)
    plan = runtime.installer.plan()
    assert plan.freeMegabytes == 50
    assert plan.problems[0].code == "disk-too-small"
    assert "50 MB are free" in plan.text
    assert runtime.install().code == "disk-too-small"
    assert not runtime.folder.exists(), "nothing was begun"


def test_a_disk_that_fills_up_is_reported_and_recovered_from(tmp_path, wheels, monkeypatch):
    small = tmp_path / "small disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be made here: {mounted.stderr.decode().strip()}")
    try:
        monkeypatch.setattr(RuntimePlan, "freeMegabytes", lambda path: 100_000)
        runtime = Runtime(tmp_path, wheels)
        runtime.folder = small / "runtime"
        runtime.installer = runtime.another()
        assert runtime.install().code == "disk-full"
        assert not runtime.installer.status().isReady
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        recovers(runtime)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_folder_that_may_not_be_written_to_is_reported_before(runtime, monkeypatch):
    monkeypatch.setattr(RuntimePlan.os, "access", lambda path, mode: False)
    assert runtime.install().code == "folder-not-writable"


# Messages


@pytest.mark.parametrize(
    "printed, code",
    [
        ("error: No space left on device (os error 28)", "disk-full"),
        ("Hash mismatch for `numpy==2`", "hash-mismatch"),
        ("error sending request: dns error", "index-unreachable"),
        ("invalid peer certificate: UnknownIssuer", "index-unreachable"),
        ("Permission denied (os error 13)", "access-denied"),
        ("No solution found when resolving dependencies", "package-not-found"),
        ("something nobody has seen before", "command-failed"),
    ],
)
def test_what_tools_print_is_explained(printed, code):
    error = commandError("It failed", Output(7, "exit code 7", ("warning: x", printed)))
    assert isinstance(error, RuntimeInstallError)
    assert (error.code, error.fields["output"]) == (code, printed)
    assert str(error).startswith("It failed: ")


def test_what_is_not_known_is_quoted_with_the_exit_code():
    error = commandError("It failed", Output(7, "exit code 7", ("never seen before", " ")))
    assert "never seen before (exit code 7)" in str(error)
