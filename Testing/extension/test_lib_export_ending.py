"""How an export of the page begins and ends: what is said, what is left, what stops it."""

import numpy as np
import pytest
from medsam2_core.errors import Cancelled, ExportError, Note, WorkerError
from MedSAM2SegmentLib.Page.ExportOptions import ExportOptions
from MedSAM2SegmentLib.Page.PageController import PageController
from MedSAM2SegmentLib.Page.PageState import Level
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from support.export_page import RESULT, ExportPage, FakeSegmentations
from support.page import FakeInstaller, FakeSettings, FakeWorker, FakeWorkers

pytestmark = pytest.mark.usefixtures("temporary")


# When it begins ---------------------------------------------------------------------------------------------


def test_that_it_is_being_done_is_shown_before_the_work_begins(tmp_path):
    waiting = []
    page = ExportPage(tmp_path, later=waiting.append)
    assert page.export() is None
    assert (page.line.text, page.line.level) == ("Exporting…", Level.BUSY)
    assert page.view.isRunning
    assert not page.view.canExport
    assert page.scene.paths == []
    assert page.export() is None
    (work,) = waiting
    work()
    assert page.worker.last("export").fields["out"] == f"{page.out}.dcm"
    assert page.line.text == "Exporting Liver…"


@pytest.mark.parametrize("stop", ["cancel", "stop", "cleanup"])
def test_what_was_stopped_before_it_began_never_begins(tmp_path, temporary, stop):
    waiting = []
    page = ExportPage(tmp_path, later=waiting.append)
    page.export()
    getattr(page.page, stop)()
    assert not page.view.isRunning
    page.export()
    waiting[0]()
    assert page.worker.asked == []
    assert list(temporary.iterdir()) == []
    waiting[1]()
    assert len(page.worker.asked) == 1


# How it ends ------------------------------------------------------------------------------------------------


def test_what_was_written_is_reported_and_nothing_is_left(page):
    request = page.export(measurements="json", report=True)
    folder = page.scene.paths[0].parent
    beside = {"measurements": [f"{page.out}_measurements.json"], "report": f"{page.out}_SR.dcm"}
    request.answer(**{**RESULT, "out": f"{page.out}.dcm", **beside})
    assert page.line.text == (
        f"{page.out}.dcm is written: 1 segment, 12 frames, 34 kB. out_measurements.json is beside it. "
        "out_SR.dcm is beside it."
    )
    assert page.line.level is Level.OK
    assert not folder.exists()
    assert page.worker.owners == []
    assert page.view.canExport


def test_notes_are_shown_as_warnings(page):
    changed = "'sheet' lay on another grid than the rest: 1.3% of it changed"
    page.scene.notes = (Note.warning("resampling-loss", changed),)
    notes = [
        Note.info("empty-segment-left-out", "'cyst' is empty and was left out").to_dict(),
        Note.warning("resampled", "the grid was resampled.").to_dict(),
    ]
    page.export().answer(**{**RESULT, "out": "/a.dcm", "notes": notes})
    text = page.line.text
    assert "Note: 'sheet' lay on another grid than the rest: 1.3% of it changed. Note: 'cyst'" in text
    assert text.endswith("Note: 'cyst' is empty and was left out. Note: the grid was resampled.")
    assert page.line.level is Level.WARNING


def test_a_strange_answer_is_no_end(page):
    page.export().answer(segments="none", notes=None, measurements="x", frames="many")
    assert page.line.text.startswith("The file is written")


def test_an_error_of_the_command_is_reported_without_unseen_paths(page):
    request = page.export()
    request.fail(ExportError(f"{page.scene.paths[0]}: it has no voxels"))
    assert (page.line.text, page.line.level) == ("'Liver': it has no voxels", Level.ERROR)
    assert not page.scene.paths[0].exists()
    assert page.worker.owners == []


ERRORS = {
    "'Liver' is gone": ExportError("'Liver' is gone"),
    "No space left on device": OSError(28, "No space left on device"),
    "memory is full": MemoryError(),
    "Singular matrix": np.linalg.LinAlgError("Singular matrix"),
    "embedded null byte": ValueError("embedded null byte"),
    "vtk": RuntimeError("vtk"),
}


@pytest.mark.parametrize("words", ERRORS)
def test_what_cannot_be_handed_over_is_reported_and_nothing_is_left(tmp_path, temporary, words):
    page = ExportPage(tmp_path, problem=ERRORS[words])
    assert page.export() is None
    assert words in page.line.text
    assert page.line.level is Level.ERROR
    assert page.worker.owners == []
    assert page.view.canExport
    assert list(temporary.iterdir()) == []


