"""Window and level: how voxel values become grey. The voxels themselves are never changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging.volume import canonical_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.volume import Volume

_SAMPLE = 200_000  # voxels; percentiles of that many differ from the volume's by less than a grey value


@dataclass(frozen=True)
class Window:
    """Values from ``level - width/2`` to ``level + width/2`` become black to white."""

    level: float
    width: float
    name: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.level) and math.isfinite(self.width)):
            message = f"window width {self.width}, level {self.level}: both must be finite numbers"
            raise VolumeError(message, code="invalid-window", width=self.width, level=self.level)
        if self.width <= 0:
            message = f"window width {self.width}: must be greater than 0"
            raise VolumeError(message, code="invalid-window", width=self.width, level=self.level)

    @property
    def low(self) -> float:
        """Value shown black."""
        return self.level - self.width / 2

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON, to be stored with a result."""
        return {"width": self.width, "level": self.level, "name": self.name}

    @classmethod
    def spanning(cls, low: float, high: float, name: str = "") -> Window:
        """Create from the values shown black and white; a constant image gets a window of width 1."""
        width = float(high) - float(low)
        if not width > abs(low) * 1e-12:
            width = 1.0
            low = float(low) - 0.5
        return cls(float(low) + width / 2, width, name)


#: Usual CT windows in HU.
PRESETS: Mapping[str, Window] = {
    "abdomen": Window(40, 400, "abdomen"),
    "lung": Window(-600, 1500, "lung"),
    "brain": Window(40, 80, "brain"),
    "mediastinum": Window(50, 350, "mediastinum"),
    "bone": Window(400, 1800, "bone"),
}


def value_range(volume: Volume) -> tuple[float, float] | None:
    """Return the smallest and largest finite value, None where there is none; one slice at a time."""
    low, high = math.inf, -math.inf
    for slice_ji in volume.voxels_kji:
        values = slice_ji[np.isfinite(slice_ji)] if slice_ji.dtype.kind == "f" else slice_ji
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return None if low > high else (low, high)


def check_contrast(volume: Volume) -> None:
    """Raise VolumeError for voxels that show nothing: ``no-finite-voxel``, ``constant-volume``."""
    found = value_range(volume)
    fields = {"path": str(volume.source)} if volume.source is not None else {}
    name = volume.source or volume.name or "the volume"
    if found is None:
        message = f"{name}: no voxel is a finite number (all are NaN or infinite): there is nothing to see"
        raise VolumeError(message, code="no-finite-voxel", **fields)
    if found[0] == found[1]:
        message = f"{name}: every voxel is {found[0]:g}: there is nothing to see in a constant volume"
        raise VolumeError(message, code="constant-volume", value=found[0], **fields)


def parse_window(text: str, volume: Volume | None = None) -> Window:
    """Read a window from text: ``"400,40"`` (width, level), a preset's name, or ``"auto"``.

    ``"auto"`` needs the volume. Raises VolumeError that names the text and the choices.
    """
    wanted = text.strip().lower()
    if wanted in PRESETS:
        return PRESETS[wanted]
    if wanted == "auto" and volume is not None:
        return automatic_window(volume)
    parts = wanted.replace("/", ",").split(",")
    try:
        width, level = (float(part) for part in parts)
    except ValueError as error:
        message = f"window {text!r}: give WIDTH,LEVEL such as 400,40, or one of auto, {', '.join(PRESETS)}"
        raise VolumeError(message, code="unknown-window", text=text, presets=list(PRESETS)) from error
    return Window(level, width)


def automatic_window(volume: Volume) -> Window:
    """Choose a window that suits the volume, from a bounded sample of its voxels.

    CT in Hounsfield units gets soft tissue (400/40), which shows organs and lesions of head, chest and
    abdomen alike. Only when most of what is not air is lung (cropped lung) it gets the lung window, when most
    is bone the bone window. Everything else spans the 0.5 to 99.5 percentile of voxels above 0. CT that
    someone already turned into 8 bits is shown as it is.
    """
    if volume.is_colour:
        return Window.spanning(0, 255, "colour")
    values = _sample(volume)
    if values.size == 0:
        return Window(0.5, 1.0, "constant")
    if volume.modality == "CT" and volume.voxels_kji.dtype == np.uint8:
        return Window.spanning(0, 255, "8-bit")
    if is_hounsfield(volume, values):
        return _ct_window(values)
    positive = values[values > 0]
    # Standardised images have many negative voxels that carry meaning; an all-black image has no positive
    # ones.
    if positive.size < 0.01 * values.size or np.mean(values < 0) > 0.05:
        positive = values
    low, high = np.percentile(positive, (0.5, 99.5))
    if high <= low:  # a nearly empty image, such as a label map
        low, high = values.min(), values.max()
    return Window.spanning(low, high, "percentile")


