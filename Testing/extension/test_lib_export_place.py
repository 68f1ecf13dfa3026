"""What an export keeps for itself goes with it, and with whoever made it."""

import os
import subprocess
import sys
import tempfile
import time

import pytest
from medsam2_core.errors import ExportError
from MedSAM2SegmentLib.Page.ExportSection import ExportFolder, ExportSection, removeAbandoned
from support.errors import raises
from support.page import FakeSettings, FakeWorkers

HOUR_S = 3600


def aged(folder, seconds):
    then = time.time() - seconds
    os.utime(folder, (then, then))
    return folder


def left_by_a_process_that_is_gone(folder):
    """A folder with a list of a patient's files; its process was killed."""
    code = (
        "import os, sys, tempfile\ntempfile.tempdir = sys.argv[1]\n"
        "from MedSAM2SegmentLib.Page.ExportSection import ExportFolder\n"
        "place = ExportFolder()\n(place.path / 'dicom.txt').write_text('/data/Anna')\n"
        "print(place.path, flush=True)\nos._exit(9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    (path,) = folder.glob("medsam2-export-*")
    assert said.stdout.strip() == str(path)
    return path


def test_a_place_is_a_folder_that_can_be_removed(temporary):
    place = ExportFolder()
    place.segmentation.touch()
    assert place.path.parent == temporary
    place.remove()
    assert list(temporary.iterdir()) == []
    place.remove()


def test_what_a_dead_process_left_is_taken_away_when_the_page_is_made(temporary):
    left = aged(left_by_a_process_that_is_gone(temporary), HOUR_S)
    ExportSection(FakeSettings(), FakeWorkers(), None, list)
    assert not left.exists()


def test_what_somebody_works_with_stays(temporary):
    place = ExportFolder()
    aged(place.path, 100 * HOUR_S)
    removeAbandoned()
    assert place.path.exists()
    place.remove()


@pytest.mark.parametrize(("age", "isLeft"), [(HOUR_S, False), (25 * HOUR_S, True)])
def test_without_a_lock_only_what_is_old_is_taken_away(temporary, age, isLeft):
    folder = temporary / "medsam2-export-x"
    folder.mkdir()
    aged(folder, age)
    removeAbandoned()
    assert folder.exists() != isLeft


def test_what_is_just_being_made_and_what_is_not_ours_stays(temporary):
    left = left_by_a_process_that_is_gone(temporary)
    other = temporary / "medsam2-other"
    other.mkdir()
    aged(other, 100 * HOUR_S)
    removeAbandoned()
    assert left.exists()
    assert other.exists()


def test_where_no_folder_can_be_made_it_is_reported(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "gone"))
    with raises("no-temporary-folder", ExportError, folder=str(temporary / "gone")):
        ExportFolder()
    removeAbandoned()
