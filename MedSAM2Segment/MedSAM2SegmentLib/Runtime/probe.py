"""Check whether an interpreter can run the worker: import its packages, compute, print one line of JSON.

    probe.py            imports and a tiny computation
    probe.py --files    also checks that every installed file exists and has the right size

Runs in any Python. A problem is printed in one line, with exit code 1.
"""

import json
import os
import platform
import sys
import sysconfig

OLDEST = (3, 10)


def versions() -> "dict[str, str]":
    """Import what the worker needs, compute something, and return the versions."""
    from importlib.metadata import PackageNotFoundError, version

    import numpy
    import sam2
    import torch
    from medsam2_core import session
    from medsam2_core.engine.model import build_module
    from medsam2_core.version import __version__

    if session.__file__ is None or sam2.__file__ is None:
        raise ImportError("sam2 or medsam2_core is an empty folder")
    with torch.no_grad():
        product = torch.ones(4, 4) @ torch.ones(4, 4)
        if float(product.sum()) != 64.0:
            raise ImportError("torch computes wrong results")
        build_module("embedded")
    device = "cpu"
    if torch.cuda.is_available():
        float(torch.ones(4, device="cuda").sum())
        device = "cuda"
    elif torch.backends.mps.is_available():
        device = "mps"
    try:
        sam2_version = version("sam2")
    except PackageNotFoundError:
        sam2_version = "of unknown version"
    return {
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "basePython": getattr(sys, "_base_executable", sys.executable),
        "torch": torch.__version__,
        "sam2": sam2_version,
        "numpy": numpy.__version__,
        "medsam2": __version__,
        "device": device,
    }


def damaged_files() -> "list[str]":
    """Return the installed files of this environment that are missing or have another size.

    Packages on PYTHONPATH are not part of the environment, although a source tree may have metadata.
    """
    from importlib.metadata import distributions

    wrong = []
    folders = sorted({sysconfig.get_path(one) for one in ("purelib", "platlib")})
    entries = (entry for one in distributions(path=folders) for entry in one.files or ())
    for entry in entries:
        if entry.name.endswith(".pyc"):
            continue
        path = entry.locate()
        if not path.exists():
            wrong.append(f"{entry} is gone")
        elif entry.size is not None and path.stat().st_size != entry.size:
            wrong.append(f"{entry} has {path.stat().st_size} bytes instead of {entry.size}")
    return wrong


def main(arguments: "list[str]") -> int:
    """Print the versions or the problem; return the exit code."""
    if sys.version_info < OLDEST:
        print(f"Python {platform.python_version()} is too old: 3.10 or newer is needed")
        return 1
    if "--files" in arguments and (wrong := damaged_files()):
        print(f"{len(wrong)} installed files are damaged: {'; '.join(wrong[:3])}")
        return 1
    try:
        found = versions()
    except Exception as error:  # a damaged library may raise anything
        print(f"{type(error).__name__}: {error}")
        return 1
    if "--files" in arguments and hasattr(os, "sync"):
        os.sync()  # the environment is declared complete next, also after a power cut
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
