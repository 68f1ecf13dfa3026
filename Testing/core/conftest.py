"""Fixtures of the tests of the command line: the program, a model, a scan, a folder for results."""

from collections.abc import Callable
from pathlib import Path

import pytest
from medsam2_core.imaging.volume import Volume
from support.command_line import CommandLine, a_scan, write_photo, write_scan, write_untrained_model


@pytest.fixture
def medsam2(capsys) -> CommandLine:
    """The program `medsam2`, in this process."""
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A checkpoint of the embedded model's architecture and name, never trained."""
    return write_untrained_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def auto_model(tmp_path_factory, model) -> Path:
    """An Auto model for `model`, trained for one step."""
    from medsam2_core.cli import main
    from support.labelled_images import write_pictures

    folder = tmp_path_factory.mktemp("auto")
    words = ["train", "auto", write_pictures(folder / "data", 3), "--out", folder / "m.medsam2auto"]
    words += ["--steps", 1, "--folds", 0, "--image-size", 64, "--base", model]
    assert main([str(word) for word in words]) == 0
    return folder / "m.medsam2auto"


@pytest.fixture(scope="session")
def volume() -> Volume:
    """A bright ball in noise."""
    return a_scan()


@pytest.fixture
def scan(tmp_path) -> Path:
    """The same as a file."""
    return write_scan(tmp_path / "scan.nrrd")


@pytest.fixture
def photo(tmp_path) -> Path:
    """A slice of it as a picture."""
    return write_photo(tmp_path / "photo.png")


@pytest.fixture
def results(tmp_path) -> Path:
    """An empty folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def never(monkeypatch) -> Callable[..., None]:
    """Makes functions fail that need not have been called any more."""

    def forbid(*names: str) -> None:
        def fail(*_args, **_options):
            raise AssertionError("too late: this was known before")

        for name in names:
            monkeypatch.setattr(name, fail)

    return forbid
