"""Commands as dataclasses, and the options that several of them share.

A command is a frozen dataclass: its fields are the options (an ``Annotated`` type says what typer needs), its
docstring is the help text, and its ``run`` does the work::

    @dataclass(frozen=True)
    class Import:
        '''Convert a DICOM SEG to .seg.nrrd.'''

        segmentation: Annotated[Path, typer.Argument(help="A DICOM SEG.")]
        overwrite: Overwrite = False

        def run(self) -> None: ...

    register(app, "import", Import)

The dataclasses of the core with the same values (``SegOptions``, ``FewShotSettings``, ``TrackerOptions``)
are made from these in ``run``: importing them takes numpy or torch, and seconds, which `--help` must not.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_type_hints

import typer
import typer.core

if TYPE_CHECKING:
    from medsam2_core.errors import Note
    from medsam2_core.imaging.volume import Volume

PROMPTS, PROCESSING, OUTPUT = "Prompts (each applies to the --object before it)", "Processing", "Output"

AxisName = Literal["axial", "sagittal", "coronal", "i", "j", "k"]

ObjectNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", rich_help_panel=PROMPTS,
        help="Name of an object; the prompts that follow are its own. Prompts before the first --object "
        "belong to that.",
    ),
]  # fmt: skip
ModelName = Annotated[
    str,
    typer.Option(help="A name from `medsam2 models list`, or a checkpoint file.", rich_help_panel=PROCESSING),
]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=PROCESSING)]
PrecisionName = Annotated[
    str,
    typer.Option(help="Number format of the model: auto, fp32, bf16 or fp16.", rich_help_panel=PROCESSING),
]
ConfigName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.yaml",
        help="SAM 2 configuration of a checkpoint file, if it is not recognised.",
        rich_help_panel=PROCESSING,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side of the model's square input, a multiple of 32: smaller is faster and needs less memory.",
        rich_help_panel=PROCESSING,
    ),
]
SeriesName = Annotated[
    str | None,
    typer.Option(help="Number or UID of the series, if there are several.", rich_help_panel=PROCESSING),
]
Irregular = Annotated[
    Literal["refuse", "resample", "as-is"],
    typer.Option(
        help="A series with missing or uneven slices. resample: interpolate between them where slices should "
        "be; as-is: take them as evenly spaced, so that places, lengths and volumes are off.",
        rich_help_panel=PROCESSING,
    ),
]
Picture = Annotated[
    Path | None, typer.Option(metavar="PNG", help="Also write a montage of slices.", rich_help_panel=OUTPUT)
]
ProbabilitiesOut = Annotated[
    Path | None,
    typer.Option(
        metavar="NRRD",
        help="Also write the probability of every voxel, for `medsam2 export --kind fractional`.",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace existing files, but never an input.", rich_help_panel=OUTPUT),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")]


def irregular_notes(volume: Volume) -> list[Note]:
    """Return what the user should know of a volume from an irregular series."""
    from medsam2_core.errors import Note

    how, off = volume.metadata.get("irregular"), volume.metadata.get("off_mm", 0.0)
    if how == "resample":
        text = "slices were interpolated where the series has none: what they show was not measured there"
    elif how == "as-is":
        text = f"slices were taken as evenly spaced: some are up to {off:.3g} mm from where they are shown"
    else:
        return []
    return [Note.warning("irregular-series", f"{text} ({volume.metadata['reason']})", how=how, off_mm=off)]


def check_settings(model: str | Path | None, device: str, precision: str, window: str | None = None) -> None:
    """Refuse settings of the model that cannot be used, before anything is read.

    Raises
    ------
    VolumeError, DeviceError, CatalogueError
        What the window, the device, the precision or the model would fail with later.
    """
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store
    from medsam2_core.imaging.intensity import parse_window

    if window is not None and window.strip().lower() != "auto":
        parse_window(window)
    if model is not None:
        Store.default().locate(Catalogue.load().find(model))
    from medsam2_core.engine.devices import choose_device, choose_precision  # torch takes seconds to load

    choose_precision(choose_device(device), precision)


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


AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as JSON.",
        rich_help_panel=OUTPUT,
        callback=_as_document,
        is_eager=True,
    ),
]
AsJsonLines = Annotated[
    bool,
    typer.Option(
        "--json-progress", help="Print progress and result as JSON, one object a line.",
        rich_help_panel=OUTPUT, callback=_as_lines, is_eager=True,
    ),
]  # fmt: skip


class Command(Protocol):
    """A dataclass whose fields are options; see the module."""

    def run(self) -> None:
        """Do what the command is for."""


def register(
    app: typer.Typer, name: str, command: type[Command], kind: type[typer.core.TyperCommand] | None = None
) -> None:
    """Add a command to an app.

    Parameters
    ----------
    command
        A dataclass; its fields are the options, its docstring is the help text.
    kind
        Class of the parser, for example :class:`OrderedCommand`.
    """

    def run(**values: Any) -> None:
        command(**values).run()

    hints = get_type_hints(command, include_extras=True)
    parameters = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is dataclasses.MISSING else one.default,
            annotation=hints[one.name],
        )
        for one in dataclasses.fields(command)  # type: ignore[arg-type]
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = inspect.getdoc(command)
    app.command(name, cls=kind)(run)


#: Repeatable options whose order among each other is kept, by parameter name.
_ORDERED = ("object", "prompt", "box", "point", "mask")
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
