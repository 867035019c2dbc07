"""Commands on what a sweep file can name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sweeper.cli.arguments import JsonOption, words
from sweeper.cli.listing import KINDS
from sweeper.core.errors import SweepError


def list_(
    what: Annotated[
        str, typer.Argument(help=f"One of {', '.join(KINDS)}.", autocompletion=words(*KINDS))
    ],
    as_json: JsonOption = False,
) -> None:
    """List what a sweep file can name.

    Example: sweeper list defenses
    """
    from sweeper.cli.listing import records

    if what not in KINDS:
        from sweeper.core.errors import unknown

        raise SweepError(f"list: {unknown('kind', what, KINDS)}")
    entries = records(what)
    if as_json:
        typer.echo(json.dumps(entries))
        return
    from tabulate import tabulate

    shown = [
        {
            key: ", ".join(map(str, value)) if isinstance(value, list | dict) else value
            for key, value in record.items()
        }
        for record in entries
    ]
    typer.echo(tabulate(shown, headers="keys", maxcolwidths=40))


COMMANDS = (list_,)
"""What `app` registers."""
