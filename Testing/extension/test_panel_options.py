"""The options panel shows every state in full, and tells what the user pressed, nothing else."""

import dataclasses
import inspect

import numpy as np
import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()

from medsam2_core.prompts import Box, MaskPrompt, Point, SlicePrompts  # noqa: E402
from MedSAM2SegmentLib.Panels.OptionsPanel import OptionsPanel, parseRange  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import (  # noqa: E402
    PanelState,
    SliceConfidence,
    Status,
    Tool,
    kindsOf,
)
from MedSAM2SegmentLib.Panels.QtHelpers import breakable  # noqa: E402
from support.panel import (  # noqa: E402
    AUTO,
    CHOICES,
    VALUES,
    WIDTH,
    a_state,
    clipped,
    dark_palette,
    every_state,
    keep_picture,
    shown,
)

BUTTONS = {
    "actionButton": ("resolve",),
    "pointButton": ("setTool", "point"),
    "boxButton": ("setTool", "box"),
    "scribbleButton": ("setTool", "scribble"),
    "positiveButton": ("setNegative", False),
    "negativeButton": ("setNegative", True),
    "propagateButton": ("propagate",),
    "cancelButton": ("cancel",),
    "keepButton": ("keep",),
    "discardButton": ("discard",),
    "weakestButton": ("nextWeakest",),
    "finaliseButton": ("finaliseSlice",),
    "segmentButton": ("useSegmentAsPrompt",),
    "markupsButton": ("useMarkups",),
    "clearButton": ("clearPrompts",),
    "autoSliceButton": ("autoSlice",),
    "autoVolumeButton": ("autoVolume",),
}


@pytest.fixture
def panel(actions):
    a_qt.application()
    panel = OptionsPanel(None, actions)
    yield panel
    panel.cleanup()
    panel.widget.deleteLater()


def button(panel, name):
    return panel.widget.findChild(qt.QPushButton, name)


def combo(panel, name):
    return panel.widget.findChild(qt.QComboBox, name)


@pytest.mark.parametrize("style", ["light", "dark"])
@pytest.mark.parametrize("status", list(Status), ids=lambda status: status.name.lower())
def test_every_state_can_be_read_in_a_narrow_column(panel, status, style, tmp_path):
    app = a_qt.application()
    before = app.palette()
    app.setPalette(dark_palette() if style == "dark" else before)
    try:
        panel.show(every_state()[status])
        for name in ("promptsButton", "advancedButton"):
            panel.widget.findChild(qt.QToolButton, name).click()
        shown(panel.widget)
        keep_picture(panel.widget, f"options-{style}-{status.name.lower()}", tmp_path)
        assert panel.widget.width == WIDTH, "the column would have to be wider"
        assert clipped(panel.widget) == []
    finally:
        app.setPalette(before)


def test_the_chosen_tool_and_sign_follow_a_change_of_style(panel):
    app = a_qt.application()
    before = app.palette()
    panel.show(a_state())
    shown(panel.widget)
    try:
        for palette in (dark_palette(), before):
            app.setPalette(palette)
            app.processEvents()
            for name in ("pointButton", "positiveButton"):
                colour = button(panel, name).grab().toImage().pixelColor(6, 6)
                assert colour == palette.color(qt.QPalette.Highlight), name
    finally:
        app.setPalette(before)


def test_every_status_has_an_icon_and_a_name(panel):
    for status, state in every_state().items():
        panel.show(state)
        icon = panel.widget.findChild(qt.QLabel, "statusIcon")
        assert not icon.pixmap.isNull()
        assert icon.toolTip == status.value


def test_details_open_below_and_are_copied_with_the_line(panel):
    state = every_state()[Status.FAILED]
    panel.show(state)
    shown(panel.widget)
    details = panel.widget.findChild(qt.QPlainTextEdit, "detailsText")
    assert not details.visible
    button(panel, "detailsButton").click()
    assert details.visible
    assert details.plainText == state.details
    button(panel, "copyButton").click()
    copied = qt.QApplication.clipboard().text()
    assert state.text in copied
    assert state.details in copied
    panel.show(a_state())
    assert not details.visible
    assert not button(panel, "detailsButton").visible


