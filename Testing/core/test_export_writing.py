"""Files appear whole or not at all, where and as they were asked for."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from medsam2_core import atomic, export
from medsam2_core.errors import ExportError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segment, Segmentation
from support.errors import raises
from support.objects import a_geometry, a_segmentation

VOLUME_SUFFIXES = export.SUFFIXES[:-1]


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["x.stl", "x", "x.gz", "x.seg", "x.nrrd.txt", ".nrrd", "x.dcm"])
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path, name):
    with raises("unknown-format", ExportError):
        export.write(a_segmentation(), tmp_path / name)


def test_the_name_may_be_in_capitals(tmp_path):
    path = export.write(a_segmentation(), str(tmp_path / "X.SEG.NRRD")).path
    assert b"Segment0_Name:=liver" in path.read_bytes()


def test_nothing_is_overwritten_unless_allowed(tmp_path):
    path = tmp_path / "x.seg.nrrd"
    path.write_text("precious")
    with raises("output-exists", ExportError):
        export.write(a_segmentation(), path)
    assert path.read_text() == "precious"
    export.write(a_segmentation(), path, overwrite=True)
    assert path.read_bytes().startswith(b"NRRD")
    assert names_in(tmp_path) == ["x.seg.nrrd"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "x.bin"
    with raises("output-exists", ExportError), atomic.new_file(path, overwrite=False) as stream:
        stream.write(b"ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert names_in(tmp_path) == ["x.bin"]


def test_a_link_to_nowhere_counts_as_a_file(tmp_path):
    path = tmp_path / "x.nrrd"
    path.symlink_to(tmp_path / "gone.nrrd")
    with raises("output-exists", ExportError):
        export.write(a_segmentation(), path)


def test_folders_are_neither_made_nor_replaced(tmp_path):
    with raises("output-folder-missing", ExportError):
        export.write(a_segmentation(), tmp_path / "missing" / "x.nrrd")
    (tmp_path / "folder.nrrd").mkdir()
    with raises("output-is-folder", ExportError):
        export.write(a_segmentation(), tmp_path / "folder.nrrd", overwrite=True)


def test_everything_that_can_be_known_before_is_reported_before_the_work(tmp_path):
    export.check(tmp_path / "x.seg.nrrd", a_geometry())
    export.check(tmp_path / "x.png", Geometry.for_picture(5, 6))
    (tmp_path / "old.nrrd").touch()
    export.check(tmp_path / "old.nrrd", a_geometry(), overwrite=True)
    for name in ("x.stl", "x.png", "old.nrrd", "missing/x.nrrd"):
        with pytest.raises(ExportError):
            export.check(tmp_path / name, a_geometry())


def test_no_object_is_nothing_to_write(tmp_path):
    with raises("no-segments", ExportError):
        export.write(Segmentation(a_geometry()), tmp_path / "x.nrrd")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_an_error_on_the_way_leaves_nothing_behind(tmp_path, monkeypatch, suffix, error):
    old = tmp_path / f"old{suffix}"
    old.write_text("precious")
    original = Segmentation.label_slice

    def interrupted(self, k, numbers=None):
        if k == 5:
            raise error
        return original(self, k, numbers)

    monkeypatch.setattr(Segmentation, "label_slice", interrupted)
    expected = ExportError if isinstance(error, OSError) else error
    for path in (old, tmp_path / f"new{suffix}"):
        with pytest.raises(expected):
            export.write(a_segmentation(), path, overwrite=True)
    assert names_in(tmp_path) == [f"old{suffix}"]
    assert old.read_text() == "precious"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent to a process by another way on Windows")
def test_ctrl_c_in_the_middle_of_a_large_file_leaves_nothing_behind(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from medsam2_core import export\n"
        "from medsam2_core.imaging.geometry import Geometry\n"
        "from medsam2_core.imaging.segmentation import Segmentation\n"
        "noise = np.random.default_rng(0).random((400, 256, 256)) < 0.5\n"
        "segmentation = Segmentation.from_masks(Geometry(np.eye(4), (256, 256, 400)), {'noise': noise})\n"
        "export.write(segmentation, sys.argv[1])\n"
    )
    target = tmp_path / "large.seg.nrrd"
    process = subprocess.Popen([sys.executable, "-c", program, str(target)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".large*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "finished before it could be interrupted"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert names_in(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_without_permission_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with raises("output-not-writable", ExportError):
        export.write(a_segmentation(), tmp_path / "x.nrrd")


@pytest.mark.skipif(os.name == "nt", reason="permissions are of another kind on Windows")
def test_files_get_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = export.write(a_segmentation(), tmp_path / "x.seg.nrrd").path
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz", ".mha"])
def test_memory_stays_flat_while_a_deep_scan_is_written(tmp_path, suffix):
    mask = np.zeros((400, 256, 256), dtype=bool)
    mask[100:160, 50:120, 60:150] = True
    tube = np.zeros_like(mask)
    tube[::100, 80:90, 80:90] = True
    segments = (Segment("block", (1, 0, 0), mask), Segment("tube", (0, 1, 0), tube))
    segmentation = Segmentation(Geometry(np.eye(4), (256, 256, 400)), segments)
    tracemalloc.start()
    export.write(segmentation, tmp_path / f"deep{suffix}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6, f"{peak / 1e6:.1f} MB to write 26 MB of labels"
