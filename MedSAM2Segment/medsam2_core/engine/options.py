"""Options of a tracker."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from medsam2_core.engine.memory import MemoryPolicy, PromptedMemory, RecentMemory, SelfSortingMemory
from medsam2_core.errors import PromptError


class Order(Enum):
    """Which prompted slice an unprompted one is tracked from.

    NEAREST: from the nearest prompted slice that holds the object, half the gap from either side (more from
    the side the model is surer of), so that a corrected slice corrects its neighbours on both sides. A
    slice with an empty mask prompt ends tracking there. EARLIEST: as stock: forward from the first prompted
    slice through all others, then in reverse from the first.
    """

    NEAREST = "nearest"
    EARLIEST = "earliest"


class Direction(Enum):
    """Where to propagate to."""

    FORWARD = "forward"
    REVERSE = "reverse"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class TrackerOptions:
    """Ours by default; :meth:`stock` repeats sam2's video predictor exactly.

    Attributes
    ----------
    zoom
        Look at a region around the object. Off: at whole slices, as stock. For unordered images only with
        `locates`.
    locates
        On unordered images, look for the object's place by the likeness of image features
        (:mod:`~medsam2_core.engine.locating`). Off: at whole images, by memory alone, as Medical SAM 2.
    fresh_reverse
        The reverse pass starts from the prompted slices alone, as MedSAM2's reset between its two passes.
        False, as stock: it also reads what the forward pass (and any earlier one) remembered.
    feeds_back_always
        As stock, a click always feeds back what was predicted on its slice. Otherwise not when that is of no
        use any more: for a box, for prompts of which some were removed, and for a positive click where the
        object was predicted absent.
    recent_logits
        Tracked slices whose exact logits are kept to be fed back (older ones are rebuilt from their masks);
        None keeps all, as stock.
    keeps_probabilities
        Keep the probability of each pixel beside the mask of every slice, in 8 bits, packed.
    """

    zoom: bool = True
    locates: bool = False
    order: Order = Order.NEAREST
    fresh_reverse: bool = True
    feeds_back_always: bool = False
    recent_logits: int | None = 32
    keeps_probabilities: bool = False

    @classmethod
    def stock(cls) -> "TrackerOptions":
        """Return the options of sam2 1.1.0 with ``add_all_frames_to_correct_as_cond`` (without it
        corrections are lost)."""
        return cls(
            zoom=False, order=Order.EARLIEST, fresh_reverse=False, feeds_back_always=True, recent_logits=None
        )


#: Memory policies by the name users know them by.
MEMORIES: Mapping[str, Callable[[], MemoryPolicy]] = {
    "recent": RecentMemory,
    "self-sorting": SelfSortingMemory,
    "prompted": PromptedMemory,
}


def memory_policy(memory: str | MemoryPolicy) -> MemoryPolicy:
    """Return the policy of a name, or the policy itself; PromptError lists the names."""
    if not isinstance(memory, str):
        return memory
    if memory not in MEMORIES:
        message = f"unknown memory {memory!r}: use one of {', '.join(MEMORIES)}"
        raise PromptError(message, code="unknown-memory", memory=memory, known=list(MEMORIES))
    return MEMORIES[memory]()


def memory_name(policy: MemoryPolicy) -> str:
    """Return the name of a policy in :func:`memory_policy`, or the class's name for one of the caller's
    own."""
    return next((name for name, kind in MEMORIES.items() if type(policy) is kind), type(policy).__name__)


def zoom_is_on(zoom: str) -> bool:
    """Return whether zoom is ``auto`` (True) or ``off``; PromptError for anything else."""
    if zoom not in ("auto", "off"):
        raise PromptError(f"unknown zoom {zoom!r}: use auto or off", code="unknown-zoom", zoom=zoom)
    return zoom == "auto"
