"""Environment variables of child processes: the user's, without Slicer's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from MedSAM2SegmentLib.i18n import _

# These, and DYLD_… on a Mac, make another Python load Slicer's modules or libraries.
_SLICER_VARIABLES = set(
    [
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONEXECUTABLE",
        "PYTHONPLATLIBDIR",
        "PYTHONNOUSERSITE",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LIBPATH",
        "SHLIB_PATH",
        "__PYVENV_LAUNCHER__",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "CONDA_DEFAULT_ENV",
        "QT_PLUGIN_PATH",
        "ITK_AUTOLOAD_PATH",
    ]
)
# These refer to a project in the current folder, or to an environment other than the requested one.
_UV_TARGETS = ("UV_PROJECT_ENVIRONMENT", "UV_SYSTEM_PYTHON", "UV_BREAK_SYSTEM_PACKAGES", "UV_TARGET")
# Sources of packages: pip's variable, uv's, and the former name of uv's.
_SOURCES = (
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    ("PIP_NO_INDEX", "UV_NO_INDEX"),
)
_SOURCE_NAMES = [name for names in _SOURCES for name in names]


def cleanedEnvironment(environment: Mapping[str, str]) -> dict[str, str]:
    """Remove the variables that would make another Python load Slicer's libraries.

    Folders of Slicer's installation are also removed from the PATH, so that its Python is not found.
    """
    cleaned = {}
    for name, value in environment.items():
        key = name.upper() if os.name == "nt" else name
        if key == "PATH":
            cleaned[name] = _withoutSlicer(value, environment.get("SLICER_HOME"))
        elif key not in _SLICER_VARIABLES and not key.startswith("DYLD_"):
            cleaned[name] = value
    return cleaned


def _withoutSlicer(path: str, slicerHome: str | None) -> str:
    if not slicerHome:
        return path
    home = os.path.normcase(os.path.abspath(slicerHome))
    folders = [os.path.normcase(os.path.abspath(one)) for one in path.split(os.pathsep) if one]
    return os.pathsep.join(one for one in folders if one != home and not one.startswith(home + os.sep))


def workerEnvironment(base: Mapping[str, str], extension: Path) -> dict[str, str]:
    """Return the worker's environment: ``medsam2_core`` is imported from the extension's folder."""
    switches = ("PYTHONNOUSERSITE", "PYTHONSAFEPATH", "PYTHONUTF8", "PYTHONUNBUFFERED")
    return {**base, "PYTHONPATH": os.fspath(extension), **dict.fromkeys(switches, "1")}


def toolEnvironment(base: Mapping[str, str], *, offline: bool) -> dict[str, str]:
    """Return the environment of pip and uv.

    Index, certificates and proxy that are set for one of them are also set for the other, unless it has its
    own. With ``offline``, all sources of packages are removed.
    """
    switches = ("PYTHONUTF8", "PYTHONNOUSERSITE", "NO_COLOR", "PIP_NO_INPUT", "PIP_DISABLE_PIP_VERSION_CHECK")
    variables = {**base, **dict.fromkeys((*switches, "UV_NO_PROGRESS"), "1")}
    for name in _UV_TARGETS if not offline else (*_UV_TARGETS, *_SOURCE_NAMES):
        variables.pop(name, None)
    if offline:
        return variables
    for pipName, uvName, *former in _SOURCES:
        named = [
            variables.get(uvName),
            *(variables.pop(name, None) for name in former),
            variables.get(pipName),
        ]
        value = next(filter(None, named), None)
        if value is None:
            continue
        isFolders = uvName == "UV_FIND_LINKS"  # separated by blanks for pip and by commas for uv
        if uvName == "UV_INDEX" and not variables.get(uvName):
            # as pip does; contents are pinned by hashes anyway
            variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
        variables.setdefault(uvName, ",".join(value.split()) if isFolders else value)
        variables.setdefault(pipName, " ".join(value.split(",")) if isFolders else value)
    if proxy := variables.get("PIP_PROXY"):
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            if name.lower() not in variables:
                variables.setdefault(name, proxy)
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.path.isfile(variables.get(name, "")):
            variables.setdefault("SSL_CERT_FILE", variables[name])
    return variables


def hasOwnSources(base: Mapping[str, str]) -> bool:
    """Return whether the user has set a source of packages."""
    return any(base.get(name) for name in _SOURCE_NAMES)


def sourceTitle(base: Mapping[str, str], offlineFolder: Path | None) -> str:
    """Describe the source of packages, without addresses, which may contain passwords."""
    if offlineFolder is not None:
        return _("the folder {folder}, nothing from the network").format(folder=offlineFolder)
    title = _("the Python Package Index and PyTorch's own")
    if named := [name for name in _SOURCE_NAMES if base.get(name)]:
        title = _("what the environment sets in {names}").format(names=", ".join(named))
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "PIP_PROXY") if base.get(name)]
    if not proxies:
        return title
    return _("{source}, through the proxy in {variable}").format(source=title, variable=proxies[0])