@pytest.mark.parametrize("name", BUTTONS)
def test_a_button_calls_its_action_once(panel, actions, name):
    panel.show(a_state(action="Do it", canCancel=True, canKeep=True))
    button(panel, name).click()
    assert actions.calls == [BUTTONS[name]]


def test_showing_states_sends_the_controller_nothing(panel, actions):
    for _ in range(2):
        for state in every_state().values():
            panel.show(state)
        panel.show(
            a_state(tool=Tool.BOX, negative=True, values={**VALUES, "range": "3..40", "model": "another"})
        )
        panel.show(a_state(values={**VALUES, "window": "400,40", "stopWhenGone": "0", "autoPropagate": "1"}))
        panel.show(PanelState())
    assert actions.calls == []


def test_what_cannot_be_done_cannot_be_pressed(panel, actions):
    panel.show(PanelState())
    for name in BUTTONS:
        button(panel, name).click()
    assert [call for call in actions.calls if call[0] not in ("resolve", "keep", "discard")] == []


def test_tool_and_sign_follow_the_state_not_the_press(panel):
    panel.show(a_state(tool=Tool.SCRIBBLE, negative=True))
    assert button(panel, "scribbleButton").checked
    assert button(panel, "negativeButton").checked
    button(panel, "boxButton").click()  # the controller does not take it
    panel._redraw()
    assert button(panel, "scribbleButton").checked
    assert not button(panel, "boxButton").checked


@pytest.mark.parametrize("name", ["model", "direction", "stack"])
def test_a_choice_is_sent_by_its_value(panel, actions, name):
    panel.show(a_state())
    box = combo(panel, f"{name}Box")
    assert [box.itemText(index) for index in range(box.count)] == [label for _, label in CHOICES[name]]
    press(box, qt.Qt.Key_Down)
    assert actions.calls == [("setValue", name, CHOICES[name][1][0])]


def test_a_window_may_be_typed(panel, actions):
    panel.show(a_state())
    box = combo(panel, "windowBox")
    box.currentText = "400, 40"
    box.lineEdit().editingFinished.emit()
    assert actions.calls == [("setValue", "window", "400,40")]
    panel.show(a_state(values={**VALUES, "window": "400,40"}))
    assert box.currentText == "400,40"
    panel.show(a_state(values={**VALUES, "window": "displayed"}))
    assert box.currentText == "As displayed"


def test_a_range_needs_two_numbers_that_exist(panel, actions):
    panel.show(a_state())
    shown(panel.widget)
    first, last = (panel.widget.findChild(qt.QSpinBox, name) for name in ("firstBox", "lastBox"))
    assert not first.visible
    press(combo(panel, "rangeBox"), qt.Qt.Key_Down)
    assert first.visible
    assert last.visible
    assert actions.calls == [("setValue", "range", "0..59")]
    panel.show(a_state(values={**VALUES, "range": "10-40"}))
    assert (first.value, last.value) == (10, 40)
    first.value = 50
    assert actions.calls[-1] == ("setValue", "range", "40..50")
    first.value = 1000
    assert actions.calls[-1] == ("setValue", "range", "40..59")


def test_ranges_are_read_as_people_write_them():
    assert parseRange("3..40") == parseRange("3-40") == parseRange(" 3 to 40") == (3, 40)
    assert parseRange("all") is parseRange("") is parseRange("7") is None


@pytest.mark.parametrize("name", ["stopWhenGone", "autoPropagate", "show3D", "learn"])
def test_switches_are_sent_as_0_and_1(panel, actions, name):
    panel.show(a_state(values={**VALUES, name: "0"}))
    box = panel.widget.findChild(qt.QCheckBox, f"{name}Box")
    box.click()
    panel.show(a_state(values={**VALUES, name: "1"}))
    box.click()
    assert actions.calls == [("setValue", name, "1"), ("setValue", name, "0")]


