"""From the name of a configuration to an untrained SAM 2 module.

The modules are sam2's own. They are built straight from sam2's packaged YAML files (or ours, in
``configs/``): ``sam2.build_sam`` is not used, because it works through Hydra's process-wide state and its
neighbours import torchvision, which nothing here needs.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from medsam2_core.errors import CatalogueError, MissingPackageError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

STOCK_CONFIGS = tuple(
    f"{family}_hiera_{size}" for family in ("sam2", "sam2.1") for size in ("t", "s", "b+", "l")
)
OWN_CONFIGS = ("embedded",)
#: Side of the largest input: twice as large as any scan is, and the memory grows with its square.
LARGEST_IMAGE = 4096

# The classes a configuration may name. It is a list of Python names to be called, so a file from elsewhere
# could otherwise run anything.
_TRUSTED_PACKAGES = ("sam2.modeling.", "medsam2_core.engine.")

# What stock build_sam2_video_predictor adds with its default apply_postprocessing=True. Its third addition,
# fill_hole_area=8, is not part of SAM2Base, needs sam2's CUDA extension and is skipped by stock without it.
_POSTPROCESSING = {
    "sam_mask_decoder_extra_args": {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    },
    "binarize_mask_from_pts_for_mem_enc": True,
}


def require_sam2() -> None:
    """Raise MissingPackageError when sam2 is not installed."""
    try:
        found = find_spec("sam2")
    except ValueError:  # another module of that name was imported
        found = None
    if found is None:
        message = (
            "the package sam2 is not installed; beside the torch that is there, install it with "
            "`SAM2_BUILD_CUDA=0 pip install --no-deps --no-build-isolation sam2==1.1.0`"
        )
        raise MissingPackageError(message, code="missing-package", package="sam2")


def config_path(config: str | Path) -> Path:
    """Return the YAML file of a configuration.

    Parameters
    ----------
    config
        One of ``STOCK_CONFIGS`` or ``OWN_CONFIGS``, sam2's own spelling
        (``configs/sam2.1/sam2.1_hiera_t.yaml``), or the path of a ``.yaml`` file.

    Raises
    ------
    CatalogueError
        Nothing of that name.
    """
    name = Path(str(config)).name.removesuffix(".yaml")
    if Path(config).suffix == ".yaml" and Path(config).is_file():
        return Path(config)
    if name in STOCK_CONFIGS:
        return Path(str(files("sam2"))) / "configs" / name.split("_")[0] / f"{name}.yaml"
    if name in OWN_CONFIGS:
        return Path(str(files("medsam2_core.engine"))) / "configs" / f"{name}.yaml"
    known = ", ".join(STOCK_CONFIGS + OWN_CONFIGS)
    message = f"no model configuration {str(config)!r}: use one of {known}, or the path of a .yaml file"
    raise CatalogueError(message, code="unknown-configuration", config=str(config))


def read_config(
    config: str | Path, image_size: int | None = None, apply_postprocessing: bool = True
) -> dict[str, Any]:
    """Read a configuration's ``model`` part as plain values; its class names are checked.

    Parameters
    ----------
    image_size
        Side S of the square image the model sees; None keeps the file's.
    apply_postprocessing
        As in stock ``build_sam2_video_predictor``: fall back to the best of three masks when the single one
        is unstable, and binarise clicked masks before they are remembered. Only for sam2's own
        configurations: others state these options themselves.

    Raises
    ------
    CatalogueError
        Unknown or unreadable configuration, a class outside sam2 and this package, or an impossible image
        size.
    MissingPackageError
        sam2 is not installed.
    """
    require_sam2()
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    path = config_path(config)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise _refused(path, f"cannot be read: {error}", "unreadable-configuration") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _refused(path, "is not one of SAM 2: it has no `model` section", "not-a-configuration")
    model = content["model"]
    if apply_postprocessing and path.name.removesuffix(".yaml") in STOCK_CONFIGS:
        model.update(_POSTPROCESSING)
    if image_size is not None:
        model["image_size"] = image_size
    size = model.get("image_size")
    if type(size) is not int or not 0 < size <= LARGEST_IMAGE or size % 32:
        message = f"image size {size!r} cannot be used: it must be a multiple of 32 up to {LARGEST_IMAGE}"
        raise CatalogueError(message, code="image-size", image_size=repr(size))
    if model.get("_target_") != "sam2.modeling.sam2_base.SAM2Base":
        what = f"describes {model.get('_target_')!r}, not sam2.modeling.sam2_base.SAM2Base"
        raise _refused(path, what, "not-a-configuration")
    for key, value in _leaves(model):
        _check_setting(path, key, value)
    return model


def _refused(path: Path, what: str, code: str, **fields: Any) -> CatalogueError:
    return CatalogueError(f"the model configuration {path} {what}", code=code, path=str(path), **fields)


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node


def _check_setting(path: Path, key: str, value: Any) -> None:
    """Refuse what would make instantiation call something else than a network module's constructor."""
    if key == "weights_path" and value is not None:
        what = f"names further weights ({value!r}): give one checkpoint with everything in it"
        raise _refused(path, what, "untrusted-configuration", key=key)
    if key != "_target_":
        if key.startswith("_"):
            raise _refused(path, f"uses {key}, which is not allowed", "untrusted-configuration", key=key)
        return
    from hydra.utils import get_object

    trusted = isinstance(value, str) and value.startswith(_TRUSTED_PACKAGES)
    if trusted:
        try:
            found = get_object(value)
        except (ImportError, ValueError, AttributeError) as error:
            what = f"names {value}, which this version of sam2 does not have"
            raise _refused(path, what, "unknown-class", target=value) from error
        # "sam2.modeling.sam2_base.torch.load" starts well, too: what counts is where the class was made.
        made_here = f"{getattr(found, '__module__', '')}.".startswith(_TRUSTED_PACKAGES)
        trusted = isinstance(found, type) and issubclass(found, nn.Module) and made_here
    if not trusted:
        what = f"wants to call {value!r}: only network modules of sam2 and this package may be"
        raise _refused(path, what, "untrusted-configuration", target=repr(value))


