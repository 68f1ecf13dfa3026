"""What is known of an object, kept on the client's side so that no worker's death can take it away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medsam2_core.worker.masks import SliceRecord
from medsam2_core.worker.messages import ObjectRecord, SliceWords


@dataclass
class Books:
    """One object: words and records by slice, and the slices whose words corrected a mask that was there.

    See :class:`~medsam2_core.worker.messages.ObjectRecord`.
    """

    words: dict[int, SliceWords] = field(default_factory=dict)
    records: dict[int, SliceRecord] = field(default_factory=dict)
    refined: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, record: ObjectRecord) -> Books:
        """A copy of a record."""
        return cls(dict(record.words), dict(record.records), set(record.refined))

    @property
    def record(self) -> ObjectRecord:
        """A copy that does not change."""
        return ObjectRecord(self.words, self.records, frozenset(self.refined))

    def say(self, said: Mapping[int, SliceWords], answers: Iterable[SliceRecord] = ()) -> None:
        """Words were said; without answers the old masks stay until there are new ones."""
        for n, words in said.items():
            self._mark(n, words)
            if words:
                self.words[n] = words
            else:
                self.words.pop(n, None)
                self.records.pop(n, None)
        self.records.update({record.n: record for record in answers})

    def _mark(self, n: int, words: SliceWords) -> None:
        earlier = self.words.get(n)
        if earlier is None:
            corrects = n in self.records
        else:
            corrects = words.extends(earlier) and (n in self.refined or earlier.known is not None)
        if corrects and words and words.known is None:
            self.refined.add(n)
        else:
            self.refined.discard(n)