@pytest.mark.parametrize(
    ("millilitres", "text"), [(0.1234, "0.12 ml"), (45.67, "45.7 ml"), (1543.2, "1543 ml"), (0.0, "0.00 ml")]
)
def test_the_volume_is_shown_where_there_is_one(panel, millilitres, text):
    panel.show(a_state(millilitres=millilitres))
    shown(panel.widget)
    label = panel.widget.findChild(qt.QLabel, "sizesText")
    assert label.visible
    assert label.text == f"Volume: {text}"
    panel.show(a_state(millilitres=None))
    assert not label.visible


def test_the_methods_text_goes_to_the_clipboard(panel, actions):
    panel.show(a_state())
    panel.widget.findChild(qt.QToolButton, "promptsButton").click()
    shown(panel.widget)
    assert clipped(panel.widget) == []
    actions.methodsText = lambda: "How it was made."
    button(panel, "methodsButton").click()
    assert qt.QApplication.clipboard().text() == "How it was made."
    actions.methodsText = lambda: ""
    button(panel, "methodsButton").click()
    assert qt.QApplication.clipboard().text() == "How it was made."


def test_diameters_stand_below_the_volume_and_the_drawn_ones_below_them(panel):
    panel.show(a_state(millilitres=2.0, diameters=(21.04, 9.96), drawn=(20.0, 10.0)))
    shown(panel.widget)
    label = panel.widget.findChild(qt.QLabel, "sizesText")
    assert label.text.splitlines() == [
        "Volume: 2.00 ml",
        "Diameters: 21.0 x 10.0 mm",
        "Drawn: 20.0 x 10.0 mm",
    ]
    assert clipped(panel.widget) == []
    panel.show(a_state(millilitres=None, drawn=(20.0,)))
    assert label.visible and label.text == "Drawn: 20.0 mm"


def prompts_table(panel):
    return panel.widget.findChild(qt.QTableWidget, "promptsTable")


def test_the_prompts_are_listed_by_slice_when_the_section_is_opened(panel, actions):
    panel.show(a_state(current=20))
    shown(panel.widget)
    table = prompts_table(panel)
    assert not table.visible
    panel.widget.findChild(qt.QToolButton, "promptsButton").click()
    assert table.visible
    rows = [[table.item(row, column).text() for column in range(2)] for row in range(table.rowCount)]
    assert rows == [["10", "box, points 2+ 1-"], ["20", "mask, final"], ["30", "points 1+"]]
    assert (table.currentRow(), len(table.selectedItems())) == (1, 2)
    assert actions.calls == []


def test_a_selected_row_shows_its_slice_and_the_shown_slice_selects_its_row(panel, actions):
    panel.show(a_state(current=0))
    table = prompts_table(panel)
    assert table.selectedItems() == []
    assert not button(panel, "clearSliceButton").enabled
    table.selectRow(2)
    assert actions.calls == [("jumpTo", 30)]
    panel.show(a_state(current=30))
    button(panel, "clearSliceButton").click()
    assert actions.calls == [("jumpTo", 30), ("clearSlice", 30)]
    panel.show(a_state(current=31))
    assert table.selectedItems() == []
    button(panel, "clearSliceButton").click()
    panel.show(a_state(current=10, canPrompt=False))
    button(panel, "clearSliceButton").click()
    assert len(actions.calls) == 2


def test_an_unchanged_table_is_not_filled_again(panel):
    panel.show(a_state(current=10))
    item = prompts_table(panel).item(0, 0)
    panel.show(a_state(current=20, progress=(3, 60)))
    assert prompts_table(panel).item(0, 0) is item
    panel.show(a_state(confidences=()))
    assert prompts_table(panel).rowCount == 0


