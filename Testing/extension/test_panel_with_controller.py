"""The options panel and the controller together: what is pressed happens, and is seen in the panel."""

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()
pytest.importorskip("slicer")

from MedSAM2SegmentLib.Panels.OptionsPanel import OptionsPanel  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status, Tool  # noqa: E402
from support.auto_predictions import a_model, kidney_and_cyst  # noqa: E402
from support.panel import clipped, keep_picture, shown  # noqa: E402
from support.slicer_user import SlicerUser  # noqa: E402


class UserWithPanel(SlicerUser):
    """A user who presses buttons."""

    def __init__(self, scene):
        super().__init__(scene, activate=False)
        a_qt.application()
        self.panel = OptionsPanel(None, self.controller)
        self.controller.panel.onStateChanged = self.onState
        self.controller.activate()
        self.panel.show(self.controller.state)

    def onState(self, state):
        self.states.append(state)
        self.panel.show(state)

    def find(self, kind, name):
        return self.panel.widget.findChild(kind, name)

    def press(self, name):
        button = self.find(qt.QPushButton, name)
        assert button.enabled, f"{name} cannot be pressed: {self.find(qt.QLabel, 'statusText').text}"
        button.click()


@pytest.fixture
def user(scene):
    user = UserWithPanel(scene)
    yield user
    user.panel.cleanup()
    user.controller.cleanup()
    user.panel.widget.deleteLater()


def test_tool_and_sign_go_there_and_come_back(user):
    user.press("boxButton")
    user.press("negativeButton")
    assert (user.state.tool, user.state.negative) == (Tool.BOX, True)
    assert user.find(qt.QPushButton, "boxButton").checked
    assert user.find(qt.QPushButton, "negativeButton").checked
    user.controller.setTool("scribble")  # by the key in the slice view
    assert user.find(qt.QPushButton, "scribbleButton").checked


def test_from_the_first_click_to_the_whole_volume(user, tmp_path):
    user.wait()
    assert not user.find(qt.QPushButton, "propagateButton").enabled
    user.click((10, 12, 5))
    user.wait()
    assert user.state.status is Status.PROMPTED
    user.press("propagateButton")
    for _ in range(20):
        user.wait()
    assert len([one for one in user.state.confidences if one.confidence is not None]) > 1
    shown(user.panel.widget)
    keep_picture(user.panel.widget, "with-controller", tmp_path)
    assert clipped(user.panel.widget) == []
    assert user.panel._strip.visible
    user.press("weakestButton")
    user.press("finaliseButton")
    user.wait()
    assert any(one.final for one in user.state.confidences)
    user.press("clearButton")
    user.wait()
    assert not user.find(qt.QPushButton, "clearButton").enabled


def test_a_row_of_the_table_shows_its_slice_and_is_deleted(user):
    user.wait()
    user.click((10, 12, 5))
    user.click((10, 12, 8))
    user.wait()
    table = user.find(qt.QTableWidget, "promptsTable")
    assert table.rowCount == 2
    user.look_at(3)
    user.wait()
    assert table.selectedItems() == []
    table.selectRow(1)
    assert user.state.current == 8
    user.press("clearSliceButton")
    user.wait()
    assert user.slices() == [5]
    assert table.rowCount == 1


def test_choices_are_kept_in_the_scene_and_shown(user):
    box = user.find(qt.QComboBox, "windowBox")
    box.currentText = "400, 40"
    box.lineEdit().editingFinished.emit()
    assert user.editor.parameter("window") == "400,40"
    assert box.currentText == "400,40"
    user.find(qt.QCheckBox, "autoPropagateBox").click()
    assert user.editor.parameter("autoPropagate") == "1"


def test_nonsense_in_the_window_is_refused_with_a_line_and_taken_back(user):
    box = user.find(qt.QComboBox, "windowBox")
    box.currentText = "bright"
    box.lineEdit().editingFinished.emit()
    assert user.editor.parameter("window") in ("", "auto")
    user.panel._redraw()
    assert box.currentText == "Automatic"


def test_auto_from_the_button_to_the_segments(user, tmp_path):
    user.wait()
    assert user.find(qt.QPushButton, "trainButton").enabled
    user.press("trainButton")
    assert user.source.resolved == 1
    user.worker.autoModels, user.worker.predict = [a_model()], kidney_and_cyst
    user.controller.deactivate()  # as when the page of the module was shown
    user.controller.activate()
    user.wait()
    user.press("autoVolumeButton")
    assert user.state.status is Status.FINDING
    user.press("cancelButton")
    user.wait()
    user.press("autoVolumeButton")
    user.wait()
    shown(user.panel.widget)
    keep_picture(user.panel.widget, "with-auto", tmp_path)
    assert clipped(user.panel.widget) == []
    assert user.find(qt.QLabel, "autoText").text == "kidney 0.80, cyst 0.80; not found: spleen"
    names = [
        user.segmentation.GetSegmentation().GetSegment(one).GetName()
        for one in user.segmentation.GetSegmentation().GetSegmentIDs()
    ]
    assert names == ["A", "B", "kidney", "cyst"]
    user.find(qt.QCheckBox, "replaceBox").click()
    assert user.editor.parameter("replaceSegments") == "1"
