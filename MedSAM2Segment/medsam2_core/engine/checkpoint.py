"""Reading weights without trusting the file they come in.

A ``.pt`` file is a zip archive with a pickle in it, and a pickle can run any program. Here it is only ever
read by torch's restricted unpickler (``weights_only=True``), its checksums are compared first, and every
tensor must belong to the model: nothing is left out, nothing is made up.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from medsam2_core.engine.architecture import guess_config
from medsam2_core.errors import CheckpointError

# Where published files keep the tensors, besides at the top level.
_NESTED_UNDER = ("model", "state_dict", "model_state_dict")
# What wrappers put in front of every name: DistributedDataParallel, torch.compile, Lightning.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")

#: What torch's zip reader and unpickler raise on a file that was cut off, changed, or is something else.
DAMAGE = (
    UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    EOFError, ArithmeticError, MemoryError, RecursionError, ImportError, struct.error, OSError,
)  # fmt: skip

# A tensor that only this architecture has -> what the file is, and what to do.
_FOREIGN = (
    ("image_encoder.patch_embed.seq.", "MobileSAM (SAM 1 with a TinyViT encoder)"),
    ("image_encoder.blocks.0.attn.", "the first Segment Anything (SAM 1, a plain ViT encoder)"),
    ("spatial_perceiver.", "EdgeTAM"),
    ("image_encoder.trunk.body.", "a SAM 2 variant with a timm encoder (EdgeTAM)"),
    (
        "vision_encoder.",
        "SAM in the layout of the transformers library; take the repository's .pt file instead",
    ),
)


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint, as they are stored, on the CPU.

    Parameters
    ----------
    path
        A file written by ``torch.save`` (``.pt``, ``.pth``, ``.ckpt``: a plain state dict, or one under
        ``model`` or ``state_dict``) or by safetensors. The format is detected from the first bytes, not
        from the name.

    Raises
    ------
    CheckpointError
        Missing, damaged, unsafe, or not a checkpoint.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise CheckpointError(message, code="unreadable-checkpoint", path=str(path)) from error
    if start.startswith(b"PK"):
        content = _read_torch(path)
    elif len(start) > 8 and start[8:9] == b"{":
        content = _read_safetensors(path)
    else:
        kind = _kind(start)
        message = f"{path} is not a checkpoint: {_INSTEAD[kind]}"
        raise CheckpointError(message, code="not-a-checkpoint", path=str(path), kind=kind)
    return _tensors_of(content, path)


_INSTEAD = {
    "empty": "the file is empty; get it again",
    "git-lfs": "it is a Git LFS pointer, not the file itself; run `git lfs pull` or download the file",
    "web-page": "it is a web page; download the file itself",
    "pickle": "it is a bare pickle, which could run a program and is never opened; save it as safetensors",
    "unknown": "it is neither a torch.save archive nor safetensors; it may be damaged, get it again",
}


def _kind(start: bytes) -> str:
    """Return what a file is that is no checkpoint."""
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "git-lfs"
    if start.lstrip()[:1] == b"<":
        return "web-page"
    return "pickle" if start[:1] == b"\x80" else "unknown"


def _read_torch(path: Path) -> object:
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        reason = str(error)
        # torch puts its objection into a long text about how to switch the protection off.
        if refused := re.search(r"(?:GLOBAL|Unsupported class) (\S+)", reason):
            raise CheckpointError(
                f"{path} was not loaded: it holds Python objects besides tensors, which could run programs "
                f"({refused[1]}). Save its state dict alone where that is safe",
                code="unsafe-checkpoint",
                path=str(path),
                refused=refused[1],
            ) from error
        objection = re.search(r"WeightsUnpickler error: (.*)", reason)
        what = _first_line(objection[1] if objection else reason)
        message = f"{path} is damaged and cannot be read ({what}): get it again"
        raise CheckpointError(message, code="damaged-checkpoint", path=str(path)) from error


def _check_archive(path: Path) -> None:
    """Compare every checksum; torch itself does not when it maps a file into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                message = f"{path} is a compressed zip archive, not a checkpoint as torch.save writes it"
                raise CheckpointError(message, code="not-a-checkpoint", path=str(path))
            if not any(entry.filename.endswith("data.pkl") for entry in archive.infolist()):
                message = f"{path} is a zip archive without a checkpoint in it"
                raise CheckpointError(message, code="not-a-checkpoint", path=str(path))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, *DAMAGE) as error:
        message = f"{path} is damaged or was cut off ({_first_line(str(error))}): get it again"
        raise CheckpointError(message, code="damaged-checkpoint", path=str(path)) from error
    if damaged is not None:
        message = f"{path} is damaged: the checksum of {damaged} is wrong; get the file again"
        raise CheckpointError(message, code="damaged-checkpoint", path=str(path), entry=damaged)


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *DAMAGE) as error:
        message = f"{path} is damaged ({_first_line(str(error))}): get it again"
        raise CheckpointError(message, code="damaged-checkpoint", path=str(path)) from error


