"""From a finished run to the weights that ship: half precision, checked, with a hash for the catalogue."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save

from medsam2_core.atomic import new_file
from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.engine.model import build_module
from medsam2_core.errors import TrainingError

# What the package may weigh stays below what people accept on a hospital network.
_LARGEST = 25_000_000


def package(run: str | Path, target: str | Path, config: str = "embedded") -> tuple[int, str]:
    """Store a run's averaged weights in half precision; return size and SHA-256 of the file.

    Parameters
    ----------
    target
        The ``.safetensors`` file to write; replaced if it exists, never half written.

    Raises
    ------
    TrainingError
        If the run has no weights yet, a weight does not fit half precision, or the file would exceed 25 MB.
    ExportError
        If the file cannot be written.
    CheckpointError
        If the weights do not fit the configuration, key by key.
    """
    source, target = Path(run) / "weights.safetensors", Path(target)
    if not source.exists():
        message = f"{source} does not exist: the run has saved nothing yet"
        raise TrainingError(message, code="run-without-weights", path=str(source))
    state = read_state_dict(source)
    load_strict(build_module(config), state, config, str(source))
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    broken = [key for key, value in half.items() if not torch.isfinite(value.float()).all()]
    if broken:
        message = f"{source}: {broken[0]} (and {len(broken) - 1} more) does not fit half precision"
        raise TrainingError(message, code="not-in-half-precision", path=str(source), keys=broken)
    # safetensors' own writer makes files that only the owner can read.
    content = save(half)
    size = len(content)
    if size > _LARGEST:
        message = f"{target} would take {size / 1e6:.1f} MB: at most {_LARGEST / 1e6:.0f} MB ship"
        raise TrainingError(message, code="weights-too-large", size=size, most=_LARGEST)
    with new_file(target, overwrite=True) as stream:
        stream.write(content)
    return size, hashlib.sha256(content).hexdigest()
