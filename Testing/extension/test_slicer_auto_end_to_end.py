"""Auto, by the worker's own process: from labelled volumes of a scene to segments of a new one."""

import time
from dataclasses import replace

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("trame_slicer")
torch = pytest.importorskip("torch")

from medsam2_core.auto.model import load_auto  # noqa: E402
from medsam2_core.auto.model_file import read_card  # noqa: E402
from medsam2_core.engine.model import load_model  # noqa: E402
from medsam2_core.evaluation.metrics import dice  # noqa: E402
from medsam2_core.imaging.geometry import Geometry  # noqa: E402
from medsam2_core.imaging.intensity import parse_window  # noqa: E402
from medsam2_core.imaging.volume import Volume  # noqa: E402
from medsam2_core.session import Session  # noqa: E402
from medsam2_core.session.automatic import AutoRun  # noqa: E402
from MedSAM2SegmentLib.Page.ModelsSection import ModelsSection  # noqa: E402
from MedSAM2SegmentLib.Page.MyModelsSection import AUTO, MyModelsSection  # noqa: E402
from MedSAM2SegmentLib.Page.PageState import Level  # noqa: E402
from MedSAM2SegmentLib.Prompts import PromptNodes  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneCases import SceneCases  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from support.active_effect import ActiveEffect, RealWorkerSource, by_plain_matrices  # noqa: E402
from support.page import FakeSettings  # noqa: E402
from support.scene import a_segmentation, a_volume, an_editor, an_empty_scene, paint, voxels_of  # noqa: E402

SPACING = np.diag([0.5, 0.5, 2.0, 1.0])
A_SHORT_TRAINING = {"steps": 20, "folds": 0, "threads": 1}
AN_ULTRASOUND = 96, 128  # rows, columns


