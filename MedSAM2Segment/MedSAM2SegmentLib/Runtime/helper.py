"""Small tasks of the runtime's installer, run in a separate process so that Slicer does not block.

    helper.py unpack-uv FOLDER TARGET   extract the program uv from the wheel in FOLDER
    helper.py remove PATH …             delete folders and files, also read-only ones
    helper.py watch FOLDER              print its size in megabytes every two seconds, until the parent ends

Standard library only, for any Python from 3.9. Exits with 0, or with 1 and one line with the reason.
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
    """Extract the program from a uv wheel, which pip has verified, into the folder ``target``."""
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
    """Delete a folder or a file, if it exists."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
        return
    for attempt in range(3):
        if not os.path.lexists(path):
            return
        # Retried for read-only files and, on Windows, files being read by a virus scanner.
        shutil.rmtree(path, onerror=_make_writable_and_retry if attempt < 2 else _refuse)
        if os.path.lexists(path):
            time.sleep(0.5)


def _make_writable_and_retry(function, path, _failure) -> None:
    try:
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        os.chmod(path, stat.S_IRWXU)
        function(path)
    except OSError:
        pass  # tried again; the last attempt raises


def _refuse(_function, path, failure) -> None:
    error = failure[1]
    raise error if isinstance(error, OSError) else OSError(f"{path} cannot be deleted")


def watch(folder: str) -> None:
    """Print the size of a folder periodically, until the output is closed or the parent has ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        print(megabytes(folder), flush=True)
        time.sleep(2)


def megabytes(folder: str) -> int:
    """Return the total size of the files in a folder, ignoring files that vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return round(total / 1e6)


def main(arguments: "list[str]") -> int:
    """Run one task."""
    task, *values = arguments or [""]
    try:
        if task == "unpack-uv":
            unpack_uv(*values)
        elif task == "remove":
            for path in values:
                remove(path)
        elif task == "watch":
            watch(*values)
        else:
            raise OSError(f"unknown task {task!r}")
    except (OSError, zipfile.BadZipFile) as error:
        print(f"{error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
