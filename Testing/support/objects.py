"""Segmentations the tests of the export write and read back."""

import numpy as np
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.intensity import Window
from medsam2_core.imaging.probabilities import Probabilities
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.slice_mask import PackedValues
from medsam2_core.prompts import Box, Point, PromptSet

SHAPE_IJK = (20, 16, 9)
_TURN = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])  # a rotation


def _affine(axes, origin=(-120.123456, 33.3, 701.987654)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, origin
    return matrix


#: The ways voxels lie in space that shift masks in careless programs.
GEOMETRIES = {
    "straight": _affine(np.diag([0.7, 0.8, 2.5])),
    "flipped": _affine(np.diag([-0.7, -0.8, 2.5])),
    "left-handed": _affine(np.diag([0.7, -0.8, 2.5])),
    "permuted": _affine(np.array([[0, 0, 2.5], [-0.7, 0, 0], [0, 0.8, 0]])),
    "oblique": _affine(_TURN @ np.diag([0.7, 0.8, 2.5])),
    "oblique and left-handed": _affine(_TURN @ np.diag([0.7, -0.8, 2.5])),
    "sheared": _affine(np.array([[0.7, 0, 0], [0, 0.8, 0.62], [0, 0, 2.42]])),  # a gantry tilt of 14 degrees
    "sheared, oblique and left-handed": _affine(
        _TURN @ np.array([[0.7, 0, 0.1], [0, -0.8, 0.62], [0, 0, 2.42]])
    ),
}


def a_geometry(name="oblique") -> Geometry:
    return Geometry(GEOMETRIES[name], SHAPE_IJK)


def some_masks() -> dict[str, np.ndarray]:
    """Two that overlap in 12 voxels, one in the last corner of the grid, and one that is empty."""
    masks = {name: np.zeros(SHAPE_IJK[::-1], dtype=bool) for name in ("liver", "tumour", "corner", "nothing")}
    masks["liver"][2:5, 3:9, 4:12] = True
    masks["tumour"][4:7, 6:12, 8:18] = True
    masks["corner"][8, 15, 19] = True
    return masks


def some_prompts() -> PromptSet:
    prompts = PromptSet()
    prompts.add("liver", Box((4, 3, 3), (11, 8, 3)))
    prompts.add("tumour", Point((9, 8, 5)))
    prompts.add("tumour", Point((1, 1, 5), False))
    return prompts


def a_segmentation(geometry: Geometry | None = None, masks=None, **provenance) -> Segmentation:
    known = {
        "prompts": some_prompts().to_json(),
        "model": "embedded",
        "weights_sha256": "0123456789abcdef" * 4,
        "window": Window(40, 400, "abdomen").to_dict(),
    }
    return Segmentation.from_masks(
        a_geometry() if geometry is None else geometry,
        some_masks() if masks is None else masks,
        known | provenance,
    )


def probabilities_of(geometry: Geometry, values, provenance=None) -> Probabilities:
    """Probabilities from (K, J, I) uint8 values by name."""
    slices = {
        name: {k: PackedValues.of(values_ji) for k, values_ji in enumerate(values_kji)}
        for name, values_kji in values.items()
    }
    return Probabilities(geometry, slices, provenance or {})


def random_geometry(rng: np.random.Generator, shape_ijk=SHAPE_IJK) -> Geometry:
    """Any rotation, spacing, handedness, and now and then a shear, far from the origin."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes = turn @ np.diag(rng.uniform(0.3, 5, 3) * rng.choice([-1, 1], 3))
    if rng.random() < 0.4:
        axes = axes @ (np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1))
    return Geometry(_affine(axes, rng.uniform(-800, 800, 3)), shape_ijk)


def random_blobs(rng: np.random.Generator, count: int, shape_ijk=SHAPE_IJK) -> dict[str, np.ndarray]:
    """Boxes anywhere, so that some overlap, with holes."""
    masks = {}
    for n in range(count):
        mask = np.zeros(shape_ijk[::-1], dtype=bool)
        ends = [np.sort(rng.integers(0, size + 1, 2)) for size in mask.shape]
        mask[tuple(slice(a, b) for a, b in ends)] = True
        masks[f"object {n}"] = mask & (rng.random(mask.shape) < 0.8)
    return masks
