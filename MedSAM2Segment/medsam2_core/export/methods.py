"""How a segmentation was made, as text for the methods section of a paper."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError
from medsam2_core.export import metadata

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation

_SAM2 = "N. Ravi et al., SAM 2: Segment Anything in Images and Videos, ICLR 2025"
_MEDICAL_SAM2 = (
    "J. Zhu et al., Medical SAM 2: Segment medical images as video via Segment Anything Model 2, 2024"
)
_MEDSAM2 = "J. Ma et al., MedSAM2: Segment Anything in 3D Medical Images and Videos, 2025"
_SAM2RAD = (
    "A. S. Wahd et al., Sam2Rad: A segmentation model for medical images with learnable prompts, Computers "
    "in Biology and Medicine 2025"
)
#: What the options of `medsam2 segment` made prompts of.
_DRAWN = {
    "line": "Boxes were made of measured diameters, around the ellipse that has them.",
    "box3d": "A 3-D box gave the box on its middle slice, and the first and last slice.",
    "fill-between": "Only slices between prompted ones were filled.",
}
#: Names in the place of an Auto model's, and what the provenance calls it.
_SEARCHES = {"examples": "like", "prior": "prior"}
_PLURALS = {"box": "boxes", "point": "points", "mask": "masks"}


def methods_text(segmentation: Segmentation) -> str:
    """Return a paragraph on model, prompts and settings, and the papers to cite.

    Nothing is claimed that is not stored with the segmentation.

    Raises
    ------
    ExportError
        ``no-provenance``: it does not say that this program made it.
    """
    auto = {str(one.tags["MedSAM2.auto"]) for one in segmentation if one.tags.get("MedSAM2.auto")}
    single = min(segmentation.geometry.shape_ijk) == 1
    return methods_of(segmentation.provenance, segmentation.names, sorted(auto), is_single_image=single)


def methods_of(
    provenance: Mapping[str, Any],
    names: Sequence[str],
    auto: Sequence[str] = (),
    *,
    is_single_image: bool = False,
) -> str:
    """Return the text of :func:`methods_text` for objects with these names.

    Parameters
    ----------
    provenance
        As of a segmentation, or the settings of an image set.
    auto
        Names of Auto models that predicted prompts; "examples" or "prior" where another scan did, as the
        tags of 3D Slicer's segments have it.
    """
    known = metadata.without_paths(provenance)
    found_by = [*(known.get("found_by") or ()), *(_SEARCHES[name] for name in auto if name in _SEARCHES)]
    known["found_by"], auto = found_by, [name for name in auto if name not in _SEARCHES]
    if not known.get("model"):
        message = (
            "nothing is stored of how it was made: there is a methods text of results of this program only"
        )
        raise ExportError(message, code="no-provenance")
    model, sha256 = str(known["model"]), str(known.get("weights_sha256", ""))
    weights = f" (SHA-256 of the weights {sha256})" if sha256 else ""
    text = [
        f"{_objects(names)} segmented with {metadata.SOFTWARE} and the SAM 2 model {model}{weights}.",
        *_prompts(known),
        *_settings(known, is_single_image),
        *_restrictions(known),
    ]
    if "like" in found_by:
        text.append("Objects were first found from another segmented scan, which predicted boxes for them.")
    if "prior" in found_by:
        text.append("Objects were first found from an earlier segmentation, which predicted boxes for them.")
    if known.get("continued"):
        text.append("The result was corrected with further prompts in several steps.")
    if auto:
        text.append(f"Prompts of the first draft were predicted by the Auto model {', '.join(auto)}.")
    text.append("Masks were checked and corrected by [NAME, EXPERIENCE].")
    cited = [_SAM2, _MEDICAL_SAM2] + ([_MEDSAM2] if "medsam2" in model.lower() else [])
    return "\n".join([" ".join(text), "", *(f"- {one}." for one in cited + ([_SAM2RAD] if auto else []))])


def _objects(names: Sequence[str]) -> str:
    return f"{_listed(names)} {'was' if len(names) == 1 else 'were'}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _prompts(known: Mapping[str, Any]) -> list[str]:
    """Return a sentence that counts the prompts, if they are stored."""
    try:
        stored = known["prompts"]
        objects = (json.loads(stored) if isinstance(stored, str) else stored)["objects"]
        counts = Counter(str(prompt["type"]) for one in objects for prompt in one["prompts"])
    except (KeyError, TypeError, ValueError):
        return []
    parts = [f"{n} {kind if n == 1 else _PLURALS.get(kind, kind)}" for kind, n in sorted(counts.items())]
    how = "Drawn and predicted prompts together were" if known.get("found_by") else "It was prompted with"
    return [f"{how} {_listed(parts)}."] if parts else []


def _restrictions(known: Mapping[str, Any]) -> list[str]:
    """Return sentences on what prompts were drawn as, and on where objects may be, as far as it is stored."""
    text = []
    drawn = known.get("drawn")
    if isinstance(drawn, list):
        text += [_DRAWN[kind] for kind in _DRAWN if kind in drawn]
        kept = [str(one).partition(" ")[2] for one in drawn if str(one).startswith("keep ")]
        text += [f"Of the slices of given masks some were prompts ({one})." for one in kept]
    limits = known.get("limits")
    if isinstance(limits, Mapping) and limits:
        text.append(f"A first and a last slice were set for {_listed([str(name) for name in limits])}.")
    if known.get("overlap") == "no":
        text.append("Where tracking found two objects, the one with the higher logit got the voxel.")
    return text


def _settings(known: Mapping[str, Any], is_single_image: bool) -> list[str]:
    """Return sentences on slices, window, memory and precision, as far as they are stored."""
    text = []
    plane = str(known.get("slices", "")).partition(":")[0]
    region = " at a region around the object" if known.get("zoom") == "auto" else ""
    if "images" in known or "prompted_images" in known or known.get("ordered") == "no":
        text.append(f"The model looked{region} on each image of a set, and compared it with prompted ones.")
    elif is_single_image:
        text.append(f"The model looked{region} on a single image.")
    elif plane:
        bank = "its self-sorting memory" if known.get("memory") == "self-sorting" else "its memory"
        text.append(f"The model looked{region} on {plane} slices, and followed the object with {bank}.")
    window = known.get("window")
    if isinstance(window, Mapping) and "each image" in str(window.get("name")):
        text.append("Intensities were windowed automatically in each image.")
    elif isinstance(window, Mapping) and {"width", "level"} <= window.keys():
        text.append(f"Intensities were windowed to width {window['width']:g}, level {window['level']:g}.")
    if known.get("precision") and known.get("device"):
        text.append(f"It computed in {known['precision']} on {known['device']}.")
    return text
