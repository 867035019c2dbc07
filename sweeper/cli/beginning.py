"""Commands for the beginning: a sweep file to change, and whether this machine is right."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from sweeper.api import STORE, place
from sweeper.cli.arguments import DataOption, JsonOption, StoreOption
from sweeper.core import advice
from sweeper.core.errors import SweepError
from sweeper.core.outputs import written


def init(
    spec: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")] = "sweep.yaml",
) -> None:
    """Write a sweep file with every key, to be made into yours.

    It is valid as it is, and runs in a minute without a download.

    Example: sweeper init my-sweep.yaml
    """
    from sweeper.plan import source

    path = Path(spec)
    if path.suffix not in (".yaml", ".yml"):
        raise SweepError(f"init {spec}: needs a name that ends in .yaml, such as {path.stem}.yaml")
    text = (importlib.resources.files("sweeper.cli.templates") / "sweep.yaml").read_text("utf-8")
    if source.NAME.fullmatch(path.stem):
        text = text.replace("name: mine ", f"name: {path.stem} ")
    with written(path), path.open("x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"{spec}: a sweep with every key; change it into yours")
    typer.echo(f"{advice.command('plan')} says what it takes, {advice.command('run')} runs it")


def doctor(
    store: StoreOption = STORE,
    data: DataOption = None,
    ray: Annotated[bool, typer.Option("--ray", help="Start Ray, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether this machine can run a sweep.

    Versions, cores, memory, GPUs, data sets, the store, and how fast it trains. Exit code 1 where
    something must be mended.

    Example: sweeper doctor --data my-data
    """
    from sweeper.run import checkup

    found = []
    width = min(100, shutil.get_terminal_size().columns)
    for one in checkup.findings(place(store), data, ray=ray):
        found.append(one)
        if not as_json:
            said = f"{one.text}: {one.remedy}" if one.remedy else one.text
            head = f"{one.state:<9}{one.subject:<10}"
            lines = textwrap.wrap(
                head + said,
                width,
                subsequent_indent=" " * len(head),
                break_on_hyphens=False,
                break_long_words=False,  # a path
            )
            typer.echo("\n".join(lines))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found]))
    if any(one.state == checkup.PROBLEM for one in found):
        raise typer.Exit(1)


COMMANDS = (init, doctor)
"""What `app` registers."""
