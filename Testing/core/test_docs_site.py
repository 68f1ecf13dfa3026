"""The documentation: its site builds without a warning, and its examples in Python run."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
from medsam2_core.session import Session
from support.command_line import write_untrained_model
from support.project import ROOT

PAGE = ROOT / "Resources" / "docs" / "python.md"


def blocks(path) -> list[str]:
    """Return the blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """An untrained model in place of the embedded one, and three slices in place of all."""
    model = write_untrained_model(tmp_path)
    open_usual, propagate_usual = Session.open.__func__, Session.propagate

    def open_quickly(cls, source, name=None, **options):
        return open_usual(cls, source, model, **options)

    monkeypatch.setattr(Session, "open", classmethod(open_quickly))

    def propagate_few(session, names=None, **options):
        return propagate_usual(session, names, 23, 25, **options)

    monkeypatch.setattr(Session, "propagate", propagate_few)
    (tmp_path / "Resources").symlink_to(ROOT / "Resources")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CODE = ROOT / "MedSAM2Segment"
PLACES = (ROOT, ROOT / "Testing", CODE, CODE / "MedSAM2SegmentLib", CODE / "medsam2_core")


def is_there(name: str) -> bool:
    """Return whether ``a/b.py``, ``a.b`` or ``a/B.method`` names a file, or something defined in one."""
    if any((place / name).exists() for place in PLACES):
        return True
    parts = name.replace(".", "/")
    for place in PLACES:
        path = place / parts
        if path.is_dir() or path.with_suffix(".py").exists():
            return True
        for file in (path.parent.with_suffix(".py"), path.parent / "__init__.py"):
            if file.is_file() and _defines(file, path.name):
                return True
        file = path.parents[1].with_suffix(".py")
        if file.is_file() and _defines(file, path.parent.name) and _defines(file, path.name):
            return True
    return False


def _defines(file, name: str) -> bool:
    return bool(re.search(rf"\b(def|class) {name}\b", file.read_text(encoding="utf-8")))


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`(\w[\w.]*(?:/[\w.]+)+|[a-z]\w*(?:\.\w+)+)`", text)
    quoted = [
        name for name in quoted if not name.endswith((".toml", ".yml", ".log", ".jsonl", ".safetensors"))
    ]
    assert len(quoted) > 30
    missing = [name for name in dict.fromkeys(quoted) if name != "slicer.i18n" and not is_there(name)]
    assert not missing, missing


def test_the_example_in_the_readme_is_the_one_of_the_page():
    assert blocks(ROOT / "README.md") == blocks(PAGE)[:1]
    assert len(blocks(PAGE)[0].splitlines()) <= 7


def test_the_examples_of_the_page_run_as_they_stand(quick):
    names: dict = {}
    for block in blocks(PAGE)[:3]:
        exec(block, names)
    assert names["mask_kji"].dtype == bool
    assert names["mask_kji"].shape == names["session"].volume.voxels_kji.shape
    assert (quick / "brain.seg.nrrd").exists()


def test_the_example_with_an_array_runs_as_it_stands(quick):
    np.save("scan.npy", np.zeros((4, 32, 40), dtype=np.int16))
    names: dict = {}
    exec(blocks(PAGE)[3], names)
    assert names["session"].volume.geometry.spacing == pytest.approx((0.8, 0.8, 2.5))


def test_the_example_of_other_prompts_runs_as_it_stands(quick):
    session = Session.open("Resources/demo/mni152_t1.nrrd")
    liver_kji = np.zeros(session.volume.voxels_kji.shape, dtype=bool)
    liver_kji[22:27, 60:90, 50:80] = True
    exec(blocks(PAGE)[4], {"session": session, "liver_kji": liver_kji})
    assert session.object_names == ("liver", "lesion", "cyst")
    assert np.array_equal(session.mask_kji("liver")[26], liver_kji[26])


def test_the_site_builds_and_all_links_lead_somewhere(tmp_path):
    for needed in ("material", "mkdocstrings"):
        pytest.importorskip(needed, reason="the extra docs is not installed")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "medsam2 segment" in (site / "reference" / "commands" / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def make_figures():
    """The script that puts measured figures into the pages."""
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "Resources/docs/make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_repeats_the_figures_of_its_table(make_figures):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert make_figures.repeated(readme, {}) == readme


def test_measured_figures_reach_every_place_of_the_readme(make_figures):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = (name for name in make_figures.table(readme) if name.startswith("spinal cord"))
    means = {"row": row, "objects": 1, "baseline": 0.1, "click": 0.1251, "dice": (0.2349, 0.3, 0.4, 0.5)}
    rest = {"surface_dice": (0.1,), "hd95_mm": (None,), "seconds": 1.0}
    changed = make_figures.replaced(readme, [make_figures.RowMeans(**means, **rest)])
    changed = make_figures.repeated(changed, {row: "0.067"})
    assert f"| {row} | 1 | 0.100 | 0.125 | **0.235** | 0.300 |" in changed
    about = changed[changed.index("**What to expect.**") :][:400]
    assert ".24 for the spinal\ncord" in about and ", .13 and" in about
    assert re.search(r"^\| `--zoom off` \|.* 0.067 \|$", changed, re.MULTILINE)
    assert re.search(r"^\| `--zoom auto` \|.* 0.235 \|$", changed, re.MULTILINE)
    assert len(changed.splitlines()) == len(readme.splitlines())
