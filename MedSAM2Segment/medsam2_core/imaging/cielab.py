"""Colours of DICOM segments: sRGB to the scaled CIELab of PS3.3 C.10.7.1.1, and back.

The standard points to ICC's connection space, whose white is D50. What wrote the segmentations there are, and
what shows them (dcmqi and with it 3D Slicer, DCMTK, highdicom), takes the white of sRGB itself, D65, without
adapting it. So does this: adapted, a colour would look different in all of them, and theirs here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsam2_core.errors import VolumeError

# Linear sRGB to XYZ with the four digits of IEC 61966-2-1, which these programs use as well.
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
# The white is what 1, 1, 1 gives, so that greys have a* and b* of exactly 0.
_WHITE = _TO_XYZ.sum(axis=1)
_FROM_RGB = (_TO_XYZ / _WHITE[:, np.newaxis]).tolist()
_TO_RGB = np.linalg.inv(_TO_XYZ / _WHITE[:, np.newaxis]).tolist()
_BEND = 6 / 29  # below its cube the cube root of CIELab becomes a straight line
_TOP = 65535


def rgb_to_cielab(rgb: Sequence[float]) -> tuple[int, int, int]:
    """Scaled CIELab of a colour, as ``RecommendedDisplayCIELabValue`` holds it.

    Parameters
    ----------
    rgb : red, green and blue of sRGB, from 0 to 1

    Returns
    -------
    L*, a*, b*, each from 0 to 65535. Every colour of 8 bits a channel comes back from
    :func:`cielab_to_rgb` as it was.

    Raises
    ------
    VolumeError
        When these are not three numbers from 0 to 1.
    """
    parts = [float(part) for part in rgb]
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        raise VolumeError(f"colour {tuple(rgb)}: expected red, green and blue from 0 to 1")
    linear = [_to_linear(part) for part in parts]
    x, y, z = (_root(sum(a * b for a, b in zip(row, linear, strict=True))) for row in _FROM_RGB)
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    return _scaled(lightness / 100), _scaled((a + 128) / 255), _scaled((b + 128) / 255)


def cielab_to_rgb(lab: Sequence[float]) -> tuple[float, float, float]:
    """Red, green and blue of sRGB, from 0 to 1, of scaled CIELab; colours no screen shows are clipped.

    Parameters
    ----------
    lab : L*, a*, b*, each from 0 to 65535

    Raises
    ------
    VolumeError
        When these are not three numbers.
    """
    if len(lab) != 3:
        raise VolumeError(f"colour {tuple(lab)}: expected three numbers, L*, a* and b*")
    lightness, a, b = (float(part) / _TOP for part in lab)
    y = (100 * lightness + 16) / 116
    x, z = y + (255 * a - 128) / 500, y - (255 * b - 128) / 200
    xyz = [_cube(part) for part in (x, y, z)]
    red, green, blue = (_from_linear(sum(m * n for m, n in zip(row, xyz, strict=True))) for row in _TO_RGB)
    return red, green, blue


def _scaled(part: float) -> int:
    return min(_TOP, max(0, round(part * _TOP)))


def _root(part: float) -> float:
    return part ** (1 / 3) if part > _BEND**3 else part / (3 * _BEND**2) + 4 / 29


def _cube(part: float) -> float:
    return part**3 if part > _BEND else 3 * _BEND**2 * (part - 4 / 29)


def _to_linear(part: float) -> float:
    return ((part + 0.055) / 1.055) ** 2.4 if part > 0.04045 else part / 12.92


def _from_linear(part: float) -> float:
    part = min(1.0, max(0.0, part))
    return 1.055 * part ** (1 / 2.4) - 0.055 if part > 0.0031308 else 12.92 * part
