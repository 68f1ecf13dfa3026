"""The page of the module: everything readable, everything told to the controller, nothing told by showing."""

from pathlib import Path

import a_qt
import pytest

qt = a_qt.installed()

from a_page import MODELS, page_states  # noqa: E402
from a_panel import RecordingActions, clipped, dark_palette, keep_picture, shown  # noqa: E402
from MedSAM2SegmentLib.Panels.ModulePageState import PageState, RuntimeView, WorkerView, sizeWords  # noqa: E402
from MedSAM2SegmentLib.Panels.ModulePanel import ModulePanel  # noqa: E402

WIDTH = 380
BUTTONS = {
    **{"installButton": "askInstall", "repairButton": "repair", "removeButton": "askRemove"},
    **{"cancelButton": "cancelRuntime", "answerButton": "confirm", "declineButton": "decline"},
    **{"cancelModelButton": "cancelModel", "testButton": "testConnection"},
}


@pytest.fixture
def actions():
    return RecordingActions()


@pytest.fixture
def panel(actions):
    a_qt.application()
    panel = ModulePanel(None, actions)
    yield panel
    panel.cleanup()
    panel.widget.deleteLater()


def button(panel, name):
    return panel.widget.findChild(qt.QPushButton, name)


def edit(panel, name):
    return panel.widget.findChild(qt.QLineEdit, name)


def everything_possible():
    view = RuntimeView(
        canInstall=True, canRepair=True, canRemove=True, canCancel=True, answer="Yes", question="?"
    )
    return PageState(view, MODELS, canChangeModels=True, canCancelModel=True, worker=WorkerView(details="x"))


def test_the_page_links_to_the_tutorial(panel):
    text = panel.widget.findChild(qt.QLabel, "tutorialLabel").text
    address = text.partition('href="')[2].partition('"')[0]
    assert qt.QUrl(address).toLocalFile().endswith("Resources/docs/tutorial.md")
    assert Path(qt.QUrl(address).toLocalFile()).read_text(encoding="utf-8").startswith("# Five minutes")


@pytest.mark.parametrize("style", ["light", "dark"])
@pytest.mark.parametrize("name", page_states())
def test_the_page_can_be_read(panel, name, style, tmp_path):
    app = a_qt.application()
    before = app.palette()
    app.setPalette(dark_palette() if style == "dark" else before)
    try:
        panel.show(page_states()[name])
        shown(panel.widget, WIDTH)
        keep_picture(panel.widget, f"page-{style}-{name}", tmp_path)
        assert panel.widget.width == WIDTH
        assert clipped(panel.widget) == []
    finally:
        app.setPalette(before)


def test_showing_tells_the_controller_nothing(panel, actions):
    for state in [*page_states().values(), everything_possible(), PageState(), *page_states().values()]:
        panel.show(state)
    assert actions.calls == []


@pytest.mark.parametrize("name", BUTTONS)
def test_a_button_calls_its_action_once(panel, actions, name):
    panel.show(everything_possible())
    button(panel, name).click()
    assert actions.calls == [(BUTTONS[name],)]


def test_models_are_installed_updated_and_removed_by_name(panel, actions):
    panel.show(everything_possible())
    table = panel.widget.findChild(qt.QTableWidget, "modelsTable")
    install, remove = button(panel, "installModelButton"), button(panel, "removeModelButton")
    assert not install.enabled
    table.selectRow(0)
    assert (install.text, remove.enabled) == ("Update", True)
    assert panel.widget.findChild(qt.QLabel, "placeText").text.replace("\u200b", "") == MODELS[0].path
    install.click()
    remove.click()
    table.selectRow(2)
    assert (install.text, remove.enabled) == ("Install", False)
    install.click()
    assert actions.calls == [
        ("installModel", "embedded"),
        ("removeModel", "embedded"),
        ("installModel", "large"),
    ]


def test_the_chosen_model_stays_chosen_while_others_change(panel, actions):
    panel.show(everything_possible())
    table = panel.widget.findChild(qt.QTableWidget, "modelsTable")
    table.selectRow(2)
    panel.show(PageState(models=MODELS[1:], canChangeModels=True))
    assert table.currentRow() == 1
    button(panel, "installModelButton").click()
    assert actions.calls == [("installModel", "large")]
    assert table.item(0, 3).text() == "40 %"


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("interpreterEdit", "useInterpreter"),
        ("wheelsEdit", "setWheelFolder"),
        ("remoteEdit", "setRemoteCommand"),
    ],
)
def test_what_is_typed_is_told_when_it_is_finished_and_only_then(panel, actions, name, action):
    panel.show(everything_possible())
    edit(panel, name).text = " something "
    assert actions.calls == []
    edit(panel, name).editingFinished.emit()
    assert actions.calls == [(action, "something")]


def test_nothing_is_told_of_what_was_not_changed(panel, actions):
    panel.show(page_states()["ready"])
    for name in ("interpreterEdit", "wheelsEdit", "remoteEdit"):
        edit(panel, name).editingFinished.emit()
    assert actions.calls == []


def test_defaults_are_told_by_value(panel, actions):
    panel.show(page_states()["ready"])
    box = panel.widget.findChild(qt.QComboBox, "windowBox")
    key = qt.QKeyEvent(qt.QEvent.KeyPress, qt.Qt.Key_Down, qt.Qt.NoModifier)
    a_qt.application().sendEvent(box, key)
    assert actions.calls == [("setDefault", "window", "lung")]


def test_the_report_and_the_log_are_at_hand(panel):
    panel.show(page_states()["installing"])
    shown(panel.widget, WIDTH)
    log = panel.widget.findChild(qt.QPlainTextEdit, "logText")
    assert not log.visible
    button(panel, "logButton").click()
    assert log.visible
    assert log.plainText == "a\nb"
    panel.show(page_states()["ready"])
    button(panel, "reportButton").click()
    assert qt.QApplication.clipboard().text() == "the report"


def test_it_says_that_nothing_leaves_the_computer(panel):
    words = panel.widget.findChild(qt.QLabel, "privacyLabel").text
    assert "Nothing leaves this computer" in words
    assert "remote command" in words


def test_everything_that_takes_the_focus_has_a_name(panel):
    panel.show(everything_possible())
    for kind in (qt.QPushButton, qt.QComboBox, qt.QLineEdit, qt.QTableWidget, qt.QPlainTextEdit):
        for widget in panel.widget.findChildren(kind):
            if widget.objectName and not widget.objectName.startswith("qt_"):
                assert widget.accessibleName or getattr(widget, "text", ""), widget.objectName


def test_sizes_are_for_people():
    assert [sizeWords(size) for size in (None, 0, 24_000_000, 8_980_000_000)] == [
        "",
        "0 MB",
        "24 MB",
        "9.0 GB",
    ]


def test_after_cleanup_nothing_is_called(panel, actions):
    panel.show(everything_possible())
    panel.cleanup()
    for name in BUTTONS:
        button(panel, name).click()
    assert actions.calls == []