def an_ultrasound(seed=0, depth=1):
    """Speckle with a dark cyst in it, and where that is: (K, J, I) both."""
    chance = np.random.default_rng(seed)
    k, j, i = np.indices((depth, *AN_ULTRASOUND))
    middle = chance.uniform((35, 45), (60, 85))
    near = ((j - middle[0]) / 17) ** 2 + ((i - middle[1]) / 23) ** 2 + ((k - depth // 2) / 6) ** 2
    cyst = near < 1
    speckle = chance.rayleigh(45, cyst.shape) * np.where(cyst, 0.25, 1.0)
    return speckle.clip(0, 255).astype(np.uint8), cyst


def a_picture(seed=0, depth=1):
    """The ultrasound as a volume of the core."""
    voxels_kji, _ = an_ultrasound(seed, depth)
    geometry = Geometry(SPACING, voxels_kji.shape[::-1])
    return Volume(voxels_kji, geometry, modality="", name="ultrasound")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of Auto models."""
    return tmp_path_factory.mktemp("auto")


@pytest.fixture(scope="module")
def source(folder):
    source = RealWorkerSource(MEDSAM2_AUTO_MODELS=str(folder))
    yield source
    source.client.stop()


class InAHurry:
    """A source whose worker trains for some steps instead of minutes."""

    def __init__(self, source):
        self.source, self.release = source, source.release

    def acquire(self, owner):
        self.source.acquire(owner)
        return self

    def request(self, kind, fields, **callbacks):
        return self.source.client.request(kind, {**fields, **A_SHORT_TRAINING}, **callbacks)


@pytest.fixture(scope="module")
def trained(source, folder):
    """How the page of the module has trained a model on pictures of a scene; and a copy of it for volumes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers here: sums of several threads may differ in the last bit
    scene = an_empty_scene()
    for seed in range(1, 5):
        voxels_kji, cyst_kji = an_ultrasound(seed)
        volume = a_volume(scene, SPACING, voxels_kji, f"patient {seed}")
        segmentation = a_segmentation(scene, volume, ("A",))
        segmentation.GetSegmentation().GetSegment("A").SetName("cyst")
        segmentation.GetSegmentation().GetSegment("A").SetColor(0.2, 0.4, 0.6)
        paint(an_editor(segmentation, volume), cyst_kji)
    page = MyModelsSection(FakeSettings(), InAHurry(source), SceneCases(scene), list, ModelsSection(list))
    views = []
    page.setClient(source.acquire("the page"))
    page.train(AUTO, "scene", "", "cysts", 10, "")
    until(source, lambda: views.append(page.view()) or views[-1].canTrain, 200)
    until(source, lambda: page.view().rows)
    views.append(page.view())
    auto = load_auto(folder / "cysts.medsam2auto", load_model("embedded", "cpu", "auto"))
    card = replace(auto.card, name="cysts of slices", axis="axial")
    replace(auto, card=card).save(folder / "slices.medsam2auto")
    yield views
    page.setClient(None)
    source.release("the page")
    torch.set_num_threads(threads)


@pytest.fixture
def effect_on(source, trained):
    clinics = []

    def open_it(volume):
        one = ActiveEffect(source, volume, segmentation={"segments": ()})
        clinics.append(one)
        one.view.show(one.node, volume.geometry.to_ras([[60, 40, volume.geometry.shape_ijk[2] // 2]])[0])
        until(source, lambda: one.state.auto.canFindSlice, tick=one.controller.update)
        return one

    yield open_it
    for one in clinics:
        one.close()


def until(source, isSo, seconds=60.0, tick=lambda: None):
    """Let the worker work until something is so."""
    end = time.monotonic() + seconds
    while not isSo():
        assert time.monotonic() < end, "it takes too long"
        source.client.pump(0.02)
        tick()


def found_here(one, path, n=None):
    """By class, (K, J, I) what the same model finds in this process."""
    adapter = VolumeAdapter(one.node)
    stack = adapter.cut(adapter.stackOfView(one.view.node))
    session = Session(adapter.volume, load_model("embedded", "cpu", "auto"), stack=stack)
    auto = load_auto(path, session.model)
    run = AutoRun(session.stack, session.tracker, auto, window=parse_window(auto.card.window, adapter.volume))
    for _ in run.run(n, n):
        pass
    return {
        found.name: by_plain_matrices(
            one.segmentation, np.eye(4), stack, {n: record.mask_hw for n, record in found.masks.items()}
        )
        for found in run.found()
        if any(record.mask_hw.any() for record in found.masks.values())
    }


def shown(one):
    """By name of a segment, (K, J, I) what it shows."""
    known = one.segmentation.GetSegmentation()
    return {known.GetSegment(ID).GetName(): voxels_of(one.segmentation, ID) for ID in known.GetSegmentIDs()}


def assert_same(one, expected):
    now = shown(one)
    assert expected, "the untrained model finds nothing: take another seed"
    assert sorted(now) == sorted(expected)
    for name, mask_kji in now.items():
        assert dice(mask_kji, expected[name]) > 0.98, name


def predicted_boxes(one):
    nodes = PromptNodes.promptNodes(one.scene, one.segmentation)
    return [node for node in nodes if PromptNodes.isPredicted(node)]


def test_the_page_trains_on_the_scene(trained, folder):
    texts = [view.line.text for view in trained]
    assert texts[0] == "Training cysts…"
    assert any(0 < view.fraction < 1 for view in trained if view.fraction is not None)
    assert texts[-1].startswith("cysts is trained on 4 images"), texts[-1]
    assert trained[-1].line.level is Level.OK
    assert [(row.file, row.classes, row.images) for row in trained[-1].rows] == [("cysts", "cyst", "4")]
    cyst = read_card(folder / "cysts.medsam2auto").classes[0]
    assert cyst.colour_rgb == pytest.approx((0.2, 0.4, 0.6), abs=0.01)


def test_a_picture_is_segmented_corrected_and_undone(effect_on, folder):
    one = effect_on(a_picture())
    assert one.state.auto.chosen == "cysts"
    one.controller.autoSlice()
    one.wait()
    assert_same(one, found_here(one, folder / "cysts.medsam2auto", 0))
    _, cyst_kji = an_ultrasound()
    found = shown(one)["cyst"]
    assert dice(found, cyst_kji) > 0.8
    assert one.state.auto.text.startswith("cyst 0.")
    assert len(predicted_boxes(one)) == 1

    middle = np.argwhere(cyst_kji).mean(axis=0)[::-1]
    place = one.core.geometry.to_ras([middle + np.array([0, 8, 0])])[0]
    one.view.click(one.view.pixel_of(place), ctrl=True)
    one.wait()
    corrected = shown(one)["cyst"]
    assert corrected.sum() < found.sum(), "a click corrects what was found"
    assert len(predicted_boxes(one)) == 1
    one.editor.undo()
    one.controller.update()
    assert np.array_equal(shown(one)["cyst"], found)
    one.editor.undo()
    one.controller.update()
    assert not any(mask.any() for mask in shown(one).values())
    assert predicted_boxes(one) == []


def test_a_volume_is_segmented_and_undone_in_one_step(effect_on, folder):
    one = effect_on(a_picture(depth=9))
    assert one.state.auto.chosen == "slices"
    one.controller.autoVolume()
    one.wait()
    assert_same(one, found_here(one, folder / "slices.medsam2auto"))
    assert dice(shown(one)["cyst"], an_ultrasound(depth=9)[1]) > 0.8
    one.editor.undo()
    one.controller.update()
    assert not any(mask.any() for mask in shown(one).values())