def _first_line(reason: str) -> str:
    lines = reason.strip().splitlines()
    return lines[0][:200] if lines else "no reason given"


def _tensors_of(content: object, path: Path) -> dict[str, torch.Tensor]:
    for name in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content:
        message = f"{path} holds no state dict, but {_described(content)}"
        raise CheckpointError(message, code="no-state-dict", path=str(path), found=type(content).__name__)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            fields = {"path": str(path), "key": str(key)[:80], "found": type(value).__name__}
            message = f"{path}: {fields['key']!r} is {_described(value)}, not a tensor of the model"
            raise CheckpointError(message, code="not-a-tensor", **fields)
        if value.layout is not torch.strided or value.is_quantized:
            message = f"{path}: {key[:80]!r} is a sparse or quantised tensor, which SAM 2 has none of"
            raise CheckpointError(message, code="unsupported-tensor", path=str(path), key=key[:80])
    state = dict(content)
    for prefix in _WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "an empty dictionary" if not value else f"a dictionary with {_shortened(map(str, value))}"
    return f"a {type(value).__name__}"


def load_strict(
    module: nn.Module, state: Mapping[str, torch.Tensor], config: str = "", source: str = ""
) -> None:
    """Copy a state dict into a module, accounting for every tensor.

    Parameters
    ----------
    module
        The receiving module. Its own precision (fp32) is kept: bf16 and fp16 values are widened.
    state
        Tensors by name, of any floating type.

    Raises
    ------
    CheckpointError
        Missing, unexpected or differently shaped tensors, other than floating numbers, NaN or infinite
        values.
    """
    wanted = module.state_dict()
    source = source or "the checkpoint"
    shared = [key for key in wanted if key in state]
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
            for key in shared
            if state[key].shape != wanted[key].shape
        ],
        "not of a floating type": [
            f"{key} {str(state[key].dtype).removeprefix('torch.')}"
            for key in shared
            if not state[key].is_floating_point()
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {_shortened(keys)}" for what, keys in problems.items() if keys)
        target = f"the model {config}" if config else "this model"
        message = f"{source} does not fit {target}; {told}. {_advice(state, config)}"
        fields: dict = {what.replace(" ", "_"): keys[:4] for what, keys in problems.items() if keys}
        fields |= {"architecture": foreign_architecture(state), "fits": guess_config(state)}
        raise CheckpointError(message, code="checkpoint-mismatch", source=source, config=config, **fields)
    with torch.no_grad():
        for key, target in wanted.items():
            target.copy_(state[key])
            # Min and max meet every NaN and infinity without a temporary copy of the tensor.
            if target.numel() and not all(map(torch.isfinite, target.aminmax())):
                message = f"{source} holds NaN or infinite values in {key}: it is damaged, get it again"
                raise CheckpointError(message, code="not-finite", source=source, key=key)


def foreign_architecture(state: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of a known relative of SAM 2 that cannot be loaded, or None."""
    for prefix, what in _FOREIGN:
        if any(key.startswith(prefix) for key in state):
            return what
    return None


def _advice(state: Mapping[str, torch.Tensor], config: str) -> str:
    if what := foreign_architecture(state):
        return f"The file is {what}; only SAM 2 models can be loaded"
    fitting = guess_config(state)
    if fitting and fitting != config:
        return f"It looks like a checkpoint for the configuration {fitting}: give that one"
    return "Use the configuration the checkpoint was trained with"


def _shortened(names: Iterable[str]) -> str:
    names = [name if len(name) <= 120 else name[:117] + "…" for name in names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
