"""Memory policies: which slices the model attends to while it segments the next one.

``RecentMemory`` is SAM 2's own rule (Ravi et al., arXiv 2408.00714): all prompted slices, and the last few
before the current one. ``SelfSortingMemory`` is the memory bank of Medical SAM 2 (Zhu et al.,
arXiv 2408.00874): confident slices that differ most from each other, whatever their order, and of these the
ones most like the current slice. Prompted slices are always attended to, by both, as far as they are given to
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

from medsam2_core.engine.zoom import Region

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(slots=True)
class SliceMemory:
    """What later slices may attend to.

    Attributes
    ----------
    features
        (1, 64, S/16, S/16), bf16 as in stock; None once only the pointer is still of use.
    pointer
        (1, C).
    region
        The features' grid lies over this region. When the region has moved since, the features are used as
        they are: they describe the object relative to its own neighbourhood, which the new region shows
        again.
    embedding
        (1, C, S/16, S/16) image features; only for policies that compare slices.
    """

    n: int
    features: torch.Tensor | None
    pointer: torch.Tensor
    predicted_iou: float
    object_score: float
    region: Region
    embedding: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tensors held."""
        return sum(
            x.numel() * x.element_size()
            for x in (self.features, self.pointer, self.embedding)
            if x is not None
        )


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """What memory attention gets for one slice.

    Attributes
    ----------
    spatial
        Temporal position and memory. 0 is a conditioning slice, ``num_maskmem - 1`` the slice just before;
        None adds no temporal encoding.
    pointers
        Distance in slices (positive: earlier in the direction of tracking) and memory.
    """

    spatial: list[tuple[int | None, SliceMemory]]
    pointers: list[tuple[int, SliceMemory]]


@dataclass(frozen=True, slots=True)
class Query:
    """The slice for which memories are wanted.

    Attributes
    ----------
    ordered
        Whether numbers mean neighbourhood.
    embedding
        (1, C, S/16, S/16) its image features.
    """

    n: int
    total: int
    reverse: bool
    ordered: bool
    embedding: torch.Tensor


class MemoryBank(ABC):
    """The memories of one object's tracked slices."""

    @abstractmethod
    def add(self, memory: SliceMemory) -> None:
        """Add the memory of a slice just tracked; the bank may refuse it or drop another."""

    @abstractmethod
    def remove(self, n: int) -> None:
        """Remove a slice."""

    @abstractmethod
    def memories(self) -> Iterable[SliceMemory]:
        """Return all memories held."""

    @abstractmethod
    def read(self, query: Query, conditioning: Mapping[int, SliceMemory]) -> MemoryRead:
        """Choose what the queried slice attends to; `conditioning` by slice."""

    @abstractmethod
    def copied(self) -> "MemoryBank":
        """Return a bank of its own with the same memories; tensors are shared, they never change."""


class Embedding(Enum):
    """Image features (1, C, S/16, S/16) a memory can keep beside itself."""

    NONE = "none"
    IMAGE = "image"
    ATTENDED = "attended"


class MemoryPolicy(ABC):
    """Makes memory banks."""

    @property
    @abstractmethod
    def embedding(self) -> "Embedding":
        """What of a slice its memories keep for comparison."""

    @abstractmethod
    def bank(self, module: "SAM2Base") -> MemoryBank:
        """Return an empty bank for one object and direction."""


