"""Tiny packages under the names of the real ones, so that an installation takes a second."""

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

TORCH = "9.9.9"
_PROBE = """
import json, sys
try:
    import numpy, sam2, torch
    numpy.answer, sam2.answer, torch.answer
    if "--files" in sys.argv:
        import sysconfig
        from importlib.metadata import distributions
        for one in distributions(path=[sysconfig.get_path("purelib")]):
            for entry in one.files or ():
                path = entry.locate()
                if not path.exists() or entry.size not in (None, path.stat().st_size):
                    sys.exit(f"1 installed files are damaged: {entry}")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
found = {"python": sys.version.split()[0], "torch": torch.version, "basePython": sys._base_executable}
print(json.dumps(found))
"""


class WheelFolder:
    """Wheels and one source archive in ``folder``, and the lists that pin them in ``files``."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "offline räder"
        self.files = root / "lists"
        self.folder.mkdir(parents=True)
        self.files.mkdir()
        build = self._wheel("setuptools", "80.0.0", {"tiny_backend.py": _BACKEND, "setuptools.py": ""})
        numpy = self._wheel("numpy", "2.0.0", {"numpy/__init__.py": "answer = 42\n" + "# filler\n" * 2000})
        code = f"answer = 42\nversion = '{TORCH}+cpu'\n"
        torch = self._wheel("torch", f"{TORCH}+cpu", {"torch/__init__.py": code})
        sam2 = self._source("sam2", "1.1.0")
        self._pin("build.lock", "setuptools==80.0.0", build)
        self._pin("requirements.lock", "numpy==2.0.0", numpy)
        self._pin("torch.lock", f"torch=={TORCH}", torch)
        self._pin("sam2.txt", "sam2==1.1.0", sam2)
        (self.files / "uv.txt").write_text("uv==0.0.1 --hash=sha256:" + "0" * 64, encoding="utf-8")
        (self.files / "probe.py").write_text(_PROBE, encoding="utf-8")

    def of(self, name: str) -> Path:
        """The archive of a package."""
        return next(self.folder.glob(f"{name}-*"))

    def _pin(self, name: str, requirement: str, archive: Path) -> None:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        (self.files / name).write_text(f"{requirement} --hash=sha256:{digest}\n", encoding="utf-8")

    def _wheel(self, name: str, version: str, contents: dict[str, str]) -> Path:
        path = self.folder / f"{name}-{version}-py3-none-any.whl"
        path.write_bytes(wheelBytes(name, version, contents))
        return path

    def _source(self, name: str, version: str) -> Path:
        path = self.folder / f"{name}-{version}.tar.gz"
        project = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "tiny_backend"\n'
        files = {
            "pyproject.toml": project + f'[project]\nname = "{name}"\nversion = "{version}"\n',
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        }
        with tarfile.open(path, "w:gz") as archive:
            for file, text in files.items():
                entry = tarfile.TarInfo(f"{name}-{version}/{file}")
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        return path


def wheelBytes(name: str, version: str, contents: dict[str, str]) -> bytes:
    """A wheel of pure Python."""
    info = f"{name}-{version}.dist-info"
    files = {
        **contents,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{file},sha256={digest},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file, (2020, 1, 1, 0, 0, 0)), text)
    return stream.getvalue()


# Builds the source archive as setuptools would, if the build tools and torch are there and CUDA was declined.
_BACKEND = """
import base64, hashlib, os, zipfile
import torch


def build_wheel(folder, config_settings=None, metadata_directory=None):
    assert os.environ["SAM2_BUILD_CUDA"] == "0"
    name = "sam2-1.1.0-py3-none-any.whl"
    info = "sam2-1.1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        archive.writestr("sam2/__init__.py", "answer = 42\\n")
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: sam2\\nVersion: 1.1.0\\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        names = ["sam2/__init__.py", info + "METADATA", info + "WHEEL", info + "RECORD"]
        archive.writestr(info + "RECORD", "".join(f"{one},,\\n" for one in names))
    return name
"""
