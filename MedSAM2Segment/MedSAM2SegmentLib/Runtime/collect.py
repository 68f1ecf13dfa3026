"""Fill a folder from which the runtime can be installed on a computer without a network.

    python collect.py FOLDER [pip options]

Run it on a computer with a network, of the same kind and with the same Python version (3.10 to 3.13) as the
one without. Add pip options that select a suitable build of PyTorch, such as an index of CPU builds. Requires
pip and setuptools. Packages in the pinned lists beside this file are verified by their hashes; of PyTorch,
whose builds differ, only the version is pinned.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def download(folder: Path, *arguments: str) -> None:
    """Download with pip without dependencies, since the lists are complete."""
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--dest", str(folder), *arguments], check=True)


def main(arguments: "list[str]") -> int:
    """Download everything."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 1
    folder, options = Path(arguments[0]), arguments[1:]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("build.lock", "requirements.lock", "sam2.txt"):
        download(folder, "--require-hashes", "-r", str(HERE / name))
    download(folder, "--require-hashes", "--only-binary", ":all:", "-r", str(HERE / "uv.txt"))
    text = (HERE / "torch.lock").read_text(encoding="utf-8")
    torch = re.search(r"^torch==[\w.]+", text, re.MULTILINE).group()
    # With dependencies: CUDA builds need NVIDIA's libraries.
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--dest", str(folder)]
    subprocess.run([*pip, "--find-links", str(folder), *options, torch], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
