"""Import checkpoints of the reference implementation of Sam2Rad (arXiv:2409.06821) as Auto models.

Such a Lightning ``.ckpt`` holds the predictor, queries of one or more data sets, and the SAM 2 it was trained
with. It becomes two files: the Auto model, and the SAM 2 as a checkpoint beside it. Reading is strict: a
tensor of unknown name is an error; only the memory, which images do not need, may be missing::

    found = import_reference("hip.ckpt", "hip.medsam2auto", "sam2_hiera_t", class_names=["ilium"])
    found.base_path                                   # hip.sam2.safetensors
    auto = load_auto(found.path)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsam2_core.atomic import check_target, new_file
from medsam2_core.auto.adapters import RANK, load_parts, trainable_parts
from medsam2_core.auto.model import AutoModel, untrained_model
from medsam2_core.auto.model_file import SUFFIX, AutoCard, AutoClass
from medsam2_core.auto.predictor import PredictorSettings, inverse_frequencies
from medsam2_core.engine.architecture import OWN_CONFIGS, STOCK_CONFIGS, build_from, read_config
from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.engine.model import load_model
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import CatalogueError, CheckpointError, ExportError
from medsam2_core.imaging.segmentation import default_colour

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


_BASE_SUFFIX = ".sam2.safetensors"
# Parts of a SAM 2 that images need; the others are its memory.
_FOR_IMAGES = ("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed")
# sam2 has it for masks given as prompts; a checkpoint may have all of the memory but this.
_MASK_PROMPTS = "mask_downsample."


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes
    ----------
    path, base_path
        Files of the Auto model and of the SAM 2 it is based on.
    card
        Card of the Auto model. Its :attr:`AutoCard.can_track` is False if the checkpoint has no memory: that
        of the SAM 2 is untrained then, and must not be used for propagation.
    """

    path: Path
    base_path: Path
    card: AutoCard


