"""What cannot be drawn as markups: masks and final slices of a segment, as text in the scene.

::

    {"version": 1, "final": {"axial:-i-j+k": [12, 13]},
     "masks": [{"order": 4, "stack": "axial:-i-j+k", "n": 12}], "prompts": {…}}

``prompts`` is a prompt file (:mod:`medsam2_core.prompts.prompt_set`) with one object that has the masks, in
the order of ``masks``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from medsam2_core.errors import PromptError
from medsam2_core.prompts import MaskPrompt, PromptSet

_VERSION = 1
_OBJECT = "segment"


@dataclass(frozen=True)
class MaskNote:
    """A mask that was given for slice ``n`` of the stack with the key ``stack``."""

    order: int
    stack: str
    n: int
    mask: MaskPrompt


@dataclass(frozen=True)
class Notes:
    """Masks in the order they were given, and (stack key, slice) of the final slices."""

    masks: tuple[MaskNote, ...] = ()
    final: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    @property
    def isEmpty(self) -> bool:
        """Whether there is nothing to keep."""
        return not self.masks and not self.final

    def withMask(self, note: MaskNote) -> Notes:
        """Also this mask, in place of an earlier one for the same slice."""
        kept = tuple(one for one in self.masks if (one.stack, one.n) != (note.stack, note.n))
        return Notes((*kept, note), self.final)

    def withFinal(self, stackKey: str, n: int, final: bool) -> Notes:
        """With a slice marked as final, or not any more."""
        entry = {(stackKey, int(n))}
        return Notes(self.masks, self.final | entry if final else self.final - entry)

    def toText(self) -> str:
        """As JSON."""
        final: dict[str, list[int]] = {}
        for stack, n in sorted(self.final):
            final.setdefault(stack, []).append(n)
        prompts = PromptSet({_OBJECT: [note.mask for note in self.masks]})
        return json.dumps(
            {
                "version": _VERSION,
                "final": final,
                "masks": [{"order": note.order, "stack": note.stack, "n": note.n} for note in self.masks],
                "prompts": json.loads(prompts.to_json()),
            }
        )

    @classmethod
    def fromText(cls, text: str) -> Notes:
        """From JSON; nothing at all when the text is empty. PromptError when it was damaged."""
        if not text.strip():
            return cls()
        try:
            return _parsed(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromptError(
                f"the masks saved with the segment cannot be read ({error}): delete the text node "
                "that holds them"
            ) from error


def _parsed(data: dict[str, Any]) -> Notes:
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']}, this program reads {_VERSION}")
    masks = PromptSet.from_json(json.dumps(data["prompts"])).of(_OBJECT)
    if len(masks) != len(data["masks"]):
        raise ValueError(f"{len(data['masks'])} masks announced, {len(masks)} found")
    notes = tuple(
        MaskNote(int(entry["order"]), str(entry["stack"]), int(entry["n"]), mask)
        for entry, mask in zip(data["masks"], masks, strict=True)
        if isinstance(mask, MaskPrompt)
    )
    final = frozenset((str(stack), int(n)) for stack, numbers in data["final"].items() for n in numbers)
    return Notes(notes, final)
