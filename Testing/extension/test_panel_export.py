"""The section about export: what can be wished for is asked, and told as it was filled in."""

import tempfile
from dataclasses import replace

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()

from MedSAM2SegmentLib.Page.ExportOptions import ExportOptions, outputFiles, withEnding  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import ExportView, Level, PageState, StatusLine  # noqa: E402
from MedSAM2SegmentLib.Panels.ModulePage import ModulePage  # noqa: E402
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState  # noqa: E402
from support.export_page import FakeSegmentations  # noqa: E402
from support.page import (  # noqa: E402
    FORMATS,
    FakeInstaller,
    FakeSettings,
    FakeWorker,
    FakeWorkers,
    export_views,
)
from support.panel import shown  # noqa: E402
from test_panel_page import WIDTH, button, edit, panel  # noqa: E402, F401

VIEWS = export_views()
OF_DICOM = ("exportKindBox", "exportDescriptionEdit", "exportCreatorEdit", "exportGenericBox")
OF_DICOM += ("exportReportBox", "exportKindLabel", "exportDescriptionLabel", "exportCreatorLabel")


def combo(panel, name):  # noqa: F811
    return panel.widget.findChild(qt.QComboBox, f"export{name}Box")


def check(panel, name):  # noqa: F811
    return panel.widget.findChild(qt.QCheckBox, f"export{name}Box")


def choose(panel, name, value):  # noqa: F811
    box = combo(panel, name)
    place = box.findData(value)
    assert place >= 0, f"{value} is not offered"
    box.currentIndex = place
    box.activated.emit(place)


def see(panel, view):  # noqa: F811
    panel.show(PageState(export=view))
    shown(panel.widget, WIDTH)


def offered(panel, name):  # noqa: F811
    box = combo(panel, name)
    return [box.itemData(place) for place in range(box.count)]


def is_shown(panel, name):  # noqa: F811
    return panel.widget.findChild(qt.QWidget, name).visible


