"""What is known of an object, kept on the client's side so that no worker's death can take it away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.messages import ObjectRecord


@dataclass
class Books:
    """One object: words and records by slice, and the tracked masks that words have covered.

    See :class:`~medsam2_core.worker.messages.ObjectRecord`.
    """

    words: dict[int, SlicePrompts] = field(default_factory=dict)
    records: dict[int, SliceMask] = field(default_factory=dict)
    refined: dict[int, SliceMask] = field(default_factory=dict)
    stale: set[int] = field(default_factory=set)  # slices whose records answer earlier words

    @classmethod
    def of(cls, record: ObjectRecord) -> Books:
        """A copy of a record."""
        return cls(dict(record.words), dict(record.records), dict(record.refined))

    @property
    def record(self) -> ObjectRecord:
        """A copy that does not change; without masks that words not answered yet have made out of date."""
        records = {n: record for n, record in self.records.items() if n not in self.stale}
        return ObjectRecord(self.words, records, self.refined)

    def say(self, said: Mapping[int, SlicePrompts], answers: Iterable[SliceMask] | None = None) -> None:
        """Words were said; without answers the old masks stay until there are new ones."""
        for n, words in said.items():
            if words:
                if n not in self.words and n in self.records:
                    self.refined[n] = self.records[n]
                self.words[n] = words
            else:
                self._take_back(n)
        if answers is None:
            self.stale.update(n for n, words in said.items() if words)
        else:
            self.records.update({record.n: record for record in answers})

    def _take_back(self, n: int) -> None:
        """Nothing is said any more: what tracking had found stands again."""
        self.stale.discard(n)
        self.words.pop(n, None)
        self.records.pop(n, None)
        if n in self.refined:
            self.records[n] = self.refined.pop(n)
