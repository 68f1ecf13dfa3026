"""One matrix says where voxels are; everything else follows from it."""

import numpy as np
import pytest
from medsam2_core.errors import GeometryError
from medsam2_core.imaging.geometry import Geometry, Space
from support.errors import raises
from support.small_files import OBLIQUE_RAS


def an_oblique_geometry() -> Geometry:
    return Geometry(OBLIQUE_RAS, (6, 5, 4))


def test_points_go_to_patient_space_and_back():
    geometry = an_oblique_geometry()
    points = np.random.default_rng(0).uniform(-3, 9, (50, 3))
    for space in Space:
        assert np.allclose(geometry.ijk_from(geometry.ijk_to(points, space), space), points)
    assert np.allclose(geometry.to_ras([[0, 0, 0]]), geometry.origin_ras)


def test_lps_is_ras_with_two_signs_changed():
    geometry = an_oblique_geometry()
    ras, lps = geometry.ijk_to([[1, 2, 3]], "ras"), geometry.ijk_to([[1, 2, 3]], "LPS")
    assert np.allclose(ras * (-1, -1, 1), lps)
    assert np.allclose(Geometry.from_lps(geometry.ijk_to_lps, (6, 5, 4)).ijk_to_ras, geometry.ijk_to_ras)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ILP", "ASR"])
def test_axis_codes_and_closest_axes_name_the_same_directions(codes):
    matrix = np.eye(4)
    for axis, code in enumerate(codes):
        matrix[:3, axis] = 0
        ras_axis = next(n for n, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        matrix[ras_axis, axis] = 2.0 if code in "RAS" else -2.0
    geometry = Geometry(matrix, (3, 4, 5))
    assert geometry.axis_codes == codes
    assert codes[geometry.closest_axis("axial")] in "SI"
    assert codes[geometry.closest_axis("coronal")] in "AP"
    assert codes[geometry.closest_axis("sagittal")] in "LR"
    assert all(
        geometry.plane_of_axis(geometry.closest_axis(p)) == p for p in ("axial", "coronal", "sagittal")
    )


def test_two_planes_never_share_an_array_axis_even_at_45_degrees():
    c = np.sqrt(0.5)
    rotated = np.array([[c, -c, 0, 0], [c, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    geometry = Geometry(rotated, (3, 3, 3))
    assert {geometry.closest_axis(p) for p in ("axial", "coronal", "sagittal")} == {0, 1, 2}


def test_shear_is_noticed():
    sheared = np.eye(4)
    sheared[1, 2] = 0.25
    assert Geometry(sheared, (2, 2, 2)).is_sheared
    assert not Geometry(np.eye(4), (2, 2, 2)).is_sheared


def test_spacing_is_the_length_of_each_axis():
    geometry = Geometry(np.diag([-0.5, 2.0, 3.0, 1]), (2, 2, 2))
    assert geometry.spacing.tolist() == [0.5, 2.0, 3.0]
    assert np.allclose(geometry.directions, np.diag([-1, 1, 1]))


def test_same_grid_looks_at_every_corner():
    geometry = an_oblique_geometry()
    turned = OBLIQUE_RAS.copy()
    turned[0, 0] += 1e-4  # 0.5 micrometres at the far corner
    assert geometry.same_grid(Geometry(turned, (6, 5, 4)))
    turned[0, 0] += 1e-2
    assert not geometry.same_grid(Geometry(turned, (6, 5, 4)))
    assert not geometry.same_grid(Geometry(OBLIQUE_RAS, (6, 5, 5)))


@pytest.mark.parametrize(
    ("matrix", "shape", "problem"),
    [
        (np.diag([1, 1, 0, 1]), (2, 2, 2), {"code": "invalid-spacing", "spacing_mm": [1.0, 1.0, 0.0]}),
        (np.diag([1, np.nan, 1, 1]), (2, 2, 2), {"code": "invalid-affine"}),
        (
            np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
            (2, 2, 2),
            {"code": "singular-affine"},
        ),
        (np.eye(3), (2, 2, 2), {"code": "invalid-affine", "shape": [3, 3]}),
        (np.ones((4, 4)), (2, 2, 2), {"code": "invalid-affine"}),
        (np.eye(4), (2, 0, 2), {"code": "size-not-positive", "sizes": [2, 0, 2]}),
        (np.eye(4), (2, 2), {"code": "size-not-positive", "sizes": [2, 2]}),
    ],
)
def test_a_matrix_or_shape_that_cannot_be_is_refused(matrix, shape, problem):
    with raises(**problem, error_type=GeometryError):
        Geometry(matrix, shape)


def test_unknown_names_are_refused_with_the_known_ones():
    geometry = an_oblique_geometry()
    with raises("unknown-space", GeometryError):
        geometry.ijk_from([[0, 0, 0]], "mni")
    with raises("unknown-plane", GeometryError):
        geometry.closest_axis("transverse")
    with raises("invalid-points", GeometryError):
        geometry.to_ras([[1, 2]])


def test_matrices_cannot_be_changed_afterwards():
    geometry = an_oblique_geometry()
    with pytest.raises(ValueError, match="read-only"):
        geometry.ijk_to_ras[0, 0] = 5
    given = np.eye(4)
    Geometry(given, (1, 1, 1))
    given[0, 0] = 2  # the caller's own array stays the caller's


def test_the_axial_slice_of_a_picture_is_the_picture():
    geometry = Geometry.for_picture(20, 30, (0.5, 0.25))
    assert geometry.axis_codes == "LPS"
    assert geometry.shape_ijk == (30, 20, 1)
    assert geometry.spacing.tolist() == [0.5, 0.25, 1.0]