def import_reference(
    path: str | Path,
    out_path: str | Path,
    config: str = "sam2_hiera_t",
    *,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Convert a reference checkpoint to an Auto model and a checkpoint of its SAM 2.

    Nothing is written unless all tensors fit.

    Parameters
    ----------
    path
        A Lightning ``.ckpt``, or its state dict.
    out_path
        The ``.medsam2auto`` file; the SAM 2 becomes ``NAME.sam2.safetensors`` beside it.
    config
        Configuration of the SAM 2: one of sam2's own, or ``embedded``.
    image_size
        S of the training, which no tensor tells; None for the configuration's.
    class_names
        One for each class, in order; None derives them from the data set's name.
    dataset
        Name of the data set whose queries are used; needed if there are several.

    Raises
    ------
    CheckpointError
        ``not-a-sam2rad-checkpoint``, ``sam2rad-checkpoint-damaged``, ``unsupported-sam2rad-checkpoint``,
        ``data-set-ambiguous``, ``unknown-data-set``, ``bad-class-names``; those of ``read_state_dict``.
    CatalogueError, ExportError
        ``unknown-config``; ``not-an-auto-model-name``, or a file that cannot be written.
    """
    path, out = Path(path), Path(out_path)
    config, source = _known(config), str(path)
    if out.suffix != SUFFIX or not out.stem:
        message = f"{out}: the name of an Auto model ends with {SUFFIX}"
        raise ExportError(message, code="not-an-auto-model-name", path=str(out))
    base_path = out.with_name(out.stem + _BASE_SUFFIX)
    check_target(out, overwrite=overwrite)
    check_target(base_path, overwrite=overwrite)
    parts = parts_of(read_state_dict(path), source)
    chosen, queries = _queries(parts, dataset, source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # tensors that the checkpoint lacks are the same in every import
        module, tracks = _sam2(parts, config, image_size, source)
        card = AutoCard(
            path.stem, _classes(class_names, queries, chosen), base_path.name, "", module.image_size,
            predictor=_settings(module, queries, source).to_dict(),
            decoder="lora" if parts.decoder_updates else "frozen",
            encoder="adapters" if parts.adapters else "frozen",
            training={"origin": "reference checkpoint", "data_set": chosen, "tracks": tracks},
        )  # fmt: skip
        auto = _filled(card, module, parts, queries, source)
    return Imported(out, base_path, _written(auto, out, base_path, overwrite=overwrite))


def _known(config: str) -> str:
    """Return the plain name of a configuration that can be recognised by the tensors of a file."""
    plain = Path(str(config)).name.removesuffix(".yaml")
    known = STOCK_CONFIGS + OWN_CONFIGS
    if plain not in known:
        message = f"no model configuration {config!r} for an import: use one of {', '.join(known)}"
        raise CatalogueError(message, code="unknown-config", name=str(config), known=list(known))
    return plain


_UNSUPPORTED = "unsupported-sam2rad-checkpoint"
_DAMAGED = "sam2rad-checkpoint-damaged"
_NOT_ONE = "not-a-sam2rad-checkpoint"


def _refused(code: str, source: str, what: str, tensor: str) -> CheckpointError:
    """Return the error for a checkpoint with a tensor that is missing, too many or not as it should be."""
    return CheckpointError(f"{source}: {tensor[:120]} {what}", code=code, path=source, tensor=tensor)


def _queries(parts: Parts, dataset: str | None, source: str) -> tuple[str, torch.Tensor]:
    """Return name and (K, T, C) queries of the requested data set."""
    known = ", ".join(map(repr, parts.queries))
    if not parts.queries:
        raise _refused(_NOT_ONE, source, "is missing: this is not a Sam2Rad checkpoint", _QUERIES)
    if dataset is None and len(parts.queries) > 1:
        message = f"{source} holds queries of several data sets: choose one of {known}"
        raise CheckpointError(message, code="data-set-ambiguous", path=source, known=list(parts.queries))
    chosen = next(iter(parts.queries)) if dataset is None else dataset
    if chosen not in parts.queries:
        raise CheckpointError(
            f"{source} holds no queries of a data set {chosen!r}: choose {known}",
            code="unknown-data-set", path=source, name=chosen, known=list(parts.queries),
        )  # fmt: skip
    queries = parts.queries[chosen]
    if queries.ndim != 3 or 0 in queries.shape:
        what = f"is {tuple(queries.shape)}, not (classes, tokens, channels)"
        raise _refused(_DAMAGED, source, what, _QUERIES + chosen)
    return chosen, queries


def _settings(module: SAM2Base, queries: torch.Tensor, source: str) -> PredictorSettings:
    classes, tokens, width = queries.shape
    if tokens < 3 or width != module.hidden_dim:
        needed = f"three at least, of the {module.hidden_dim} channels of its SAM 2, are needed"
        what = f"are {tokens} tokens of {width} channels a class; {needed}"
        raise _refused(_UNSUPPORTED, source, what, _QUERIES)
    return replace(PredictorSettings.for_module(module, classes), tokens=tokens)


def _classes(names: Sequence[str] | None, queries: torch.Tensor, dataset: str) -> tuple[AutoClass, ...]:
    count = len(queries)
    if names is None:
        names = [dataset] if count == 1 else [f"{dataset} {n}" for n in range(1, count + 1)]
    names = [one.strip() for one in names]
    if len(names) != count or len(set(names)) != count or "" in names:
        raise CheckpointError(
            f"{len(names)} class names ({', '.join(names)}): the queries of {dataset!r} are of {count} "
            f"class{'es' * (count > 1)}, each of which needs a name of its own",
            code="bad-class-names", names=names, classes=count,
        )  # fmt: skip
    return tuple(AutoClass(one, n + 1, default_colour(n)) for n, one in enumerate(names))


def _sam2(parts: Parts, config: str, image_size: int | None, source: str) -> tuple[SAM2Base, bool]:
    """Return the SAM 2 in a checkpoint, and whether its memory is trained."""
    settings = read_config(config, image_size)
    module = build_from(settings, config, blank=True)
    wanted = [key for key in module.state_dict() if not key.startswith(_FOR_IMAGES)]
    missing = [key for key in wanted if key not in parts.memory]
    lost = [key for key in missing if not key.startswith(_MASK_PROMPTS)]
    kept = [key for key in wanted if key in parts.memory and not key.startswith(_MASK_PROMPTS)]
    if lost and kept:
        what = f"and {len(lost) - 1} more of the memory of {config} are missing, but not all: "
        what += "give the configuration it was trained with, or remove all of the memory"
        raise _refused(_DAMAGED, source, what, lost[0])
    untrained = build_from(settings, config).state_dict() if missing else {}
    state = parts.sam2 | {key: untrained[key] if key in missing else parts.memory[key] for key in wanted}
    load_strict(module, state, config, source)
    return module, not missing


def _filled(card: AutoCard, module: SAM2Base, parts: Parts, queries: torch.Tensor, source: str) -> AutoModel:
    """Return the Auto model with all tensors loaded."""
    auto = untrained_model(card, SegmentationModel.of(module, card.base))
    load_strict(auto.network.predictor, {**parts.predictor, "queries": queries}, source=source)
    if parts.decoder_updates:
        decoder = auto.network.decoder
        own = {key: value for key, value in trainable_parts(decoder).items() if key not in _updates(decoder)}
        if problems := load_parts(decoder, {**own, **parts.decoder_updates}):
            name, _, what = problems[0].partition(" ")
            raise _refused(_DAMAGED, source, f"{what} ({len(problems) - 1} more)", _DECODER + name)
    if auto.adapters is not None:
        load_strict(auto.adapters, parts.adapters, source=source)
    return auto


def _updates(decoder: torch.nn.Module) -> set[str]:
    """Return the names of the low-rank tensors of an adapted decoder."""
    return {name for name in trainable_parts(decoder) if ".w_a." in name or ".w_b." in name}


def _written(auto: AutoModel, out: Path, base_path: Path, *, overwrite: bool) -> AutoCard:
    """Write both files; return the card with the weights key of the SAM 2's file."""
    _write_sam2(base_path, auto.model.module.state_dict(), overwrite=overwrite)
    try:
        size = auto.card.image_size
        card = replace(auto.card, base_key=load_model(base_path, "cpu", image_size=size).weights_key)
        replace(auto, card=card).save(out, overwrite=overwrite)
    except BaseException:
        base_path.unlink(missing_ok=True)  # of no use alone
        raise
    return card


def _write_sam2(path: Path, state: Mapping[str, Any], *, overwrite: bool) -> None:
    from safetensors.torch import save

    content = save({key: value.contiguous() for key, value in state.items()}, metadata={"format": "pt"})
    with new_file(path, overwrite=overwrite) as stream:
        stream.write(content)


_BLOCKS = 3
_ENCODER = "model.image_encoder.net."
_ADAPTER = re.compile(r"model\.image_encoder\.adapters\.(\d+\.adapters\.[02]\.(?:weight|bias))")
_DECODER = "model.sam_mask_decoder.net."
_ADAPTED = re.compile(r"(.*\.[qv]_proj)\.proj\.(weight|bias)")
_UPDATE = re.compile(r".*\.[qv]_proj\.w_[ab]\.weight")
_LEARNER = "model.prompt_sampler.prompt_learner."
_PROMPT_ENCODER = "model.prompt_sampler.prompt_encoder."
_PROMPT_ENCODER_AGAIN = _LEARNER + "prompt_encoder."
_FREQUENCIES = _LEARNER + "pos_encoding1d.inv_freq"
_QUERIES = "learnable_prompts."
# What single images do not need; `no_mem_embed` alone they do.
_MEMORY = re.compile(r"(?:model\.)?((?:memory_|obj_ptr_|maskmem_tpos_enc|no_|mask_downsample\.).*)")
_NEEDED = "no_mem_embed"
# Modules in a row have numbers, which depend on what stands between them: `0` and `2`, or `layers.0` and
# `layers.1`. Only their order counts. Name of the row -> our names, in order.
_ROW = re.compile(
    r"(layers\.[0-2]\.mlp|box_regression_head\.mlp|mask_classifier)\.(?:layers\.)?([\d.]+)\.(\w+)"
)
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
_SAME_NAME = re.compile(r"channel_adapters\.[12]\.(?:weight|bias)")
_FINAL = "mask_classifier.final_conv."


@dataclass
class Parts:
    """Tensors of a reference checkpoint, by their names in this package.

    Names in the checkpoint are those after one ``model.`` was removed from all of them, as
    :func:`~medsam2_core.engine.checkpoint.read_state_dict` does.

    Attributes
    ----------
    sam2
        Tensors of the SAM 2 that images need.
    memory
        The other tensors of the SAM 2.
    decoder_updates
        Low-rank updates of the mask decoder; empty when that was frozen.
    updated
        Names of the projections that have an update.
    adapters
        Adapters of the image encoder; empty when that was frozen.
    predictor
        The predictor without its queries.
    queries
        (K, T, C) by data set.
    """

    sam2: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    decoder_updates: dict[str, torch.Tensor] = field(default_factory=dict)
    updated: set[str] = field(default_factory=set)
    adapters: dict[str, torch.Tensor] = field(default_factory=dict)
    predictor: dict[str, torch.Tensor] = field(default_factory=dict)
    queries: dict[str, torch.Tensor] = field(default_factory=dict)


def parts_of(state: Mapping[str, torch.Tensor], source: str) -> Parts:
    """Sort the tensors of a state dict; raise CheckpointError for unknown or contradictory ones."""
    parts, learner, again, unknown = Parts(), {}, {}, []
    frequencies = None
    for key, value in state.items():
        if key == _FREQUENCIES:
            frequencies = value
        elif key.startswith(_PROMPT_ENCODER_AGAIN):
            again[key[len(_PROMPT_ENCODER_AGAIN) :]] = value
        elif key.startswith(_LEARNER):
            learner[key[len(_LEARNER) :]] = value
        elif key.startswith(_QUERIES) and len(key) > len(_QUERIES):
            parts.queries[key[len(_QUERIES) :]] = value
        elif not _of_sam2(key, value, parts):
            unknown.append(key)
    parts.predictor, strange = _predictor(learner)
    unknown += [_LEARNER + key for key in strange]
    if unknown:
        what = f"(and {len(unknown) - 1} more) is in no reference checkpoint: "
        what += "only those of Sam2Rad with a Prompt Predictor Network can be imported"
        raise _refused(_UNSUPPORTED, source, what, unknown[0])
    placed = (parts.sam2, parts.memory, parts.decoder_updates, parts.adapters, parts.predictor, parts.queries)
    if sum(map(len, placed)) + len(again) + (frequencies is not None) != len(state):
        message = f"{source} holds two tensors for one place of the network: it was changed, get it again"
        raise CheckpointError(message, code=_DAMAGED, path=source)
    _check_updates(parts, source)
    _check_equal(parts.sam2, again, source)
    _check_frequencies(frequencies, parts, source)
    return parts


def _of_sam2(key: str, value: torch.Tensor, parts: Parts) -> bool:
    """Put a tensor of SAM 2, or an addition to it, in its place; False when it is neither."""
    if key.startswith(_ENCODER):
        parts.sam2["image_encoder." + key[len(_ENCODER) :]] = value
    elif key.startswith(_PROMPT_ENCODER):
        parts.sam2["sam_prompt_encoder." + key[len(_PROMPT_ENCODER) :]] = value
    elif adapter := _ADAPTER.fullmatch(key):
        parts.adapters[adapter[1]] = value
    elif key.startswith(_DECODER):
        name = key[len(_DECODER) :]
        if _UPDATE.fullmatch(name):
            parts.decoder_updates[name] = value
        else:
            if adapted := _ADAPTED.fullmatch(name):
                parts.updated.add(adapted[1])
                name = f"{adapted[1]}.{adapted[2]}"
            parts.sam2["sam_mask_decoder." + name] = value
    elif memory := _MEMORY.fullmatch(key):
        if memory[1] == _NEEDED:
            parts.sam2[_NEEDED] = value
        else:
            parts.memory[memory[1]] = value
    else:
        return False
    return True


def _predictor(learner: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the predictor's tensors by their names here, and the names of unknown tensors."""
    named: dict[str, torch.Tensor] = {}
    rows: dict[str, dict[tuple[int, ...], dict[str, str]]] = {}
    strange = []
    for key, value in learner.items():
        if key.startswith(_FINAL):
            named["mask_head." + key.partition(".")[2]] = value
        elif row := _ROW.fullmatch(key):
            place = tuple(int(n) for n in row[2].split(".") if n)
            rows.setdefault(row[1], {}).setdefault(place, {})[row[3]] = key
        elif _SAME_NAME.fullmatch(key) or ((block := _BLOCK.fullmatch(key)) and int(block[1]) < _BLOCKS):
            named[key] = value
        else:
            strange.append(key)
    for row_name, modules in rows.items():
        ours = _names_in_row(row_name)
        if len(modules) > len(ours):
            strange += [key for place in sorted(modules)[len(ours) :] for key in modules[place].values()]
        for name, place in zip(ours, sorted(modules), strict=False):
            named |= {f"{name}.{kind}": learner[key] for kind, key in modules[place].items()}
    return named, strange


def _names_in_row(row: str) -> tuple[str, str]:
    """Return the names here of the two modules of a row."""
    if row == "box_regression_head.mlp":
        return "box_head.mlp.0", "box_head.mlp.2"
    if row == "mask_classifier":
        return "mask_head.layers.0", "mask_head.layers.3"
    return f"{row}.layers.0", f"{row}.layers.1"


def _check_updates(parts: Parts, source: str) -> None:
    have = {name.rpartition(".w_")[0] for name in parts.decoder_updates}
    if lone := sorted(have ^ parts.updated):
        what = "has only one of the projection and its low-rank update"
        raise _refused(_DAMAGED, source, what, _DECODER + lone[0])
    for name, value in parts.decoder_updates.items():
        rank = value.shape[0] if ".w_a." in name else value.shape[-1]
        if value.ndim != 2 or rank != RANK:
            what = f"is {tuple(value.shape)}: only updates of rank {RANK} are known"
            raise _refused(_UNSUPPORTED, source, what, _DECODER + name)
        if not value.is_floating_point() or not torch.isfinite(value).all():
            what = "holds NaN or infinite values: the file is damaged, get it again"
            raise _refused(_DAMAGED, source, what, _DECODER + name)


def _check_equal(sam2: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor], source: str) -> None:
    """Check that the two copies of the prompt encoder are equal: which one was trained with is unknown."""
    prefix = "sam_prompt_encoder."
    once = {key[len(prefix) :]: value for key, value in sam2.items() if key.startswith(prefix)}
    for key in sorted({*once, *again}):
        one, other = once.get(key), again.get(key)
        if one is None or other is None or one.dtype != other.dtype or not torch.equal(one, other):
            what = f"and {_PROMPT_ENCODER_AGAIN}{key} must both be there and be equal: get the file again"
            raise _refused(_DAMAGED, source, what, _PROMPT_ENCODER + key)


def _check_frequencies(found: torch.Tensor | None, parts: Parts, source: str) -> None:
    """Check that the stored frequencies are those that are computed here."""
    width = next((value.shape[-1] for value in parts.queries.values() if value.ndim), 0)
    if width == 0:  # refused for that, by its own message
        return
    expected = inverse_frequencies(width)
    if found is None:
        what = "is missing: this is not a Sam2Rad checkpoint, or incomplete"
        raise _refused(_NOT_ONE, source, what, _FREQUENCIES)
    fits = found.shape == expected.shape and found.is_floating_point()
    # Kept in half precision, they are as far off as that rounds.
    tolerance = 1e-5 if found.dtype in (torch.float32, torch.float64) else 1e-2
    if not fits or not torch.allclose(found.float(), expected, rtol=tolerance, atol=1e-7):
        what = f"{tuple(found.shape)} are not the frequencies 10000^(-2j/{width}) of a Prompt Predictor "
        what += "Network: it encodes positions otherwise, and cannot be imported"
        raise _refused(_UNSUPPORTED, source, what, _FREQUENCIES)
