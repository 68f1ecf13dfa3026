"""Small errands of the runtime's installer, run in a process of their own so that Slicer never waits.

    helper.py unpack-uv FOLDER TARGET   take the program uv out of the one wheel in FOLDER
    helper.py remove PATH …             delete folders and files, whatever their permissions
    helper.py watch FOLDER              print its size in megabytes every two seconds, until the parent ends

Standard library only; any Python 3.9 or newer runs it. Ends with 0, or with 1 and a line with the reason.
"""

import os
import secrets
import shutil
import stat
import sys
import time
import zipfile
from pathlib import Path


def unpack_uv(folder: str, target: str) -> None:
    """Put the program of a uv wheel, whose content pip has checked, into the folder ``target``."""
    wheels = sorted(Path(folder).glob("uv-*.whl"))
    if not wheels:
        raise OSError(f"there is no wheel of uv in {folder}")
    with zipfile.ZipFile(wheels[-1]) as archive:
        names = [name for name in archive.namelist() if name.endswith(("/scripts/uv", "/scripts/uv.exe"))]
        if len(names) != 1:
            raise OSError(f"{wheels[-1].name} does not hold the program uv")
        program = Path(target) / names[0].rpartition("/")[2]
        program.parent.mkdir(parents=True, exist_ok=True)
        temporary = program.with_name(f".{program.name}.{secrets.token_hex(3)}")
        with archive.open(names[0]) as source, temporary.open("xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    temporary.chmod(0o755)
    temporary.replace(program)


def remove(path: str) -> None:
    """Delete a folder or a file; nothing when it is not there."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
        return
    for attempt in range(3):
        if not os.path.lexists(path):
            return
        # Read-only files, and on Windows files a virus scanner still reads.
        shutil.rmtree(path, onerror=_make_writable_and_retry if attempt < 2 else _refuse)
        if os.path.lexists(path):
            time.sleep(0.5)


def _make_writable_and_retry(function, path, _failure) -> None:
    try:
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        os.chmod(path, stat.S_IRWXU)
        function(path)
    except OSError:
        pass  # the next attempt tries again, and the last one raises


def _refuse(_function, path, failure) -> None:
    error = failure[1]
    raise error if isinstance(error, OSError) else OSError(f"{path} cannot be deleted")


def watch(folder: str) -> None:
    """Print the size of a folder again and again; ends when its output is closed or its parent has ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        print(megabytes(folder), flush=True)
        time.sleep(2)


def megabytes(folder: str) -> int:
    """Return the size of a folder's files; files that vanish meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return round(total / 1e6)


def main(arguments: "list[str]") -> int:
    """Run one errand."""
    errand, *values = arguments or [""]
    try:
        if errand == "unpack-uv":
            unpack_uv(*values)
        elif errand == "remove":
            for path in values:
                remove(path)
        elif errand == "watch":
            watch(*values)
        else:
            raise OSError(f"unknown errand {errand!r}")
    except (OSError, zipfile.BadZipFile) as error:
        print(f"{error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
