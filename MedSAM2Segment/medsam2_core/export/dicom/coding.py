"""Codes for segments: given by the user, carried by the segment, or looked up by its name.

Names are looked up in ``terms.json``, a table of our own: names people give to segments, with the SNOMED CT
codes that DICOM (PS3.16, context groups 7150 to 7199 and the anatomical ones) and 3D Slicer's terminology use
for them. A lookup is exact once spelling is set aside: case, spaces, underscores and hyphens, the order of
words, plural, British or American, and the side, which becomes a modifier. Nothing is guessed: a wrong code
in a patient's file is worse than none. (pydicom's dictionary has codes by keywords of the standard, not by
such names; from it come the successors of SNOMED RT codes.)
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import ExportError, Note
from medsam2_core.imaging import terminology
from medsam2_core.imaging.terminology import NO_CODE, Code, Terminology

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

    from medsam2_core.imaging.segmentation import Segment, Segmentation

#: Codes of a segment without a description, written only on request.
GENERIC = terminology.TISSUE

#: The sides, as modifiers (PS3.16 CID 244); 3D Slicer's words.
SIDES = {
    "left": Code("SCT", "7771000", "Left"),
    "right": Code("SCT", "24028007", "Right"),
    "both": Code("SCT", "51440002", "Right and left"),
}
_SIDE_WORDS = {
    "left": "left", "lt": "left", "right": "right", "rt": "right", "both": "both", "bilateral": "both",
}  # fmt: skip
_SIDE_LETTERS = {"l": "left", "r": "right"}  # only at an end: lung_L, but not the L of "vertebra L 1"
_SMALL_WORDS = {"of", "the", "in"}
_PLURALS = {  # those that more than an "s" makes
    "arteries": "artery", "metastases": "metastasis", "nuclei": "nucleus", "ganglia": "ganglion",
    "thrombi": "thrombus", "emboli": "embolus", "bronchi": "bronchus", "bronchia": "bronchus",
    "cortices": "cortex", "testes": "testis", "pelves": "pelvis", "feet": "foot", "teeth": "tooth",
    "femora": "femur", "humeri": "humerus", "hippocampi": "hippocampus", "disk": "disc", "disks": "disc",
    "masses": "mass", "abscesses": "abscess", "sinuses": "sinus",
}  # fmt: skip
# SNOMED RT was known by these names before it became SNOMED CT (PS3.16 section 8).
_OLD_SCHEMES = {"SRT", "SNM3", "99SDM"}
_LONGEST_VALUE, _LONGEST_SCHEME, _LONGEST_MEANING = 16, 16, 64  # SH, SH and LO of PS3.5


@dataclass(frozen=True)
class Term:
    """A line of the table.

    Attributes
    ----------
    name, synonyms
        What it is called; as people write it.
    terminology
        Its codes, without a side.
    sides
        Whether there is one on the left and one on the right.
    within
        Whether it is found in other things of the table, as a nodule in the lung.
    numbered
        Whether there can be several, distinguished by a number after the name.
    adjectives
        Words that locate something ``within`` it, as "renal" does.
    """

    name: str
    synonyms: tuple[str, ...]
    terminology: Terminology
    sides: bool = False
    within: bool = False
    numbered: bool = False
    adjectives: tuple[str, ...] = ()

    @property
    def is_place(self) -> bool:
        """Whether something else can be within it: it is a part of the body, no more."""
        codes = self.terminology
        return codes.category.value == "123037004" and codes.region == codes.type_modifier == NO_CODE

    def on(self, side: str | None) -> Terminology | None:
        """Return its codes on that side (a key of ``SIDES``, or None); None when it has no sides."""
        if side is None:
            return self.terminology
        if not self.sides:
            return None
        if self.terminology.region != NO_CODE:
            return replace(self.terminology, region_modifier=SIDES[side])
        return replace(self.terminology, type_modifier=SIDES[side])


def known_terms() -> tuple[Term, ...]:
    """Return all terms of the table, in its order."""
    return _table().terms


def term_for(name: str) -> Terminology | None:
    """Return the codes of a name; None for a name the table does not know.

    "Left kidney", "kidney_L" and "Kidneys left" are one; "left liver" is nothing. Something found within
    something else, as "lung nodule 2" or "left renal cyst", is coded by both, though the table has no line
    for the two together.
    """
    words, side = _parse_name(name)
    if not words or side == "":
        return None
    names = _table().names
    found = _look_up(names, words, side) or _look_up_within(words, side)
    if found is None and words[-1].isdecimal() and len(words) > 1:
        words = words[:-1]
        found = _look_up(names, words, side, numbered=True) or _look_up_within(words, side, numbered=True)
    return found


def category_of(kind: Code) -> Code | None:
    """Return the category of a type; None when the table has it not, or under several."""
    categories = {term.terminology.category for term in known_terms() if _same(term.terminology.type, kind)}
    return categories.pop() if len(categories) == 1 else None


def is_specific(codes: Terminology) -> bool:
    """Return whether the codes are informative: "tissue" without a region is not, nor is a missing code."""
    if not (codes.category.value and codes.type.value):
        return False
    return not _same(codes.type, GENERIC.type) or bool(codes.region.value)


def terminology_of(
    segment: Segment, requested: Terminology | None = None, *, allow_generic: bool
) -> tuple[Terminology, Note | None]:
    """Return the codes a segment is written with, and a note when they come from its name or a default.

    Parameters
    ----------
    segment : Segment
    requested : Terminology or None
        What the user asked for; it comes first, then what the segment carries, then its name.
    allow_generic : bool
        Whether "tissue" is accepted for a segment without any other code.

    Raises
    ------
    ExportError
        When there is no code; it names the segment and the ways out.
    """
    if requested is not None:
        return requested, None
    if is_specific(segment.terminology):
        return segment.terminology, None
    by_name = term_for(segment.name)
    if by_name is not None:
        message = f"{segment.name!r}: coded as {format_terminology(by_name)}, by its name"
        return by_name, Note.info("coded-by-name", message, segments=[segment.name])
    if allow_generic:
        message = f"{segment.name!r}: coded as {format_terminology(GENERIC)}, which does not describe it"
        return GENERIC, Note.info("coded-as-tissue", message, segments=[segment.name])
    problem = (
        f"segment {segment.name!r}: no code says what it is. Give it a name that has a code, describe it by "
        "metadata of the segments, or allow the generic code for tissue"
    )
    raise ExportError(problem, code="no-segment-code", segments=[segment.name])


def coded_by_name(segmentation: Segmentation) -> Segmentation:
    """Return the segments with the code of their name where they have none of their own."""
    coded = (
        segment.described_as(terminology_of(segment, None, allow_generic=True)[0], segment.name)
        for segment in segmentation
    )
    return replace(segmentation, segments=tuple(coded))


def usual_meaning(code: Code) -> str | None:
    """Return the usual meaning of a code that comes with another one; else None.

    A meaning in another language is not an error but looks like one: this is for a note, not for a refusal.
    """
    known = [term for term in _table().terms if _same(term.terminology.type, code)]
    names = {name for term in known for name in (term.name, *term.synonyms, term.terminology.type.meaning)}
    words = {_bag(_parse_name(name)[0]) for name in names}
    is_usual = not known or _bag(_parse_name(code.meaning)[0]) in words
    return None if is_usual else known[0].terminology.type.meaning


def format_terminology(codes: Terminology) -> str:
    """Format codes as text: "Kidney, Left (SCT 64033007)" or "Cyst in Kidney, Left (SCT 367643001)"."""
    parts = [codes.type.meaning]
    if codes.type_modifier.value:
        parts.append(f", {codes.type_modifier.meaning}")
    if codes.region.value:
        parts.append(f" in {codes.region.meaning}")
        if codes.region_modifier.value:
            parts.append(f", {codes.region_modifier.meaning}")
    return f"{''.join(parts)} ({codes.type.scheme} {codes.type.value})"


def code_item(code: Code) -> CodedConcept:
    """Return a code as an item of a DICOM sequence (PS3.3 table 8.8-1, code sequence macro).

    Values of more than 16 characters become a long code value or an URN, a code of SNOMED RT the one of
    SNOMED CT that took its place, and a meaning that is too long ends in dots.

    Raises
    ------
    ExportError
        A part is missing, or cannot be written to DICOM.
    """
    from highdicom.sr import CodedConcept

    code = current(code)
    for part, text in (("value", code.value), ("scheme", code.scheme), ("meaning", code.meaning)):
        if not text.strip():
            message = f"code {str(code)!r}: its {part} is empty; give scheme, value and meaning"
            raise ExportError(message, code="invalid-segment-code", value=str(code), part=part)
    if "\\" in code.value + code.scheme or len(code.scheme.strip()) > _LONGEST_SCHEME:
        message = (
            f"code {str(code)!r}: value and scheme must not hold a backslash, and a scheme has at most "
            f"{_LONGEST_SCHEME} characters"
        )
        raise ExportError(message, code="invalid-segment-code", value=str(code))
    meaning = shorten(code.meaning.replace("\\", "/"), _LONGEST_MEANING)
    return CodedConcept(code.value.strip(), code.scheme.strip(), meaning)


def current(code: Code) -> Code:
    """Return the SNOMED CT successor of a code of SNOMED RT; another code as it is."""
    if code.scheme not in _OLD_SCHEMES:
        return code
    from pydicom.sr._snomed_dict import mapping

    successor = mapping["SRT"].get(code.value)
    return code if successor is None else Code("SCT", successor, code.meaning)


def current_codes(codes: Terminology) -> Terminology:
    """Return codes of which those of SNOMED RT are their SNOMED CT successors."""
    names = ("category", "type", "type_modifier", "region", "region_modifier")
    successors: dict[str, Any] = {name: current(getattr(codes, name)) for name in names}
    return replace(codes, **successors)


def shorten(text: str, most: int) -> str:
    """Shorten text to at most that many characters, between words where possible, with dots at the end."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    cut = text[: most - 3]
    head, space, _ = cut.rpartition(" ")
    return (head if space and len(head) > most // 2 else cut.rstrip()) + "..."


def _same(one: Code, other: Code) -> bool:
    """Return whether scheme and value are equal; meanings are not compared."""
    one, other = current(one), current(other)
    return (one.scheme, one.value) == (other.scheme, other.value)


_WordBag = tuple[str, ...]  # words in alphabetical order
_Key = tuple[_WordBag, str | None]  # and the side
_Names = dict[_Key, Term]


@dataclass(frozen=True)
class _Table:
    terms: tuple[Term, ...]
    names: _Names
    places: _Names
    found_within: tuple[tuple[_WordBag, Term], ...]  # longest first: a "primary tumour" is not just a tumour


@cache
def _table() -> _Table:
    terms = tuple(_terms(json.loads(files(__package__).joinpath("terms.json").read_text(encoding="utf-8"))))
    names = {key: term for term in terms for key in _keys(term)}
    places = {key: term for key, term in names.items() if term.is_place}
    for term in terms:
        places.update({(_bag(_parse_name(word)[0]), None): term for word in term.adjectives})
    within = [(bag, term) for (bag, _), term in names.items() if term.within]
    return _Table(terms, names, places, tuple(sorted(within, key=lambda one: -len(one[0]))))


def _terms(table: dict[str, Any]) -> Iterator[Term]:
    def code(text: str | None) -> Code:
        return Code("SCT", *text.split(" ", 1)) if text else NO_CODE

    categories = {name: code(text) for name, text in table["categories"].items()}
    for line in table["terms"]:
        codes = Terminology(
            category=categories[line["category"]],
            type=code(line["type"]),
            type_modifier=code(line.get("modifier")),
            region=code(line.get("region")),
        )
        flags = {flag: line.get(flag, False) for flag in ("sides", "within", "numbered")}
        also, adjectives = (tuple(line.get(key, ())) for key in ("also", "adjectives"))
        yield Term(line["name"], also, codes, adjectives=adjectives, **flags)


def _keys(term: Term) -> Iterator[_Key]:
    for name in (term.name, *term.synonyms):
        words, side = _parse_name(name)
        yield _bag(words), side


def _look_up(
    names: _Names, words: Sequence[str], side: str | None, *, numbered: bool = False
) -> Terminology | None:
    """Look a name up; one that contains its side ("left atrium") comes before a paired organ."""
    for side_in_name in (side, None):
        term = names.get((_bag(words), side_in_name))
        if term is not None and (term.numbered or not numbered):
            return term.on(None if side == side_in_name and not term.sides else side)
    return None


def _look_up_within(words: Sequence[str], side: str | None, *, numbered: bool = False) -> Terminology | None:
    given = Counter(words)
    for bag, term in _table().found_within:
        rest = given - Counter(bag)
        if rest.total() != len(words) - len(bag) or not rest or (numbered and not term.numbered):
            continue
        place = _look_up(_table().places, list(rest.elements()), side)
        if place is not None:
            return replace(term.terminology, region=place.type, region_modifier=place.type_modifier)
    return None


def _bag(words: Sequence[str]) -> _WordBag:
    return tuple(sorted(words))


def _parse_name(name: str) -> tuple[tuple[str, ...], str | None]:
    """Return the normalised words of a name, and its side; the side is "" where a name has two."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z]{3})(?=\d)", " ", name)  # SpinalCord, Rib01
    tokens = re.findall(r"[^\W_]+", apart.casefold())
    sides, words = set(), []
    for place, token in enumerate(tokens):
        side = _SIDE_WORDS.get(token)
        if side is None and place in (0, len(tokens) - 1):
            side = _SIDE_LETTERS.get(token)
        if side is not None:
            sides.add(side)
        elif token not in _SMALL_WORDS:
            words.append(_normalised(token))
    return tuple(words), None if not sides else sides.pop() if len(sides) == 1 else ""


def _normalised(word: str) -> str:
    """Return one spelling for singular and plural, British and American."""
    if word.isdecimal():
        return word.lstrip("0") or "0"
    word = _PLURALS.get(word, word)
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith("ae"):  # vertebrae
        word = word[:-1]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]  # also of a pancreas: what comes out is compared, never shown
    word = word.replace("ae", "e").replace("oe", "e")  # haematoma, oesophagus
    for british, american in (("tumour", "tumor"), ("grey", "gray"), ("fibre", "fiber")):
        word = word.replace(british, american)
    return word
