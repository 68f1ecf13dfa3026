"""Workers that end with their test."""

import pytest
from support.supervised_worker import SupervisedWorker, fake_worker


@pytest.fixture
def supervised():
    """Makes supervised workers of a command; they and all they started are ended after the test."""
    made = []

    def make(command=None, **options):
        made.append(SupervisedWorker(fake_worker() if command is None else command, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.close()
