"""Slicer's module `qt`, made of PySide6: properties are attributes as in Slicer, and nothing is on a screen.

What PySide6 does and PythonQt does not (keyword arguments, `bytes(QByteArray)`, …) it cannot show;
test_lib_pythonqt.py reads the code for that.
"""

import contextlib
import ctypes
import os
import sys
import time
import types
from collections.abc import Iterator

import pytest


def installed() -> types.ModuleType:
    """The stand-in, in `sys.modules` under the name `qt`; the same one every time. Skips without PySide6."""
    present = sys.modules.get("qt")
    if present is not None:
        return present
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("PySide6.QtWidgets")
    from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

    with _only_plain_modules():
        # PySide6 remembers this for the module it stands in, and keeps to it in those that import only `qt`.
        from __feature__ import true_property  # noqa: F401  isort: skip

    _keep_none_alive()

    module = types.ModuleType("qt")
    for source in (QtCore, QtGui, QtWidgets, QtUiTools):
        for name in dir(source):
            if not name.startswith("_"):
                setattr(module, name, getattr(source, name))
    sys.modules["qt"] = module
    return module


@contextlib.contextmanager
def _only_plain_modules() -> Iterator[None]:
    """While PySide6 reads the source of every module there is: some of torch's answer with an error."""
    odd = {name: module for name, module in sys.modules.items() if type(module) is not types.ModuleType}
    odd = {name: module for name, module in odd.items() if name.partition(".")[0] == "torch"}
    for name in odd:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(odd)


def _keep_none_alive() -> None:
    """With this feature, PySide6 gives up a reference to None that is not its own in every call.

    Before Python 3.12, which counts no references to None, a test of some minutes would end the interpreter.
    """
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def application():
    """The one application of this process."""
    qt = installed()
    return qt.QApplication.instance() or qt.QApplication(["tests"])


def wait_for(condition, seconds=20.0) -> bool:
    """Let Qt work until something is so; whether it came to be."""
    app = application()
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        app.processEvents()
        time.sleep(0.001)
    return True
