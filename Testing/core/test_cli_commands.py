"""The other commands, and what all have in common."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from medsam2_core.engine.catalogue import Catalogue
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.version import __version__
from support.command_line import ball_kji, write_nrrd, write_scan
from support.errors import raises
from support.project import run_python


@pytest.fixture
def models_folder(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("MEDSAM2_MODELS", str(folder))
    monkeypatch.delenv("MEDSAM2_OFFLINE_MODELS", raising=False)
    return folder


def test_starting_the_program_loads_nothing_heavy():
    done = run_python(
        "import sys\n"
        "from medsam2_core.cli import main\n"
        "code = main(['segment', '--help'])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'SimpleITK', 'pydicom', 'matplotlib', 'huggingface_hub'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("segment",),
        ("models",),
        ("models", "get"),
        ("info",),
        ("evaluate",),
        ("synth",),
        ("train", "base"),
        ("train", "presence"),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(medsam2, words):
    answer = medsam2(*words, "--help")
    assert answer.code == 0
    assert "Usage" in answer.out


def test_the_installed_program_prints_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "medsam2_core.cli", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"medsam2 {__version__}")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("segmnet",), "usage", "'segmnet'"),
        (("models", "find"), "usage", "'find'"),
        (("synth",), "usage", "'--out'"),
        (("synth", "--out", "x", "--count", "0"), "usage", "--count"),
        (("synth", "--out", "x", "--size", "30"), "usage", "--size"),
        (("synth", "--out", "x", "--labels", "none.nrrd"), "no-such-file", "none.nrrd"),
        (("info",), "usage", "'volume'"),
        (("models", "get", "sam3"), "unknown-model", "'sam3'"),
        (("models", "path", "sam3"), "unknown-model", "'sam3'"),
        (("evaluate",), "nothing-named", "--cases"),
        (("evaluate", "--cases", "none.tsv"), "cases-unreadable", "none.tsv"),
        (("train", "base", "nowhere", "--out", "x", "--steps", "5"), "steps-wanted", "--steps 5"),
        (("train", "base", "nowhere", "--out", "x", "--precision", "fp8"), "unknown-precision", "fp8"),
        (("train", "base", "nowhere", "--out", "x", "--device", "abacus"), "unknown-device", "abacus"),
        (("train", "base", "nowhere", "--out", "x", "--keep-encoder"), "no-start", "--start"),
        (("train", "presence", "nowhere", "--out", "x"), "training-folder-missing", "nowhere"),
        (("evaluate", "a.nrrd", "b.nrrd", "--protocol", "cvpr24"), "unknown-protocol", "cvpr24"),
        (
            ("evaluate", "a.nrrd", "b.nrrd", "--protocol", "cvpr25", "--corrections", "3"),
            *("fixed-by-protocol", "--corrections"),
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(medsam2, words, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = medsam2(*words)
    assert answer.refused(code)
    assert answer.out == ""
    assert said in answer.err, "what is wrong is named"
    assert answer.err.count("\n") == 1


# info -------------------------------------------------------------------------------------------------------


def test_info_describes_a_volume(medsam2, tmp_path):
    scan = write_scan(tmp_path / "scan.nrrd")
    facts = medsam2("info", scan, "--json").facts
    assert facts["kind"] == "volume"
    assert facts["shape_ijk"] == [40, 48, 24]
    assert facts["spacing_mm"] == [1.0, 1.0, 2.0]
    assert facts["axes_run_to"] == "LPS"
    assert facts["origin_ras"] == [10.0, -5.0, 100.0]
    voxels = read_volume(scan).voxels_kji
    assert facts["intensity_range"] == [voxels.min(), voxels.max()]
    assert facts["automatic_window"]["width"] > 100
    spoken = medsam2("info", scan).out
    assert "40 x 48 x 24" in spoken
    assert "1 x 1 x 2 mm" in spoken


def test_info_lists_labels(medsam2, tmp_path):
    labels = ball_kji().astype(np.uint8)
    labels[0, 0, :5] = 7
    facts = medsam2("info", write_nrrd(tmp_path / "labels.nrrd", labels), "--json").facts
    assert facts["may_be_a_label_map_of"] == [
        {"value": 1, "voxels": int(ball_kji().sum())},
        {"value": 7, "voxels": 5},
    ]


def test_info_lists_the_segments_of_a_segmentation(medsam2, tmp_path):
    from medsam2_core import export
    from medsam2_core.imaging.segmentation import Segmentation

    geometry = read_volume(write_scan(tmp_path / "scan.nrrd")).geometry
    segmentation = Segmentation.from_masks(
        geometry, {"ball": ball_kji(), "everything": np.ones((24, 48, 40), bool)}
    )
    export.write(segmentation, tmp_path / "two.seg.nrrd")
    facts = medsam2("info", tmp_path / "two.seg.nrrd", "--json").facts
    assert [item["name"] for item in facts["segments"]] == ["ball", "everything"]
    assert facts["segments"][0]["voxels"] == ball_kji().sum()
    assert facts["segments"][1]["millilitres"] == pytest.approx(24 * 48 * 40 * 2 / 1000)


def test_info_lists_the_series_of_a_folder(medsam2, shared_data):
    facts = medsam2("info", shared_data / "dicom", "--json").facts
    assert len(facts["series"]) > 3
    chosen = medsam2("info", shared_data / "dicom", "--series", facts["series"][4]["number"], "--json")
    assert chosen.facts["shape_ijk"] == facts["series"][4]["shape_ijk"]


def test_info_of_every_real_case_is_given_or_refused_with_a_reason(medsam2, shared_data):
    seen = 0
    for path in [*sorted((shared_data / "dicom").iterdir()), *sorted((shared_data / "mr").glob("*.n*"))]:
        answer = medsam2("info", path, "--json")
        assert answer.code in (0, 2), answer.err
        assert answer.err.count("\n") == (answer.code == 2)
        seen += answer.code == 0
    assert seen > 10


# models -----------------------------------------------------------------------------------------------------


def test_models_lists_the_whole_catalogue(medsam2, models_folder):
    answer = medsam2("models", "list", "--json")
    assert [item["name"] for item in answer.facts] == Catalogue.load().names
    tiny = next(item for item in answer.facts if item["name"] == "sam2.1-tiny")
    assert (tiny["state"], tiny["licence"]) == ("not here", "Apache-2.0")
    spoken = medsam2("models", "list").out
    assert "sam2.1-tiny" in spoken
    assert str(models_folder) in spoken


def test_a_file_put_there_by_hand_is_found_verified_and_refused_when_wrong(medsam2, models_folder):
    models_folder.mkdir()
    entry = Catalogue.load().find("medsam2-latest")
    path = models_folder / entry.filename
    path.write_bytes(b"not the model")
    answer = medsam2("models", "verify", "medsam2-latest")
    assert answer.code == 2
    assert path.name in answer.err
    assert medsam2("models", "path", "medsam2-latest").refused("wrong-size", path=str(path))


def test_a_local_file_has_a_path_and_a_hash(medsam2, models_folder, tmp_path):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"0123456789")
    assert medsam2("models", "path", path).out.strip() == str(path)
    assert hashlib.sha256(b"0123456789").hexdigest() in medsam2("models", "verify", path).out


def test_a_fine_tuned_model_in_use_is_said_to_be_that(models_folder, monkeypatch):
    from medsam2_core.engine.catalogue import ModelEntry, own_folder
    from medsam2_core.engine.store import Store

    path, report = own_folder() / "mine.safetensors", own_folder() / "mine.safetensors-report"
    report.mkdir(parents=True)
    path.write_bytes(b"weights")

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "The file is used by another process")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        with raises("model-not-removed", path=str(path)):
            Store.default().remove(ModelEntry.of_file(path))
    assert report.is_dir()
    Store.default().remove(ModelEntry.of_file(path))
    assert not path.exists() and not report.exists()


def test_removing_deletes_only_what_was_downloaded(medsam2, models_folder):
    assert medsam2("models", "remove", "sam2.1-tiny").refused("not-downloaded", model="sam2.1-tiny")
    answer = medsam2("models", "remove", "embedded")
    assert answer.refused("not-downloaded", model="embedded")
    assert "it is part of the package" in answer.err
    models_folder.mkdir()
    path = models_folder / Catalogue.load().find("sam2.1-tiny").filename
    path.write_bytes(b"weights")
    assert medsam2("models", "remove", "sam2.1-tiny").code == 0
    assert not path.exists()


# synth ------------------------------------------------------------------------------------------------------


def test_equal_seeds_make_equal_volumes(medsam2, tmp_path):
    for folder in ("one", "two"):
        assert medsam2("synth", "--out", tmp_path / folder, "--size", 32, "--count", 2, "--seed", 9).code == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"synth_9_0000{n}_{kind}.nrrd" for n in (0, 1) for kind in ("img", "seg")]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    image = read_volume(tmp_path / "one" / names[0])
    labels = read_segmentation(tmp_path / "one" / names[1])
    assert image.geometry.same_grid(labels.geometry)
    assert image.voxels_kji.std() > 1
    assert len(labels.labels) > 1


def test_a_label_map_is_painted_in_its_own_place(medsam2, tmp_path):
    assert medsam2("synth", "--out", tmp_path / "a", "--size", 33).code == 0
    labels = tmp_path / "a" / "synth_1_00000_seg.nrrd"
    assert medsam2("synth", "--out", tmp_path / "b", "--labels", labels, "--seed", 4).code == 0
    image = read_volume(tmp_path / "b" / "synth_4_00000_img.nrrd")
    truth = read_segmentation(tmp_path / "b" / "synth_4_00000_seg.nrrd")
    assert image.geometry.same_grid(read_segmentation(labels).geometry)
    assert np.array_equal(truth.labels_kji(), read_segmentation(labels).labels_kji())


def test_volumes_that_exist_are_kept(medsam2, tmp_path):
    words = ("synth", "--out", tmp_path, "--size", 32)
    assert medsam2(*words).code == 0
    assert medsam2(*words).refused("output-exists")
    assert medsam2(*words, "--overwrite").code == 0


def test_equal_seeds_make_equal_ultrasound(medsam2, tmp_path):
    words = ("synth", "--kind", "ultrasound", "--count", 2, "--seed", 9)
    for folder in ("one", "two"):
        assert "2 nerve" in medsam2(*words, "--out", tmp_path / folder).out
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"synth_9_0000{n}_{kind}.png" for n in (0, 1) for kind in ("img", "seg")]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert medsam2(*words, "--out", tmp_path / "one").refused("output-exists")
    answer = medsam2(*words, "--out", tmp_path, "--labels", tmp_path / "a.nrrd")
    assert answer.refused("labels-need-volume")
    assert "--kind volume" in answer.err


# train ------------------------------------------------------------------------------------------------------


def test_training_is_set_up_from_the_options(medsam2, tmp_path, monkeypatch):
    asked = {}

    class Trainer:
        def __init__(self, settings, folder, report):
            asked.update(settings=settings, folder=folder, report=report)

        def run(self, should_stop):
            assert not should_stop()
            asked["report"]({"step": 1})

    monkeypatch.setattr("medsam2_core.training.base.BaseTrainer", Trainer)
    answer = medsam2("train", "base", tmp_path, "--out", tmp_path / "run", "--steps", "7,0,0", "--seed", 4,
                     "--device", "cpu", "--threads", 1, "--workers", 0)  # fmt: skip
    assert answer.code == 0, answer.err
    settings = asked["settings"]
    assert [(stage.name, stage.steps) for stage in settings.stages] == [("slices", 7)]
    assert (settings.seed, settings.device, settings.threads, settings.workers) == (4, "cpu", 1, 0)
    assert json.loads(answer.out.splitlines()[0]) == {"step": 1}
    weights = tmp_path / "weights.safetensors"
    words = ("train", "base", tmp_path, "--out", tmp_path / "more", "--steps", "9", "--device", "cpu")
    answer = medsam2(*words, "--start", weights, "--keep-encoder")
    assert answer.code == 0, answer.err
    settings = asked["settings"]
    assert settings.start == str(weights)
    assert [(stage.name, stage.steps, stage.trunk_factor) for stage in settings.stages] == [
        ("corrections", 9, 0)
    ]


def test_without_docstrings_commands_have_no_help_but_run():
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "medsam2_core.cli", "segment", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--fill-between" in done.stdout


@pytest.mark.parametrize("group", ["models", "train"])
def test_a_group_without_a_command_says_what_is_missing(medsam2, group):
    answer = medsam2(group)
    assert answer.code == 2 and "name a command" in answer.err and "Usage" in answer.out


def test_a_file_in_place_of_a_folder_is_named(medsam2, tmp_path):
    (tmp_path / "file").write_text("x")
    answer = medsam2("synth", "--count", "1", "--out", tmp_path / "file")
    assert answer.refused("output-not-writable", path=str(tmp_path / "file"))
    assert "is a file" in answer.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_closed_pipe_is_no_error_and_a_full_disk_is_no_bug():
    program = f"{sys.executable} -m medsam2_core.cli models list"
    piped = f"{program} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    full = subprocess.run(
        ["bash", "-c", f"{program} > /dev/full"], capture_output=True, text=True, check=False
    )
    assert full.returncode == 2
    assert full.stderr.startswith("medsam2: the output cannot be written") and "bug" not in full.stderr


def test_only_a_closed_pipe_ends_with_0(monkeypatch, tmp_path):
    from medsam2_core.cli import app

    def leave(*_arguments, **_options):
        raise SystemExit(3)

    monkeypatch.setattr(app, "app", leave)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where a bug is written down
    assert app.main(["info"]) == 1
