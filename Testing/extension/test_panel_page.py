"""The page of the module: everything readable, everything told to the controller, nothing told by showing."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()

from MedSAM2SegmentLib.Page.PageState import (  # noqa: E402
    ModelRow,
    ModelsView,
    MyModelRow,
    MyModelsView,
    PageState,
    ReviewView,
    RuntimeView,
    StatusLine,
    WorkerView,
    sizeText,
)
from MedSAM2SegmentLib.Panels.ModulePanel import ModulePanel  # noqa: E402
from MedSAM2SegmentLib.Panels.QtHelpers import Connections  # noqa: E402
from support.page import (  # noqa: E402
    CORRECTIONS,
    MODELS,
    MY_MODELS,
    REVIEW,
    SOURCES,
    export_views,
    page_states,
)
from support.panel import clipped, dark_palette, keep_picture, shown  # noqa: E402

WIDTH = 380
BUTTONS = {
    **{
        "installButton": "runtime.askInstall",
        "repairButton": "runtime.askRepair",
        "removeButton": "runtime.askRemove",
    },
    **{
        "cancelButton": "runtime.cancel",
        "answerButton": "runtime.confirm",
        "declineButton": "runtime.decline",
    },
    **{"cancelModelButton": "models.cancel", "testButton": "worker.test"},
    **{"cancelTrainButton": "mine.cancel", "cancelExportButton": "export.cancel"},
    **{
        "acceptReviewButton": "review.accept",
        "correctReviewButton": "review.correct",
        "skipReviewButton": "review.skip",
    },
}


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
    mine = MyModelsView(
        MY_MODELS,
        sources=SOURCES,
        canChange=True,
        canTrain=True,
        canCancel=True,
        corrections=CORRECTIONS,
        canImprove=True,
        canForget=True,
    )
    worker = WorkerView(report="x")
    models = ModelsView(MODELS, canChange=True, canCancel=True)
    return PageState(view, models, worker=worker, mine=mine, export=export_views()["possible"], review=REVIEW)


def test_the_page_links_to_the_tutorial(panel):
    text = panel.widget.findChild(qt.QLabel, "tutorialLabel").text
    address = text.partition('href="')[2].partition('"')[0]
    assert qt.QUrl(address).toLocalFile().endswith("Resources/docs/tutorial.md")
    assert Path(qt.QUrl(address).toLocalFile()).read_text(encoding="utf-8").startswith("# ")


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


def test_showing_sends_the_controller_nothing(panel, actions):
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
        ("models.install", "embedded"),
        ("models.remove", "embedded"),
        ("models.install", "large"),
    ]


def test_the_chosen_model_stays_chosen_while_others_change(panel, actions):
    panel.show(everything_possible())
    table = panel.widget.findChild(qt.QTableWidget, "modelsTable")
    table.selectRow(2)
    panel.show(PageState(models=ModelsView(MODELS[1:], canChange=True)))
    assert table.currentRow() == 1
    button(panel, "installModelButton").click()
    assert actions.calls == [("models.install", "large")]
    assert table.item(0, 3).text() == "40 %"


def test_names_of_models_are_never_cut(panel):
    titles = ("SAM 2.0 tiny, 512 px: the same weights, coarser and faster", "SAM 2.0 tiny, 1024 px")
    rows = tuple(ModelRow(title, title, 155_000_000, "CC BY-NC-SA 4.0") for title in titles * 6)
    auto = tuple(MyModelRow(title, title, title) for title in titles)
    shown(panel.widget, 700)
    panel.show(PageState(models=ModelsView(rows), mine=MyModelsView(auto)))
    for width in (700, WIDTH, 520, WIDTH):
        panel.widget.resize(width, panel.widget.height)
        a_qt.application().processEvents()
        for name in ("modelsTable", "myModelsTable"):
            table = panel.widget.findChild(qt.QTableWidget, name)
            cells = [(row, column) for row in range(table.rowCount) for column in range(table.columnCount)]
            assert not [cell for cell in cells if is_cut(table, *cell)], (name, width)


def is_cut(table, row, column):
    """Whether a cell is smaller than its text, wrapped."""
    text = table.item(row, column).text()
    room = qt.QRect(0, 0, table.columnWidth(column) - 6, 10_000)
    needed = table.fontMetrics().boundingRect(room, int(qt.Qt.TextWordWrap), text)
    return needed.height() > table.rowHeight(row) or needed.width() > room.width()


def test_the_page_scrolls_to_where_models_are_trained(actions):
    a_qt.application()
    panel, area = ModulePanel(None, actions), qt.QScrollArea()
    panel.show(everything_possible())
    area.widgetResizable = True
    area.setWidget(panel.widget)
    for height in (700, 300):
        area.resize(420, height)
        area.show()
        a_qt.application().processEvents()
        area.verticalScrollBar().value = 0
        panel.scrollTo("auto")
        a_qt.application().processEvents()
        train = button(panel, "trainButton")
        assert not train.visibleRegion().isEmpty(), height
        assert train.visibleRegion().boundingRect().height() == train.height, height
    panel.cleanup()


def test_the_name_that_is_shown_is_the_one_that_is_given(panel):
    panel.show(everything_possible())
    assert edit(panel, "trainNameEdit").placeholderText == "scene"
    choose_source(panel, 1)
    assert edit(panel, "trainNameEdit").placeholderText == "As the folder"


def test_models_of_the_user_are_listed_and_removed_by_file(panel, actions):
    panel.show(everything_possible())
    table, remove = (
        panel.widget.findChild(qt.QTableWidget, "myModelsTable"),
        button(panel, "removeMyModelButton"),
    )
    texts = [table.item(0, column).text() for column in range(4)]
    assert texts == ["Breast lesions", "lesion", "20", "0.78"]
    assert not remove.enabled
    table.selectRow(1)
    assert MY_MODELS[1].path in table.item(1, 1).toolTip()
    remove.click()
    table.selectRow(2)
    assert "Licence: Apache-2.0" in table.item(2, 0).toolTip()
    remove.click()
    assert actions.calls == [
        ("mine.remove", "abdomen", False),
        ("mine.remove", "nerves of our clinic", True),
    ]
    table.selectRow(1)
    panel.show(PageState(mine=MyModelsView(MY_MODELS[1:], canChange=True)))
    assert (table.currentRow(), remove.enabled) == (0, True)
    panel.show(PageState(mine=MyModelsView(MY_MODELS[:1], canChange=True)))
    assert not remove.enabled


def choose_source(panel, place):
    box = panel.widget.findChild(qt.QComboBox, "trainSourceBox")
    box.currentIndex = place
    box.activated.emit(place)
    return box


def test_training_sends_what_was_filled_in(panel, actions):
    panel.show(everything_possible())
    edit(panel, "trainFolderEdit").text = " /data/livers "
    edit(panel, "trainNameEdit").text = "Livers"
    edit(panel, "trainClassesEdit").text = "liver, lesion "
    panel.widget.findChild(qt.QSpinBox, "trainMinutesBox").value = 25
    button(panel, "trainButton").click()
    choose_source(panel, 1)
    button(panel, "trainButton").click()
    panel.widget.findChild(qt.QCheckBox, "trainSkipBox").checked = True
    panel.widget.findChild(qt.QComboBox, "trainKindBox").currentIndex = 1
    button(panel, "trainButton").click()
    told = ("/data/livers", "Livers", 25, "liver, lesion")
    assert actions.calls == [
        ("mine.train", "auto", "scene", *told, False),
        ("mine.train", "auto", "folder", *told, False),
        ("mine.train", "finetune", "folder", *told, True),
    ]


def test_corrections_are_shown_trained_on_for_the_minutes_and_deleted(panel, actions):
    panel.show(PageState())
    shown(panel.widget, WIDTH)
    label = panel.widget.findChild(qt.QLabel, "correctionsText")
    assert not label.visible
    panel.show(everything_possible())
    assert label.text.replace("\u200b", "") == CORRECTIONS
    panel.widget.findChild(qt.QSpinBox, "trainMinutesBox").value = 7
    button(panel, "improveButton").click()
    button(panel, "forgetButton").click()
    assert actions.calls == [("mine.improve", 7), ("mine.forget",)]
    panel.show(PageState(mine=MyModelsView(canTrain=True)))
    assert not button(panel, "improveButton").enabled
    assert not button(panel, "forgetButton").enabled


def test_a_folder_is_only_asked_for_when_one_is_trained_on(panel):
    panel.show(everything_possible())
    shown(panel.widget, WIDTH)
    bar = panel.widget.findChild(qt.QWidget, "trainFolderBar")
    assert not bar.visible
    box = choose_source(panel, 1)
    assert bar.visible
    fewer = (("scene", "This scene (1 volume with segments)"), SOURCES[1])
    panel.show(PageState(mine=MyModelsView(sources=fewer, canTrain=True)))
    assert (box.currentIndex, box.itemText(0)) == (1, fewer[0][1])
    panel.show(PageState(mine=MyModelsView(canTrain=True)))
    assert bar.visible


def test_a_training_shows_how_far_it_is(panel):
    panel.show(page_states()["training"])
    shown(panel.widget, WIDTH)
    bar = panel.widget.findChild(qt.QProgressBar, "trainProgressBar")
    assert bar.visible
    assert bar.value / bar.maximum == pytest.approx(0.3)
    assert not button(panel, "trainButton").enabled
    assert not edit(panel, "trainNameEdit").enabled
    panel.show(PageState(mine=MyModelsView(fraction=-1.0, canCancel=True)))
    assert (bar.minimum, bar.maximum) == (0, 0)
    panel.show(page_states()["trained"])
    assert not bar.visible
    assert button(panel, "trainButton").enabled


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("interpreterEdit", "runtime.useInterpreter"),
        ("wheelsEdit", "runtime.setWheelFolder"),
        ("remoteEdit", "worker.setRemoteCommand"),
    ],
)
def test_what_is_typed_is_sent_when_it_is_finished_and_only_then(panel, actions, name, action):
    panel.show(everything_possible())
    edit(panel, name).text = " something "
    assert actions.calls == []
    edit(panel, name).editingFinished.emit()
    assert actions.calls == [(action, "something")]


def test_what_was_not_changed_is_not_sent(panel, actions):
    panel.show(page_states()["ready"])
    for name in ("interpreterEdit", "wheelsEdit", "remoteEdit"):
        edit(panel, name).editingFinished.emit()
    assert actions.calls == []


def test_defaults_are_sent_by_value(panel, actions):
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


def test_it_states_that_nothing_leaves_the_computer(panel):
    words = panel.widget.findChild(qt.QLabel, "privacyLabel").text
    assert "Nothing leaves this computer" in words
    assert "remote command" in words


def test_everything_that_takes_the_focus_has_a_name(panel):
    panel.show(everything_possible())
    for kind in (qt.QPushButton, qt.QComboBox, qt.QLineEdit, qt.QTableWidget, qt.QPlainTextEdit, qt.QSpinBox):
        for widget in panel.widget.findChildren(kind):
            if widget.objectName and not widget.objectName.startswith("qt_"):
                assert widget.accessibleName or getattr(widget, "text", ""), widget.objectName


def test_sizes_are_for_people():
    assert [sizeText(size) for size in (None, 0, 24_000_000, 8_980_000_000)] == [
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


def test_the_review_has_a_folder_and_a_key_for_each_decision_while_a_case_is_open(panel, actions):
    keys = {"F6": "review.accept", "F7": "review.correct", "F8": "review.skip"}
    panel.show(PageState(review=ReviewView(canOpen=True)))
    edit(panel, "reviewFolderEdit").text = " /data/results "
    button(panel, "openReviewButton").click()
    assert actions.calls == [("review.open", "/data/results")]
    assert not button(panel, "skipReviewButton").enabled
    panel.show(PageState(review=REVIEW))
    shortcuts = {one.key.toString(): one for one in panel.widget.window().findChildren(qt.QShortcut)}
    assert shortcuts.keys() >= keys.keys()
    assert not any(shortcuts[key].autoRepeat for key in keys), "a key that is held decides once"
    actions.calls.clear()
    for key in keys:
        shortcuts[key].activated.emit()
    assert actions.calls == [(action,) for action in keys.values()]
    panel.show(PageState(review=ReviewView(canOpen=True)))
    assert not any(one.enabled for one in shortcuts.values())


def test_the_keys_of_the_review_belong_to_the_main_window_which_tells_what_they_did(actions):
    a_qt.application()
    window, panel = qt.QMainWindow(), ModulePanel(None, actions)
    dock = qt.QDockWidget(window)
    dock.setWidget(panel.widget)
    dock.floating = True  # its panel is a window of its own
    window.show()
    panel.show(PageState(review=REVIEW))
    keys = window.findChildren(qt.QShortcut)
    assert {one.parent() for one in keys} == {window} and len(keys) == 3
    assert window.statusBar().currentMessage() == "", "it is seen on the page"
    dock.hide()
    panel.show(PageState(review=dataclasses.replace(REVIEW, line=StatusLine())))
    assert window.statusBar().currentMessage() == f"{REVIEW.case}; {REVIEW.counts}"
    panel.show(PageState(review=REVIEW))
    assert window.statusBar().currentMessage() == REVIEW.line.text
    panel.widget.setParent(None)
    window.deleteLater()
    qt.QCoreApplication.sendPostedEvents(window, qt.QEvent.DeferredDelete)
    panel.cleanup()  # Slicer ends its window before its modules
    panel.widget.deleteLater()


@pytest.mark.parametrize("error", [ValueError, RuntimeError, SystemError])  # PythonQt: the first and the last
def test_a_sender_that_is_gone_does_not_end_the_disconnecting(error):
    gone, left = [], []

    def sender(made, problem=None):
        def disconnect(slot):
            made.append(slot)
            if problem is not None:
                raise problem

        return SimpleNamespace(changed=SimpleNamespace(connect=made.append, disconnect=disconnect))

    connections = Connections()
    connections.connect(sender(gone, error("destroyed")), "changed", print)
    connections.connect(sender(left), "changed", print)
    connections.disconnectAll()
    assert len(gone) == len(left) == 2