def is_hounsfield(volume: Volume, values: NDArray[np.float64] | None = None) -> bool:
    """Return whether voxel values look like Hounsfield units.

    A DICOM CT declares them. In other files only values show it: CT has air near -1000, or at least fat below
    -50, and nothing far beyond metal, whereas MR and ultrasound magnitudes are not negative.
    """
    if volume.is_colour or volume.voxels_kji.dtype in (np.uint8, np.bool_):
        return False
    values = _sample(volume) if values is None else values
    if values.size == 0:
        return False
    low, high = np.percentile(values, (1, 99.9))
    if volume.modality == "CT":
        return bool(low < 0 or high - low > 100)
    if volume.modality:
        return False
    return bool(-5000 <= low <= -200 and high - low > 100 and -500 < high < 33000)


def to_display(image_hw: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Map (H, W) values to (H, W, 3) grey uint8 through the window; uint8 colour passes through.

    Values that are not numbers become black.
    """
    if image_hw.ndim == 3:
        return np.ascontiguousarray(image_hw, dtype=np.uint8)
    return np.repeat(to_grey(image_hw, window)[..., np.newaxis], 3, axis=2)


def to_grey(image_hw: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Map (H, W) values to (H, W) uint8 through the window; values that are not numbers become black."""
    kind = image_hw.dtype
    if kind.kind in "iu" and kind.itemsize <= 2 and image_hw.size >= 2 ** (8 * kind.itemsize):
        name = kind.newbyteorder("=").name
        indices = image_hw.astype(name, copy=False).view(f"u{kind.itemsize}")
        return _grey_levels(name, window).take(indices)
    return _windowed(image_hw, window)


@lru_cache(maxsize=8)
def _grey_levels(kind: str, window: Window) -> NDArray[np.uint8]:
    """Return the grey of every value of an integer type of at most 16 bits, in the order of its bits."""
    unsigned = np.arange(2 ** np.iinfo(kind).bits, dtype=f"u{np.dtype(kind).itemsize}")
    return _windowed(unsigned.view(kind), window)


def _windowed(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    scaled = values.astype(np.float64)
    scaled -= window.low
    scaled *= 255.0 / window.width
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0, 255, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def _ct_window(values: NDArray[np.float64]) -> Window:
    body = values[values > -950]  # air around the patient and padding below it do not count
    if body.size < 0.01 * values.size:
        return PRESETS["abdomen"]
    if np.mean((body < -500) & (body > -950)) > 0.6:
        return PRESETS["lung"]
    if np.mean(body > 250) > 0.5:
        return PRESETS["bone"]
    return PRESETS["abdomen"]


def _sample(volume: Volume) -> NDArray[np.float64]:
    """Return at most about ``_SAMPLE`` finite voxels, evenly spread; never a float copy of the whole.

    Taken in anatomical order, so that one scan stored in another axis order gets the same window.
    """
    voxels = canonical_view(volume.voxels_kji, volume.geometry)
    step = max(1, math.ceil((voxels.size / _SAMPLE) ** (1 / 3)))
    steps = [step if n >= 4 * step else 1 for n in voxels.shape]
    sampled = voxels[:: steps[0], :: steps[1], :: steps[2]]
    if sampled.size > 4 * _SAMPLE:  # pictures and thin slabs: the few slices that are kept are still large
        extra = math.ceil(math.sqrt(sampled.size / _SAMPLE))
        sampled = sampled[:, ::extra, ::extra] if sampled.shape[0] < extra else sampled[::extra, ::extra]
    values = sampled.astype(np.float64).ravel()
    return values[np.isfinite(values)]
