"""A cache of image features within a limit of bytes.

Encoding a slice is the most expensive step of segmentation, and a click, a correction or a second object
needs the same slice again. The cache evicts what was used least recently; prompted slices are evicted last.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from medsam2_core.engine.zoom import Region


@dataclass(frozen=True, slots=True)
class FeatureKey:
    """Everything the features of a slice depend on.

    Attributes
    ----------
    source
        The images' key: volume content, how it is cut into slices, and window.
    """

    source: str
    n: int
    region: Region
    image_size: int
    weights: str
    precision: str


@dataclass(frozen=True, slots=True)
class SliceFeatures:
    """Image features of one region of one slice.

    Attributes
    ----------
    coarse
        (1, C, S/16, S/16).
    fine
        For the mask decoder: (1, C/8, S/4, S/4) and (1, C/4, S/8, S/8); empty when the model uses none.
    """

    coarse: torch.Tensor
    fine: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.numel() * x.element_size() for x in (self.coarse, *self.fine))


class FeatureCache:
    """Least-recently-used features within `byte_limit` bytes; may be shared by sessions and threads.

    Parameters
    ----------
    byte_limit
        Never exceeded. 0 keeps nothing.
    """

    def __init__(self, byte_limit: int = 512 * 2**20) -> None:
        if byte_limit < 0:
            raise ValueError(f"a cache of {byte_limit} bytes makes no sense: give 0 or more")
        self.byte_limit = byte_limit
        self._entries: OrderedDict[FeatureKey, SliceFeatures] = OrderedDict()
        self._pinned: WeakKeyDictionary[object, frozenset[tuple[str, int]]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._nbytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: FeatureKey) -> bool:
        return key in self._entries

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def get(self, key: FeatureKey) -> SliceFeatures | None:
        """Return the features and make them the most recently used; None when they are not cached."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return found

    def put(self, key: FeatureKey, features: SliceFeatures) -> None:
        """Keep features, evicting others until they fit; features larger than the limit are not kept."""
        with self._lock:
            self._drop(key)
            if features.nbytes > self.byte_limit:
                return
            self._make_room(features.nbytes)
            self._entries[key] = features
            self._nbytes += features.nbytes

    def pin(self, owner: object, source: str, slices: Iterable[int]) -> None:
        """Evict these slices only when nothing else is left.

        They replace what the owner pinned before; its pins end when it is deleted.
        """
        with self._lock:
            self._pinned[owner] = frozenset((source, n) for n in slices)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._entries.clear()
            self._pinned.clear()
            self._nbytes = 0

    def _make_room(self, wanted: int) -> None:
        if self._nbytes + wanted <= self.byte_limit:
            return
        pinned = frozenset().union(*self._pinned.values())
        while self._nbytes + wanted > self.byte_limit:
            loose = (key for key in self._entries if (key.source, key.n) not in pinned)
            self._drop(next(loose, None) or next(iter(self._entries)))

    def _drop(self, key: FeatureKey) -> None:
        dropped = self._entries.pop(key, None)
        if dropped is not None:
            self._nbytes -= dropped.nbytes
