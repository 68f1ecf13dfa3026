"""Behind the page of the module: nothing is done unasked, everything done is told, nothing is left behind."""

import os
import sys
from pathlib import Path

from medsam2_core.errors import Cancelled, DownloadError, RuntimeInstallError, WorkerError
from medsam2_core.worker.client import WorkerState
from MedSAM2SegmentLib.Page.PageController import PageController
from MedSAM2SegmentLib.Page.PageState import Level
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from support.page import FakeInstaller, FakeSettings, FakeWorker, FakeWorkers

MODELS = [
    {
        "name": "embedded",
        "title": "Embedded",
        "bytes": 24_000_000,
        "licence": "Apache-2.0",
        "installed": True,
    },
    {"name": "large", "title": "Large", "bytes": 898_000_000, "licence": None, "installed": False},
]


class Page:
    """The controller with all it stands on, and how often it said that something changed."""

    def __init__(self, runtime=RuntimeState.READY, worker=None, problem=None, **settings):
        self.now, self.changes = 0.0, 0
        self.installer, self.settings = FakeInstaller(runtime), FakeSettings(**settings)
        self.worker = worker or FakeWorker()
        self.workers = FakeWorkers(self.worker, problem)
        self.controller = PageController(
            self.installer, self.settings, self.workers, self.changed, lambda: self.now
        )

    def changed(self):
        self.changes += 1

    @property
    def state(self):
        return self.controller.state

    def opened(self):
        self.controller.enter()
        self.worker.last("models").answer(models=MODELS)
        return self


def test_a_fresh_computer_is_shown_what_to_press():
    page = Page(RuntimeState.NONE, problem=RuntimeInstallError("press Install"))
    page.controller.enter()
    assert page.state.runtime.line.level is Level.WARNING
    assert page.state.runtime.canInstall
    assert not page.state.runtime.canRemove
    assert page.state.worker.line.text == "press Install"
    assert not page.state.models.canChange


def test_installing_is_asked_with_size_place_and_licences_and_then_done():
    page = Page(RuntimeState.NONE)
    page.controller.runtime.askInstall()
    question = page.state.runtime.question
    for words in (
        "MedSAM2Segment/runtime",
        "3.2 GB",
        "7.4 GB",
        "BSD-3-Clause",
        "Slicer's own Python is not changed",
    ):
        assert words in question
    assert page.installer.done == []
    page.controller.runtime.confirm()
    assert page.installer.done == ["install"]
    assert page.state.runtime.question == ""
    assert page.state.runtime.canCancel
    assert not page.state.runtime.canInstall


def test_declining_does_nothing():
    page = Page(RuntimeState.NONE)
    page.controller.runtime.askInstall()
    page.controller.runtime.decline()
    page.controller.runtime.confirm()
    assert page.installer.done == []
    assert page.state.runtime.question == ""


def test_a_folder_of_wheels_is_installed_from(tmp_path):
    page = Page(RuntimeState.NONE)
    page.controller.runtime.setWheelFolder(str(tmp_path))
    page.controller.runtime.askInstall()
    assert page.installer.options.offlineFolder == Path(tmp_path)
    page.controller.runtime.setWheelFolder("")
    page.controller.runtime.decline()
    page.controller.runtime.askInstall()
    assert page.installer.options.offlineFolder is None


def test_progress_lines_and_the_end_are_shown():
    page = Page(RuntimeState.NONE)
    page.controller.enter()
    page.controller.runtime.askInstall()
    page.controller.runtime.confirm()
    before = page.changes
    page.installer.listener.progress(0.25, "Downloading torch")
    for number in range(500):
        page.installer.listener.line(f"line {number}")
    view = page.state.runtime
    assert (view.fraction, view.line.text, view.line.level) == (0.25, "Downloading torch", Level.BUSY)
    assert view.log.endswith("line 499")
    assert len(view.log.splitlines()) == 400
    assert page.changes > before
    page.installer.now = RuntimeState.READY
    page.installer.listener.ended(None)
    assert page.state.runtime.fraction is None
    assert page.state.runtime.line.level is Level.OK
    assert page.worker.owners == [page.controller.worker], "the new runtime is used at once"


def test_failure_and_cancel_are_distinguished():
    page = Page(RuntimeState.NONE)
    page.controller.runtime.askInstall()
    page.controller.runtime.confirm()
    page.controller.enter()
    page.installer.listener.ended(RuntimeInstallError("The disk is full"))
    assert page.worker.owners == [page.controller.worker], "what was there before is used again"
    assert (page.state.runtime.line.text, page.state.runtime.line.level) == ("The disk is full", Level.ERROR)
    page.controller.runtime.askInstall()
    page.controller.runtime.confirm()
    page.controller.runtime.cancel()
    assert page.state.runtime.line.level is Level.INFO
    assert "kept" in page.state.runtime.line.text


