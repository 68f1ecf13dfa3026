"""Checkpoints of the reference implementation of Sam2Rad become Auto models.

Such a Lightning ``.ckpt`` holds everything: the predictor, queries of one or more data sets, and the SAM 2 it
was trained in. Here it becomes two files: the Auto model, and the SAM 2 below it, which lies beside it and is
found there. Reading is strict: a tensor that has no place is an error that names it; only what images do not
need (the memory) may be left out::

    found = import_reference("hip.ckpt", "hip.medsam2auto", "sam2_hiera_t", class_names=["ilium"])
    found.base_path                                   # hip.sam2.safetensors
    auto = load_auto(found.path)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsam2_core.atomic import check_target, new_file
from medsam2_core.auto.adapting import load_parts, trainable_parts
from medsam2_core.auto.loading import AutoModel, blank
from medsam2_core.auto.model_file import SUFFIX, AutoCard, AutoClass
from medsam2_core.auto.predictor import PredictorSettings
from medsam2_core.auto.reference_names import Parts, parts_of
from medsam2_core.engine.architecture import OWN_CONFIGS, STOCK_CONFIGS, build_from, read_config
from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.engine.model import SegmentationModel, load_model
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
    """What an import made.

    Attributes
    ----------
    path, base_path
        The Auto model, and the SAM 2 below it.
    card
        Of the Auto model. Without a memory in the checkpoint its :attr:`AutoCard.can_track` is False: the
        memory of the SAM 2 beside it is untrained then, and it must not be used to follow an object through
        a volume.
    ignored
        Names of tensors that were left out, as the checkpoint has them.
    """

    path: Path
    base_path: Path
    card: AutoCard
    ignored: tuple[str, ...]


def import_reference(
    path: str | Path,
    out_path: str | Path,
    config: str = "sam2_hiera_t",
    *,
    image_size: int | None = None,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Make an Auto model, and the SAM 2 below it, of a reference checkpoint.

    Nothing in the checkpoint is run. Nothing is written unless all of it fits.

    Parameters
    ----------
    path
        A Lightning ``.ckpt``, or its state dict alone.
    out_path
        The ``.medsam2auto`` file; the SAM 2 becomes ``NAME.sam2.safetensors`` beside it, and the two stay
        together.
    config
        Of the SAM 2: one of sam2's own configurations, or ``embedded``.
    image_size
        S the model was trained at, which no tensor tells; None: the configuration's (1024).
    name
        Of the model; None: the file's.
    class_names
        One for each class, in order; None: made of the data set's name.
    dataset
        Whose queries are taken; needed when there are several.

    Raises
    ------
    CheckpointError
        Damaged, unsafe, or holding anything else than a reference checkpoint does: what, by its name.
    CatalogueError
        Unknown configuration.
    ExportError
        A file that cannot be written.
    """
    path, out = Path(path), Path(out_path)
    config = _known(config)
    if out.suffix != SUFFIX or not out.stem:
        raise ExportError(f"{out}: the name of an Auto model ends with {SUFFIX}")
    base_path = out.with_name(out.stem + _BASE_SUFFIX)
    for target in (out, base_path):
        check_target(target, overwrite=overwrite)
    source = str(path)
    parts = parts_of(read_state_dict(path), source)
    chosen, queries = _queries(parts, dataset, source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what is not in the checkpoint is the same in every import of it
        module, tracks, ignored = _sam2(parts, config, image_size, source)
        card = AutoCard(
            name=(name or "").strip() or path.stem,
            classes=_classes(class_names, queries, chosen),
            base=base_path.name,
            base_key="",
            image_size=module.image_size,
            predictor=_settings(module, queries, source).to_dict(),
            decoder="lora" if parts.decoder_updates else "frozen",
            encoder="adapters" if parts.adapters else "frozen",
            training={"origin": "reference checkpoint", "data_set": chosen, "tracks": tracks},
        )
        auto = _filled(card, module, parts, queries, source)
    card = _written(auto, out, base_path, overwrite=overwrite)
    return Imported(out, base_path, card, tuple(ignored))


def _known(config: str) -> str:
    """The configuration's plain name. Only those that a file's tensors tell: the card names none."""
    plain = Path(str(config)).name.removesuffix(".yaml")
    known = STOCK_CONFIGS + OWN_CONFIGS
    if plain not in known:
        raise CatalogueError(
            f"no model configuration {config!r} for an import: use one of {', '.join(known)}"
        )
    return plain


def _queries(parts: Parts, dataset: str | None, source: str) -> tuple[str, torch.Tensor]:
    """Name and (K, T, C) queries of the data set that is wanted."""
    known = ", ".join(map(repr, parts.queries))
    if not parts.queries:
        raise CheckpointError(f"{source} holds no learnable_prompts: it is no reference checkpoint")
    if dataset is None and len(parts.queries) > 1:
        raise CheckpointError(f"{source} holds queries of several data sets: choose one of {known}")
    chosen = next(iter(parts.queries)) if dataset is None else dataset
    if chosen not in parts.queries:
        raise CheckpointError(f"{source} holds no queries of a data set {chosen!r}: choose {known}")
    queries = parts.queries[chosen]
    if queries.ndim != 3 or 0 in queries.shape:
        raise CheckpointError(
            f"{source}: learnable_prompts.{chosen} is {tuple(queries.shape)}, not (classes, tokens, channels)"
        )
    return chosen, queries


def _settings(module: SAM2Base, queries: torch.Tensor, source: str) -> PredictorSettings:
    classes, tokens, width = queries.shape
    if tokens < 3 or width != module.hidden_dim:
        raise CheckpointError(
            f"{source}: its queries are {tokens} tokens of {width} channels; three tokens at least, of the "
            f"{module.hidden_dim} channels of its SAM 2, are needed"
        )
    return replace(PredictorSettings.for_module(module, classes), tokens=tokens)


def _classes(names: Sequence[str] | None, queries: torch.Tensor, dataset: str) -> tuple[AutoClass, ...]:
    count = len(queries)
    if names is None:
        names = [dataset] if count == 1 else [f"{dataset} {n}" for n in range(1, count + 1)]
    names = [one.strip() for one in names]
    if len(names) != count or len(set(names)) != count or "" in names:
        raise CheckpointError(
            f"{len(names)} class names ({', '.join(names)}): the queries of {dataset!r} are of {count} "
            f"class{'es' * (count > 1)}, each of which needs a name of its own"
        )
    return tuple(AutoClass(one, n + 1, default_colour(n)) for n, one in enumerate(names))


def _sam2(parts: Parts, config: str, image_size: int | None, source: str) -> tuple[SAM2Base, bool, list[str]]:
    """The SAM 2 in a checkpoint, whether its memory is trained, and the names of what was left out."""
    settings = read_config(config, image_size)
    module = build_from(settings, config, blank=True)
    known = module.state_dict()
    wanted = [key for key in known if not key.startswith(_FOR_IMAGES)]
    missing = [key for key in wanted if key not in parts.memory]
    lost = [key for key in missing if not key.startswith(_MASK_PROMPTS)]
    kept = [key for key in wanted if key in parts.memory and not key.startswith(_MASK_PROMPTS)]
    if lost and kept:
        raise CheckpointError(
            f"{source} holds a part of the memory, but not {lost[0]} ({len(lost)} of {config} are missing): "
            "give the configuration it was trained with, or take all of the memory out"
        )
    untrained = build_from(settings, config).state_dict() if missing else {}
    state = parts.sam2 | {key: untrained[key] if key in missing else parts.memory[key][1] for key in wanted}
    load_strict(module, state, config, source)
    ignored = [original for key, (original, _) in parts.memory.items() if key not in known]
    return module, not missing, ignored


def _filled(card: AutoCard, module: SAM2Base, parts: Parts, queries: torch.Tensor, source: str) -> AutoModel:
    """The Auto model in memory: every tensor at its place."""
    auto = blank(card, SegmentationModel.of(module, card.base))
    load_strict(auto.network.predictor, {**parts.predictor, "queries": queries}, source=source)
    if parts.decoder_updates:
        decoder = auto.network.decoder
        own = {key: value for key, value in trainable_parts(decoder).items() if key not in _updates(decoder)}
        if problems := load_parts(decoder, {**own, **parts.decoder_updates}):
            raise CheckpointError(
                f"{source}: the low-rank updates of its decoder do not fit; {'; '.join(problems[:4])}"
            )
    if auto.adapters is not None:
        load_strict(auto.adapters, parts.adapters, source=source)
    return auto


def _updates(decoder: torch.nn.Module) -> set[str]:
    """Names of the low-rank tensors among an adapted decoder's trainable ones."""
    return {name for name in trainable_parts(decoder) if ".w_a." in name or ".w_b." in name}


def _written(auto: AutoModel, out: Path, base_path: Path, *, overwrite: bool) -> AutoCard:
    """Both files; the card with the key the SAM 2 has as a file."""
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
