"""How many processes a machine has room for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medsam2_core.batch.cases import Case, Options
from medsam2_core.batch.inputs import is_url

_PROGRAM_BYTES = 1 << 30  # of one process, where the need of its model is not known
_GROWTH = {".gz": 4, ".zip": 4}  # by how much a compressed scan is larger in memory
_UNKNOWN_SCAN = 300 << 20  # bytes; a CT of 300 slices
_SCANS = 3  # in a process: one computed, one read, and what is made of them


def processes_for(options: Options, cases: Sequence[Case]) -> int:
    """Return how many processes fit into memory with the largest scan, and at most one for each core.

    On a graphics card its memory counts, too.
    """
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.devices import choose_device
    from medsam2_core.worker.system import device_facts, memory

    scan = max((_scan_bytes(case) for case in cases), default=_UNKNOWN_SCAN)
    device = choose_device(options.device)
    model = Catalogue.load().find(options.model).needed_bytes(0, options.image_size) or _PROGRAM_BYTES
    cores = max(1, _cores() // options.threads)
    if device.type == "cpu":
        return max(1, min(cores, memory()[0] // (model + _SCANS * scan)))
    in_card = device_facts(device)["free_bytes"] // (model + scan)
    return max(1, min(cores, memory()[0] // (_PROGRAM_BYTES + _SCANS * scan), in_card))


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _scan_bytes(case: Case) -> int:
    """Return about how large a scan is in memory, by the size of its files."""
    path = Path(case.image)
    if is_url(case.image):
        return _UNKNOWN_SCAN
    try:
        if path.is_dir():
            return sum(one.stat().st_size for one in path.iterdir() if one.is_file()) * 2
        return path.stat().st_size * _GROWTH.get(path.suffix.lower(), 2)
    except OSError:
        return _UNKNOWN_SCAN