def test_what_cannot_even_be_planned_is_reported():
    page = Page(RuntimeState.NONE)
    page.installer.refusal = "This computer has 2 GB left: free some"
    page.controller.runtime.askInstall()
    assert page.state.runtime.line.level is Level.ERROR
    assert "free some" in page.state.runtime.line.text
    page.controller.runtime.useInterpreter("/no/python")
    assert page.state.runtime.fraction is None
    assert page.state.runtime.line.level is Level.ERROR


def test_repairing_and_removing_let_go_of_the_worker_first():
    for ask, done in (("askRepair", "install"), ("askRemove", "remove")):
        page = Page().opened()
        getattr(page.controller.runtime, ask)()
        assert page.installer.done == []
        assert page.worker.owners == [page.controller.worker]
        page.controller.runtime.confirm()
        assert page.installer.done == [done]
        assert page.worker.owners == []
        page.installer.listener.ended(None)
        assert page.worker.owners == [page.controller.worker]


def test_only_one_thing_is_done_at_a_time():
    page = Page(RuntimeState.NONE)
    page.controller.runtime.useInterpreter(" /usr/bin/python3 ")
    page.controller.runtime.useInterpreter("/another")
    assert page.installer.done == ["use /usr/bin/python3"]
    assert not page.state.runtime.canChoose


def test_the_page_holds_a_worker_while_it_is_open():
    page = Page().opened()
    assert page.worker.owners == [page.controller.worker]
    assert [row.name for row in page.state.models.rows] == ["embedded", "large"]
    page.controller.exit()
    assert page.worker.owners == []
    assert page.worker.listeners == []
    page.controller.enter()
    page.controller.cleanup()
    assert page.worker.owners == []


def test_a_remote_worker_is_not_started_unasked():
    page = Page(remoteCommand="ssh host medsam2 worker")
    page.controller.enter()
    assert page.worker.owners == []
    page.controller.worker.test()
    assert page.worker.owners == [page.controller.worker]


def test_testing_the_connection_shows_what_answered():
    page = Page(worker=FakeWorker(WorkerState.STARTING), remoteCommand="ssh host medsam2 worker")
    page.controller.enter()
    page.controller.worker.test()
    assert page.state.worker.line.level is Level.BUSY
    assert not page.state.worker.canTest
    page.worker.become(WorkerState.READY)
    page.now = 0.004
    page.worker.last("ping").answer(busy=False)
    line = page.state.worker.line
    assert line.level is Level.OK
    assert line.text == "Connected: worker 0.4 on gpu-host, answers in 4 ms"
    assert page.state.worker.device == "A card"
    page.worker.become(WorkerState.FAILED, "ssh: Could not resolve hostname host")
    assert page.state.worker.line.level is Level.ERROR
    assert "resolve" in page.state.worker.line.text
    assert page.state.worker.report == "the report"


def test_testing_starts_a_worker_again_that_has_failed_for_an_effect():
    page = Page(worker=FakeWorker(WorkerState.FAILED))
    page.worker.owners.append("an effect")
    page.controller.enter()
    assert page.state.worker.line.level is Level.ERROR
    page.controller.worker.test()
    assert page.worker.state is WorkerState.STARTING


def test_another_remote_command_ends_the_old_connection():
    page = Page().opened()
    page.controller.worker.setRemoteCommand("ssh host medsam2 worker")
    assert page.worker.owners == []
    assert page.settings.remoteCommand == "ssh host medsam2 worker"
    page.controller.worker.setRemoteCommand("")
    assert page.worker.owners == [page.controller.worker]


def test_memory_is_asked_now_and_then_and_shown_as_text():
    page = Page().opened()
    page.worker.last("status").answer(
        rss_bytes=812_000_000,
        cache_bytes=2e8,
        cache_limit=2e9,
        volumes=1,
        sessions=2,
        device="cpu",
        log="a.log",
    )
    view = page.state.worker
    words = "812 MB in use; image features 200 MB of at most 2.0 GB; 1 volume, 2 sessions"
    assert (view.device, view.memory, view.log) == ("cpu", words, "a.log")
    asked = len(page.worker.asked)
    page.now = 1.0
    page.controller.update()
    assert len(page.worker.asked) == asked
    page.now = 3.0
    page.controller.update()
    assert len(page.worker.asked) == asked + 1


def test_a_model_is_installed_with_progress_and_shown():
    page = Page().opened()
    page.controller.models.install("large")
    request = page.worker.last("install_model")
    assert request.fields == {"name": "large"}
    request.callbacks["progress"]("downloading", 449_000_000, 898_000_000)
    assert page.state.models.rows[1].progress == "50 %"
    assert page.state.models.line.text == "large: downloading, 449 MB of 898 MB"
    assert not page.state.models.canChange
    page.controller.models.install("embedded")
    assert page.worker.last("install_model") is request
    request.answer(path="somewhere")
    page.worker.last("models").answer(models=[{**MODELS[1], "installed": True, "path": "somewhere"}])
    assert page.state.models.rows[0].isInstalled
    assert page.state.models.line.level is Level.OK
    assert page.state.choices["model"] == (("large", "Large"),)


