"""Linear transforms as files: where a point of one scan is in another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import GeometryError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_transform(path: Path) -> NDArray[np.float64]:
    """Read a linear transform: where a point of the earlier scan is in the new one, (4, 4) in RAS mm.

    Sixteen numbers as text, row by row; or an ITK text file (``.tfm``, ``.txt``) as 3D Slicer saves the
    transform under which the earlier scan was put: that one holds the inverse, in LPS.

    Raises
    ------
    GeometryError
        ``transform-unreadable``.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "Parameters:" in text:
            return _itk_matrix(text)
        matrix = np.array([float(word) for word in text.replace(",", " ").split()]).reshape(4, 4)
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise ValueError("the last row is not 0 0 0 1")
        np.linalg.inv(matrix)
        return matrix
    except (OSError, ValueError, np.linalg.LinAlgError) as error:
        message = f"{path} is no linear transform: {error}; give 4 x 4 numbers, or an affine ITK .tfm"
        raise GeometryError(message, code="transform-unreadable", path=str(path)) from error


def _itk_matrix(text: str) -> NDArray[np.float64]:
    def numbers(name: str, count: int) -> NDArray[np.float64]:
        line = re.search(rf"^{name}:(.*)$", text, re.MULTILINE)
        values = np.array((line.group(1) if line else "").split(), dtype=float)
        if len(values) != count:
            raise ValueError(f"{name} are {len(values)} numbers, not {count}")
        return values

    parameters, centre = numbers("Parameters", 12), numbers("FixedParameters", 3)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + centre - matrix[:3, :3] @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    inverse: NDArray[np.float64] = np.asarray(np.linalg.inv(flip @ matrix @ flip), dtype=np.float64)
    return inverse
