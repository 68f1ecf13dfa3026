"""The section about export behind its widgets: what is asked of the worker, said, and tidied up."""

from pathlib import Path

import numpy as np
import pytest
from a_page import FakeInstaller, FakeSettings, FakeWorker, FakeWorkers
from medsam2_core.errors import Cancelled, ExportError, WorkerError
from medsam2_core.export.dicom.coding import terminology_of
from medsam2_core.imaging.segmentation import Segment
from MedSAM2SegmentLib.Panels.ExportPage import ExportPage
from MedSAM2SegmentLib.Panels.ExportWish import FORMATS, ExportWish
from MedSAM2SegmentLib.Panels.ModulePageController import ModulePageController
from MedSAM2SegmentLib.Panels.ModulePageState import Kind
from MedSAM2SegmentLib.Runtime.RuntimePlan import RuntimeState

RESULT = {
    **{"kind": "binary", "frames": 12, "bytes": 34_500, "notes": [], "measurements": [], "report": None},
    "segments": [{"name": "liver", "code": "SCT^10200004^Liver", "millilitres": 1500.0}],
}


class SomeSegmentations:
    """Segmentations of a scene that is not there: 1 on a DICOM series, 2 on none."""

    def __init__(self, *names, problem=None):
        self.found, self.problem, self.paths, self.refreshed = list(names), problem, [], 0

    def names(self):
        return tuple((str(number), name) for number, name in enumerate(self.found, 1))

    def dicomProblem(self, nodeID):
        return "" if nodeID == "1" else "'MR' was not loaded from DICOM: load it from Slicer's DICOM database"

    def dicomFiles(self, nodeID):
        if nodeID != "1":
            raise ExportError("'MR' was not loaded from DICOM")
        return ("/dicom/1.dcm", "/dicom/2.dcm")

    def write(self, nodeID, path):
        if self.problem is not None:
            raise self.problem
        Path(path).write_text(nodeID)
        self.paths.append(Path(path))

    def refresh(self):
        self.refreshed += 1


class APage:
    """The section, its worker, and how often it said that something changed."""

    def __init__(self, tmp_path, *names, problem=None, trouble=None, **settings):
        self.out = tmp_path / "out"
        self.worker, self.changes = FakeWorker(), 0
        self.workers = FakeWorkers(self.worker, trouble)
        self.scene = SomeSegmentations(*(names or ("Liver", "Draft")), problem=problem)
        self.page = ExportPage(FakeSettings(**settings), self.workers, self.scene, self.changed)

    def changed(self):
        self.changes += 1

    @property
    def view(self):
        return self.page.view()

    @property
    def line(self):
        return self.view.line

    def export(self, format="dicom", **wish):
        """Press *Export*; the request, if one was made."""
        wish.setdefault("path", str(self.out))
        before = len(self.worker.asked)
        self.page.export(ExportWish(format, **wish))
        return self.worker.asked[-1] if len(self.worker.asked) > before else None


@pytest.fixture
def page(tmp_path):
    return APage(tmp_path)


# What is offered --------------------------------------------------------------------------------------------


def test_what_the_scene_has_is_offered_the_first_to_begin_with(page):
    assert page.view.segmentations == (("1", "Liver"), ("2", "Draft"))
    assert page.view.chosen == "1"
    assert page.view.formats == FORMATS
    assert page.view.canExport


def test_without_a_series_dicom_is_not_offered_with_the_reason(page):
    page.page.choose("2")
    assert page.changes == 1
    assert [value for value, _ in page.view.formats] == ["seg.nrrd", "nii.gz", "nrrd"]
    assert page.view.dicomProblem.startswith("DICOM is not possible: 'MR' was not loaded from DICOM")
    assert page.view.canExport


def test_one_that_is_gone_is_chosen_no_longer(page):
    page.page.choose("2")
    page.scene.found.pop()
    assert page.view.chosen == "1"
    page.page.look()
    page.page.look()
    assert page.changes == 2


def test_an_empty_scene_says_how_to_begin(tmp_path):
    page = APage(tmp_path)
    page.scene.found.clear()
    assert page.view.problem == "No segmentation in the scene yet: segment something first."
    assert not page.view.canExport
    assert page.export() is None
    without = ExportPage(FakeSettings(), page.workers, None, list)
    assert without.view().problem == page.view.problem
    without.look()
    without.refresh()


def test_with_a_remote_command_slicers_own_saving_is_offered(tmp_path):
    page = APage(tmp_path, remoteCommand="ssh host medsam2 worker")
    assert "save with Slicer instead" in page.view.problem
    assert not page.view.canExport
    assert page.export() is None
    assert page.line.kind is Kind.ERROR
    assert page.worker.owners == []


