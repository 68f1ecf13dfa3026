"""Volumes keep what was read, and say when two are the same."""

import numpy as np
import pytest
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.volume import Volume
from support.errors import raises
from support.small_files import a_volume, some_voxels


def test_voxels_cannot_be_changed_through_a_volume_but_the_caller_keeps_his_array():
    voxels = some_voxels()
    volume = Volume(voxels, Geometry(np.eye(4), (6, 5, 4)))
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels_kji[0, 0, 0] = 1
    voxels[0, 0, 0] = 1
    assert np.shares_memory(volume.voxels_kji, voxels)


def test_equal_content_has_equal_keys_whatever_its_memory_layout():
    voxels = some_voxels()
    geometry = Geometry(np.eye(4), (6, 5, 4))
    one = Volume(voxels, geometry, name="one")
    turned = Volume(np.asfortranarray(voxels), geometry, name="another")
    swapped = Volume(voxels.astype(">i2"), geometry)
    assert one.content_key == turned.content_key == swapped.content_key


def test_a_changed_voxel_type_or_place_changes_the_key():
    volume = a_volume()
    changed = volume.voxels_kji.copy()
    changed[1, 2, 3] += 1
    moved = volume.geometry.ijk_to_ras.copy()
    moved[0, 3] += 0.1
    keys = {
        volume.content_key,
        Volume(changed, volume.geometry).content_key,
        Volume(volume.voxels_kji.astype(np.int32), volume.geometry).content_key,
        Volume(volume.voxels_kji, Geometry(moved, (6, 5, 4))).content_key,
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("voxels", "problem"),
    [
        (np.zeros((4, 5, 7)), {"code": "voxels-do-not-fit-grid", "shape_ijk": [6, 5, 4]}),
        (np.zeros((4, 5, 6), complex), {"code": "unsupported-voxel-type", "type": "complex128"}),
        (np.zeros((4, 5, 6, 3), np.float32), {"code": "unsupported-voxel-type"}),
        (np.zeros((4, 5, 6, 4), np.uint8), {"code": "unsupported-voxel-type"}),
        (np.zeros((5, 6)), {"code": "voxels-do-not-fit-grid", "shape_ijk": [6, 5, 4]}),
    ],
)
def test_voxels_that_do_not_fit_are_refused(voxels, problem):
    with raises(**problem, error_type=VolumeError):
        Volume(voxels, Geometry(np.eye(4), (6, 5, 4)))


def test_an_image_set_holds_pictures_only():
    picture = a_volume((1, 5, 6))
    images = ImageSet((picture, a_volume((1, 9, 9))))
    assert len(images) == 2
    assert images[0] is picture
    with raises("not-two-dimensional", VolumeError, slices=4):
        ImageSet((a_volume(),))