def test_what_was_filled_in_is_sent(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    edit(panel, "exportPathEdit").text = " /data/out.dcm "
    edit(panel, "exportDescriptionEdit").text = "Liver, draft "
    edit(panel, "exportCreatorEdit").text = "Doe^Jane"
    choose(panel, "Kind", "labelmap")
    choose(panel, "Compression", "jpeg-ls")
    choose(panel, "Measurements", "csv")
    for name in ("Generic", "Report", "Overwrite"):
        check(panel, name).click()
    button(panel, "exportButton").click()
    wish = ExportOptions(
        *(
            "dicom",
            "/data/out.dcm",
            "labelmap",
            "jpeg-ls",
            True,
            "Liver, draft",
            "Doe^Jane",
            "csv",
            True,
            True,
        ),
        segmentation="vtkMRMLSegmentationNode1",
    )
    assert actions.calls == [("export.export", wish)]


def test_as_it_comes_nobody_is_named_nothing_is_replaced_and_no_code_is_made_up(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    button(panel, "exportButton").click()
    ((_, wish),) = actions.calls
    assert wish == ExportOptions("dicom", "", "binary", "none", segmentation="vtkMRMLSegmentationNode1")


def test_what_belongs_to_dicom_is_asked_with_dicom_only(panel):  # noqa: F811
    see(panel, VIEWS["possible"])
    assert all(is_shown(panel, name) for name in OF_DICOM)
    choose(panel, "Format", "nii.gz")
    assert not any(is_shown(panel, name) for name in OF_DICOM)
    assert is_shown(panel, "exportMeasurementsBox")


def test_a_report_is_not_wished_for_without_dicom(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    check(panel, "Report").checked = True
    choose(panel, "Format", "nrrd")
    button(panel, "exportButton").click()
    assert actions.calls[-1][1].report is False


def test_compression_is_asked_for_label_maps(panel):  # noqa: F811
    see(panel, VIEWS["possible"])
    assert not is_shown(panel, "exportCompressionBox")
    choose(panel, "Kind", "labelmap")
    assert is_shown(panel, "exportCompressionBox")
    assert is_shown(panel, "exportCompressionLabel")
    choose(panel, "Format", "seg.nrrd")
    assert not is_shown(panel, "exportCompressionBox")


def test_without_a_series_dicom_is_not_offered_and_the_reason_is_shown(panel):  # noqa: F811
    see(panel, VIEWS["no dicom"])
    assert offered(panel, "Format") == ["seg.nrrd", "nii.gz", "nrrd"]
    assert "was not loaded from DICOM" in panel.widget.findChild(qt.QLabel, "exportDicomText").text
    assert button(panel, "exportButton").enabled
    see(panel, VIEWS["possible"])
    assert not is_shown(panel, "exportDicomText")
    assert combo(panel, "Format").currentIndex == 0


def test_the_format_one_has_chosen_stays_and_comes_back(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    choose(panel, "Format", "nrrd")
    see(panel, VIEWS["no dicom"])
    see(panel, replace(VIEWS["possible"], formats=FORMATS[:2]))
    see(panel, VIEWS["possible"])
    button(panel, "exportButton").click()
    assert actions.calls[-1][1].format == "nrrd"


def test_another_segmentation_is_sent_by_its_node(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    choose(panel, "Segmentation", "vtkMRMLSegmentationNode2")
    assert actions.calls == [("export.choose", "vtkMRMLSegmentationNode2")]
    see(panel, replace(VIEWS["possible"], chosen="vtkMRMLSegmentationNode2"))
    assert combo(panel, "Segmentation").currentText == "Draft"


def test_where_nothing_can_be_exported_the_reason_is_shown(panel):  # noqa: F811
    for name, words in (("remote", "remote command"), ("nothing", "No segmentation")):
        see(panel, VIEWS[name])
        assert words in panel.widget.findChild(qt.QLabel, "exportProblemText").text
        assert not button(panel, "exportButton").enabled
        assert not edit(panel, "exportPathEdit").enabled
    see(panel, VIEWS["possible"])
    assert not is_shown(panel, "exportProblemText")


def test_an_export_under_way_can_be_cancelled_and_nothing_else(panel, actions):  # noqa: F811
    see(panel, VIEWS["exporting"])
    assert is_shown(panel, "exportProgressBar")
    assert not button(panel, "exportButton").enabled
    button(panel, "cancelExportButton").click()
    assert actions.calls == [("export.cancel",)]
    see(panel, VIEWS["exported"])
    assert not is_shown(panel, "exportProgressBar")


# Files that exist -------------------------------------------------------------------------------------------


def picking(monkeypatch, path):
    """Whoever browses picks this file."""
    asked = []
    monkeypatch.setattr(
        qt.QFileDialog, "getSaveFileName", lambda *values: asked.append(values[1:]) or (path, "")
    )
    return asked


def test_a_file_is_browsed_for_and_gets_the_ending_of_the_format(panel, monkeypatch):  # noqa: F811
    see(panel, VIEWS["possible"])
    choose(panel, "Format", "seg.nrrd")
    asked = picking(monkeypatch, "/data/liver")
    button(panel, "exportBrowseButton").click()
    assert edit(panel, "exportPathEdit").text == "/data/liver.seg.nrrd"
    assert asked == [("Export to", "Liver and vessels.seg.nrrd", "Slicer segmentation (*.seg.nrrd)")]
    picking(monkeypatch, "")
    button(panel, "exportBrowseButton").click()
    assert edit(panel, "exportPathEdit").text == "/data/liver.seg.nrrd"


def agreed(panel, actions):  # noqa: F811
    """What has been agreed to when *Export* is pressed: all that is there, and these files."""
    button(panel, "exportButton").click()
    wish = actions.calls[-1][1]
    return wish.overwrite, wish.confirmed


def test_who_agreed_in_the_dialog_has_agreed_to_that_file_only(panel, actions, monkeypatch, tmp_path):  # noqa: F811
    see(panel, VIEWS["possible"])
    (tmp_path / "a.dcm").touch()
    picking(monkeypatch, str(tmp_path / "a.dcm"))
    button(panel, "exportBrowseButton").click()
    assert not check(panel, "Overwrite").checked
    assert agreed(panel, actions) == (False, (str(tmp_path / "a.dcm"),))
    path = edit(panel, "exportPathEdit")
    path.text = str(tmp_path / "b.dcm")
    path.textEdited.emit(path.text)
    assert agreed(panel, actions) == (False, ())
    (tmp_path / "a").touch()
    picking(monkeypatch, str(tmp_path / "a"))  # a.dcm was not asked about
    button(panel, "exportBrowseButton").click()
    assert path.text == str(tmp_path / "a.dcm")
    assert agreed(panel, actions) == (False, ())


def another_segmentation(panel):  # noqa: F811
    choose(panel, "Segmentation", "vtkMRMLSegmentationNode2")


def another_format(panel):  # noqa: F811
    choose(panel, "Format", "nrrd")


def measurements(panel):  # noqa: F811
    choose(panel, "Measurements", "csv")


def a_report(panel):  # noqa: F811
    check(panel, "Report").click()


def one_that_is_gone(panel):  # noqa: F811
    see(panel, replace(VIEWS["possible"], segmentations=VIEWS["possible"].segmentations[1:], chosen="x"))


def dicom_is_gone(panel):  # noqa: F811
    see(panel, VIEWS["no dicom"])


CHANGES = [another_segmentation, another_format, measurements, a_report, one_that_is_gone, dicom_is_gone]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["tick", "dialog"])
def test_what_was_agreed_to_was_about_what_was_shown(panel, actions, monkeypatch, tmp_path, how, change):  # noqa: F811
    see(panel, VIEWS["possible"])
    (tmp_path / "a.dcm").touch()
    picking(monkeypatch, str(tmp_path / "a.dcm"))
    button(panel, "exportBrowseButton").click()
    if how == "tick":
        check(panel, "Overwrite").click()
    assert any(agreed(panel, actions))
    change(panel)
    assert agreed(panel, actions) == (False, ())


def test_where_dicom_is_gone_the_file_gets_the_ending_of_what_is_left(panel):  # noqa: F811
    see(panel, VIEWS["possible"])
    path = edit(panel, "exportPathEdit")
    path.text = "/data/liver.dcm"
    see(panel, VIEWS["no dicom"])
    assert path.text == "/data/liver.seg.nrrd"
    see(panel, VIEWS["possible"])
    assert path.text == "/data/liver.dcm"


def test_after_an_export_the_next_one_is_agreed_to_anew(panel):  # noqa: F811
    see(panel, VIEWS["possible"])
    check(panel, "Overwrite").checked = True
    see(panel, VIEWS["exporting"])
    see(panel, VIEWS["refused"])
    assert check(panel, "Overwrite").checked, "nothing was replaced yet"
    see(panel, VIEWS["exporting"])
    see(panel, replace(VIEWS["possible"], line=StatusLine("written", Level.OK)))
    assert not check(panel, "Overwrite").checked


def test_another_format_gives_the_file_another_ending(panel):  # noqa: F811
    see(panel, VIEWS["possible"])
    path = edit(panel, "exportPathEdit")
    choose(panel, "Format", "nrrd")
    assert path.text == ""
    path.text = "/data/liver.v2.dcm"
    for format, ending in (
        ("seg.nrrd", "seg.nrrd"),
        ("nrrd", "nrrd"),
        ("nii.gz", "nii.gz"),
        ("dicom", "dcm"),
    ):
        choose(panel, "Format", format)
        assert path.text == f"/data/liver.v2.{ending}"


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        *(("/a/b", "nrrd", "/a/b.nrrd"), ("/a/b.SEG.NRRD", "dicom", "/a/b.dcm")),
        *(("/a/b.nii", "nii.gz", "/a/b.nii.gz"), ("/a.b/c", "seg.nrrd", "/a.b/c.seg.nrrd")),
        *(("/a/.nrrd", "nrrd", "/a/.nrrd.nrrd"), ("", "nrrd", "")),
    ],
)
def test_endings(path, format, expected):
    assert withEnding(path, format) == expected


def test_measurements_and_report_lie_beside_the_file():
    wish = ExportOptions("dicom", measurements="json", report=True)
    assert outputFiles("/a/liver.dcm", wish) == {
        "out": "/a/liver.dcm",
        "measurements": "/a/liver_measurements.json",
        "report": "/a/liver_SR.dcm",
    }
    assert outputFiles("/a/liver.nii.gz", replace(wish, format="nii.gz", measurements="")) == {
        "out": "/a/liver.nii.gz"
    }


def test_after_cleanup_nothing_is_called(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    panel.cleanup()
    button(panel, "exportButton").click()
    choose(panel, "Segmentation", "vtkMRMLSegmentationNode2")
    assert actions.calls == []


def test_an_empty_view_can_be_shown(panel):  # noqa: F811
    see(panel, ExportView())
    assert not button(panel, "exportButton").enabled


# The whole page ---------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """The page put together, with a worker and segmentations that do as they are told; its clock stands."""
    a_qt.application()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    worker, scene = FakeWorker(), FakeSegmentations("Liver")
    page = ModulePage(
        *(None, FakeInstaller(RuntimeState.READY), FakeSettings(), FakeWorkers(worker)), segmentations=scene
    )
    page.enter()
    page._timer.stop()
    yield page, worker, scene
    page.controller.cleanup()
    page.panel.cleanup()
    page.widget.deleteLater()


def press_export(page, path):
    page.widget.findChild(qt.QLineEdit, "exportPathEdit").text = str(path)
    page.widget.findChild(qt.QPushButton, "exportButton").click()


def test_that_it_is_exported_is_seen_before_the_scene_is_written(whole, tmp_path):
    page, worker, scene = whole
    press_export(page, tmp_path / "liver.dcm")
    page._onTimeout()
    assert page.widget.findChild(qt.QLabel, "exportText").text.startswith("Exporting")
    assert scene.paths == []
    page._onTimeout()
    assert len(scene.paths) == 1
    assert worker.last("export").fields["out"] == str(tmp_path / "liver.dcm")


def test_who_leaves_the_page_at_once_gets_the_file_all_the_same(whole, tmp_path):
    page, worker, _ = whole
    press_export(page, tmp_path / "liver.dcm")
    page.exit()
    assert worker.last("export").fields["out"] == str(tmp_path / "liver.dcm")


def test_slicer_closing_forgets_what_has_not_begun(whole, tmp_path):
    page, _, scene = whole
    press_export(page, tmp_path / "liver.dcm")
    page.cleanup()
    assert scene.paths == []


def test_a_change_is_drawn_while_the_page_is_not_shown(whole, tmp_path):
    page, _, _ = whole
    page.controller.review._cases = object()
    page.exit()
    page.controller.review.open(str(tmp_path))  # as a key of the review may bring a warning
    text = page.widget.findChild(qt.QLabel, "reviewText")
    assert a_qt.wait_for(lambda: text.text)
    assert not page._timer.active
