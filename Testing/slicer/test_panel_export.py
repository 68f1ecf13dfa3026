"""The section about export: what can be wished for is asked, and told as it was filled in."""

from dataclasses import replace

import a_qt
import pytest

qt = a_qt.installed()

from a_page import FORMATS, export_views  # noqa: E402
from a_panel import shown  # noqa: E402
from MedSAM2SegmentLib.Panels.ExportWish import ExportWish, filesOf, withEnding  # noqa: E402
from MedSAM2SegmentLib.Panels.ModulePageState import ExportView, Kind, Line, PageState  # noqa: E402
from test_panel_page import WIDTH, actions, button, edit, panel  # noqa: E402, F401

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


def test_what_was_filled_in_is_told(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    edit(panel, "exportPathEdit").text = " /data/out.dcm "
    edit(panel, "exportDescriptionEdit").text = "Liver, draft "
    edit(panel, "exportCreatorEdit").text = "Doe^Jane"
    choose(panel, "Kind", "labelmap")
    choose(panel, "Compression", "jpeg-ls")
    choose(panel, "Measurements", "csv")
    for name in ("Generic", "Report", "Overwrite"):
        check(panel, name).checked = True
    button(panel, "exportButton").click()
    wish = ExportWish(
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
        )
    )
    assert actions.calls == [("exportSegmentation", wish)]


def test_as_it_comes_nobody_is_named_nothing_is_replaced_and_no_code_is_made_up(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    button(panel, "exportButton").click()
    ((_, wish),) = actions.calls
    assert wish == ExportWish("dicom", "", "binary", "none")


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


def test_without_a_series_dicom_is_not_offered_and_it_says_why(panel):  # noqa: F811
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


def test_another_segmentation_is_told_by_its_node(panel, actions):  # noqa: F811
    see(panel, VIEWS["possible"])
    choose(panel, "Segmentation", "vtkMRMLSegmentationNode2")
    assert actions.calls == [("chooseSegmentation", "vtkMRMLSegmentationNode2")]
    see(panel, replace(VIEWS["possible"], chosen="vtkMRMLSegmentationNode2"))
    assert combo(panel, "Segmentation").currentText == "Draft"


def test_where_nothing_can_be_exported_it_says_why(panel):  # noqa: F811
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
    assert actions.calls == [("cancelExport",)]
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


def test_who_agreed_in_the_dialog_has_agreed_to_that_file_only(panel, monkeypatch, tmp_path):  # noqa: F811
    see(panel, VIEWS["possible"])
    (tmp_path / "a.dcm").touch()
    picking(monkeypatch, str(tmp_path / "a.dcm"))
    button(panel, "exportBrowseButton").click()
    assert check(panel, "Overwrite").checked
    path = edit(panel, "exportPathEdit")
    path.text = str(tmp_path / "b.dcm")
    path.textEdited.emit(path.text)
    assert not check(panel, "Overwrite").checked
    (tmp_path / "a").touch()
    picking(monkeypatch, str(tmp_path / "a"))  # a.dcm was not asked about
    button(panel, "exportBrowseButton").click()
    assert path.text == str(tmp_path / "a.dcm")
    assert not check(panel, "Overwrite").checked


def test_after_an_export_the_next_one_is_agreed_to_anew(panel):  # noqa: F811
    see(panel, VIEWS["possible"])
    check(panel, "Overwrite").checked = True
    see(panel, VIEWS["exporting"])
    see(panel, VIEWS["refused"])
    assert check(panel, "Overwrite").checked, "nothing was replaced yet"
    see(panel, VIEWS["exporting"])
    see(panel, replace(VIEWS["possible"], line=Line("written", Kind.GOOD)))
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
    wish = ExportWish("dicom", measurements="json", report=True)
    assert filesOf("/a/liver.dcm", wish) == {
        "out": "/a/liver.dcm",
        "measurements": "/a/liver_measurements.json",
        "report": "/a/liver_SR.dcm",
    }
    assert filesOf("/a/liver.nii.gz", replace(wish, format="nii.gz", measurements="")) == {
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