def test_also_what_nobody_foresaw_leaves_nothing_behind(tmp_path, temporary):
    page = ExportPage(tmp_path, problem=AssertionError("a defect"))
    with pytest.raises(AssertionError):
        page.export()
    assert (page.line.text, page.line.level) == (
        "Unexpected error during the export: see Slicer's log.",
        Level.ERROR,
    )
    assert page.worker.owners == []
    assert page.view.canExport
    assert list(temporary.iterdir()) == []


def test_a_worker_that_fails_at_once_is_reported(page, temporary):
    def request(type, fields, done, failed):
        failed(WorkerError("the worker was lost 3 times"))
        return object()

    page.worker.request = request
    assert page.export() is None
    assert page.line.text == "the worker was lost 3 times"
    assert page.view.canExport
    assert list(temporary.iterdir()) == []


def test_without_a_temporary_folder_it_is_named(page, temporary):
    temporary.rmdir()
    assert page.export() is None
    assert page.line.text.startswith(f"no folder can be made in the temporary folder {temporary}: ")
    assert page.view.canExport


def test_missing_dicom_files_are_reported_before_anything_is_written(page):
    page.page.choose("2")
    assert page.export("dicom") is None
    assert page.line.text == "'MR' was not loaded from DICOM"
    assert page.scene.paths == []


def test_without_a_worker_there_is_no_export(tmp_path):
    page = ExportPage(tmp_path, trouble=WorkerError("the runtime is not installed yet: press Install"))
    assert page.export() is None
    assert page.line.text == "the runtime is not installed yet: press Install"
    assert page.scene.paths == []


def test_cancel_stops_it(page):
    request = page.export()
    page.page.cancel()
    assert request.isCancelled
    assert (page.line.text, page.line.level) == ("The export is being stopped…", Level.BUSY)
    assert page.view.isRunning
    request.fail(Cancelled("the export was stopped; no file is left half written"))
    assert page.line.text == "The export was stopped; no file is left incomplete."
    assert page.line.level is Level.INFO
    assert page.worker.owners == []
    page.page.cancel()


# With the whole page ----------------------------------------------------------------------------------------


def a_controller(**settings):
    worker, scene = FakeWorker(), FakeSegmentations("Liver")
    controller = PageController(
        *(FakeInstaller(RuntimeState.READY), FakeSettings(**settings), FakeWorkers(worker)),
        segmentations=scene,
    )
    return controller, worker, scene


def test_an_export_goes_on_when_the_page_is_left(tmp_path):
    controller, worker, scene = a_controller()
    controller.enter()
    assert scene.refreshed == 1
    controller.export.choose("1")
    controller.export.export(ExportOptions(path=str(tmp_path / "a")))
    controller.exit()
    assert worker.owners == [controller.export]
    worker.last("export").answer(**RESULT, out="/a.dcm")
    assert worker.owners == []
    assert controller.state.export.line.level is Level.OK


@pytest.mark.parametrize("ask", ["askRepair", "askRemove"])
def test_changing_the_runtime_stops_an_export(tmp_path, ask):
    controller, worker, scene = a_controller()
    controller.enter()
    controller.export.export(ExportOptions(path=str(tmp_path / "a")))
    getattr(controller.runtime, ask)()
    controller.runtime.confirm()
    assert worker.last("export").isCancelled
    assert worker.owners == []
    assert not scene.paths[0].exists()
    assert controller.state.export.line.text == "The export was stopped."


def test_late_answers_of_a_stopped_export_concern_nobody(tmp_path):
    controller, worker, _ = a_controller()
    controller.enter()
    controller.export.export(ExportOptions(path=str(tmp_path / "a")))
    request = worker.last("export")
    controller.export.stop()
    request.fail(Cancelled("too late"))
    assert controller.state.export.line.text == "The export was stopped."
    controller.export.export(ExportOptions(path=str(tmp_path / "a")))
    request.answer(**RESULT, out="/late.dcm")
    assert controller.state.export.isRunning


def test_slicer_closing_stops_an_export_and_cancel_reaches_it(tmp_path):
    controller, worker, scene = a_controller()
    controller.enter()
    controller.export.export(ExportOptions(path=str(tmp_path / "a")))
    controller.export.cancel()
    assert worker.last("export").isCancelled
    controller.cleanup()
    assert worker.owners == []
    assert not scene.paths[0].parent.exists()


def test_segmentations_that_come_while_the_page_is_open_appear(tmp_path):
    controller, _, scene = a_controller()
    seen = []
    controller._onStateChanged = lambda: seen.append(controller.state.export.segmentations)
    controller.enter()
    controller.update()
    scene.found.append("Vessels")
    controller.update()
    assert ("2", "Vessels") in seen[-1]
