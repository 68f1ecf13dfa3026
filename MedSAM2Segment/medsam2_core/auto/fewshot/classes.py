"""Which classes there are: found in the labels' own names and numbers, or chosen by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsam2_core.auto.model_file import AutoClass
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.label_map import Label
from medsam2_core.imaging.segmentation import default_colour

_TERMINOLOGY = "TerminologyEntry:"


@dataclass(frozen=True)
class ClassWish:
    """A class as the user chose it: its name, and the number that stands for it in files without names."""

    name: str
    value: int | None = None


def parse_wishes(text: str | None) -> list[ClassWish] | None:
    """``"nerve,vessel"`` (by name) or ``"1=nerve,2=vessel"`` (numbers get names); None: all there are.

    TrainingError names the part that means nothing.
    """
    if text is None or not text.strip():
        return None
    wishes = []
    for part in text.split(","):
        value, equals, name = part.strip().partition("=")
        if not equals:
            wishes.append(ClassWish(value.strip(), int(value) if value.strip().isdecimal() else None))
        elif value.strip().isdecimal() and name.strip():
            wishes.append(ClassWish(name.strip(), int(value)))
        else:
            raise TrainingError(f"--classes {part.strip()!r}: give NAME, or NUMBER=NAME")
    names = [wish.name for wish in wishes]
    if "" in names or len(set(names)) != len(names):
        raise TrainingError(f"--classes {text!r}: every class needs a name of its own")
    if any(wish.value == 0 for wish in wishes):
        raise TrainingError(f"--classes {text!r}: 0 is background")
    return wishes


class ClassTable:
    """Names, numbers and colours of the classes, and which label of a file is which class.

    Files may number the same name differently (two `.seg.nrrd` rarely agree); a name decides where there is
    one, else the number.

    Parameters
    ----------
    wishes
        What was chosen; None: every label that is seen becomes a class.
    """

    def __init__(self, wishes: Sequence[ClassWish] | None = None) -> None:
        self._wishes = wishes
        self._found: dict[str, AutoClass] = {}

    def learn(self, labels: Sequence[Label]) -> None:
        """Take notice of the labels of a file."""
        for label in labels:
            name = self._name_of(label)
            if name is not None and name not in self._found:
                colour = label.colour or default_colour(len(self._found))
                self._found[name] = AutoClass(name, label.value, colour, _terminology(label.tags))

    @property
    def classes(self) -> tuple[AutoClass, ...]:
        """Those that were seen, as chosen, else by number and name."""
        if self._wishes is not None:
            return tuple(self._found[wish.name] for wish in self._wishes if wish.name in self._found)
        return tuple(sorted(self._found.values(), key=lambda one: (one.value, one.name)))

    @property
    def missing(self) -> list[str]:
        """Chosen classes that no file has."""
        return [wish.name for wish in self._wishes or () if wish.name not in self._found]

    @property
    def seen(self) -> list[str]:
        """Names of all classes that were seen."""
        return list(self._found)

    def numbers(self, labels: Sequence[Label]) -> Mapping[tuple[int, int], int]:
        """Class number (from 1) by (layer, value) of a file's labels; others are background."""
        order = {one.name: number for number, one in enumerate(self.classes, start=1)}
        named = {(label.layer, label.value): self._name_of(label) for label in labels}
        return {key: order[name] for key, name in named.items() if name in order}

    def _name_of(self, label: Label) -> str | None:
        """What class a label is; None for one that was not chosen."""
        name = label.name.strip() or str(label.value)  # files may have empty names
        if self._wishes is None:
            return name
        for wish in self._wishes:
            if name == wish.name:
                return wish.name
        # Only a label without a name of its own is known by its number.
        if name == str(label.value):
            for wish in self._wishes:
                if wish.value == label.value:
                    return wish.name
        return None


def _terminology(tags: str) -> str:
    """The terminology entry among a segment's tags as `.seg.nrrd` stores them."""
    for tag in tags.split("|"):
        if tag.startswith(_TERMINOLOGY):
            return tag[len(_TERMINOLOGY) :]
    return ""