# What is asked ----------------------------------------------------------------------------------------------


def test_a_dicom_seg_is_asked_for_with_the_files_of_its_series(page):
    request = page.export(kind="labelmap", compression="rle", generic=True, description=" a ", creator=" ")
    assert request.type == "export"
    (path,) = page.scene.paths
    assert request.fields == {
        "segmentation": str(path),
        "out": f"{page.out}.dcm",
        "dicom": ["/dicom/1.dcm", "/dicom/2.dcm"],
        "kind": "labelmap",
        "compression": "rle",
        "generic": True,
        "series_description": "a",
        "overwrite": False,
    }
    assert path.read_text() == "1"
    assert path.name.endswith(".seg.nrrd")
    assert (page.line.text, page.line.kind) == ("Exporting Liver…", Kind.BUSY)
    assert page.view.isRunning
    assert not page.view.canExport
    assert page.worker.owners == [page.page]


def test_only_label_maps_are_compressed(page):
    assert "compression" not in page.export(compression="rle").fields


def test_other_formats_are_asked_for_without_what_is_dicoms(page):
    page.page.choose("2")
    request = page.export(
        "nii.gz", path=f"{page.out}.seg.nrrd", measurements="csv", report=True, generic=True
    )
    assert request.fields == {
        "segmentation": str(page.scene.paths[0]),
        "out": f"{page.out}.nii.gz",
        "measurements": f"{page.out}_measurements.csv",
        "overwrite": False,
    }
    assert page.scene.paths[0].read_text() == "2"


def test_measurements_and_report_lie_beside(page):
    request = page.export(measurements="json", report=True)
    assert request.fields["measurements"] == f"{page.out}_measurements.json"
    assert request.fields["report"] == f"{page.out}_SR.dcm"


def test_a_home_folder_is_known_and_half_a_path_is_not(page):
    assert page.export("nrrd", path="half/way") is None
    assert "no whole path" in page.line.text
    assert page.export("nrrd", path=" ") is None
    assert page.line.text == "Choose where to put the file first"
    assert page.export("nrrd", path="~/surely not there").fields["out"] == str(
        Path.home() / "surely not there.nrrd"
    )


@pytest.mark.parametrize("ending", [".dcm", "_measurements.csv", "_SR.dcm"])
def test_what_exists_is_replaced_only_when_the_user_agreed(page, ending):
    taken = Path(f"{page.out}{ending}")
    taken.touch()
    wish = {"measurements": "csv", "report": True}
    assert page.export(**wish) is None
    assert page.line.text.startswith(f"{taken} exists already: choose another name, or tick")
    assert page.scene.paths == []
    assert page.export(**wish, overwrite=True).fields["overwrite"] is True


def test_one_export_at_a_time(page):
    assert page.export() is not None
    assert page.export() is None


# How it ends ------------------------------------------------------------------------------------------------


def test_what_was_written_is_told_and_nothing_is_left(page):
    request = page.export(measurements="json", report=True)
    folder = page.scene.paths[0].parent
    beside = {"measurements": [f"{page.out}_measurements.json"], "report": f"{page.out}_SR.dcm"}
    request.answer(**{**RESULT, "out": f"{page.out}.dcm", **beside})
    assert page.line.text == (
        f"{page.out}.dcm is written: 1 segment, 12 frames, 34 kB. out_measurements.json is beside it. "
        "out_SR.dcm is beside it."
    )
    assert page.line.kind is Kind.GOOD
    assert not folder.exists()
    assert page.worker.owners == []
    assert page.view.canExport


def test_notes_are_told_and_want_to_be_read(page):
    notes = ["'cyst' is empty and was left out", "the grid was resampled."]
    page.export().answer(**{**RESULT, "out": "/a.dcm", "notes": notes})
    text = page.line.text
    assert text.endswith("Note: 'cyst' is empty and was left out. Note: the grid was resampled.")
    assert page.line.kind is Kind.WARNING


def test_a_strange_answer_is_no_end(page):
    page.export().answer(segments="none", notes=None, measurements="x", frames="many")
    assert page.line.text.startswith("The file is written")


def test_an_error_of_the_command_is_told_without_what_nobody_has_seen(page):
    request = page.export()
    request.fail(ExportError(f"{page.scene.paths[0]}: it has no voxels"))
    assert (page.line.text, page.line.kind) == ("'Liver': it has no voxels", Kind.ERROR)
    assert not page.scene.paths[0].exists()
    assert page.worker.owners == []


