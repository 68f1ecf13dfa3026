"""Fine-tuning, by the worker's own process: on labelled volumes of a scene, and on corrections."""

import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("trame_slicer")
pytest.importorskip("torch")

from medsam2_core.engine.card import read_card  # noqa: E402
from medsam2_core.imaging.geometry import Geometry  # noqa: E402
from medsam2_core.imaging.volume import Volume  # noqa: E402
from MedSAM2SegmentLib.Page.ModelsSection import ModelsSection  # noqa: E402
from MedSAM2SegmentLib.Page.MyModelsSection import FINE_TUNED, MyModelsSection  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import Level  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneCases import SceneCases  # noqa: E402
from MedSAM2SegmentLib.Worker.Corrections import Corrections  # noqa: E402
from support.active_effect import ActiveEffect, RealWorkerSource  # noqa: E402
from support.page import FakeSettings  # noqa: E402
from support.scene import a_segmentation, a_volume, an_editor, an_empty_scene, paint  # noqa: E402

SPACING = np.diag([0.5, 0.5, 2.0, 1.0])
ONE_STEP = {"steps": 1, "batch": 1, "measure": 1, "threads": 1}


class InAHurry:
    """A source whose worker trains for a step instead of minutes."""

    def __init__(self, source):
        self.source, self.release = source, source.release

    def acquire(self, owner):
        self.source.acquire(owner)
        return self

    def request(self, kind, fields, **callbacks):
        return self.source.client.request(kind, {**fields, **ONE_STEP}, **callbacks)


def a_disc(seed):
    """A bright disc in noise, (1, J, I), and where it is."""
    rng = np.random.default_rng(seed)
    j, i = np.mgrid[:64, :80]
    inside = ((j - rng.integers(20, 44)) ** 2 + (i - rng.integers(25, 55)) ** 2 < 12**2)[None]
    return (rng.normal(60, 12, inside.shape) + 120 * inside).clip(0, 255).astype(np.uint8), inside


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def source(folder):
    source = RealWorkerSource(MEDSAM2_MODELS=str(folder))
    yield source
    source.client.stop()


def until(source, isSo, seconds=300.0, tick=lambda: None):
    """Let the worker work until something is so."""
    end = time.monotonic() + seconds
    while not isSo():
        assert time.monotonic() < end, "it takes too long"
        source.client.pump(0.02)
        tick()


def a_page(source, cases=None, corrections=None):
    models = ModelsSection(list)
    page = MyModelsSection(FakeSettings(), InAHurry(source), cases, list, models, corrections)
    for section in (models, page):
        section.setClient(source.acquire(section))
    until(source, models.installed)
    return page


def test_a_model_tuned_on_the_scene_is_listed_and_the_effect_opens_a_session_with_it(source, folder):
    scene = an_empty_scene()
    for seed in range(5):
        voxels_kji, disc_kji = a_disc(seed)
        volume = a_volume(scene, SPACING, voxels_kji, f"patient {seed}")
        segmentation = a_segmentation(scene, volume, ("A",))
        segmentation.GetSegmentation().GetSegment("A").SetName("cyst")
        paint(an_editor(segmentation, volume), disc_kji)
    page = a_page(source, SceneCases(scene))
    page.train(FINE_TUNED, "scene", "", "cysts", 10)
    until(source, lambda: page.view().canTrain)
    line = page.view().line
    assert line.level in (Level.OK, Level.WARNING), line.text
    assert line.text.startswith("cysts is fine-tuned on 4 images or volumes") and " → " in line.text
    until(source, lambda: page.view().rows)
    (row,) = page.view().rows
    assert (row.name, row.classes, row.isPrompted) == ("cysts", "cyst", True)
    card = read_card(folder / "own" / "cysts.safetensors")
    assert card.training["held_aside"] == 1 and "patient" not in str(card)
    voxels_kji, disc_kji = a_disc(9)
    geometry = Geometry(SPACING, voxels_kji.shape[::-1])
    effect = ActiveEffect(source, Volume(voxels_kji, geometry, modality="", name="new"))
    try:
        known = lambda: dict(effect.state.choices["model"])  # noqa: E731
        until(source, lambda: "cysts" in known(), tick=effect.controller.update)
        assert known()["cysts"] == "cysts, fine-tuned from embedded"
        effect.controller.setValue("model", "cysts")
        until(source, lambda: effect.state.status.value == "ready", tick=effect.controller.tick)
        assert effect.controller._session.modelInfo["name"] == "cysts"
    finally:
        effect.close()


def test_a_model_is_improved_on_corrections_and_the_old_one_stays(source, folder, tmp_path):
    corrections = Corrections(tmp_path / "corrections")
    for seed in range(3):
        voxels_kji, disc_kji = a_disc(seed)
        corrections.keep(
            voxels_kji,
            ("k", 0, "A"),
            voxels_kji[0],
            disc_kji[0],
            (0.5, 0.5, 2.0),
            {"points": [], "box": None},
        )
    page = a_page(source, corrections=corrections)
    before = {row.file for row in page.view().rows}
    page.improve(10)
    until(source, lambda: page.view().canTrain)
    assert page.view().line.text.startswith("embedded improved is fine-tuned on 3 images"), page.view().line
    until(source, lambda: {row.file for row in page.view().rows} > before)
    assert read_card(folder / "own" / "embedded improved.safetensors").training["trained"] == "lora"
    assert corrections.size()[0] == 3
