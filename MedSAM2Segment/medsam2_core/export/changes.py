"""Objects then and now: volume and diameters of a follow-up beside those of the earlier scan.

Diameters are those of :mod:`medsam2_core.export.measurements`: the longest in a slice and the longest
perpendicular to it, as RECIST 1.1 measures lesions (Eisenhauer et al., Eur J Cancer 2009).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam2_core import atomic
from medsam2_core.export.measurements import Measured

_QUANTITIES = ("volume_ml", "longest_diameter_mm", "perpendicular_diameter_mm")


@dataclass(frozen=True)
class Change:
    """One object then and now.

    Attributes
    ----------
    state
        ``present`` in both, ``vanished`` (no voxel now), or ``new`` (no voxel then).
    then, now
        Values by quantity: volume in ml, longest and perpendicular diameter in mm; None where unknown.
    """

    name: str
    state: str
    then: Mapping[str, float | None]
    now: Mapping[str, float | None]

    def percent(self, quantity: str) -> float | None:
        """Return by how many per cent a quantity has grown; None where it was nothing, or is not known."""
        before, after = self.then[quantity], self.now[quantity]
        return None if not before or after is None else 100 * (after / before - 1)


def changes(then: Sequence[Measured], now: Sequence[Measured]) -> list[Change]:
    """Return what became of every object of both, those of ``then`` first, in order."""
    earlier, later = ({one.name: one for one in measured} for measured in (then, now))
    found = []
    for name in dict.fromkeys([*earlier, *later]):
        before, after = earlier.get(name), later.get(name)
        was, is_there = (one is not None and one.voxel_count > 0 for one in (before, after))
        if was or is_there:
            state = "present" if was and is_there else "vanished" if was else "new"
            found.append(Change(name, state, _values(before), _values(after)))
    return found


def changes_to_json(found: Sequence[Change]) -> list[dict[str, Any]]:
    """Return a table as JSON, one item an object."""
    return [
        {
            "object": one.name,
            "state": one.state,
            "then": dict(one.then),
            "now": dict(one.now),
            "change_percent": {quantity: one.percent(quantity) for quantity in one.then},
        }
        for one in found
    ]


def write_changes(found: Sequence[Change], path: str | Path, *, overwrite: bool = False) -> None:
    """Write a table as CSV, one line an object."""
    stream = io.StringIO(newline="")
    table = csv.writer(stream)  # lines end with CR LF, as those of the measurements
    named = [f"{quantity}_{what}" for quantity in _QUANTITIES for what in ("then", "now", "change_percent")]
    table.writerow(["object", "state", *named])
    table.writerows([one.name, one.state, *_cells(one)] for one in found)
    with atomic.new_file(Path(path), overwrite=overwrite) as file:
        file.write(stream.getvalue().encode("utf-8"))


def _cells(change: Change) -> Iterator[str]:
    for quantity in _QUANTITIES:
        for value in (change.then[quantity], change.now[quantity], change.percent(quantity)):
            yield "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _values(measured: Measured | None) -> dict[str, float | None]:
    if measured is None:
        return dict.fromkeys(_QUANTITIES, 0.0)
    lengths = (
        0.0 if measured.voxel_count == 0 else None if one is None else one.length_mm
        for one in (measured.longest, measured.perpendicular)
    )
    return dict(zip(_QUANTITIES, (measured.volume_ml, *lengths), strict=True))
