"""The runner that Slicer uses, under a real event loop."""

import os
import subprocess
import sys
import time

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()

from medsam2_core.errors import Cancelled  # noqa: E402
from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessRunner  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener  # noqa: E402
from support.runtime import Runtime  # noqa: E402
from support.wheel_folder import WheelFolder  # noqa: E402


@pytest.fixture
def application():
    return a_qt.application()


class Child:
    """What one child process told."""

    def __init__(self, application, code: str, *words: str, environment=None) -> None:
        self.application = application
        self.text = ""
        self.ends = []
        self.runner = QProcessRunner()
        command = [sys.executable, "-c", code, *words]
        self.handle = self.runner.run(
            command, environment or {}, self._onOutput, lambda *end: self.ends.append(end)
        )

    def _onOutput(self, text: str) -> None:
        assert not self.ends
        self.text += text

    def wait(self):
        until(self.application, lambda: self.ends)
        return self.ends


def until(application, reached, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        application.processEvents()
        time.sleep(0.005)


def test_output_and_exit_code_come(application):
    child = Child(
        application, "import sys; print('päge 数'); print('to stderr', file=sys.stderr); sys.exit(3)"
    )
    ((code, reason),) = child.wait()
    assert code == 3 and "exit code 3" in reason
    assert "to stderr" in child.text


def test_text_is_whole_although_it_comes_in_pieces(application):
    code = "import sys; sys.stdout.buffer.write('数'.encode() * 300000)"
    child = Child(application, code)
    child.wait()
    assert child.text == "数" * 300000


def test_the_environment_is_exactly_the_one_given(application):
    child = Child(application, "import os; print(sorted(os.environ))", environment={"ONLY": "this"})
    child.wait()
    assert "ONLY" in child.text
    assert "HOME" not in child.text


def test_a_missing_program_is_reported_after_run_has_returned(application):
    ends = []
    runner = QProcessRunner()
    runner.run(["/no/such/program"], {}, ends.append, lambda *end: ends.append(end))
    assert not ends
    until(application, lambda: ends)
    assert ends[0][0] is None
    assert "did not start" in ends[0][1]
    assert len(ends) == 1


def test_a_killed_child_is_reported(application):
    child = Child(application, "import time; print('up', flush=True); time.sleep(60)")
    until(application, lambda: child.text)
    child.handle.kill()
    assert child.wait()[0][0] is None
    child.handle.kill()  # nothing happens


QUITTING = """
import os, sys
from support import qt_shim
qt = qt_shim.installed()
from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessRunner
from MedSAM2SegmentLib.Worker.WorkerProcess import SharedWorker

application = qt_shim.application()
child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(300)"]
heard = []
process = QProcessRunner().run(child, {}, heard.append, lambda *end: None)
worker = SharedWorker.of(child, {})
worker.acquire(application)
assert qt_shim.wait_for(lambda: heard)
running = application.findChildren(qt.QProcess)
assert qt_shim.wait_for(lambda: all(one.processId() for one in running))
print(*(one.processId() for one in running), flush=True)
qt.QTimer.singleShot(0, application.quit)
application.exec()
os._exit(0)  # nothing is destroyed: only what happens at aboutToQuit counts
"""


def test_runtime_and_worker_end_when_slicer_quits():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", QUITTING]
    printed = subprocess.check_output(command, env=environment, text=True, timeout=120)
    numbers = [int(word) for word in printed.split()]
    assert len(numbers) == 2
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_input_is_closed_so_that_nothing_waits_for_it(application):
    child = Child(application, "import sys; sys.stdin.read(); sys.exit(0)")
    assert child.wait()[0][0] == 0


def test_a_runtime_is_installed_and_an_installation_cancelled(application, tmp_path):
    runtime = Runtime(tmp_path, WheelFolder(tmp_path / "w"))
    installer = runtime.another(QProcessRunner())
    ends = []
    installer.install(InstallListener(ended=ends.append))
    for _ in range(40):
        application.processEvents()
        time.sleep(0.005)
    installer.cancel()
    assert isinstance(ends.pop(), Cancelled)
    installer.install(InstallListener(ended=ends.append))
    until(application, lambda: ends)
    assert ends == [None]
    assert installer.status().state is RuntimeState.READY
