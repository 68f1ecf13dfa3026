"""The challenge's protocol: box, clicks and areas under the curve as worked out by hand."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from medsam2_core.evaluation import protocol
from medsam2_core.evaluation.cases import Case, MeasuredObject
from medsam2_core.evaluation.cvpr25 import Cvpr25Protocol, box_of, next_click, table
from medsam2_core.evaluation.metrics import Scores
from medsam2_core.evaluation.protocol import Measurement, measure_object
from medsam2_core.evaluation.report import write_json
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point


def a_block(shape=(8, 20, 30)):
    truth = np.zeros(shape, bool)
    truth[2:7, 5:12, 10:19] = True
    return truth


def test_a_rectangle_grows_by_whole_pixels_of_a_slice_of_256():
    mask = np.zeros((512, 300), bool)
    mask[100:200, 4:250] = True
    assert box_of(mask, 0) == (4, 100, 249, 199)
    # 3 * 300 / 256 = 3.5 and 3 * 512 / 256 = 6
    assert box_of(mask, 3) == (1, 94, 252, 205)
    assert box_of(mask, 5) == (0, 90, 254, 209)  # 5 * 300 / 256 = 5.9, and the slice ends


def test_a_click_is_deepest_in_the_largest_error():
    truth = a_block()
    mask = truth.copy()
    assert next_click(mask, truth) is None
    mask[2:5, 5:8, 10:15] = False  # 45 voxels are missing, most deep on a line of three
    mask[0, 0:5, 0:8] = True  # 40 are too many
    assert next_click(mask, truth) == ((3, 6, 11), True)
    mask[1, 0:5, 0:8] = True  # now 80: two slices at the volume's face, nowhere more than a voxel deep
    (k, j, i), positive = next_click(mask, truth)
    assert not positive and k < 2 and j < 5 and i < 8


def test_voxels_that_touch_at_a_corner_are_one_error():
    truth, mask = np.zeros((3, 12, 12), bool), np.zeros((3, 12, 12), bool)
    mask[0, 0:3, 0:3] = mask[1, 3:6, 3:6] = True  # two squares of 9, joined at a corner in space: 18
    mask[1, 8:11, 8:12] = True  # 12
    (k, j, i), positive = next_click(mask, truth)
    assert (k, j < 6, i < 6) in ((0, True, True), (1, True, True)) and not positive


def test_distances_are_in_voxels_and_the_volume_ends_at_its_faces():
    mask = np.zeros((5, 5, 9), bool)
    mask[:, :, :] = True
    assert next_click(mask, np.zeros_like(mask))[0][:2] == (2, 2)


def test_areas_are_those_of_trapezoids():
    for values, area in (([1, 1, 1, 1, 1], 4), ([0.0, 0.5, 0.5, 0.75, 1.0], 0.25 + 0.5 + 0.625 + 0.875)):
        stages = (Scores(0.0, 0.0, None), *(Scores(value, 1.0, 0.0) for value in values))
        areas = Measurement("row", "name", 1, stages, 1.0).areas_under_curves()
        assert areas == {"dice_auc": pytest.approx(area), "surface_dice_auc": 4}


class Learner:
    """Stands in for a session: the truth, less one slice for every click that is still missing."""

    said: ClassVar[list] = []
    ranges: ClassVar[list] = []
    mistakes = 2

    @classmethod
    def open(cls, volume, model, **settings):
        session = cls()
        session.stack = SliceStack.along(volume, settings["axis"])
        return session

    def prompt(self, name, prompt):
        self.said.append(prompt)

    def propagate(self, *, first, last, stop_after_absent):
        self.ranges.append((first, last))
        return iter(())

    def mask_kji(self, name):
        mask = a_block()
        for n in range(max(self.mistakes - sum(isinstance(p, Point) for p in self.said), 0)):
            mask[2 + n] = False
        return mask


def test_a_class_is_boxed_on_its_median_slice_and_clicked_until_nothing_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(Learner, "said", [])
    monkeypatch.setattr(Learner, "ranges", [])
    monkeypatch.setattr(protocol, "Session", Learner)
    volume = Volume(a_block().astype(np.int16), Geometry(np.diag([-1.0, -1.0, 3.0, 1.0]), (30, 20, 8)))
    measured = MeasuredObject(Case("row", Path("a.nrrd"), Path("b.nrrd")), 1, a_block())
    found = measure_object(measured, volume, None, Cvpr25Protocol(), None)
    box, first, second = Learner.said
    # Slices of 20 x 30 pixels: int(5 * 30 / 256) = 0, so the box is tight whatever was drawn.
    assert isinstance(box, Box)
    assert box.first_ijk == (9.5, 4.5, 4.0) and box.last_ijk == (18.5, 11.5, 4.0)
    # Two slices are missing: nowhere more than a voxel deep, so the click is on the first one.
    assert first.positive and second.positive
    assert first.ijk[2] == 2 and second.ijk[2] == 2 and a_block()[tuple(int(n) for n in first.ijk[::-1])]
    assert Learner.ranges == [(2, 6)] * 3
    expected = [2 * 3 / (3 + 5), 2 * 4 / (4 + 5), 1, 1, 1, 1]
    assert [stage.dice for stage in found.stages] == pytest.approx(expected)
    assert found.areas_under_curves()["dice_auc"] == pytest.approx((8 / 9 + 1) / 2 + 3)
    write_json(tmp_path / "found.json", [found], {"protocol": "cvpr25"})
    (one,) = json.loads((tmp_path / "found.json").read_text())["objects"]
    assert one["dice_auc"] == found.areas_under_curves()["dice_auc"] and "click" not in one


def test_a_table_has_the_means_of_every_row():
    half, full = Scores(0.5, 0.25, 3.0), Scores(1.0, 1.0, 0.0)
    found = [
        Measurement("liver", "a:1", 9, (half, half, half, half, half, full), 2.0),
        Measurement("liver", "b:1", 9, (full,) * 6, 4.0),
    ]
    line = table(found).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Dice: 0.5 * 3 + 0.75 = 2.25 and 4; surface: 0.25 * 3 + 0.625 = 1.375 and 4.
    assert cells == ["liver", "2", "3.125", "2.688", "0.750", "1.000", "0.625", "1.000", "3.0"]
