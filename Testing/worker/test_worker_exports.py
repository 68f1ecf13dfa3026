"""Exports by the worker: commands of their own that no click waits for, one after the other."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from medsam2_core.errors import Cancelled, ExportError, ProtocolError
from medsam2_core.export import write
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.worker.job_messages import ExportRequest
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.protocol import dataclass_from_json
from medsam2_core.worker.subprocesses import Exports, export_arguments
from support.errors import raises
from support.real_worker import RealWorker, a_ball, a_point

ROOT = Path(__file__).resolve().anchor  # an absolute path begins with it


@pytest.fixture
def worker(tmp_path):
    made = RealWorker(tmp_path)
    made.greet()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def ball(tmp_path):
    """A segmentation of a ball, as a file."""
    geometry = a_ball().geometry
    mask_kji = np.zeros(geometry.shape_ijk[::-1], dtype=bool)
    mask_kji[8:12, 20:40, 30:60] = True
    path = tmp_path / "ball.seg.nrrd"
    write(Segmentation.from_masks(geometry, {"ball": mask_kji}), path)
    return path


# By the worker's own process --------------------------------------------------------------------------------


def test_a_segmentation_becomes_a_file_and_no_click_waits_for_it(worker, ball, tmp_path):
    out, figures = tmp_path / "ball.nii.gz", tmp_path / "ball.json"
    number = worker.send("export", segmentation=str(ball), out=str(out), measurements=str(figures))
    worker.answer(worker.give(a_ball()))
    worker.open()
    worker.records(worker.set_prompts("a", 12, a_point(50, 40, 12)))
    result = worker.answer(number).header
    assert result["type"] == "result", result
    assert result["out"] == str(out)
    assert result["bytes"] == out.stat().st_size
    (segment,) = result["segments"]
    assert segment["name"] == "ball"
    assert segment["millilitres"] == pytest.approx(4 * 20 * 30 * 2 / 1000)
    assert result["measurements"] == [str(figures)]
    assert json.loads(figures.read_text())
    assert [one.header["what"] for one in worker.about(number, "progress")] == ["exporting"]
    assert not psutil.Process(worker.process.pid).children()


def test_what_exists_is_replaced_only_when_that_is_allowed(worker, ball, tmp_path):
    out = tmp_path / "ball.nrrd"
    out.write_bytes(b"precious")
    wish = {"segmentation": str(ball), "out": str(out)}
    error = worker.refused("export", **wish)
    assert error["kind"] == "ExportError"
    assert "ball.nrrd" in error["message"]
    assert "exists" in error["message"]
    assert out.read_bytes() == b"precious"
    worker.ask("export", **wish, overwrite=True)
    assert out.read_bytes() != b"precious"


def test_what_is_wrong_is_reported_by_the_one_line_of_the_command(worker, ball, tmp_path):
    error = worker.refused("export", segmentation=str(tmp_path / "none.nrrd"), out=str(tmp_path / "a.nrrd"))
    assert error["kind"] == "ExportError"
    assert "none.nrrd" in error["message"]
    error = worker.refused("export", segmentation=str(ball), out=str(tmp_path / "a.dcm"))
    assert "--dicom" in error["message"]
    assert worker.refused("export", segmentation=str(ball), out="a.nrrd")["kind"] == "ProtocolError"
    assert not list(tmp_path.glob("*.part"))


# With commands of the test ----------------------------------------------------------------------------------


class AShop:
    """Exports by a script of the test, and how they ended."""

    def __init__(self, folder, text):
        self.folder, self.told, self.answers = folder, [], {}
        path = folder / "script.py"
        path.write_text(f"import json, os, sys, time\nfolder = {str(folder)!r}\n{text}\n")
        self.exports = Exports(
            lambda job, answer: self.answers.setdefault(job.id, answer),
            lambda job, header: self.told.append((job.id, header["what"])),
            (sys.executable, str(path)),
        )

    def ask(self, number=1, **fields):
        paths = {"segmentation": ROOT + "a.seg.nrrd", "out": ROOT + "b.nrrd"}
        self.exports.start(Job(number, "export", {**paths, **fields}))

    def wait(self, number=1, seconds=20):
        self.until(lambda: number in self.answers, seconds)
        return self.answers[number]

    @staticmethod
    def until(is_so, seconds=20):
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end
            time.sleep(0.01)


A_SLOW_ONE = (
    "open(os.path.join(folder, 'begun'), 'a').write('x')\n"
    "sys.stdin.read()\n"  # until it is told to stop
    "sys.exit(130)\n"
)


def test_the_source_files_are_handed_over_as_a_list_that_is_gone_afterwards(tmp_path):
    shop = AShop(
        tmp_path,
        "(name,) = [one[8:] for one in sys.argv if one.startswith('--dicom=')]\n"
        "text = open(name, encoding='utf-8').read()\n"
        "print(json.dumps({'name': name, 'text': text, 'words': sys.argv[1:]}))",
    )
    files = [f"{ROOT}séries{os.sep}{n} 1.dcm" for n in range(3)]
    shop.ask(dicom=files, kind="labelmap", generic=True)
    result = shop.wait()
    assert result["text"].splitlines() == files
    assert result["name"].endswith(".txt")
    assert not Path(result["name"]).exists()
    assert result["words"][:2] == [ROOT + "a.seg.nrrd", "--json"]
    assert {"--kind=labelmap", "--generic"} < set(result["words"])
    assert shop.told == [(1, "exporting")]


def test_the_grid_that_was_drawn_on_is_handed_over_as_a_file(tmp_path):
    shop = AShop(
        tmp_path,
        "(name,) = [one[11:] for one in sys.argv if one.startswith('--drawn-on=')]\n"
        "print(json.dumps({'told': json.load(open(name))}))",
    )
    grid = {"ijk_to_ras": [[0.5, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]], "shape_ijk": [4, 5, 6]}
    shop.ask(drawn_on=grid)
    assert shop.wait() == {"told": grid}


@pytest.mark.parametrize("name", ["scratch", None])
def test_what_is_made_for_an_export_lies_in_the_folder_of_the_client_if_it_has_one(tmp_path, name):
    shop = AShop(
        tmp_path,
        "(name,) = [one[8:] for one in sys.argv if one.startswith('--dicom=')]\n"
        "print(json.dumps({'name': name}))",
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shop.ask(dicom=[ROOT + "Anna.dcm"], **({name: str(scratch)} if name else {}))
    assert Path(shop.wait()["name"]).is_relative_to(scratch) == bool(name)
    assert list(scratch.iterdir()) == []


def test_a_folder_of_the_client_that_is_gone_is_an_error_and_the_next_begins(tmp_path):
    shop = AShop(tmp_path, "print(json.dumps({'out': 'b'}))")
    shop.ask(1, scratch=str(tmp_path / "gone"))
    shop.ask(2)
    assert isinstance(shop.wait(1), OSError)
    assert shop.wait(2) == {"out": "b"}


def test_one_after_the_other(tmp_path):
    shop = AShop(
        tmp_path,
        "mark = os.path.join(folder, 'busy')\n"
        "os.close(os.open(mark, os.O_CREAT | os.O_EXCL))\n"  # fails while another one is at work
        "time.sleep(0.2)\nos.remove(mark)\nprint(json.dumps({'out': sys.argv[3]}))",
    )
    for number in (1, 2, 3):
        shop.ask(number, out=f"{ROOT}{number}.nrrd")
    assert [shop.wait(number)["out"] for number in (1, 2, 3)] == [f"--out={ROOT}{n}.nrrd" for n in (1, 2, 3)]
    shop.ask(4)
    assert "out" in shop.wait(4)


def test_one_that_is_stopped_reports_it_and_the_next_begins(tmp_path):
    shop = AShop(tmp_path, A_SLOW_ONE)
    shop.ask(1)
    shop.ask(2)
    shop.ask(3)
    shop.until((tmp_path / "begun").exists)
    shop.exports.cancel(2)
    assert isinstance(shop.wait(2), Cancelled)
    shop.exports.cancel(1)
    assert isinstance(shop.wait(1), Cancelled)
    shop.until(lambda: (tmp_path / "begun").read_text() == "xx")
    shop.exports.cancel(None)
    assert "half written" in str(shop.wait(3))


def test_one_that_dies_is_reported_with_its_last_line(tmp_path):
    shop = AShop(tmp_path, "print('Killed', file=sys.stderr)\nos._exit(9)")
    shop.ask()
    error = shop.wait()
    assert isinstance(error, ExportError)
    assert (error.code, error.fields) == ("command-died", {"exit_code": 9, "last_line": "Killed"})


def test_the_error_of_the_command_arrives_as_it_was_raised(tmp_path):
    told = {"code": "unknown-suffix", "fields": {"suffix": ".xyz"}, "message": "no"}
    shop = AShop(tmp_path, f"print({json.dumps({'notes': [], 'error': told}, indent=2)!r})\nsys.exit(2)")
    shop.ask()
    error = shop.wait()
    assert isinstance(error, ExportError)
    assert (error.code, error.fields, str(error)) == ("unknown-suffix", {"suffix": ".xyz"}, "no")


def test_one_that_prints_no_summary_has_failed(tmp_path):
    shop = AShop(tmp_path, "print('all is well')")
    shop.ask()
    assert shop.wait().code == "no-summary"


def test_numbers_that_are_none_are_not_passed_on(tmp_path):
    shop = AShop(tmp_path, 'print(\'{"millilitres": NaN, "type": "x", "out": "b"}\')')
    shop.ask()
    assert shop.wait() == {"millilitres": None, "out": "b"}


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be told apart by signals there")
def test_it_ends_with_a_worker_that_is_killed(ball, tmp_path):
    code = (
        "import sys, os, threading\nfrom medsam2_core.worker.subprocesses import Exports\n"
        "from medsam2_core.worker.jobs import Job\n"
        "command = (sys.executable, '-c', 'import sys; sys.stdin.read()')\n"
        "e = Exports(print, lambda job, header: print('begun', flush=True), command)\n"
        f"e.start(Job(1, 'export', {{'segmentation': '/a', 'out': '/b', 'scratch': {str(tmp_path)!r}}}))\n"
        "threading.Event().wait()\n"
    )
    worker = RealWorker(tmp_path, ("-c", code))
    assert worker.process.stdout.readline()
    AShop.until(lambda: psutil.Process(worker.process.pid).children())
    (child,) = psutil.Process(worker.process.pid).children()
    worker.process.kill()
    worker.process.wait()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


# Fields -----------------------------------------------------------------------------------------------------


def test_fields_become_the_arguments_of_the_command(tmp_path):
    request = ExportRequest(
        ROOT + "a.seg.nrrd",
        ROOT + "b.dcm",
        dicom=(ROOT + "1.dcm",),
        kind="labelmap",
        compression="rle",
        generic=True,
        series_description="-- not an option",
        measurements=ROOT + "b.csv",
        report=ROOT + "b_SR.dcm",
    )
    assert (
        dataclass_from_json(ExportRequest, {"type": "export", "id": 3, **request.to_json()}, "export")
        == request
    )
    assert export_arguments(request, tmp_path) == [
        *(ROOT + "a.seg.nrrd", "--json", f"--out={ROOT}b.dcm", f"--measurements={ROOT}b.csv"),
        *(f"--report={ROOT}b_SR.dcm", "--kind=labelmap", "--compression=rle"),
        *("--series-description=-- not an option", "--generic", f"--dicom={tmp_path / 'dicom.txt'}"),
        "--resample",
    ]
    assert (tmp_path / "dicom.txt").read_text() == f"{ROOT}1.dcm\n"


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"out": "here.nrrd"}, "message-field", "out"),
        ({"out": None}, "message-field", "out"),
        ({"segmentation": "--help"}, "message-field", "segmentation"),
        ({"kind": 3}, "message-field", "kind"),
        ({"colour": "red"}, "unknown-field", "colour"),
        ({"generic": "yes"}, "message-field", "generic"),
        ({"report": ROOT + "a\0b"}, "message-field", "report"),
        ({"creator": "\ud800"}, "message-field", "creator"),
        ({"out": f"{ROOT}a\nb"}, "message-field", "out"),
        ({"drawn_on": "here"}, "message-field", "drawn_on"),
        *(
            ({"dicom": dicom}, "message-field", "dicom")
            for dicom in ("a.dcm", ["a.dcm"], [3], [ROOT + "a\nb.dcm"], [ROOT + "\ud800"])
        ),
    ],
)
def test_nonsense_is_refused(tmp_path, wrong, code, field):
    with raises(code, ProtocolError, field=field):
        fields = {"segmentation": ROOT + "a", "out": ROOT + "b", **wrong}
        export_arguments(dataclass_from_json(ExportRequest, fields, "export"), tmp_path)
