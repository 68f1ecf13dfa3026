"""Errors in observers, which VTK would only print."""

import sys
from contextlib import contextmanager


@contextmanager
def every_error_shown():
    """What goes wrong in an observer only reaches ``sys.excepthook``: here it fails the test."""
    errors, before = [], sys.excepthook
    sys.excepthook = lambda *error: errors.append(error[1])
    try:
        yield
    finally:
        sys.excepthook = before
    if errors:
        raise errors[0]
