"""Small errands for the runtime's installer, run in a process of their own so that Slicer never waits.

    helper.py unpack-uv FOLDER TARGET   take the program uv out of the one wheel in FOLDER
    helper.py remove PATH …             delete folders and files, whatever their permissions
    helper.py watch FOLDER              print its size in megabytes every two seconds, until nobody listens

Standard library only; any Python 3.9 or newer runs it. Ends with 0, or with 1 and a line that says why.
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
        raise OSError(f"no wheel of uv lies in {folder}")
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
    for last in (False, False, True):
        if not os.path.lexists(path):
            return
        # Read-only files, and on Windows files a virus scanner still looks at.
        shutil.rmtree(path, onerror=_retry if not last else _refuse)
        if os.path.lexists(path):
            time.sleep(0.5)


def _retry(function, path, _failure) -> None:
    try:
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        os.chmod(path, stat.S_IRWXU)
        function(path)
    except OSError:
        pass  # the next round tries again, and the last one tells


def _refuse(_function, path, failure) -> None:
    error = failure[1]
    raise error if isinstance(error, OSError) else OSError(f"{path} cannot be deleted")


def watch(folder: str) -> None:
    """Print what a folder takes up, again and again; ends when its output is closed or its parent is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        print(megabytes(folder), flush=True)
        time.sleep(2)


def megabytes(folder: str) -> int:
    """What the files of a folder take up; files that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return round(total / 1e6)


def main(words: "list[str]") -> int:
    """Run one errand."""
    try:
        if words[:1] == ["unpack-uv"]:
            unpack_uv(*words[1:3])
        elif words[:1] == ["remove"]:
            for path in words[1:]:
                remove(path)
        elif words[:1] == ["watch"]:
            watch(words[1])
        else:
            raise OSError(f"unknown errand {words[:1]}")
    except (OSError, zipfile.BadZipFile) as error:
        print(f"{error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
