"""What is known of an object, kept on the client's side so that no worker's death can take it away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medsam2_core.worker.masks import SliceRecord
from medsam2_core.worker.messages import ObjectRecord, SliceWords


@dataclass
class Books:
    """One object: words and records by slice, and the tracked masks that words have covered.

    See :class:`~medsam2_core.worker.messages.ObjectRecord`.
    """

    words: dict[int, SliceWords] = field(default_factory=dict)
    records: dict[int, SliceRecord] = field(default_factory=dict)
    refined: dict[int, SliceRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, record: ObjectRecord) -> Books:
        """A copy of a record."""
        return cls(dict(record.words), dict(record.records), dict(record.refined))

    @property
    def record(self) -> ObjectRecord:
        """A copy that does not change."""
        return ObjectRecord(self.words, self.records, self.refined)

    def say(self, said: Mapping[int, SliceWords], answers: Iterable[SliceRecord] = ()) -> None:
        """Words were said; without answers the old masks stay until there are new ones."""
        for n, words in said.items():
            if words:
                if n not in self.words and n in self.records:
                    self.refined[n] = self.records[n]
                self.words[n] = words
            else:
                self._take_back(n)
        self.records.update({record.n: record for record in answers})

    def _take_back(self, n: int) -> None:
        """Nothing is said any more: what tracking had found stands again."""
        self.words.pop(n, None)
        self.records.pop(n, None)
        if n in self.refined:
            self.records[n] = self.refined.pop(n)
