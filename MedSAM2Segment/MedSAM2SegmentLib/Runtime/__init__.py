"""The worker's Python environment: planned, installed by uv from pinned lists, tested, repaired, removed.

Start with ``RuntimeInstaller``. ``probe.py``, ``helper.py`` and ``collect.py`` run in other interpreters.
"""
