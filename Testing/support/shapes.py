"""Shapes whose diameters are known, and diameters by trying everything."""

import contourpy
import numpy as np
from matplotlib.path import Path
from medsam2_core.export.measurements import measure
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segmentation
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist


def a_grid(mask_kji, axes=(1.0, 1.0, 1.0)) -> Geometry:
    """A grid of the mask's size; ``axes`` are spacings in mm or a (3, 3) matrix with i, j, k as columns."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(axes) if np.ndim(axes) == 1 else axes
    matrix[:3, 3] = (-120.5, 33.25, 701.125)
    return Geometry(matrix, np.shape(mask_kji)[::-1])


def measured(mask, axes=(1.0, 1.0, 1.0)):
    """What is measured of one object; a (J, I) mask is a volume of one slice."""
    mask_kji = np.atleast_3d(np.asarray(mask)[np.newaxis] if np.ndim(mask) == 2 else mask) != 0
    (one,) = measure(Segmentation.from_masks(a_grid(mask_kji, axes), {"object": mask_kji}))
    return one


def drawn(picture: str) -> np.ndarray:
    """(J, I) mask of a picture in which # is the object."""
    return np.array([[letter == "#" for letter in row] for row in picture.split()])


def an_ellipse(half_mm, turned_degrees, axes, shape_hw) -> np.ndarray:
    """(J, I) pixels whose centres lie in an ellipse of these half axes in mm, in the middle of the slice."""
    along, across = _turned_mm(turned_degrees, axes, shape_hw)
    return (along / half_mm[0]) ** 2 + (across / half_mm[1]) ** 2 <= 1


def a_rectangle(sides_mm, turned_degrees, axes, shape_hw) -> np.ndarray:
    """(J, I) pixels whose centres lie in a rectangle of these sides in mm, in the middle of the slice."""
    along, across = _turned_mm(turned_degrees, axes, shape_hw)
    return (np.abs(along) <= sides_mm[0] / 2) & (np.abs(across) <= sides_mm[1] / 2)


def _turned_mm(degrees, axes, shape_hw):
    i, j = in_plane(axes)
    rows, columns = np.mgrid[: shape_hw[0], : shape_hw[1]] - (np.array(shape_hw)[:, None, None] - 1) / 2
    x, y = columns * i[0] + rows * j[0], columns * i[1] + rows * j[1]
    angle = np.radians(degrees)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def in_plane(axes):
    """What a step along i and along j is in mm, in coordinates of their plane: x along i."""
    axes = np.diag(axes) if np.ndim(axes) == 1 else np.asarray(axes)
    i, j = axes[:, 0], axes[:, 1]
    x = i / np.linalg.norm(i)
    return np.array([np.linalg.norm(i), 0.0]), np.array([j @ x, np.linalg.norm(j - (j @ x) * x)])


# By trying everything ---------------------------------------------------------------------------------------


def longest_by_trying(mask_kji, axes) -> float:
    """The longest of all distances between the points half-way to the neighbours, slice by slice."""
    i, j = in_plane(axes)
    best = 0.0
    for mask_ji in mask_kji:
        labels, count = ndimage.label(mask_ji, np.ones((3, 3)))
        for n in range(1, count + 1):
            rows, columns = np.nonzero(labels == n)
            steps = [(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)]
            points = np.concatenate([np.column_stack([columns + a, rows + b]) for a, b in steps])
            points_mm = points @ np.array([i, j])
            best = max(best, pdist(points_mm[ConvexHull(points_mm).vertices]).max())
    return best


def across_by_trying(mask_ji, axes, ends_ij, lines=200, steps=2000) -> float:
    """The longest stretch within a piece on many lines at right angles to the one between ``ends_ij``.

    What is within is said by matplotlib, and the outline is drawn by contourpy.
    """
    outline = _outline_through(mask_ji, np.asarray(ends_ij)[0, :2])
    matrix = np.array(in_plane(axes))  # from (i, j) to mm, for rows
    start, stop = np.asarray(ends_ij)[:, :2] @ matrix
    length = np.linalg.norm(stop - start)
    along = (stop - start) / length
    offsets = np.linspace(-length, length, steps)
    best = 0
    for share in (np.arange(lines) + 0.5) / lines:
        points_mm = start + share * (stop - start) + offsets[:, np.newaxis] * (-along[1], along[0])
        inside = outline.contains_points(points_mm @ np.linalg.inv(matrix))
        runs, _ = ndimage.label(inside)
        best = max([best, *np.bincount(runs)[1:]])
    return best * (offsets[1] - offsets[0])


def _outline_through(mask_ji, point_ij) -> Path:
    """The outer outline that runs through a point; pixels that touch at a corner are joined."""
    generator = contourpy.contour_generator(z=np.pad(mask_ji.astype(float), 1))
    outlines = [line - 1 for line in generator.lines(0.5 - 1e-9)]
    return Path(min(outlines, key=lambda line: np.abs(line - point_ij).sum(axis=1).min()))
