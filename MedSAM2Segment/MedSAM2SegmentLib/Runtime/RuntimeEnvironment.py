"""The variables child processes get: the user's, without what belongs to Slicer's Python and libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# What makes another Python load Slicer's modules or libraries. DYLD_… goes by its beginning.
_SLICERS = {
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR"),
    *("PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBPATH", "SHLIB_PATH", "__PYVENV_LAUNCHER__"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "QT_PLUGIN_PATH", "ITK_AUTOLOAD_PATH"),
}
# Where packages come from, in the words of pip and of uv; the first is taken unless the second is set.
_PIP_AS_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_NO_INDEX": "UV_NO_INDEX",
}
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Older uv knew other names for two of them.
_OLD_UV = {"UV_INDEX_URL": "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL": "UV_INDEX"}
_SOURCES = (*_PIP_AS_UV, *_PIP_AS_UV.values(), *_OLD_UV)


def cleanedEnvironment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those that would make another Python load Slicer's libraries.

    Folders of Slicer's own installation are taken off the PATH, so that its Python is not found there.
    """
    kept = {}
    for name, value in environment.items():
        key = name.upper() if os.name == "nt" else name
        if key == "PATH":
            kept[name] = _withoutSlicer(value, environment.get("SLICER_HOME"))
        elif key not in _SLICERS and not key.startswith("DYLD_"):
            kept[name] = value
    return kept


def _withoutSlicer(path: str, slicerHome: str | None) -> str:
    if not slicerHome:
        return path
    home = os.path.normcase(os.path.abspath(slicerHome))
    folders = [os.path.normcase(os.path.abspath(one)) for one in path.split(os.pathsep) if one]
    kept = [one for one in folders if one != home and not one.startswith(home + os.sep)]
    return os.pathsep.join(kept)


def workerEnvironment(base: Mapping[str, str], extension: Path) -> dict[str, str]:
    """The worker's environment: ``medsam2_core`` is imported from the extension's folder, not installed."""
    return {
        **base,
        "PYTHONPATH": os.fspath(extension),
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
    }


def uvEnvironment(base: Mapping[str, str], *, offline: bool) -> dict[str, str]:
    """What uv runs with: index, certificates and proxy as the usual variables say, in uv's words."""
    variables = {**base, "PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}
    # Nothing of a project the user may have in the present folder, and nothing but the environment asked for.
    for name in ("UV_PROJECT_ENVIRONMENT", "UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_TARGET"):
        variables.pop(name, None)
    if offline:
        return {name: value for name, value in variables.items() if name not in _SOURCES}
    for old, name in {**_OLD_UV, **_PIP_AS_UV}.items():
        value = variables.pop(old, "")
        if value and name not in variables:
            variables[name] = ",".join(value.split()) if name == "UV_FIND_LINKS" else value
            if name == "UV_INDEX":  # pip looks into all of them; contents are pinned by their hashes anyway
                variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    _addNetwork(variables)
    return variables


def pipEnvironment(base: Mapping[str, str], *, offline: bool) -> dict[str, str]:
    """What Slicer's pip runs with when it fetches uv: the same sources, in pip's words."""
    variables = {**base, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1"}
    variables["PYTHONSAFEPATH"] = "1"  # no modules from the folder Slicer happens to be in
    if offline:
        return {name: value for name, value in variables.items() if name not in _SOURCES}
    for old, name in _OLD_UV.items():
        if value := variables.get(old):
            variables.setdefault(name, value)
    for name, uvName in _PIP_AS_UV.items():
        if value := variables.get(uvName):
            variables.setdefault(name, " ".join(value.split(",")) if name == "PIP_FIND_LINKS" else value)
    _addNetwork(variables)
    return variables


def _addNetwork(variables: dict[str, str]) -> None:
    if proxy := variables.get("PIP_PROXY"):
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            if name.lower() not in variables:
                variables.setdefault(name, proxy)
    for name in _CERTIFICATES:
        if os.path.isfile(variables.get(name, "")):
            variables.setdefault("SSL_CERT_FILE", variables[name])


def hasOwnSources(base: Mapping[str, str]) -> bool:
    """Whether the user says where packages come from."""
    return any(base.get(name) for name in _SOURCES)


def sourceTitle(base: Mapping[str, str], offlineFolder: Path | None) -> str:
    """Where packages come from, in words; never a password in an address."""
    if offlineFolder is not None:
        return f"the folder {offlineFolder}, nothing from the network"
    named = [name for name in _SOURCES if base.get(name)]
    proxied = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "PIP_PROXY") if base.get(name)]
    title = "the Python Package Index and PyTorch's own"
    if named:
        title = f"where {', '.join(named)} say"
    return f"{title}, through the proxy of {proxied[0]}" if proxied else title


def helperPython() -> str:
    """A Python for small errands such as unpacking: Slicer's own, which nothing is installed into."""
    import shutil

    return shutil.which("PythonSlicer") or sys.executable
