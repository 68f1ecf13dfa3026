"""Fixtures for every test: where the real data is, and how long a campaign runs."""

import os
from pathlib import Path

import pytest

# Tests run in one process per core: more threads in each, or in the workers they start, would only compete.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `Testing/campaign.py` runs: every test whose length depends on the campaign."""
    for item in items:
        if "campaign" in getattr(item, "fixturenames", ()):
            item.add_marker("campaign")


@pytest.fixture(scope="session")
def campaign() -> int:
    """Factor by which randomised tests repeat; 1 in `make test`, larger in `make campaign`."""
    return int(os.environ.get("MEDSAM2_CAMPAIGN", "1"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Sums of several threads may differ in the last bit; and whatever a test before has set."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
