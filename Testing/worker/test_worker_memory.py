"""Before a session is opened, what it needs is compared with the memory there is."""

import pytest
import torch
from medsam2_core.engine.catalogue import Catalogue
from medsam2_core.worker import system
from support.errors import raises

CPU = torch.device("cpu")
VOLUME = 200_000_000  # bytes


@pytest.fixture
def machine(monkeypatch):
    """A computer with as much memory as the test says."""

    def with_memory(free, total):
        facts = {"name": "cpu", "title": "a processor", "free_bytes": free, "total_bytes": total}
        monkeypatch.setattr(system, "device_facts", lambda device: facts)

    return with_memory


def test_what_fits_needs_no_word(machine):
    needed = Catalogue.load().find("embedded").needed_bytes(VOLUME)
    machine(free=needed, total=2 * needed)
    assert system.check_memory("embedded", CPU, VOLUME) == ""


def test_more_than_is_free_is_a_warning_with_the_figures(machine):
    needed = Catalogue.load().find("sam2.1-large").needed_bytes(VOLUME)
    machine(free=needed - 1, total=needed)
    text = system.check_memory("sam2.1-large", CPU, VOLUME)
    assert f"{needed / 1e9:.1f} GB" in text


def test_more_than_there_is_is_refused(machine):
    needed = Catalogue.load().find("sam2.1-large").needed_bytes(VOLUME)
    machine(free=1_000_000, total=needed - 1)
    with raises("memory-too-small", model="sam2.1-large", needed_bytes=needed, total_bytes=needed - 1):
        system.check_memory("sam2.1-large", CPU, VOLUME)


def test_the_need_grows_with_the_side_of_the_image(machine):
    entry = Catalogue.load().find("sam2.1-tiny")
    own, half, double = (entry.needed_bytes(VOLUME, size) for size in (1024, 512, 2048))
    assert own == entry.needed_bytes(VOLUME) and half < own < double
    assert half == pytest.approx(Catalogue.load().find("sam2.1-tiny-512").needed_bytes(VOLUME), rel=0.15)
    machine(free=double - 1, total=double - 1)
    assert system.check_memory("sam2.1-tiny", CPU, VOLUME) == ""
    with raises("memory-too-small", needed_bytes=double):
        system.check_memory("sam2.1-tiny", CPU, VOLUME, 2048)


def test_nothing_is_known_of_a_file_of_the_users(machine, tmp_path):
    machine(free=1, total=1)
    (tmp_path / "mine.pt").write_bytes(b"")
    assert system.check_memory(tmp_path / "mine.pt", CPU, VOLUME) == ""
