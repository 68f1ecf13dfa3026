"""The worker's environment is made, found out to be damaged, made anew and removed; on tiny packages."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from MedSAM2SegmentLib.Runtime.FileLock import FileLock
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from support.errors import raises
from support.process_runner import done
from support.runtime import Runtime, baseEnvironment
from support.wheel_folder import WheelFolder


def test_there_is_nothing_at_first_and_the_next_step_is_shown(runtime):
    status = runtime.installer.status()
    assert (status.state, status.isReady, status.interpreter) == (RuntimeState.NONE, False, "")
    assert "press Install" in status.text
    with raises("runtime-not-ready", state="none"):
        runtime.installer.command()
    assert not runtime.folder.exists(), "to look must not make anything"


def test_an_installation_is_ready_and_leaves_nothing_else(runtime):
    outcome = runtime.outcome()
    runtime.installer.install(outcome.listener)
    assert runtime.installer.isBusy
    assert outcome.wait() is None
    status = runtime.installer.status()
    assert status.state is RuntimeState.READY
    assert status.manifest["versions"]["torch"] == "9.9.9+cpu"
    assert "9.9.9+cpu" in status.text
    assert runtime.names == {"env", "lock"}
    fractions = [fraction for fraction, _ in outcome.steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert outcome.lines


@pytest.mark.skipif(os.name == "nt", reason="stands a shell script before uv")
def test_the_download_of_pytorch_reports_progress(runtime):
    tool = runtime.tmp / "tools" / "uv"
    real = tool.resolve()
    tool.unlink()
    tool.write_text(f'#!/bin/sh\ncase "$*" in *torch==*) /bin/sleep 2;; esac\nexec "{real}" "$@"\n')
    tool.chmod(0o755)
    outcome = runtime.outcome()
    runtime.installer.install(outcome.listener)
    assert outcome.wait() is None
    told = [text for _, text in outcome.steps if "so far" in text]
    assert told
    assert all(re.fullmatch(r"Installing PyTorch.*: \d+ MB so far", text) for text in told)
    assert not runtime.runner.running(), "nobody watches any more"


def test_the_environment_works_where_it_was_moved_to(runtime):
    python = runtime.installed().installer.command()[0]
    assert Path(python).parent.parent == runtime.folder / "env"
    words = [python, "-c", "import sys, numpy, sam2; print(sys.prefix, numpy.answer)"]
    done = subprocess.run(
        words, env=runtime.installer.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == f"{runtime.folder / 'env'} 42"


def test_the_worker_starts_from_it_with_the_core_of_the_extension(runtime):
    command = runtime.installed().installer.command()
    environment = runtime.installer.environment()
    assert command[1:] == ["-m", "medsam2_core.worker"]
    assert (Path(environment["PYTHONPATH"]) / "medsam2_core" / "version.py").is_file()


def test_python_of_slicer_gets_nothing(runtime):
    # The helper stands for Slicer's Python here: it may unpack and delete, never install.
    runtime.installed()
    for command in runtime.runner.commands:
        if command[0] == sys.executable:
            assert "install" not in command[1:], command
        elif "install" in command:
            python = Path(command[command.index("--python") + 1])
            assert runtime.folder in python.parents, command


def test_a_second_installation_while_one_runs_is_refused(runtime):
    first, second = runtime.outcome(), runtime.outcome()
    runtime.installer.install(first.listener)
    runtime.installer.install(second.listener)
    assert second.wait().code == "runtime-busy"
    assert first.wait() is None


def test_two_slicers_do_not_install_at_once(runtime):
    runtime.folder.mkdir(parents=True)
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from MedSAM2SegmentLib.Runtime.FileLock import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1]))\n"
        "lock.acquire(); print('held', flush=True); sys.stdin.read()\n"
    )
    module = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
    words = [sys.executable, "-c", code, str(runtime.folder / "lock"), str(module)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().startswith(b"held")
        assert runtime.installer.status().isBusyElsewhere
        assert "Another Slicer" in runtime.installer.status().text
        assert runtime.install().code == "locked"
        other.kill()  # the lock must not outlive its owner
        other.wait()
        assert not runtime.installer.status().isBusyElsewhere
        assert runtime.install() is None


def test_an_installation_is_seen_as_running_from_another_installer(runtime):
    outcome = runtime.outcome()
    runtime.installer.install(outcome.listener)
    assert runtime.another().status().isBusyElsewhere
    outcome.wait()
    assert not FileLock(runtime.folder / "lock").isHeldElsewhere()


@pytest.mark.skipif(os.name == "nt", reason="locks there cannot be shared")
def test_slicers_that_only_look_do_not_take_each_other_for_installing(tmp_path):
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[2])\n"
        "from MedSAM2SegmentLib.Runtime.FileLock import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1]))\n"
        "print(sum(lock.isHeldElsewhere() for _ in range(8000)))\n"
    )
    path, module = tmp_path / "lock", Path(__file__).resolve().parents[2] / "MedSAM2Segment"
    path.touch()
    words = [sys.executable, "-c", code, str(path), str(module)]
    slicers = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    assert [slicer.communicate(timeout=60)[0].strip() for slicer in slicers] == [b"0", b"0"]


@pytest.mark.skipif(os.name == "nt", reason="locks there cannot be shared")
def test_a_slicer_that_only_looks_is_no_reason_not_to_install(tmp_path):
    import fcntl

    lock, looking = FileLock(tmp_path / "lock"), (tmp_path / "lock").open("a+b")
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.015, looking.close).start()
    lock.acquire()
    lock.release()


# Damage and repair


def _withoutInterpreter(runtime) -> None:
    runtime.installer.folder.python.unlink()


def _withoutManifest(runtime) -> None:
    (runtime.folder / "env" / "medsam2-runtime.json").unlink()


def _withTornManifest(runtime) -> None:
    (runtime.folder / "env" / "medsam2-runtime.json").write_text('{"format": 1, "lo', encoding="utf-8")


@pytest.mark.parametrize("damage", [_withoutInterpreter, _withoutManifest, _withTornManifest])
def test_obvious_damage_is_seen_at_once_and_repaired(runtime, damage):
    runtime.installed()
    damage(runtime)
    status = runtime.installer.status()
    assert status.state is RuntimeState.BROKEN
    assert "press Repair" in status.text
    with raises("runtime-not-ready", state="broken"):
        runtime.installer.command()
    assert done(runtime.installer.install, runtime.runner) is None
    assert runtime.installer.status().state is RuntimeState.READY
    assert runtime.names == {"env", "lock"}


def _deleted(path: Path) -> None:
    path.unlink()


def _cutShort(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("damage", [_deleted, _cutShort])
def test_a_repair_makes_a_damaged_package_whole(runtime, damage):
    runtime.installed()
    damage(runtime.site / "numpy" / "__init__.py")
    assert not runtime.works()
    assert done(runtime.installer.install, runtime.runner) is None
    assert runtime.works()
    assert runtime.installer.status().state is RuntimeState.READY


def test_a_damaged_package_is_not_taken_from_what_was_downloaded(runtime):
    # Packages are linked from the download folder: damage in one place must not come back from the other.
    runtime.installed()
    with (runtime.site / "numpy" / "__init__.py").open("r+b") as file:
        file.write(b"answer = 00")
    assert done(runtime.installer.install, runtime.runner) is None
    assert (runtime.site / "numpy" / "__init__.py").read_text().startswith("answer = 42")


def test_the_old_environment_serves_until_the_new_one_is_whole(runtime):
    runtime.installed()
    states = []
    runtime.runner.before = lambda number, command: states.append(runtime.another().status().isReady)
    assert done(runtime.installer.install, runtime.runner) is None
    assert len(states) > 5
    assert all(states)


def test_a_repair_that_fails_leaves_the_old_environment(runtime):
    runtime.installed()
    options = InstallOptions(offlineFolder=runtime.tmp)  # holds no wheels
    assert done(runtime.installer.install, runtime.runner, options).code == "package-not-found"
    assert runtime.installer.status().state is RuntimeState.READY
    assert runtime.works()


def test_other_lists_make_it_outdated_but_it_still_works(tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w")).installed()
    with (runtime.wheels.files / "requirements.lock").open("a", encoding="utf-8") as file:
        file.write("# another day's list\n")
    status = runtime.installer.status()
    assert status.state is RuntimeState.OUTDATED
    assert status.isReady
    assert runtime.installer.command()
    assert done(runtime.installer.install, runtime.runner) is None
    assert runtime.installer.status().state is RuntimeState.READY


# Removal


def test_removal_leaves_no_trace(runtime):
    runtime.installed()
    assert done(runtime.installer.remove, runtime.runner) is None
    assert runtime.installer.status().state is RuntimeState.NONE
    assert not runtime.folder.exists()


def test_removal_deletes_only_what_was_installed(runtime):
    runtime.installed()
    mine = runtime.folder / "my notes.txt"
    mine.write_text("keep me")
    assert done(runtime.installer.remove, runtime.runner) is None
    assert runtime.names == {"my notes.txt"}


def test_removal_deletes_files_that_may_not_be_written(runtime):
    runtime.installed()
    for path in (runtime.site / "numpy").iterdir():
        path.chmod(0o400)
    (runtime.site / "numpy").chmod(0o500)
    assert done(runtime.installer.remove, runtime.runner) is None
    assert not runtime.folder.exists()


# Another interpreter


def named(runtime, path: str) -> Exception | None:
    return done(lambda listener: runtime.installer.useInterpreter(path, listener), runtime.runner)


def test_a_named_interpreter_is_used_once_it_has_shown_that_it_can(runtime):
    good = runtime.installed().installer.command()[0]
    other = Runtime(runtime.tmp / "b", runtime.wheels)
    assert named(other, good) is None
    status = other.another().status()
    assert (status.state, status.interpreter, status.isOwn) == (RuntimeState.READY, good, False)
    assert other.installer.command()[0] == good
    # The folder of an environment does as well, and an empty name goes back.
    assert named(other, str(Path(good).parent.parent)) is None
    assert other.installer.command()[0] == good
    assert named(other, "") is None
    assert other.installer.status().state is RuntimeState.NONE


def test_an_interpreter_that_cannot_run_the_worker_is_refused(runtime):
    cases = {
        str(runtime.tmp / "none"): "not-an-interpreter",
        sys.executable: "unusable-interpreter",
        shutil.which("ls"): "unusable-interpreter",
    }
    for path, code in cases.items():
        assert named(runtime, path).code == code
        assert runtime.installer.status().state is RuntimeState.NONE


def test_a_named_interpreter_that_is_gone_is_reported(runtime):
    runtime.installed()
    copy = runtime.tmp / "copy"
    copy.symlink_to(runtime.installer.folder.python)
    runtime.installer.folder.setInterpreter(str(copy))
    copy.unlink()
    status = runtime.installer.status()
    assert (status.state, status.isOwn) == (RuntimeState.BROKEN, False)
    assert str(copy) in status.text
    assert done(runtime.installer.remove, runtime.runner) is None  # forgets the name, deletes nothing
    assert runtime.installer.status().state is RuntimeState.READY


def test_the_environment_can_be_made_from_a_named_python(tmp_path, wheels):
    environment = baseEnvironment(tmp_path, UV_PYTHON_PREFERENCE="only-system")
    (tmp_path / "tools" / "python3").unlink()
    options = InstallOptions(offlineFolder=wheels.folder, python=sys.executable)
    runtime = Runtime(tmp_path, wheels, environment=environment, options=options).installed()
    assert not any("python find" in words for words in runtime.runner.words())


def test_without_network_and_python_this_is_reported(tmp_path, wheels):
    environment = baseEnvironment(tmp_path)
    (tmp_path / "tools" / "python3").unlink()
    runtime = Runtime(tmp_path, wheels, environment=environment)
    assert runtime.install().code == "python-not-found"
