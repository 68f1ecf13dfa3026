"""Values of a JSON file that the user wrote: checked where they stand, so that a message can say where."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsam2_core.errors import ExportError
from medsam2_core.export.dicom.values import LARGEST_IS
from medsam2_core.imaging.terminology import Code

_CODE_PARTS = {"CodingSchemeDesignator": 16, "CodeValue": 1024, "CodeMeaning": 64}


def shown(value: Any) -> str:
    """A value as messages show it: not all of it when it is long."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Place:
    """Where in the file a value stands; reads it, or raises ExportError that says where and what it is."""

    words: str

    def __str__(self) -> str:
        return self.words

    def at(self, further: str) -> Place:
        """A place within this one."""
        return Place(f"{self.words}: {further}")

    def error(self, expected: str, value: Any) -> ExportError:
        """What to raise for a value that is not what it must be."""
        return ExportError(f"{self}: expected {expected}, not {shown(value)}")

    def read(self, content: Mapping[str, Any], key: str, kind: Callable[..., Any], *more: Any) -> Any:
        """The value of a key, read by ``kind`` (a method of this class); None where there is no such key."""
        return kind(self.at(key), content[key], *more) if key in content else None

    def once_each(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Keys and values of an object of JSON, no key twice."""
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ExportError(f"{self}: has a key twice in {shown([key for key, _ in pairs])}")
        return content

    def text(self, value: Any, most: int = 64) -> str:
        """Text on one line, as DICOM stores it."""
        if not isinstance(value, str) or not value.strip():
            raise self.error("text that is not empty", value)
        value = value.strip()
        if "\\" in value or not value.isprintable():  # a backslash divides values in DICOM
            raise self.error("text on one line, without backslash", value)
        if len(value) > most:
            raise self.error(f"at most {most} characters", value)
        return value

    def text_or_none(self, value: Any, most: int = 64) -> str | None:
        """The same, or None for empty text: so some programs leave a field open."""
        return None if value == "" else self.text(value, most)

    def number(self, value: Any) -> int:
        """A whole number that DICOM's IS holds, also as text."""
        if isinstance(value, str) and re.fullmatch(r" *[0-9]{1,12} *", value):  # as dcmqi writes them
            value = int(value)
        if type(value) is not int or not 0 <= value <= LARGEST_IS:
            raise self.error(f"a whole number from 0 to {LARGEST_IS}", value)
        return value

    def one_of(self, value: Any, known: Sequence[str]) -> str:
        """One of the words there are."""
        if value not in known:
            raise self.error("one of " + ", ".join(known), value)
        return value

    def integers(self, value: Any, most: int) -> tuple[int, int, int]:
        """Three whole numbers from 0 to ``most``."""
        good = isinstance(value, list) and len(value) == 3
        if not good or not all(type(part) is int and 0 <= part <= most for part in value):
            raise self.error(f"a list of three whole numbers from 0 to {most}", value)
        return value[0], value[1], value[2]

    def uid(self, value: Any) -> str:
        """A UID (PS3.5 chapter 9)."""
        text = self.text(value)
        if not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+", text):
            raise self.error("a UID of numbers and dots", value)
        return text

    def code(self, value: Any) -> Code:
        """``scheme^value^meaning``, or an object (or a list of one) with the attributes of DICOM."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value.count("^") == 2:
            value = dict(zip(_CODE_PARTS, value.split("^"), strict=True))
        if not isinstance(value, dict) or set(value) != set(_CODE_PARTS):
            raise self.error(f"scheme^value^meaning, or an object of {', '.join(_CODE_PARTS)}", value)
        texts = [self.at(part).text(value[part], most) for part, most in _CODE_PARTS.items()]
        if any(divider in text for text in texts for divider in "^~|"):
            raise self.error("parts without ^, ~ and |, which divide codes", value)
        return Code(*texts)
