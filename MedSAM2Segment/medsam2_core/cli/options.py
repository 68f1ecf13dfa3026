"""Commands, and the options that several of them share.

A command is a frozen dataclass, or a function: its fields are the options, its docstring is the help. Below a
panel's title in the docstring, each option has its name, perhaps a placeholder for its value, and a text::

    @dataclass(frozen=True)
    class Import:
        '''Convert a DICOM SEG to .seg.nrrd.

        Options
        -------
        segmentation: A DICOM SEG.
        spacing MM: Of the result.
        '''

        segmentation: Path
        spacing: float = 1.0
        overwrite: bool = False  # described in SHARED

        def run(self) -> None: ...

    register(app, "import", Import)

As with typer, what has no default is an argument, and ``Annotated`` says what else there is to say. The
dataclasses of the core with the same values (``SegOptions``, ``FewShotSettings``, ``TrackerOptions``) are
made from these in ``run``: importing them takes numpy or torch, and seconds, which `--help` must not.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
import typer.core

AxisName = Literal["axial", "sagittal", "coronal", "i", "j", "k"]
WhenIrregular = Literal["refuse", "resample", "as-is"]
Out = Annotated[Path, typer.Option("--out", "-o")]

#: Options that mean the same in every command, unless its own docstring describes them.
SHARED = """
Options
-------
axis: Plane of the slices, or array axis.
base: The SAM 2 to train for: a name or a checkpoint.
name: A name from `medsam2 models list`, or a checkpoint file.
out: Folder of the run; a run in it is resumed.
resume: Continue a training that was stopped.
seed: Seed of everything random.
threads: CPU threads; all by default.

Prompts (each applies to the --object before it)
------------------------------------------------
object NAME: Name of an object; the prompts that follow are its own. Prompts before the first --object belong
    to that.

Processing
----------
model: A name from `medsam2 models list`, or a checkpoint file.
device: auto, cpu, cuda, cuda:1 or mps.
precision: Number format of the model: auto, fp32, bf16 or fp16.
config NAME|FILE.yaml: SAM 2 configuration of a checkpoint file, if it is not recognised.
image_size: Side of the model's square input, a multiple of 32: smaller is faster and needs less memory.
series: Number or UID of the series, if there are several.
irregular: A series with missing or uneven slices. resample: interpolate between them where slices should be;
    as-is: take them as evenly spaced, so that places, lengths and volumes are off.

Output
------
picture PNG: Also write a montage of slices.
probabilities NRRD: Also write the probability of every voxel, for `medsam2 export --kind fractional`.
overwrite: Replace existing files, but never an input.
as_json: Print the result as JSON.
json_progress: Print progress and result as JSON, one object a line.

Data
----
classes A,B | 1=A,2=B: Classes by name, or names for label values.
window W,L|PRESET: Intensity window.
skip_bad: Leave out images with problems.
"""


@dataclass
class Invocation:
    """How the command line under way reports.

    Attributes
    ----------
    json
        ``document`` with ``--json``, ``lines`` with ``--json-progress``: errors are printed as JSON, too.
    """

    json: Literal["", "document", "lines"] = ""


def _as_document(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, Invocation):
        context.obj.json = "document"
    return value


def _as_lines(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, Invocation):
        context.obj.json = "lines"
    return value


AsJson = Annotated[bool, typer.Option("--json", callback=_as_document, is_eager=True)]
AsJsonLines = Annotated[bool, typer.Option("--json-progress", callback=_as_lines, is_eager=True)]


def register(
    app: typer.Typer,
    name: str,
    command: Callable[..., Any],
    kind: type[typer.core.TyperCommand] | None = None,
) -> None:
    """Add a command to an app.

    Parameters
    ----------
    command
        A dataclass with a method ``run``, or a function; see the module.
    kind
        Class of the parser, for example :class:`OrderedCommand`.
    """

    def run(**values: Any) -> None:
        made = command(**values)
        if inspect.isclass(command):
            made.run()

    # Without docstrings (python -OO) there is no help; a dataclass then has its signature for one.
    has_help = sys.flags.optimize < 2
    text, own = described(command.__doc__ or "" if has_help else "")
    shared = described(SHARED if has_help else "")[1]
    hints = get_type_hints(command, include_extras=True)
    parameters = []
    for one in inspect.signature(command).parameters.values():
        hint = hints[one.name]
        if hint is not typer.Context:
            hint = _annotated(hint, one, own.get(one.name) or shared.get(one.name, {}))
        parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = text
    app.command(name, cls=kind)(run)


def described(docstring: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the text before the first panel, and by name what the panels say of options."""
    about, *sections = re.split(r"^(.+)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    described = {}
    for panel, section in zip(sections[::2], sections[1::2], strict=True):
        for name, metavar, text in re.findall(r"^(\w+)(?: (.+?))?: (.+(?:\n +.+)*)", section, re.MULTILINE):
            described[name] = {
                "rich_help_panel": None if panel == "Options" else panel,
                "metavar": metavar or None,
                "help": " ".join(text.split()),
            }
    return about.strip(), described


def _annotated(hint: Any, parameter: inspect.Parameter, described: dict[str, Any]) -> Any:
    """Return the type of an option with what typer is to know of it."""
    hint, *given = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    is_argument = parameter.default is inspect.Parameter.empty
    info = copy.copy(given[0]) if given else typer.Argument() if is_argument else typer.Option()
    if hint is bool and info.default is ... and not info.param_decls:  # without names, there is no --no-…
        info.param_decls = (f"--{parameter.name.replace('_', '-')}",)
    vars(info).update(described)
    return Annotated[hint, info]


#: Repeatable options whose order among each other is kept, by parameter name.
_ORDERED = ("object", "prompt", "box", "point", "mask", "line", "box3d")
_ORDER_KEY = "medsam2_core.cli.order"
#: Repeatable options that take two words each; typer has no type for that.
_PAIRS = ("like",)
_PAIRS_KEY = "medsam2_core.cli.pairs"


class OrderedCommand(typer.core.TyperCommand):
    """A command that keeps the order of options, as in ``--object liver --box … --object spleen --box …``.

    The parser gathers the values of a repeatable option in one list a name, which loses what stood between
    them. Options of pairs take two words.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.name in _PAIRS:
                parameter.nargs = 2

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for n, word in enumerate(args):
            pair = args[n + 1 : n + 3]
            is_pair = word.startswith("--") and word[2:] in _PAIRS
            if is_pair and (len(pair) < 2 or any(one.startswith("-") for one in pair)):
                raise typer.BadParameter(f"{word} takes two words: a scan and its segmentation", ctx)
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        remaining = {name: iter(_as_list(values.get(name))) for name in _ORDERED}
        ctx.meta[_ORDER_KEY] = [
            (parameter.name, next(remaining[parameter.name]))
            for parameter in order
            if parameter.name in remaining
        ]
        ctx.meta[_PAIRS_KEY] = {name: [tuple(pair) for pair in _as_list(values.get(name))] for name in _PAIRS}
        return super().parse_args(ctx, args)


def options_in_order(context: typer.Context) -> list[tuple[str, str]]:
    """Return (parameter name, value) of the ordered options of an :class:`OrderedCommand`, as given."""
    return list(context.meta[_ORDER_KEY])


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def pairs_given(context: typer.Context, name: str) -> list[tuple[str, str]]:
    """Return the pairs of words given to an option of pairs; what typer passes on is their text."""
    return list(context.meta[_PAIRS_KEY][name])


def _as_list(values: Any) -> Iterable[str]:
    return values if isinstance(values, list | tuple) else () if values is None else (values,)