def build_module(
    config: str | Path, image_size: int | None = None, apply_postprocessing: bool = True
) -> "SAM2Base":
    """Build a SAM 2 with random weights, in eval mode, on the CPU; gradients are left on for training.

    Parameters are those of :func:`read_config`. Building takes from half a second (tiny) to four seconds
    (large): do it once and keep the module.
    """
    return build_from(read_config(config, image_size, apply_postprocessing), str(config))


def build_from(settings: Mapping[str, Any], name: str, blank: bool = False) -> "SAM2Base":
    """Build what :func:`read_config` returned.

    Parameters
    ----------
    name
        For the message when the settings do not fit together.
    blank
        Leave out the drawing of random weights, which takes most of the time, for a module that gets every
        tensor from a checkpoint right after.
    """
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        with _NothingDrawn() if blank else nullcontext():
            return instantiate(dict(settings), _recursive_=True, _convert_="all").eval()
    except HydraException as error:
        message = f"the configuration {name} does not make a SAM 2: {error}"
        raise CatalogueError(message, code="inconsistent-configuration", config=name) from error


class _NothingDrawn(TorchFunctionMode):
    """Inside, tensors are not filled with random numbers; they keep whatever is in their memory."""

    # The third is the second half of a truncated normal distribution. Not a TorchDispatchMode: for one torch
    # imports its compiler, which takes longer than all the rest of loading a small model.
    _drawing = (torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._drawing:
            return args[0]
        return func(*args, **(kwargs or {}))


@cache
def _fingerprints() -> dict[tuple[int, int, bool], str]:
    """Return the configuration names by (first width, number of trunk blocks, is 2.1)."""
    table = {}
    for name in STOCK_CONFIGS:
        settings = read_config(name)
        trunk = settings["image_encoder"]["trunk"]
        is_21 = bool(settings.get("no_obj_embed_spatial", False))
        table[trunk.get("embed_dim", 96), sum(trunk.get("stages", (2, 3, 16, 3))), is_21] = name
    return table


def guess_config(state: Mapping[str, torch.Tensor]) -> str | None:
    """Return the configuration whose checkpoints look like this state dict, or None.

    Decided by the trunk's width and depth and the tensors that came with SAM 2.1; strict loading has the last
    word.
    """
    if "image_encoder.trunk.stem.0.weight" in state:
        return "embedded"
    first = state.get("image_encoder.trunk.patch_embed.proj.weight")
    if first is None or first.ndim != 4:
        return None
    prefix = "image_encoder.trunk.blocks."
    blocks = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    return _fingerprints().get((first.shape[0], len(blocks), "no_obj_embed_spatial" in state))
