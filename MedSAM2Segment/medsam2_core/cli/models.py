"""`medsam2 models …`: list, download, verify and remove models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsam2_core.cli.console import ExitCode, download_bar, print_table, size_text, warn
from medsam2_core.cli.options import AsJson, Out, register

if TYPE_CHECKING:
    from medsam2_core.engine.catalogue import ModelEntry

app = typer.Typer(help="List, download, verify and remove models.", no_args_is_help=True)


def list_models(
    as_json: AsJson = False,
) -> None:
    """List the models of the catalogue and where they are on this machine.

    Options
    -------
    as_json: Print the whole catalogue as JSON.
    """
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    store = Store.default()
    rows, facts = [], []
    for entry in Catalogue.load():
        state, path = store.find(entry)
        rows.append(
            (entry.name, state.value, size_text(_bytes(entry.bytes, path)), _licence(entry), entry.title)
        )
        facts.append(
            {
                "name": entry.name,
                "title": entry.title,
                "state": state.value,
                "path": str(path) if path else None,
                "image_size": entry.image_size,
                "bytes": _bytes(entry.bytes, path),
                "memory": entry.memory,
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


def get(
    name: str,
) -> None:
    """Download a model, unless it is here already. An interrupted download is continued."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.download import fetch
    from medsam2_core.engine.store import Store

    entry = Catalogue.load().find(name)
    store = Store.default()
    _, path = store.find(entry)
    if path is None and entry.repo is not None:
        print(f"{entry.title} ({size_text(entry.bytes)}) from {entry.page}")
        print(f"licence: {_licence(entry)}; by {entry.attribution or 'its authors'}")
        if entry.notice:
            print(entry.notice)
    with download_bar(entry.name, entry.bytes) as update:
        fetched = fetch(entry, update, store=store)
    print(fetched)


def verify(
    name: Annotated[str | None, typer.Argument()] = None,
) -> None:
    """Compare the files of models with their SHA-256.

    Options
    -------
    name: A model; by default all that are on this machine.
    """
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
            with download_bar(entry.name, None) as update:
                verdict = store.verify(entry, update)
        except CheckpointError as error:
            wrong += 1
            warn(str(error))
            continue
        judged = f"matches the {verdict.against}" if verdict.against else "nothing to compare it with"
        print(f"{entry.name}: {judged}  sha256 {verdict.sha256}  {verdict.path}")
    if not seen:
        print("no model of the catalogue is on this machine")
    if wrong:
        raise typer.Exit(ExitCode.BAD_INPUT)


def path(
    name: str,
) -> None:
    """Print the path of a model's file."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    print(Store.default().locate(Catalogue.load().find(name)))


def card(
    name: str,
) -> None:
    """Print what a fine-tuned checkpoint says of itself, as JSON: base, licence, training, figures."""
    from dataclasses import asdict

    from medsam2_core.engine.card import read_card
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store
    from medsam2_core.errors import CheckpointError

    path = Store.default().locate(Catalogue.load().find(name))
    found = read_card(path)
    if found is None:
        message = f"{name} has no card: only checkpoints made by `medsam2 train finetune` have one"
        raise CheckpointError(message, code="no-card", path=str(path))
    print(json.dumps(asdict(found), indent=2))


def remove(
    name: str,
) -> None:
    """Delete a downloaded model. Files that were put there by hand are kept."""
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store

    print(f"removed {Store.default().remove(Catalogue.load().find(name))}")


def _licence(entry: ModelEntry) -> str:
    return entry.licence or "none stated"


def _bytes(known: int | None, path: Path | None) -> int | None:
    return known if known is not None or path is None else path.stat().st_size


def import_auto(
    checkpoint: Path,
    out: Out,
    config: str = "sam2_hiera_t",
    image_size: int | None = None,
    classes: str | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a Sam2Rad checkpoint to an Auto model, and the SAM 2 within it to a checkpoint beside it.

    Options
    -------
    checkpoint: A Sam2Rad checkpoint (.ckpt).
    out: The .medsam2auto file to write.
    config: Configuration of the SAM 2 within it.
    image_size: Side of the images it was trained on.
    classes A,B: Names of its classes, in order.
    dataset: Name of the data set, if it has several.
    """
    from medsam2_core import atomic
    from medsam2_core.auto.sam2rad_import import import_reference

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    with atomic.protect(checkpoint):
        done = import_reference(
            checkpoint, out, config,
            image_size=image_size, class_names=names, dataset=dataset, overwrite=overwrite,
        )  # fmt: skip
    print(f"{done.path}: {', '.join(done.card.class_names)}, for {done.base_path.name} beside it")
    if not done.card.can_track:
        print("its memory is not trained: volumes are segmented slice by slice", file=sys.stderr)


register(app, "list", list_models)
register(app, "get", get)
register(app, "verify", verify)
register(app, "path", path)
register(app, "card", card)
register(app, "remove", remove)
register(app, "import", import_auto)
