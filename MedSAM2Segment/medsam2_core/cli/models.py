"""`medsam2 models …`: which models there are, where they lie, and getting or removing one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from medsam2_core.cli.report import print_table, size

app = typer.Typer(help="List, get, verify and remove models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name from `medsam2 models list`, or a checkpoint file.")]


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Everything the catalogue says, as JSON.")] = False,
) -> None:
    """List the models of the catalogue and where they are on this machine."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    store = Store.default()
    rows, facts = [], []
    for entry in Catalogue.load():
        state, path = store.find(entry)
        rows.append((entry.name, state.value, size(_bytes(entry.bytes, path)), _licence(entry), entry.title))
        facts.append(
            {
                "name": entry.name,
                "title": entry.title,
                "state": state.value,
                "path": str(path) if path else None,
                "image_size": entry.image_size,
                "bytes": _bytes(entry.bytes, path),
                "licence": entry.licence,
                "attribution": entry.attribution,
                "notice": entry.notice,
                "page": entry.page,
                "revision": entry.revision,
                "sha256": entry.sha256,
            }
        )
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print_table(rows, ("NAME", "WHERE", "SIZE", "LICENCE", "WHAT"))
    print(f"\nDownloads go to {store.models_folder}; `medsam2 models remove NAME` deletes one.")


@app.command()
def get(name: Name) -> None:
    """Download a model, unless it is here already. A download that broke off is continued."""
    from medsam2_core.cli.progress import bytes_bar
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.download import fetch
    from medsam2_core.engine.store import Store

    entry = Catalogue.load().find(name)
    store = Store.default()
    _, path = store.find(entry)
    if path is None and entry.repo is not None:
        print(f"{entry.title} ({size(entry.bytes)}) from {entry.page}")
        print(f"licence: {_licence(entry)}; by {entry.attribution or 'its authors'}")
        if entry.notice:
            print(entry.notice)
    with bytes_bar(entry.name, entry.bytes) as update:
        fetched = fetch(entry, update, store=store)
    print(fetched)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One model; all that are here by default.")] = None,
) -> None:
    """Hash the files of models and compare them with what they should be."""
    from medsam2_core.cli.exits import ExitCode, say
    from medsam2_core.cli.progress import bytes_bar
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import ModelState, Store
    from medsam2_core.errors import CheckpointError

    catalogue, store = Catalogue.load(), Store.default()
    chosen = [catalogue.find(name)] if name else list(catalogue)
    wrong, seen = 0, set()
    for entry in chosen:
        state, path = store.find(entry)
        if name is None and (state is ModelState.MISSING or path in seen):
            continue
        seen.add(path)
        try:
            with bytes_bar(entry.name, None) as update:
                verdict = store.verify(entry, update)
        except CheckpointError as error:
            wrong += 1
            say(str(error))
            continue
        judged = f"as the {verdict.against} says" if verdict.against else "nothing to compare it with"
        print(f"{entry.name}: {judged}  sha256 {verdict.sha256}  {verdict.path}")
    if not seen:
        print("no model of the catalogue is on this machine")
    if wrong:
        raise typer.Exit(ExitCode.BAD_INPUT)


@app.command()
def path(name: Name) -> None:
    """Print where a model's file is."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    print(Store.default().locate(Catalogue.load().find(name)))


@app.command()
def remove(name: Name) -> None:
    """Delete a downloaded model. Files that were put there by hand stay."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    print(f"removed {Store.default().remove(Catalogue.load().find(name))}")


def _licence(entry) -> str:
    return entry.licence or "none stated"


def _bytes(known: int | None, path) -> int | None:
    return known if known is not None or path is None else path.stat().st_size


@app.command("import")
def import_auto(
    checkpoint: Annotated[Path, typer.Argument(help="A Sam2Rad checkpoint (.ckpt).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .medsam2auto file to write.")],
    config: Annotated[str, typer.Option(help="Configuration of the SAM 2 in it.")] = "sam2_hiera_t",
    image_size: Annotated[int | None, typer.Option(help="Side of the images it was trained with.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names of its classes, in order.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Which of its data sets, if it has several.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Turn a Sam2Rad checkpoint into an Auto model, and the SAM 2 in it into a checkpoint beside it."""
    from medsam2_core.auto.reference import import_reference

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    done = import_reference(
        checkpoint,
        out,
        config,
        image_size=image_size,
        class_names=names,
        dataset=dataset,
        overwrite=overwrite,
    )
    print(f"{done.path}: {', '.join(done.card.class_names)}, for {done.base_path.name} beside it")
    if not done.card.can_track:
        print("it has no memory: volumes are segmented slice by slice", file=sys.stderr)
