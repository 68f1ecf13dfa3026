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


# Files that take half a minute or more. They begin first, so that no process waits at the end for another.
_LONG = (
    *("test_runtime_real", "test_worker_training", "test_training_finetune", "test_slicer_auto_end_to_end"),
    *("test_auto_training", "test_session_prompts", "test_campaign_training", "test_campaign_kills"),
    *("test_worker_campaign_kills", "test_runtime_faults", "test_project_style", "test_cli_segment"),
    *("test_auto_texture", "test_slicer_fine_tuning_end_to_end", "test_docs_finetune", "test_worker_auto"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, and mark the tests whose length depends on the campaign, for `Testing/campaign.py`."""
    items.sort(key=lambda item: item.path.stem not in _LONG)
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