@dataclass(frozen=True, slots=True)
class RecentMemory(MemoryPolicy):
    """SAM 2's rule, with the model's own flags.

    Attributes
    ----------
    keeps_all
        Never drop a slice, as stock does: its memory grows with the volume (8 MiB a slice at S = 1024 in
        stock, 0.5 MiB here). Otherwise only what can still be read in the direction of tracking is kept.
    nearest_conditioning
        Attend only to so many conditioning slices, the nearest, at least 2 (sam2 keeps one on either side);
        -1 all; None takes the model's flag (stock: all). Attention's memory grows with each: with all, a
        mask of a hundred slices would need gigabytes at S = 1024.
    """

    keeps_all: bool = False
    nearest_conditioning: int | None = 16

    def __post_init__(self) -> None:
        if self.nearest_conditioning in (0, 1):
            raise ValueError(
                f"{self.nearest_conditioning} conditioning slices are too few: give 2 or more, or -1 for all"
            )

    @property
    def embedding(self) -> Embedding:
        return Embedding.NONE

    def bank(self, module: "SAM2Base") -> "RecentBank":
        limit = self.nearest_conditioning
        return RecentBank(module, self.keeps_all, module.max_cond_frames_in_attn if limit is None else limit)


@dataclass(frozen=True, slots=True)
class PromptedMemory(RecentMemory):
    """The prompted slices alone: so that no slice depends on what was found on another."""

    def bank(self, module: "SAM2Base") -> "RecentBank":
        limit = self.nearest_conditioning
        return PromptedBank(module, False, module.max_cond_frames_in_attn if limit is None else limit)