def test_a_model_can_be_removed_and_the_freed_space_is_shown():
    page = Page().opened()
    page.controller.models.remove("embedded")
    page.worker.last("remove_model").answer(bytes=24_000_000)
    assert "24 MB" in page.state.models.line.text


def test_a_download_can_be_cancelled_and_may_fail():
    page = Page().opened()
    page.controller.models.install("large")
    page.controller.models.cancel()
    assert page.worker.last("install_model").isCancelled
    page.worker.last("install_model").fail(Cancelled("install_model was cancelled"))
    assert page.state.models.line.level is Level.INFO
    page.controller.models.install("large")
    page.worker.last("install_model").fail(DownloadError("no connection"))
    assert page.state.models.line.level is Level.ERROR
    assert page.state.models.canChange


def test_leaving_cancels_a_download_and_late_answers_concern_nobody():
    page = Page().opened()
    page.controller.models.install("large")
    request = page.worker.last("install_model")
    page.controller.exit()
    assert request.isCancelled
    before = page.state
    request.answer(path="somewhere")
    request.fail(WorkerError("too late"))
    page.worker.last("status").answer(rss_bytes=1)
    assert page.state == before


def test_what_a_model_needs_is_compared_with_what_is_free():
    page = Page()
    page.controller.enter()
    needs = [{**MODELS[0], "memory": 500_000_000}, {**MODELS[1], "memory": 4_000_000_000}]
    page.worker.last("models").answer(models=[*needs, {**MODELS[1], "name": "unknown"}])
    small, large, unknown = page.state.models.rows
    assert "552 MB" in small.memory
    assert "762 MB" in small.memory
    assert unknown.memory == ""
    without = large.memory
    page.worker.last("status").answer(device={"free_bytes": 3_000_000_000, "total_bytes": 8_000_000_000})
    small_now, large_now, _ = page.state.models.rows
    assert small_now.memory == small.memory
    assert large_now.memory.startswith(without)
    assert len(large_now.memory) > len(without)


def test_the_models_table_explains_why_it_is_empty():
    page = Page(worker=FakeWorker(WorkerState.STARTING))
    page.controller.enter()
    assert page.state.models.line == page.state.worker.line
    assert page.state.models.line.level is Level.BUSY
    page.worker.become(WorkerState.READY)
    assert page.state.models.line.text
    page.worker.last("models").answer(models=MODELS)
    assert page.state.models.line.text == ""
    remote = Page(remoteCommand="ssh host medsam2 worker")
    remote.controller.enter()
    assert remote.state.models.line.text
    missing = Page(RuntimeState.NONE, problem=RuntimeInstallError("press Install"))
    missing.controller.enter()
    assert missing.state.models.line.text == "press Install"


def test_defaults_are_kept():
    page = Page()
    page.controller.setDefault("model", "large")
    page.controller.setDefault("window", "lung")
    assert (page.settings.defaultModel, page.settings.defaultWindow) == ("large", "lung")
    assert page.state.values == {"model": "large", "window": "lung"}
    assert {"auto", "displayed", "lung"} <= {value for value, _ in page.state.choices["window"]}


def test_the_whole_page_works_with_the_real_worker(tmp_path):
    from support import qt_shim as a_qt

    qt = a_qt.installed()
    a_qt.application()
    from MedSAM2SegmentLib.Panels.ModulePage import ModulePage
    from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessRunner
    from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller
    from MedSAM2SegmentLib.Worker.Settings import Settings

    settings = Settings(qt.QSettings(str(tmp_path / "settings.ini"), qt.QSettings.IniFormat))
    settings.remoteCommand = f'"{sys.executable}" -m medsam2_core.cli worker'
    runner = QProcessRunner()
    installer = RuntimeInstaller(tmp_path / "runtime", runner, environment=dict(os.environ))
    page = ModulePage(None, installer=installer, settings=settings)
    page.enter()
    assert page.controller.state.runtime.canInstall
    page.widget.findChild(qt.QPushButton, "testButton").click()
    table = page.widget.findChild(qt.QTableWidget, "modelsTable")
    memory = page.widget.findChild(qt.QLabel, "memoryText")
    line = page.widget.findChild(qt.QLabel, "workerText")
    assert a_qt.wait_for(lambda: table.rowCount > 0 and "in use" in memory.text, 60), line.text
    assert line.text.startswith("Connected")
    assert table.item(0, 3).text() == "yes"
    page.exit()
    page.cleanup()
    a_qt.wait_for(lambda: False, 0.3)
