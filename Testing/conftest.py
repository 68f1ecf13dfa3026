"""What every test may ask for: where the real data lies, and how large a campaign is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def _folder_from_environment(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{what} not found: set {variable} to its folder (now {folder!r})")
    return Path(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real CT, MR, ultrasound, fundus and DICOM cases; never part of the repository."""
    return _folder_from_environment("MEDSAM2_TEST_DATA", "real test data")


@pytest.fixture(scope="session")
def training_data() -> Path:
    """Real labelled images and anatomy label maps the embedded model is trained on."""
    return _folder_from_environment("MEDSAM2_TRAIN_DATA", "real training data")


@pytest.fixture(scope="session")
def checkpoint_schemas() -> Path:
    """Names, shapes and dtypes of published checkpoints, as TSV files."""
    return _folder_from_environment("MEDSAM2_TEST_SCHEMAS", "published checkpoint schemas")


@pytest.fixture(scope="session")
def campaign() -> int:
    """Factor by which randomised tests repeat; 1 in `make test`, larger in `make campaign`."""
    return int(os.environ.get("MEDSAM2_CAMPAIGN", "1"))


@pytest.fixture(scope="session", autouse=True)
def _two_threads_at_most() -> None:
    """Keep tests on shared machines polite and their timing stable."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of small tensors more threads only make more work: for files with hundreds of small computations."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
