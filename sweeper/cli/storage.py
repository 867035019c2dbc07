"""Commands on what a store holds: what takes the space, and what nothing needs any more."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sweeper.api import STORE, place
from sweeper.cli import typed
from sweeper.cli.arguments import JsonOption, StoreOption


def du(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """Say what takes the space of a store.

    Bytes and files, by kind and by sweep. What several sweeps share counts once.

    Example: sweeper du --store s3://bucket/sweeps
    """
    from sweeper.store import contents

    used = contents.Contents(place(store)).usage()
    typer.echo(json.dumps(used) if as_json else contents.text(used))


def gc(
    here: typer.Context,
    store: StoreOption = STORE,
    sweeps: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="NAME",
            help="Count this sweep as waste too, with all that only it has; may be repeated.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete it; without this it is only listed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what no sweep of a store needs any more, or delete it.

    That is: victims and models of no sweep, files that were set aside or moved away, half-written
    files, and failed rows of cells that succeeded later. What is younger than a day stays.

    Example: sweeper gc --sweep my-old-sweep
    """
    from sweeper.store import garbage

    kept = garbage.Garbage(place(store))
    found = kept.free(sweeps or []) if yes else kept.waste(sweeps or [])
    said = garbage.Said(kept.root, found, [] if yes else kept.runners(), freed=yes)
    typer.echo(
        json.dumps(said.values()) if as_json else said.text(typed.line(here, "gc", ["--yes"]))
    )


COMMANDS = (du, gc)
"""What `app` registers."""
