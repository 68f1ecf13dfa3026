"""The worker's own Python environment: planned, made by uv from pinned lists, tried, repaired, removed.

Begin with ``RuntimeInstaller``. ``probe.py``, ``helper.py`` and ``collect.py`` run in other interpreters.
"""
