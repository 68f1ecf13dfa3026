"""Settings that are refused before anything is read."""

from __future__ import annotations

from pathlib import Path


def check_settings(model: str | Path | None, device: str, precision: str, window: str | None = None) -> None:
    """Refuse settings of the model that cannot be used, before anything is read.

    Raises
    ------
    VolumeError, DeviceError, CatalogueError
        What the window, the device, the precision or the model would fail with later.
    """
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store
    from medsam2_core.imaging.intensity import parse_window

    if window is not None and window.strip().lower() != "auto":
        parse_window(window)
    if model is not None:
        Store.default().locate(Catalogue.load().find(model))
    from medsam2_core.engine.devices import choose_device, choose_precision  # torch takes seconds to load

    choose_precision(choose_device(device), precision)