def test_a_state_that_changes_nothing_moves_neither_selection_nor_scroll_position(panel, actions):
    many = tuple(SliceConfidence(n, 0.5, prompted=True, kinds="points 1+") for n in range(60))
    panel.show(a_state(confidences=many, current=3))
    panel.widget.findChild(qt.QToolButton, "promptsButton").click()
    shown(panel.widget)
    table = prompts_table(panel)
    table.setCurrentCell(5, 1)  # a click on the second column
    panel.show(a_state(confidences=many, current=5))
    bar = table.verticalScrollBar()
    bar.value = bar.maximum
    for done in range(3):
        panel.show(a_state(confidences=many, current=5, progress=(done, 60)))
        assert (table.currentRow(), table.currentColumn()) == (5, 1)
        assert bar.value == bar.maximum > 0
    panel.show(a_state(confidences=many, current=6))
    assert (table.currentRow(), len(table.selectedItems())) == (6, 2)
    assert actions.calls == [("jumpTo", 5)]


def test_the_kinds_of_prompts_are_named_and_points_counted_by_sign():
    points = (Point((1, 1, 1)), Point((2, 2, 1)), Point((3, 3, 1), positive=False))
    mask = MaskPrompt(np.ones((1, 2, 2), dtype=bool), (0, 0, 1))
    assert kindsOf(SlicePrompts((Box((0, 0, 1), (4, 4, 1)), *points))) == "box, points 2+ 1-"
    assert kindsOf(SlicePrompts(points[2:])) == "points 1-"
    assert kindsOf(SlicePrompts((mask,), final=True)) == "mask, final"


def test_an_auto_model_is_chosen_by_its_file(panel, actions):
    panel.show(a_state())
    box = combo(panel, "autoModelBox")
    assert box.itemText(box.currentIndex) == AUTO.models[0][1]
    press(box, qt.Qt.Key_Down)
    assert actions.calls == [("setValue", "autoModel", "nerve")]
    replaces = panel.widget.findChild(qt.QCheckBox, "replaceBox")
    assert not replaces.checked
    replaces.click()
    assert actions.calls[-1] == ("setValue", "replaceSegments", "1")
    panel.show(a_state(auto=dataclasses.replace(AUTO, replaces=True)))
    assert replaces.checked


def test_without_an_auto_model_there_is_the_way_to_one(panel, actions):
    panel.show(every_state()[Status.READY])
    shown(panel.widget)
    assert not combo(panel, "autoModelBox").visible
    assert not button(panel, "autoVolumeButton").visible
    text = panel.widget.findChild(qt.QLabel, "autoText")
    assert text.visible
    assert text.text == "No Auto model yet: train one from 10 labelled images."
    button(panel, "trainButton").click()
    assert actions.calls == [("trainAuto",)]
    panel.show(a_state())
    assert not button(panel, "trainButton").visible
    assert text.text == AUTO.text
    panel.show(PanelState())
    assert not text.visible


def test_what_auto_cannot_do_now_cannot_be_pressed(panel, actions):
    panel.show(every_state()[Status.FINDING])
    for name in ("autoSliceButton", "autoVolumeButton"):
        button(panel, name).click()
    assert actions.calls == []
    words = panel.widget.findChild(qt.QLabel, "progressText")
    assert words.text == "Slice 41 of 120, about 32 s left"


def test_progress_counts_slices_and_survives_large_volumes(panel):
    words = panel.widget.findChild(qt.QLabel, "progressText")
    bar = panel.widget.findChild(qt.QProgressBar, "progressBar")
    panel.show(every_state()[Status.PROPAGATING])
    assert words.text == "Slice 41 of 120, about 32 s left"
    panel.show(every_state()[Status.SENDING])  # 5 GB do not fit Qt's whole numbers
    assert words.text == "60 %, 4 s"
    assert bar.value / bar.maximum == pytest.approx(0.6)
    panel.show(every_state()[Status.LOADING])
    assert (bar.minimum, bar.maximum) == (0, 0)