def test_the_way_out_for_a_segment_without_a_code_is_one_of_slicer(page):
    with pytest.raises(ExportError) as told:
        terminology_of(
            Segment("Segment_1", (1, 0, 0), np.ones((1, 1, 1), dtype=bool)), None, allow_generic=False
        )
    page.export().fail(told.value)
    assert page.line.text == (
        "segment 'Segment_1': no code says what it is: double click its colour in the Segment Editor and "
        "choose what it is, or tick 'Tissue for segments without a code'"
    )


@pytest.mark.parametrize("error", [ExportError("'Liver' is gone"), OSError(28, "No space left on device")])
def test_what_cannot_be_handed_over_is_told_and_nothing_is_left(tmp_path, error):
    page = APage(tmp_path, problem=error)
    assert page.export() is None
    assert str(error) in page.line.text
    assert page.worker.owners == []
    assert page.view.canExport


def test_dicom_files_that_are_gone_are_told_before_anything_is_written(page):
    page.page.choose("2")
    assert page.export("dicom") is None
    assert page.line.text == "'MR' was not loaded from DICOM"
    assert page.scene.paths == []


def test_without_a_worker_there_is_no_export(tmp_path):
    page = APage(tmp_path, trouble=WorkerError("the runtime is not installed yet: press Install"))
    assert page.export() is None
    assert page.line.text == "the runtime is not installed yet: press Install"
    assert page.scene.paths == []


def test_cancel_stops_it(page):
    request = page.export()
    page.page.cancel()
    assert request.isCancelled
    assert (page.line.text, page.line.kind) == ("The export is being stopped…", Kind.BUSY)
    assert page.view.isRunning
    request.fail(Cancelled("the export was stopped; no file is left half written"))
    assert page.line.text == "The export was stopped; no file is left half written"
    assert page.line.kind is Kind.PLAIN
    assert page.worker.owners == []
    page.page.cancel()


# With the whole page ----------------------------------------------------------------------------------------


def a_controller(**settings):
    worker, scene = FakeWorker(), SomeSegmentations("Liver")
    controller = ModulePageController(
        *(FakeInstaller(RuntimeState.READY), FakeSettings(**settings), FakeWorkers(worker)),
        segmentations=scene,
    )
    return controller, worker, scene


def test_an_export_goes_on_when_the_page_is_left(tmp_path):
    controller, worker, scene = a_controller()
    controller.enter()
    assert scene.refreshed == 1
    controller.chooseSegmentation("1")
    controller.exportSegmentation(ExportWish(path=str(tmp_path / "a")))
    controller.exit()
    assert worker.owners == [controller.export]
    worker.last("export").answer(**RESULT, out="/a.dcm")
    assert worker.owners == []
    assert controller.state.export.line.kind is Kind.GOOD


@pytest.mark.parametrize("ask", ["repair", "askRemove"])
def test_changing_the_runtime_stops_an_export(tmp_path, ask):
    controller, worker, scene = a_controller()
    controller.enter()
    controller.exportSegmentation(ExportWish(path=str(tmp_path / "a")))
    getattr(controller, ask)()
    controller.confirm()
    assert worker.last("export").isCancelled
    assert worker.owners == []
    assert not scene.paths[0].exists()
    assert controller.state.export.line.text == "The export was stopped."


def test_late_answers_of_a_stopped_export_concern_nobody(tmp_path):
    controller, worker, _ = a_controller()
    controller.enter()
    controller.exportSegmentation(ExportWish(path=str(tmp_path / "a")))
    request = worker.last("export")
    controller.export.stop()
    request.fail(Cancelled("too late"))
    assert controller.state.export.line.text == "The export was stopped."
    controller.exportSegmentation(ExportWish(path=str(tmp_path / "a")))
    request.answer(**RESULT, out="/late.dcm")
    assert controller.state.export.isRunning


def test_slicer_closing_stops_an_export_and_cancel_reaches_it(tmp_path):
    controller, worker, scene = a_controller()
    controller.enter()
    controller.exportSegmentation(ExportWish(path=str(tmp_path / "a")))
    controller.cancelExport()
    assert worker.last("export").isCancelled
    controller.cleanup()
    assert worker.owners == []
    assert not scene.paths[0].parent.exists()


def test_segmentations_that_come_while_the_page_is_open_appear(tmp_path):
    controller, _, scene = a_controller()
    seen = []
    controller._changed = lambda: seen.append(controller.state.export.segmentations)
    controller.enter()
    controller.tick()
    scene.found.append("Vessels")
    controller.tick()
    assert ("2", "Vessels") in seen[-1]
