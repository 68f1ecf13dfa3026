"""The section about export behind its widgets: what is offered, and asked of the worker."""

from pathlib import Path

import pytest
from MedSAM2SegmentLib.Page.ExportOptions import FORMATS
from MedSAM2SegmentLib.Page.ExportSection import ExportSection
from MedSAM2SegmentLib.Page.PageState import Level
from support.export_page import GRID, ExportPage
from support.page import FakeSettings

pytestmark = pytest.mark.usefixtures("temporary")


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
    page.page.update()
    page.page.update()
    assert page.changes == 2


@pytest.mark.parametrize("how", ["shown", "chosen"])
def test_one_that_is_gone_is_not_replaced_by_another_behind_the_users_back(page, how):
    page.page.choose("2")
    page.page.update()
    page.scene.found.pop()
    assert page.export("nrrd", **({"segmentation": "2"} if how == "shown" else {})) is None
    assert page.line.text == "the segmentation is not in the scene any more: choose another one"
    page.page.update()
    assert page.export("nrrd") is not None


def test_what_is_exported_is_what_was_shown_when_it_was_wished(page):
    page.page.choose("2")
    page.export("nrrd", segmentation="1")
    assert page.scene.paths[0].read_text() == "1 whole"


def test_another_series_below_a_segmentation_is_noticed(page):
    page.page.update()
    before = page.changes
    page.page.update()
    assert page.changes == before
    page.scene.series.clear()
    page.page.update()
    assert page.changes == before + 1
    assert page.view.dicomProblem


def test_an_empty_scene_shows_how_to_begin(tmp_path):
    page = ExportPage(tmp_path)
    page.scene.found.clear()
    assert page.view.problem == "No segmentation in the scene yet: segment something first."
    assert not page.view.canExport
    assert page.export() is None
    without = ExportSection(FakeSettings(), page.workers, None, list)
    assert without.view().problem == page.view.problem
    without.update()
    without.refresh()


def test_with_a_remote_command_slicers_own_saving_is_offered(tmp_path):
    page = ExportPage(tmp_path, remoteCommand="ssh host medsam2 worker")
    assert "save with Slicer instead" in page.view.problem
    assert not page.view.canExport
    assert page.export() is None
    assert page.line.level is Level.ERROR
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
        "drawn_on": GRID,
        "scratch": str(path.parent),
    }
    assert path.read_text() == "1 filled"
    assert path.name.endswith(".seg.nrrd")
    assert (page.line.text, page.line.level) == ("Exporting Liver…", Level.BUSY)
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
        "scratch": str(page.scene.paths[0].parent),
    }
    assert page.scene.paths[0].read_text() == "2 whole"


def test_measurements_and_report_lie_beside(page):
    request = page.export(measurements="json", report=True)
    assert request.fields["measurements"] == f"{page.out}_measurements.json"
    assert request.fields["report"] == f"{page.out}_SR.dcm"


def test_a_home_folder_is_known_and_half_a_path_is_not(page):
    assert page.export("nrrd", path="half/way") is None
    assert "not an absolute path" in page.line.text
    assert page.export("nrrd", path=" ") is None
    assert page.line.text == "Choose where to put the file first"
    assert page.export("nrrd", path="~/surely not there").fields["out"] == str(
        Path.home() / "surely not there.nrrd"
    )


ENDINGS = [".dcm", "_measurements.csv", "_SR.dcm"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_exists_is_replaced_only_when_the_user_agreed(page, ending):
    taken = Path(f"{page.out}{ending}")
    taken.touch()
    wish = {"measurements": "csv", "report": True}
    assert page.export(**wish) is None
    assert page.line.text == (
        f"{taken} exists already: choose another name, or tick 'Replace existing files'"
    )
    assert page.scene.paths == []
    assert page.export(**wish, overwrite=True).fields["overwrite"] is True


def test_all_that_exists_is_named_before_it_is_agreed_to(page):
    for ending in ENDINGS:
        Path(f"{page.out}{ending}").touch()
    page.export(measurements="csv", report=True)
    assert page.line.text.startswith(
        f"{page.out}.dcm exists already, and beside it out_measurements.csv and out_SR.dcm: choose"
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_who_agreed_in_a_dialog_has_agreed_to_that_file_alone(page, ending):
    wish = {"measurements": "csv", "report": True, "confirmed": (f"{page.out}.dcm",)}
    Path(f"{page.out}{ending}").touch()
    isAsked = ending == ".dcm"
    request = page.export(**wish)
    assert (request is not None) == isAsked
    assert ("exists already" in page.line.text) != isAsked


def test_what_is_not_there_needs_no_leave_to_be_replaced(page):
    assert page.export(overwrite=True).fields["overwrite"] is False


@pytest.mark.parametrize(
    ("path", "words"),
    [
        *(("/a/b/", "/a/b/ is a folder: name a file in it"), ("/a/..", "is a folder: name a file in it")),
        *(("/", "is a folder"), ("/a/" + "n" * 300, "too long for the name of a file")),
        *(("/a/" + "ü" * 120, "too long"), ("/a/x\0y", "/a/x\\x00y: name a file by letters")),
        *(("/a/x\ny", "name a file by letters"), ("/a/\udc80x", "name a file by letters")),
    ],
)
def test_what_is_not_a_file_name_is_explained(page, path, words):
    assert page.export(path=path, measurements="json", report=True) is None
    assert words in page.line.text
    assert page.line.level is Level.ERROR


def test_a_folder_in_the_way_is_reported(page):
    Path(f"{page.out}.dcm").mkdir()
    assert page.export(overwrite=True) is None
    assert page.line.text == f"{page.out}.dcm is a folder: name a file in it"


def test_one_export_at_a_time(page):
    assert page.export() is not None
    assert page.export() is None