def test_the_keyboard_goes_through_it_from_top_to_bottom(panel):
    panel.show(a_state(action="Do it", details="x"))
    panel.widget.findChild(qt.QToolButton, "advancedButton").click()
    shown(panel.widget)
    order, widget = [], panel.widget.findChild(qt.QPushButton, "actionButton")
    while widget.objectName not in order:
        if widget.visible and widget.focusPolicy & qt.Qt.TabFocus and widget.objectName:
            order.append(widget.objectName)
        widget = widget.nextInFocusChain()
    known = [name for name in order if name in {*BUTTONS, "advancedButton"} or name.endswith("Box")]
    corners = [
        panel.widget.findChild(qt.QWidget, name).mapTo(panel.widget, qt.QPoint(0, 0)) for name in known
    ]
    for place in range(1, len(known)):
        before, after = corners[place - 1], corners[place]
        is_in_row = abs(after.y() - before.y()) < 10
        assert after.x() > before.x() if is_in_row else after.y() > before.y(), known[place - 1 : place + 1]
    assert known[0] == "actionButton"
    assert known[-1] == "learnBox"


def test_everything_that_takes_the_focus_has_a_name_for_a_screen_reader(panel):
    kinds = (qt.QPushButton, qt.QToolButton, qt.QComboBox, qt.QSpinBox, qt.QCheckBox, qt.QPlainTextEdit)
    for kind in (*kinds, qt.QTableWidget):
        for widget in panel.widget.findChildren(kind):
            if widget.objectName and not widget.objectName.startswith("qt_"):
                name = (
                    widget.accessibleName
                    or getattr(widget, "text", "")
                    or widget.objectName == "actionButton"
                )
                assert name, widget.objectName
    for label in ("rangeLabel", "modelLabel", "windowLabel", "stackLabel"):
        assert panel.widget.findChild(qt.QLabel, label).buddy() is not None


def test_after_cleanup_nothing_is_called(panel, actions):
    panel.show(a_state())
    panel.cleanup()
    for name in BUTTONS:
        button(panel, name).click()
    assert actions.calls == []


def press(widget, key):
    app = a_qt.application()
    for kind in (qt.QEvent.KeyPress, qt.QEvent.KeyRelease):
        app.sendEvent(widget, qt.QKeyEvent(kind, key, qt.Qt.NoModifier))


def test_the_controller_takes_everything_the_panel_sends():
    pytest.importorskip("slicer")
    from MedSAM2SegmentLib.Effect.EffectController import EffectController

    told = [
        *BUTTONS.values(),
        ("trainAuto",),
        ("jumpTo", 3),
        ("clearSlice", 3),
        ("setValue", "model", "embedded"),
    ]
    for name, *values in told:
        method = inspect.signature(getattr(EffectController, name))
        method.bind("self", *values)


def test_values_the_controller_offers_are_offered_by_the_panel(panel, actions):
    pytest.importorskip("slicer")
    from MedSAM2SegmentLib.Panels.PanelState import DEFAULTS, Parameters

    parameters = Parameters({}.get, {}.__setitem__)
    panel.show(a_state(choices=parameters.choices(), values=parameters.values()))
    shown(panel.widget)
    for name in ("model", "window", "direction", "stack", "range"):
        box = combo(panel, f"{name}Box")
        assert box.itemData(box.currentIndex) == DEFAULTS[name]
    assert clipped(panel.widget) == []
    assert actions.calls == []


def test_long_words_get_places_to_break():
    path = "/data/some/very-long-folder/and.file.nrrd"
    assert breakable(f"See {path} now").replace("\u200b", "") == f"See {path} now"
    assert "\u200b" in breakable(path)
    assert breakable("ordinary words stay whole") == "ordinary words stay whole"
    assert max(len(part) for part in breakable("x" * 100).split("\u200b")) <= 24
