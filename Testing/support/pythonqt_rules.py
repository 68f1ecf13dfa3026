"""What works in PySide6 and fails in Slicer's PythonQt, often without a word; found by reading the code.

A rule looks at one node of the syntax tree and says what is wrong with it, or None. `BAD` and `GOOD` hold
examples, by the name of the rule.
"""

import ast
import re
from collections.abc import Callable, Iterator

RULES: dict[str, Callable[[ast.AST, dict], str | None]] = {}
BAD: dict[str, tuple[str, ...]] = {}
GOOD: dict[str, tuple[str, ...]] = {}

_BYTE_ARRAYS = {"readAll", "readAllStandardOutput", "readAllStandardError"}
_OF_BYTE_ARRAYS = {"data", "size", "isEmpty"}
# Properties of Qt's widgets: calling what they give is a TypeError ('int' object is not callable).
_PROPERTIES = {
    *(
        "value",
        "minimum",
        "maximum",
        "text",
        "checked",
        "currentIndex",
        "currentText",
        "currentData",
        "count",
    ),
    *("enabled", "visible", "size", "width", "height", "pos", "geometry", "font", "plainText", "objectName"),
    *("toolTip", "palette", "pixmap", "arrowType", "interval", "readOnly", "rect"),
}
# Of these, methods of the same name are meant: events and the clipboard have no properties.
_NO_WIDGETS = {"event", "clipboard"}
_METHODS = {"state", "exitStatus", "exitCode", "error", "bytesToWrite", "bytesAvailable", "isOpen", "layout"}
_TAKEN = {"layout", "parent", "update", "children", "style"}


def rule(bad: tuple[str, ...], good: tuple[str, ...]):
    """Register a rule with what it must find, and what it must leave alone."""

    def register(function: Callable[[ast.AST, dict], str | None]):
        name = function.__name__
        RULES[name], BAD[name], GOOD[name] = function, bad, good
        return function

    return register


def violations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of everything in a file."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    rules = dict(RULES)
    if not any(isinstance(node, ast.Import) and node.names[0].name == "qt" for node in ast.walk(tree)):
        del rules["properties_are_not_called"]  # there are no widgets in this file
    for node in ast.walk(tree):
        for function in rules.values():
            wrong = function(node, parents)
            if wrong:
                yield node.lineno, wrong


def _name(node: ast.AST) -> str:
    """The last name of what is called or looked up: "QTimer" for qt.QTimer."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_qt(node: ast.AST) -> bool:
    """Whether it is looked up in the module qt: qt.QLabel, qt.QProcess.NotRunning."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "qt"


def _is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) in names


def _is_qt_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(_is_qt(base) for base in node.bases)


def _class_of(node: ast.AST, parents: dict) -> ast.AST | None:
    while node is not None and not isinstance(node, ast.ClassDef):
        node = parents.get(node)
    return node


@rule(
    bad=(
        "data = bytes(process.readAllStandardOutput())",
        "n = len(process.readAllStandardError())",
        "chunk = process.readAll()",
        "first = process.readAll()[0]",
    ),
    good=("data = process.readAllStandardOutput().data()", "n = process.readAll().size()"),
)
def byte_array_only_by_data(node, parents):
    """A QByteArray has data() and size(); len, bytes and indexing raise."""
    if _is_call(node, *_BYTE_ARRAYS):
        user = parents.get(node)
        if not (isinstance(user, ast.Attribute) and user.attr in _OF_BYTE_ARRAYS):
            return f"{_name(node)}() gives a QByteArray: take its .data() at once"
    return None


@rule(
    bad=("process.write(bytearray(4))", "process.write(memoryview(data))", "self._process.write('text')"),
    good=("process.write(bytes(data))", "file.write(text)"),
)
def write_only_bytes(node, _parents):
    """bytearray and memoryview send their repr; text stops at the first NUL."""
    if not _is_call(node, "write") or not isinstance(node.func, ast.Attribute) or not node.args:
        return None
    is_process = "process" in _name(node.func.value).lower()
    if _is_call(node.args[0], "bytearray", "memoryview") or (
        is_process and not _is_call(node.args[0], "bytes")
    ):
        return "write(bytes(…)): anything else is sent as its repr, or cut"
    return None


@rule(bad=('label = qt.QLabel(text="x")',), good=('label = qt.QLabel("x")', 'label = make(text="x")'))
def no_keyword_arguments(node, _parents):
    """Constructors and methods of Qt take positions only."""
    if isinstance(node, ast.Call) and _is_qt(node.func) and node.keywords:
        return f"{_name(node)} takes no keyword arguments"
    return None


