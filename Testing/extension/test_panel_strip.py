"""The confidence strip: one bar a slice where there is room, the weakest of several where there is not."""

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()

from MedSAM2SegmentLib.Panels.ConfidenceStrip import ConfidenceStrip, barsOf, describe  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import SliceConfidence  # noqa: E402
from support.panel import confidences, dark_palette, keep_picture, shown  # noqa: E402

# Qt 6 would rather have position(), which Qt 5 does not know.
pytestmark = pytest.mark.filterwarnings("ignore:.*QMouseEvent.pos")


@pytest.fixture
def jumps():
    return []


@pytest.fixture
def strip(jumps):
    a_qt.application()
    holder = qt.QWidget()
    strip = ConfidenceStrip(holder, jumps.append)
    qt.QVBoxLayout(holder).addWidget(strip)
    yield strip
    strip.detach()
    holder.deleteLater()


def put_on_screen(strip, width=320):
    shown(strip.parentWidget(), width)
    return strip


def move_to(strip, x, kind=None, button=None):
    kind = qt.QEvent.MouseMove if kind is None else kind
    held = qt.Qt.NoButton if button is None else button
    where = qt.QPoint(x, 10)
    event = qt.QMouseEvent(
        kind, qt.QPointF(where), qt.QPointF(strip.mapToGlobal(where)), held, held, qt.Qt.NoModifier
    )
    a_qt.application().sendEvent(strip, event)


def click_at(strip, x):
    move_to(strip, x, qt.QEvent.MouseButtonPress, qt.Qt.LeftButton)


def colour_at(image, x, y):
    return image.pixelColor(x, y).name()


@pytest.mark.parametrize(("count", "width"), [(1, 300), (60, 300), (300, 300), (1000, 333), (3, 2), (5, 0)])
def test_the_bars_cover_every_slice_once_and_fill_the_width(count, width):
    bars = barsOf(confidences(count), width)
    assert [bars[0].first, bars[-1].last] == [0, count - 1]
    assert [bar.first for bar in bars[1:]] == [bar.last + 1 for bar in bars[:-1]]
    assert [bars[0].left, bars[-1].right] == [0, width]
    assert [bar.left for bar in bars[1:]] == [bar.right for bar in bars[:-1]]
    assert all(bar.right > bar.left for bar in bars) or width < 1


def test_no_slices_are_no_bars():
    assert barsOf((), 300) == []


def test_where_slices_share_a_pixel_the_weakest_and_every_mark_are_shown():
    slices = [SliceConfidence(n, 0.9) for n in range(100)]
    slices[41] = SliceConfidence(41, 0.2)
    slices[42] = SliceConfidence(42, 0.9, prompted=True)
    slices[43] = SliceConfidence(43, None, final=True)
    (bar,) = [bar for bar in barsOf(slices, 25) if bar.first <= 41 <= bar.last]
    assert (bar.first, bar.last) == (40, 43)
    assert bar.shown.n == 41
    assert bar.prompted
    assert bar.final


def test_a_slice_is_described_in_text():
    assert describe(SliceConfidence(41, 0.834)) == "slice 41: 0.83"
    assert describe(SliceConfidence(7)) == "slice 7: not segmented"
    assert describe(SliceConfidence(3, 1.0, prompted=True, final=True)) == "slice 3: 1.00, prompted, final"


def test_a_click_jumps_to_the_slice_under_it(strip, jumps):
    strip.display(confidences(32), 5)
    put_on_screen(strip)
    for bar in barsOf(confidences(32), strip.width)[::7]:
        click_at(strip, (bar.left + bar.right) // 2)
        assert jumps.pop() == bar.shown.n
    strip.display((), None)
    click_at(strip, 10)
    assert jumps == []


def test_the_tooltip_follows_the_mouse(strip):
    strip.display(confidences(32), 5)
    put_on_screen(strip)
    bar = barsOf(confidences(32), strip.width)[20]
    move_to(strip, bar.left + 1)
    assert strip.toolTip == describe(confidences(32)[20])
    strip.display((), None)
    move_to(strip, bar.left + 2)
    assert strip.toolTip == ""


def test_arrow_keys_go_from_slice_to_slice(strip, jumps):
    slices = tuple(SliceConfidence(n, 0.5) for n in (10, 11, 13))
    strip.display(slices, 11)
    put_on_screen(strip)
    for key in (qt.Qt.Key_Left, qt.Qt.Key_Right, qt.Qt.Key_A):
        event = qt.QKeyEvent(qt.QEvent.KeyPress, key, qt.Qt.NoModifier)
        a_qt.application().sendEvent(strip, event)
        assert event.isAccepted() == (key != qt.Qt.Key_A)
    assert jumps == [10, 13]


def test_the_screen_reader_gets_the_current_slice(strip):
    strip.display(confidences(32), 5)
    assert strip.accessibleDescription == describe(confidences(32)[5])
    strip.display(confidences(32), None)
    assert strip.accessibleDescription == ""


@pytest.mark.parametrize("style", ["light", "dark"])
@pytest.mark.parametrize("count", [1, 24, 60, 300, 1500])
def test_weak_and_sure_slices_differ_in_colour_and_height(strip, style, count, tmp_path):
    app = a_qt.application()
    before = app.palette()
    app.setPalette(dark_palette() if style == "dark" else before)
    try:
        strip.display(confidences(count), count // 2)
        put_on_screen(strip)
        image = keep_picture(strip, f"strip-{style}-{count}", tmp_path)
        background = strip.palette.color(qt.QPalette.Base).name()
        bars = [bar for bar in barsOf(confidences(count), strip.width) if bar.shown.confidence is not None]
        sure = [bar for bar in bars if bar.shown.confidence > 0.9 and bar.first != bar.last != count // 2]
        weak = [bar for bar in bars if bar.shown.confidence < 0.2]
        if sure and weak:
            floor = strip.height - 11
            seen = {colour_at(image, bar.left, floor) for bar in (sure[0], weak[0])}
            assert len(seen) == 2
            assert background not in seen
            assert colour_at(image, weak[0].left, 6) == background
    finally:
        app.setPalette(before)


def test_the_current_slice_is_marked(strip, tmp_path):
    strip.display(tuple(SliceConfidence(n) for n in range(10)), None)
    put_on_screen(strip)
    without = keep_picture(strip, "strip-none", tmp_path)
    strip.display(tuple(SliceConfidence(n) for n in range(10)), 4)
    a_qt.application().processEvents()
    image = keep_picture(strip, "strip-current", tmp_path)
    bar = barsOf(tuple(SliceConfidence(n) for n in range(10)), strip.width)[4]
    middle = (bar.left + bar.right) // 2
    assert colour_at(image, middle, 20) != colour_at(without, middle, 20)
    assert colour_at(image, middle + 20, 20) == colour_at(without, middle + 20, 20)


def test_a_strip_let_go_of_calls_nobody(strip, jumps):
    strip.display(confidences(32), 5)
    put_on_screen(strip)
    strip.detach()
    click_at(strip, 30)
    assert jumps == []
