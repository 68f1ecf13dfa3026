"""Rows of the user's own models, and problems of training data, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medsam2_core.worker.job_messages import AutoModelInfo

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import MyModelRow

_SHOWN_PROBLEMS = 20


def problemsText(fields: Mapping[str, Any]) -> str:
    """Return the problems of the data, with the remedy that the page offers."""
    problems = [one for one in fields.get("problems") or () if isinstance(one, Mapping)]
    shown = "; ".join(str(one.get("message")) for one in problems[:_SHOWN_PROBLEMS])
    if len(problems) > _SHOWN_PROBLEMS:
        shown += _("; and {count} more").format(count=len(problems) - _SHOWN_PROBLEMS)
    one, several = _("1 problem with the data: {problems}"), _("{count} problems with the data: {problems}")
    text = (one if len(problems) == 1 else several).format(count=len(problems), problems=shown)
    # Problems of the data as a whole cannot be left out.
    if all("image" in (one.get("fields") or ()) for one in problems):
        text += ". " + _("Correct the images, or tick 'Leave out images with problems'")
    return text


def rowOfAuto(model: AutoModelInfo) -> MyModelRow:
    """Return the row of an Auto model."""
    images = str(model.images) if model.images else ""
    dice = f"{model.dice:.2f}" if model.dice is not None else ""
    return MyModelRow(model.file, model.name, ", ".join(model.classes), images, dice, model.path)


def rowOfFineTuned(entry: Mapping[str, Any]) -> MyModelRow:
    """Return the row of a fine-tuned model, from its entry in the worker's list of models."""
    card, name = _part(entry, "card"), str(entry.get("name", ""))
    before, after = (diceOf(entry, when) for when in ("before", "after"))
    isKnown = before is not None and after is not None
    about = [_("Fine-tuned from {base}").format(base=card.get("base", "?"))]
    if isKnown:
        about.append(_("Dice of one box, before → after, on cases it was not trained on"))
    if entry.get("licence"):
        about.append(_("Licence: {licence}").format(licence=entry["licence"]))
    return MyModelRow(
        file=name,
        name=name,
        classes=", ".join(map(str, card.get("classes") or ())),
        images=str(_part(card, "training").get("cases") or ""),
        dice=f"{before:.2f} → {after:.2f}" if isKnown else "",
        path=str(entry.get("path") or ""),
        isPrompted=True,
        about="\n".join(about),
    )


def diceOf(entry: Mapping[str, Any], when: str) -> float | None:
    """Return the mean Dice of one box "before" or "after"; None if it was not measured."""
    value = _part(_part(_part(_part(entry, "card"), "figures"), when), "mean").get("one box")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = of.get(name)
    return part if isinstance(part, Mapping) else {}
