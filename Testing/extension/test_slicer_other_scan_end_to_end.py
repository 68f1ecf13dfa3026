"""Objects of another scan, and images of their own, by the worker's own process."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("trame_slicer")
pytest.importorskip("torch")

from medsam2_core.evaluation.metrics import dice  # noqa: E402
from support.active_effect import ActiveEffect  # noqa: E402
from support.real_worker import SHAPE_KJI, a_ball  # noqa: E402
from support.scene import a_segmentation, a_volume, an_editor, paint, voxels_of  # noqa: E402

K, J, I = np.ogrid[: SHAPE_KJI[0], : SHAPE_KJI[1], : SHAPE_KJI[2]]  # noqa: E741
BALL = ((K - 12) * 2) ** 2 + (J - 40) ** 2 + (I - 50) ** 2 < 16**2


@pytest.fixture
def effect(source):
    """On a volume that shows a ball; another segmented scan of it is in the scene."""
    one = ActiveEffect(source, a_ball())
    volume = a_ball()
    node = a_volume(one.scene, volume.geometry.ijk_to_ras, np.ascontiguousarray(volume.voxels_kji), "Earlier")
    earlier = a_segmentation(one.scene, node, segments=("lesion",))
    paint(an_editor(earlier, node, "lesion"), BALL, "lesion")
    one.wait()
    yield one
    one.close()


def found(effect, name="lesion"):
    known = effect.segmentation.GetSegmentation()
    return voxels_of(effect.segmentation, known.GetSegmentIdBySegmentName(name))


def test_a_lesion_is_found_at_its_old_place_and_compared(effect):
    effect.controller.followUp()
    effect.wait()
    assert dice(found(effect), BALL) > 0.8
    while "%" not in effect.state.other.text:  # before that, what was found stands there
        effect.source.client.pump(0.02)
        effect.controller.tick()
    assert effect.state.other.text.startswith("lesion: ") and "%" in effect.state.other.text
    effect.editor.undo()
    effect.wait()
    assert effect.segmentation.GetSegmentation().GetSegmentIdBySegmentName("lesion") == ""


def test_a_segmented_scan_is_an_example(effect):
    effect.controller.setValue("range", "11..13")
    effect.controller.findLike()
    effect.wait(120)
    assert dice(found(effect)[11:14], BALL[11:14]) > 0.5
    assert not found(effect)[14:].any(), "only slices of the range are looked at"
    assert effect.state.other.text.startswith("lesion")


def test_a_prompted_image_is_an_example_for_the_others(effect):
    effect.controller.setValue("stack", "images")
    effect.controller.setValue("range", "10..14")
    effect.wait()
    ras = (effect.core.geometry.ijk_to_ras @ [50, 40, 12, 1])[:3]
    effect.view.show(effect.node, ras)
    effect.view.click(effect.view.pixel_of(ras))
    effect.wait()
    effect.controller.propagate()
    effect.wait(120)
    mask = voxels_of(effect.segmentation, "A")
    assert mask[12].any() and [one.n for one in effect.state.confidences if one.confidence is not None] == [
        *range(10, 15)
    ]
