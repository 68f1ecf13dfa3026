"""The variables child processes get: the user's, without what belongs to Slicer's Python and libraries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# What makes another Python load Slicer's modules or libraries. DYLD_… by prefix.
_SLICERS = {
    *(
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONEXECUTABLE",
        "PYTHONPLATLIBDIR",
        "PYTHONNOUSERSITE",
    ),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "LIBPATH", "SHLIB_PATH", "__PYVENV_LAUNCHER__"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "QT_PLUGIN_PATH", "ITK_AUTOLOAD_PATH"),
}


def cleanedEnvironment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those that would make another Python load Slicer's libraries."""
    kept = {}
    for name, value in environment.items():
        key = name.upper() if os.name == "nt" else name
        if key not in _SLICERS and not key.startswith("DYLD_"):
            kept[name] = value
    return kept


def workerEnvironment(base: Mapping[str, str], extension: Path) -> dict[str, str]:
    """The worker's environment: ``medsam2_core`` is imported from the extension, whose files are not installed."""
    return {
        **base,
        "PYTHONPATH": os.fspath(extension),
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
    }