@rule(
    bad=("ok = isinstance(button, qt.QWidget)", "ok = isinstance(button, (str, qt.QLabel))"),
    good=('ok = button.inherits("QWidget")', "ok = isinstance(name, str)"),
)
def no_isinstance(node, _parents):
    """isinstance of a wrapped object and its base class is False."""
    if _is_call(node, "isinstance") and any(_is_qt(part) for part in ast.walk(node.args[1])):
        return "isinstance with a class of Qt is False: use inherits()"
    return None


@rule(
    bad=("class A(qt.QWidget):\n    def paintEvent(self, e):\n        super().paintEvent(e)",),
    good=(
        "class A(qt.QWidget):\n    def paintEvent(self, e):\n        qt.QWidget.paintEvent(self, e)",
        "class A(B):\n    def f(self):\n        super().f()",
    ),
)
def no_super_of_virtuals(node, parents):
    """super() finds no virtual functions of Qt."""
    if not (isinstance(node, ast.Attribute) and _is_call(node.value, "super") and node.attr != "__init__"):
        return None
    if _is_qt_class(_class_of(node, parents)):
        return f"super().{node.attr} fails: name the class of Qt"
    return None


@rule(
    bad=("class A(qt.QWidget):\n    def __init__(self):\n        self.x = 1",),
    good=(
        "class A(qt.QWidget):\n    def __init__(self):\n        super().__init__()",
        "class A(qt.QWidget): x = 1",
    ),
)
def super_init_in_subclasses(node, _parents):
    """A subclass that does not initialise its base has no widget."""
    if not _is_qt_class(node):
        return None
    for method in node.body:
        is_init = isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if is_init and not any(_is_super_init(part) for part in ast.walk(method)):
            return f"{node.name}.__init__ must call super().__init__()"
    return None


def _is_super_init(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "__init__" and _is_call(node.value, "super")


@rule(
    bad=("class A(qt.QWidget):\n    done = qt.Signal(int)",),
    good=("class A(qt.QWidget):\n    done = 1",),
)
def no_signals_of_ones_own(node, parents):
    """One that is still connected when Slicer ends brings it down."""
    if _is_call(node, "Signal") and _is_qt(node.func) and _class_of(node, parents) is not None:
        return "no signal of one's own: use a callback"
    return None


@rule(
    bad=("class A(qt.QWidget):\n    def f(self):\n        self.layout = 1",),
    good=(
        "class A(qt.QWidget):\n    def f(self):\n        self._layout = 1",
        "class A:\n    def f(self):\n        self.layout = 1",
    ),
)
def no_taken_names(node, parents):
    """A method of Qt cannot be covered by an attribute."""
    if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in _TAKEN):
        return None
    is_self = isinstance(node.value, ast.Name) and node.value.id == "self"
    if is_self and _is_qt_class(_class_of(node, parents)):
        return f"self.{node.attr} is a method of Qt"
    return None


