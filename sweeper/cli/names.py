"""Commands on what a sweep file can name."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from typing import Annotated

import typer

from sweeper.cli.arguments import JsonOption, methods, words
from sweeper.cli.listing import KINDS
from sweeper.core.errors import SweepError, unknown
from sweeper.core.names import KINDS as METHODS

KEYS = ("attack", "defense", "dataset", "model", "recipe", "analysis")
"""Kinds of name that `describe` knows; methods first, which are meant before the others."""


def method_names(incomplete: str) -> list[str]:
    """Complete the name of an attack or a defense."""
    return sorted({name for kind in METHODS for name in methods(kind)(incomplete)})


def list_(
    what: Annotated[
        str, typer.Argument(help=f"One of {', '.join(KINDS)}.", autocompletion=words(*KINDS))
    ],
    as_json: JsonOption = False,
) -> None:
    """List what a sweep file can name.

    `sweeper describe NAME` says more about one of them.

    Example: sweeper list defenses
    """
    from sweeper.cli.listing import lines, records

    if what not in KINDS:
        raise SweepError(f"list: {unknown('kind', what, KINDS)}")
    if as_json:
        typer.echo(json.dumps(records(what)))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo("\n".join(lines(what, width)))


def describe(
    name: Annotated[
        str,
        typer.Argument(
            help="An attack, defense, data set, model, recipe or analysis.",
            autocompletion=method_names,
        ),
    ],
    kind: Annotated[
        str, typer.Option(help=f"One of {', '.join(KEYS)}.", autocompletion=words(*KEYS))
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page in Markdown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say all there is to know about a name.

    Its source, how it deviates from that source, its options with their ranges, its presets.

    Example: sweeper describe anp
    """
    from sweeper.cli import describe as said

    if kind and kind not in KEYS:
        raise SweepError(f"--kind: {unknown('kind', kind, KEYS)}")
    kinds = said.kinds_of(name)
    shown = [kind] if kind else [k for k in kinds if k in METHODS] or kinds
    found = [said.describe(one, name) for one in shown]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(about) for about in found]))
        return
    width = min(100, shutil.get_terminal_size().columns)
    pages = [said.markdown(a) if markdown else said.screen(a, width) for a in found]
    typer.echo("\n\n".join(page.rstrip() for page in pages))
    if others := [other for other in kinds if other not in shown and not kind]:
        texts = [f"{'an' if other[0] == 'a' else 'a'} {other}" for other in others]
        typer.echo(f"{name} is also {' and '.join(texts)}: --kind {others[0]} shows it", err=True)


COMMANDS = (list_, describe)
"""What `app` registers."""
