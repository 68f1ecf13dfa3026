"""Options whose order matters: `--object liver --box … --object spleen --box …`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer.core

#: Options whose order is kept, by the name of their parameter.
KEPT = ("object", "box", "point", "mask")
_META = "medsam2 options in order"


class OrderedCommand(typer.core.TyperCommand):
    """A command that remembers in which order :data:`KEPT` options were typed.

    The parser gathers the values of an option that may be repeated in one list a name, which loses what stood
    between them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        remaining = {name: iter(_listed(values.get(name))) for name in KEPT}
        ctx.meta[_META] = [
            (parameter.name, next(remaining[parameter.name]))
            for parameter in order
            if parameter.name in remaining
        ]
        return super().parse_args(ctx, args)


def in_order(ctx: typer.Context) -> list[tuple[str, str]]:
    """(parameter name, text) of the kept options, as they were typed."""
    return list(ctx.meta[_META])


def _listed(values: Any) -> Iterable[str]:
    return values if isinstance(values, list | tuple) else () if values is None else (values,)