@rule(
    bad=(
        "if process.state == qt.QProcess.NotRunning: pass",
        "ok = process.exitStatus != qt.QProcess.CrashExit",
    ),
    good=("ok = process.state() == qt.QProcess.NotRunning", "ok = client.state is READY"),
)
def methods_are_called(node, _parents):
    """Without parentheses the comparison is False for ever."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(_is_qt(side) for side in sides):
            for side in sides:
                if isinstance(side, ast.Attribute) and side.attr in _METHODS and not _is_qt(side):
                    return f"{side.attr} is a method: {side.attr}()"
    return None


@rule(bad=("ok = process.state() is qt.QProcess.NotRunning",), good=("ok = x is None",))
def enums_are_equal_not_identical(node, _parents):
    """Enums are numbers, and numbers are not identical."""
    if not isinstance(node, ast.Compare):
        return None
    is_identity = any(isinstance(how, ast.Is | ast.IsNot) for how in node.ops)
    if is_identity and any(_is_qt(side) for side in [node.left, *node.comparators]):
        return "compare what is Qt's with =="
    return None


@rule(
    bad=("n = spin.value()", "t = self._label.text()", "b = box.checked()", "w = self.width()"),
    good=(
        "n = spin.value",
        "x = event.pos()",
        "v = settings.value('a')",
        "n = p.readAll().size()",
        "n = [1].count(1)",
    ),
)
def properties_are_not_called(node, _parents):
    """'int' object is not callable."""
    if (
        not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
        or node.args
        or node.keywords
    ):
        return None
    owner = node.func.value
    if node.func.attr not in _PROPERTIES or _name(owner).lstrip("_") in _NO_WIDGETS | _BYTE_ARRAYS:
        return None
    return f"{node.func.attr} is a property: without parentheses"


@rule(
    bad=("qt.QTimer.singleShot(5, self, f)", "qt.QTimer.singleShot(5)"),
    good=("qt.QTimer.singleShot(5, self.f)",),
)
def single_shot_without_context(node, _parents):
    """With a context object it never fires."""
    if _is_call(node, "singleShot") and len(node.args) != 2:
        return "QTimer.singleShot(ms, f): with a context object it never fires"
    return None


@rule(
    bad=('x = w.findChild("name")', "x = w.findChild(qt.QLabel)"),
    good=('x = w.findChild(qt.QLabel, "name")', 'f = w.findChild\nx = f(qt.QLabel, "name")'),
)
def find_child_with_class(node, _parents):
    """Without the class it finds nothing."""
    if _is_call(node, "findChild") and (len(node.args) != 2 or not _is_qt(node.args[0])):
        return "findChild(qt.QClass, name): anything else gives None"
    return None


@rule(
    bad=(
        'p.connect("finished(int, ExitStatus)", f)',
        'p.connect("finished(int,ExitStatus)", f)',
        'p.connect("finished", f)',
        'p.disconnect("errorOccurred(ProcessError)", f)',
    ),
    good=(
        'p.connect("finished(int,QProcess::ExitStatus)", f)',
        'connect(button, "clicked", f)',
        "b.clicked.connect(f)",
    ),
)
def signatures_as_qt_writes_them(node, _parents):
    """A wrong signature returns False, and nobody is ever told."""
    if not (_is_call(node, "connect", "disconnect") and isinstance(node.func, ast.Attribute) and node.args):
        return None
    first = node.args[0]
    if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
        return None
    inside = re.fullmatch(r"\w+\(([\w:,*&<>]*)\)", first.value)
    kinds = inside.group(1).split(",") if inside else []
    if inside is None or any(re.fullmatch(r"(Exit|Process)\w+", kind) for kind in kinds):
        return f"{first.value!r} is no signature: finished(int,QProcess::ExitStatus)"
    return None


@rule(
    bad=("b.clicked.connect(lambda i=5: f(i))", 'connect(b, "clicked", lambda i=5: f(i))'),
    good=("b.clicked.connect(lambda _=False, i=5: f(i))", "b.clicked.connect(lambda: f(5))"),
)
def signals_do_not_fill_defaults(node, _parents):
    """What the signal brings lands in the first default."""
    for given in node.args if _is_call(node, "connect") else ():
        if isinstance(given, ast.Lambda) and given.args.defaults:
            names = [one.arg for one in given.args.args]
            if len(names) == len(given.args.defaults) and not names[0].startswith("_"):
                return f"the signal's own value lands in {names[0]}: begin with _=None"
    return None


@rule(bad=("import threading", "from concurrent.futures import ThreadPoolExecutor"), good=("import json",))
def no_threads(node, _parents):
    """While Slicer's event loop idles, a Python thread gets nothing."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    if any(name.partition(".")[0] in {"threading", "concurrent", "_thread"} for name in names):
        return "threads starve in Slicer: use the event loop"
    return None


@rule(
    bad=(
        "c = qt.QColor((1, 2, 3))",
        'qt.QDesktopServices.openUrl("a")',
        'w = loader.load("a.ui")',
        'c.addItems("abc")',
    ),
    good=(
        "c = qt.QColor(1, 2, 3)",
        "qt.QDesktopServices.openUrl(qt.QUrl(a))",
        "w = loader.load(file)",
        "c.addItems([a])",
    ),
)
def arguments_of_the_right_kind(node, _parents):
    """Silently black, silently nothing, three items instead of one."""
    if not isinstance(node, ast.Call) or not node.args:
        return None
    first, name = node.args[0], _name(node)
    if name == "QColor" and isinstance(first, ast.Tuple):
        return "QColor(r, g, b): a tuple is black"
    if name in {"openUrl", "load", "addItems", "setIcon"} and isinstance(first, ast.Constant):
        return f"{name} does not take a text"
    return None


@rule(
    bad=("n = sys.stdout.fileno()", "sys.stdout.buffer.write(b'')", "faulthandler.enable()"),
    good=("print('x')", "sys.stdout.write('x')"),
)
def stdout_is_slicers(node, _parents):
    """Slicer's sys.stdout is its Python console."""
    if isinstance(node, ast.Attribute) and node.attr in {"buffer", "fileno", "encoding"}:
        stream = ast.unparse(node.value)
        return f"{stream} has no {node.attr} in Slicer" if stream in {"sys.stdout", "sys.stderr"} else None
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "faulthandler.enable":
        return "faulthandler.enable() raises in Slicer"
    return None


@rule(bad=("label.text = None", "label.toolTip = None"), good=('label.text = ""', "self._pixmap = None"))
def no_none_in_texts(node, _parents):
    """The label shows "None"."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is None:
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr in {"text", "toolTip", "plainText", "title"}:
                return f"{target.attr} = None shows the word None"
    return None


@rule(bad=("m = qt.QSharedMemory('a')",), good=("f = qt.QFile('a')",))
def no_shared_memory(node, _parents):
    """Its memory cannot be reached."""
    if isinstance(node, ast.Attribute) and node.attr == "QSharedMemory":
        return "QSharedMemory cannot be used"
    return None
