"""How the masks of a session came about."""

from collections.abc import Iterable, Mapping
from typing import Any

from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.memory import MemoryPolicy
from medsam2_core.engine.options import TrackerOptions, memory_name
from medsam2_core.imaging.intensity import Window
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import PromptSet
from medsam2_core.version import __version__


class Provenance:
    """Model and settings of a session, and what was done in it.

    Attributes
    ----------
    facts
        What prompts and settings do not tell. Its values are replaced, never changed: undo goes back to a
        shallow copy.
    """

    def __init__(
        self,
        encoder: SliceEncoder,
        options: TrackerOptions,
        stack: SliceStack,
        window: Window,
        memory: MemoryPolicy,
    ) -> None:
        self._encoder, self._options, self._stack = encoder, options, stack
        self._window, self._memory = window, memory
        self.facts: dict[str, Any] = {}
        self.is_tracked = False

    def to_dict(self, prompts: PromptSet, spacing: str) -> dict[str, Any]:
        """Return all of it for JSON; ``spacing``: which spacings are known, as of a volume."""
        return {
            "prompts": prompts.to_json(),
            **self._encoder.model.provenance(),
            **({} if spacing == "all" else {"known_spacing": spacing}),
            "image_size": self._encoder.model.image_size,
            "window": self._window.to_dict(),
            "slices": self._stack.key,
            **({} if self._encoder.source.ordered else {"ordered": "no"}),
            "zoom": "auto" if self._options.zoom else "off",
            "memory": memory_name(self._memory),
            "software": f"MedSAM2Segment {__version__}",
            **self.facts,
        }

    def note_edit(self) -> None:
        """Note a step of the user; after tracking, the result is one that was corrected in several steps."""
        if self.is_tracked:
            self.facts["continued"] = True

    def note_search(self, found_by: str) -> None:
        """Note that objects were found by "like" or "prior"."""
        self.facts["found_by"] = list(dict.fromkeys([*self.facts.get("found_by", ()), found_by]))

    def note_propagation(
        self,
        names: Iterable[str],
        limits: Mapping[str, tuple[int, int]],
        first: int | None,
        last: int | None,
        overlap: bool,
    ) -> None:
        """Note how these objects are propagated."""
        if not names:
            return
        self.is_tracked = True
        if first is not None or last is not None:
            self.facts["propagated"] = [first, last]
        self.facts.pop("overlap", None)
        if not overlap:
            self.facts["overlap"] = "no"
        self.note_limits(names, limits)

    def note_limits(self, names: Iterable[str], limits: Mapping[str, tuple[int, int]]) -> None:
        """Note the limits of these objects, or that they have none; others keep theirs."""
        earlier = self.facts.pop("limits", {})
        kept = {name: limit for name, limit in earlier.items() if name not in names}
        kept |= {name: list(limits[name]) for name in limits if name in names}
        if kept:
            self.facts["limits"] = kept