class RecentBank(MemoryBank):
    """The last slices before the current one."""

    def __init__(self, module: "SAM2Base", keeps_all: bool, nearest_conditioning: int) -> None:
        self._module = module
        self._keeps_all = keeps_all
        self._nearest = nearest_conditioning
        self._held: dict[int, SliceMemory] = {}
        stride = module.memory_temporal_stride_for_eval
        self._feature_window = max(1, (module.num_maskmem - 1) * stride)
        self._window = max(self._feature_window, module.max_obj_ptrs_in_encoder - 1)

    def add(self, memory: SliceMemory) -> None:
        """Add a slice; drop what no later slice will attend to."""
        self._held.pop(memory.n, None)
        self._held[memory.n] = memory
        if self._keeps_all:
            return
        held = list(self._held)
        for n in held[: -self._window]:
            del self._held[n]
        for n in held[-self._window : -self._feature_window]:
            self._held[n].features = None

    def remove(self, n: int) -> None:
        self._held.pop(n, None)

    def memories(self) -> Iterable[SliceMemory]:
        return self._held.values()

    def copied(self) -> "RecentBank":
        twin = copy(self)
        # Copied, too, because a bank drops the features of a memory in place.
        twin._held = {n: copy(memory) for n, memory in self._held.items()}
        return twin

    def read(self, query: Query, conditioning: Mapping[int, SliceMemory]) -> MemoryRead:
        """Return the conditioning slices first, then earlier slices, farthest first; pointers likewise,
        nearest first."""
        from sam2.modeling.sam2_utils import select_closest_cond_frames

        if not query.ordered:
            return self._read_as_video(conditioning)
        chosen, others = select_closest_cond_frames(query.n, dict(conditioning), self._nearest)
        spatial: list[tuple[int | None, SliceMemory]] = [(0, memory) for memory in chosen.values()]
        for position, n in self._earlier(query):
            memory = self._held.get(n) or others.get(n)
            if memory is not None and memory.features is not None:
                spatial.append((position, memory))
        return MemoryRead(spatial, self._pointers(query, chosen, others))

    def _read_as_video(self, conditioning: Mapping[int, SliceMemory]) -> MemoryRead:
        """Return what an unordered image attends to: the conditioning images, given with the most similar
        first, and those segmented last, as if they were the slices before it."""
        count = len(conditioning) if self._nearest < 0 else self._nearest
        chosen = list(conditioning.values())[:count]
        latest = list(self._held.values())[::-1]
        last, longest = self._module.num_maskmem - 1, self._module.max_obj_ptrs_in_encoder - 1
        near = list(enumerate((memory for memory in latest if memory.features is not None), start=1))[:last]
        spatial: list[tuple[int | None, SliceMemory]] = [(0, memory) for memory in chosen]
        spatial += [(last + 1 - back, memory) for back, memory in reversed(near)]
        pointers = [(min(len(latest) + 1, longest), memory) for memory in chosen]
        return MemoryRead(spatial, pointers + list(enumerate(latest[: longest - 1], start=1)))

    def _earlier(self, query: Query) -> Iterable[tuple[int, int]]:
        """Return temporal position and number of the slices SAM 2 looks back to (its stride is 1 in all
        releases)."""
        count = self._module.num_maskmem
        stride = self._module.memory_temporal_stride_for_eval
        for position in range(1, count):
            back = count - position
            if back == 1:
                n = query.n + 1 if query.reverse else query.n - 1
            elif query.reverse:
                n = -(-(query.n + 2) // stride) * stride + (back - 2) * stride
            else:
                n = (query.n - 2) // stride * stride - (back - 2) * stride
            yield position, n

    def _pointers(
        self, query: Query, chosen: Mapping[int, SliceMemory], others: Mapping[int, SliceMemory]
    ) -> list[tuple[int, SliceMemory]]:
        pointers = conditioning_pointers(self._module, query, chosen)
        limit = min(query.total, self._module.max_obj_ptrs_in_encoder)
        for distance in range(1, limit):
            n = query.n + distance if query.reverse else query.n - distance
            if not 0 <= n < query.total:
                break
            memory = self._held.get(n) or others.get(n)
            if memory is not None:
                pointers.append((distance, memory))
        return pointers


class PromptedBank(RecentBank):
    """Nothing but the prompted slices."""

    def add(self, memory: SliceMemory) -> None: ...


def conditioning_pointers(
    module: "SAM2Base", query: Query, conditioning: Mapping[int, SliceMemory]
) -> list[tuple[int, SliceMemory]]:
    """Return the pointers of conditioning slices: by the model's flags only of those already passed,
    distances signed."""
    pointers = []
    for n, memory in conditioning.items():
        ahead = n < query.n if query.reverse else n > query.n
        if ahead and module.only_obj_ptrs_in_the_past_for_eval:
            continue
        distance = query.n - n
        if module.use_signed_tpos_enc_to_obj_ptrs:
            pointers.append((-distance if query.reverse else distance, memory))
        else:
            pointers.append((abs(distance), memory))
    return pointers


class SortingMode(Enum):
    """Two descriptions of the same idea."""

    PAPER = "paper"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class SelfSortingMemory(MemoryPolicy):
    """Medical SAM 2's bank, in 3-D and for unordered images.

    Attributes
    ----------
    mode
        PAPER: admit what is confident enough, keep the most dissimilar. REFERENCE: as the authors' code
        does it (its 2-D loop; it has no bank in 3-D): a full bank swaps an entry for a new one that is less
        alike.
    least_iou
        PAPER: predicted IoU a slice must exceed to be admitted.
    tolerance
        REFERENCE: how much lower than the replaced entry's the predicted IoU may be.
    read
        Slices read at once; None is SAM 2's number (6).
    seed
        None reads the slices most like the current one, which is deterministic. A number draws them at
        random as the paper does: PAPER without replacement with p ~ cos, REFERENCE with replacement with p
        ~ softmax.
    temperature
        Of that softmax. The authors' softmax of raw cosines (1.0) is nearly flat.
    """

    mode: SortingMode = SortingMode.PAPER
    capacity: int = 16
    least_iou: float = 0.5
    tolerance: float = 0.1
    read: int | None = None
    seed: int | None = None
    temperature: float = 0.1

    @property
    def embedding(self) -> Embedding:
        """Image features; the authors' code keeps them as they leave memory attention."""
        return Embedding.IMAGE if self.mode is SortingMode.PAPER else Embedding.ATTENDED

    def bank(self, module: "SAM2Base") -> "SelfSortingBank":
        return SelfSortingBank(module, self)


class SelfSortingBank(MemoryBank):
    """Confident and diverse slices."""

    def __init__(self, module: "SAM2Base", rule: SelfSortingMemory) -> None:
        self._module, self._rule = module, rule
        self._held: list[SliceMemory] = []
        self._generator = None if rule.seed is None else torch.Generator().manual_seed(rule.seed)

    def add(self, memory: SliceMemory) -> None:
        """Admit a slice if it is confident, and worth more than one already held."""
        self.remove(memory.n)
        if self._rule.mode is SortingMode.PAPER:
            self._add_as_in_paper(memory)
        else:
            self._add_as_in_reference(memory)

    def remove(self, n: int) -> None:
        self._held = [memory for memory in self._held if memory.n != n]

    def memories(self) -> Iterable[SliceMemory]:
        return list(self._held)

    def copied(self) -> "SelfSortingBank":
        """Return a bank of its own with the same memories, whose random draws go on as this one's would."""
        twin = copy(self)
        twin._held = list(self._held)
        if self._generator is not None:
            twin._generator = self._generator.clone_state()
        return twin

    def read(self, query: Query, conditioning: Mapping[int, SliceMemory]) -> MemoryRead:
        """Return all conditioning slices and the held slices most like the queried one."""
        chosen = self._choose(query)
        spatial: list[tuple[int | None, SliceMemory]] = [(0, memory) for memory in conditioning.values()]
        if not query.ordered or self._rule.mode is SortingMode.REFERENCE:
            # No order in time, so neither temporal encodings nor pointers, which carry distances.
            return MemoryRead([(None, memory) for memory in (*conditioning.values(), *chosen)], [])
        nearest_first = sorted(chosen, key=lambda memory: abs(memory.n - query.n))
        last = self._module.num_maskmem - 1
        spatial += [(max(last - rank, 1), memory) for rank, memory in enumerate(nearest_first)]
        pointers = conditioning_pointers(self._module, query, conditioning)
        pointers += [(abs(memory.n - query.n), memory) for memory in nearest_first]
        return MemoryRead(spatial, pointers)

    def _add_as_in_paper(self, memory: SliceMemory) -> None:
        if memory.predicted_iou <= self._rule.least_iou:
            return
        self._held.append(memory)
        if len(self._held) > self._rule.capacity:
            alike = _cosines([m.features for m in self._held])
            # Total dissimilarity; an entry's likeness to itself adds 0. The oldest goes among equals.
            self._held.pop(int((1 - alike).sum(1).argmin()))

    def _add_as_in_reference(self, memory: SliceMemory) -> None:
        if len(self._held) < self._rule.capacity:
            self._held.append(memory)
            return
        alike = _cosines([m.features for m in (*self._held, memory)])
        to_new, among = alike[-1, :-1], alike[:-1, :-1].clone()
        among.fill_diagonal_(-torch.inf)
        least = int(to_new.argmin())
        twin = int(among[least].argmax())
        less_alike = to_new[least] < among[least, twin]
        if less_alike and memory.predicted_iou > self._held[twin].predicted_iou - self._rule.tolerance:
            self._held.pop(twin)
            self._held.append(memory)

    def _choose(self, query: Query) -> list[SliceMemory]:
        count = self._module.num_maskmem - 1 if self._rule.read is None else self._rule.read
        if not self._held or count <= 0:
            return []
        alike = _cosines([query.embedding, *(m.embedding for m in self._held)])[0, 1:]
        if self._generator is None:
            order = alike.argsort(descending=True, stable=True)[:count]
        elif self._rule.mode is SortingMode.PAPER:
            weights = alike.clamp(min=1e-6)
            order = torch.multinomial(weights, min(count, len(weights)), generator=self._generator)
        else:
            weights = (alike / self._rule.temperature).softmax(0)
            order = torch.multinomial(weights, count, replacement=True, generator=self._generator)
        return [self._held[index] for index in order.tolist()]


def _cosines(maps: Iterable[torch.Tensor | None]) -> torch.Tensor:
    """Return the (N, N) cosines, on the CPU, of N maps of one shape, each flattened channel by channel."""
    rows = [x.flatten().float() for x in maps if x is not None]
    unit = torch.nn.functional.normalize(torch.stack(rows), dim=1)
    return (unit @ unit.T).cpu()
