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

    Bytes and files, by what they are and by sweep; what several sweeps name counts once.

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
            help="This sweep too, and what only it had; may be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; else it is only said.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what of a store nothing needs any more, or delete it.

    That is: artifacts of no sweep, what was set aside or moved away, half-written files, failures
    made good since. What came within a day stays.

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
