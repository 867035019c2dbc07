"""Commands that plan and run a sweep in this process, or one of its cells."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.api import EXECUTORS, STORE, Sweep
from sweeper.cli import tables
from sweeper.cli.arguments import (
    DataOption,
    JsonOption,
    SetOption,
    Spec,
    StoreOption,
    say,
    selected,
    words,
)
from sweeper.core import advice
from sweeper.core.errors import SweepError, one_key
from sweeper.core.rows import AXES

if TYPE_CHECKING:
    from sweeper.plan.sweep import Sweep as Declared

MANY = 10_000
"""Rows from which on an expansion is long enough to be waited for."""


def run(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    executor: Annotated[
        str,
        typer.Option(
            help="ray, or inline: here, one cell at a time.",
            autocompletion=words(*EXECUTORS),
        ),
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default: this machine.")
    ] = None,
    fresh: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|KEY",
            help="Run again with all that depends on it: an attack, a defense, a key, engine or "
            "all; may be repeated.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each event, and no table.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Log to wandb, mlflow or tensorboard too; may be repeated.",
            autocompletion=words("wandb", "mlflow", "tensorboard"),
        ),
    ] = None,
) -> None:
    """Run what is missing of a sweep, then print its table.

    Example: sweeper run quickstart
    """
    sweep = Sweep.from_yaml(spec, overrides or [])
    tell = (lambda event: typer.echo(json.dumps(event))) if as_json else None
    counts = sweep.run(
        store=store,
        data=data,
        executor=executor,
        address=address,
        fresh=fresh or [],
        tell=tell,
        log=log or [],
    )
    code = int("unfinished" in counts)
    if as_json:
        raise typer.Exit(code)
    built = tables.built_of(selected(spec, store, data, overrides, None), "")
    typer.echo(tables.text_of(built, ""))
    if code:
        typer.echo(f"{advice.command('run')} tries them again{_one(sweep, store)}", err=True)
        raise typer.Exit(code)
    latex = advice.command("table", format=["latex"])
    typer.echo(f"Next: {advice.command('report')} (one page with all of it) or {latex}", err=True)


def _one(sweep: Sweep, store: str) -> str:
    """How to see one of a sweep's unfinished rows fail; empty where none has."""
    frame = sweep.results(store=store)
    keys = [
        key
        for status in ("failed", "timeout", "blocked")
        for key in frame.loc[frame["status"] == status, "key"]
    ]
    return f"; {advice.command('cell', keys[0][:8])} shows one fail here" if keys else ""


def plan(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Train for 5 s to guess costs the store does not know."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a sweep would run and cost, and what is done.

    Example: sweeper plan quickstart --json
    """
    from sweeper.plan import known
    from sweeper.run.estimate import Estimate, sentences, spoken
    from sweeper.run.fresh import sentence
    from sweeper.run.summary import why_not

    sweep = Sweep.from_yaml(spec, overrides or [])
    with _expanding(sweep.declared):
        facts = sweep.plan(store=store, data=data, calibrate=calibrate)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for entry in sweep.declared.datasets:
        if entry.label in facts["unresolved"]:
            typer.echo(known.missing(entry, Path(data).expanduser() if data else None))
    typer.echo(f"sweep {facts['sweep']}: {facts['total']:,} cells")
    for kind, count in facts["cells"].items():
        left = facts["to_run_by_kind"].get(kind, 0)
        if count:
            typer.echo(f"  {kind:<15}{count:>7,}" + (f", {left:,} to run" if left else ""))
    for line in why_not(facts):
        typer.echo(line)
    typer.echo(f"done already     {facts['done']:>7,}")
    for item in facts["other_code"]:
        typer.echo(sentence(item))
    cost = Estimate(**facts["estimate"])
    time = f", about {spoken(cost.saved_seconds)}" if cost.saved_seconds else ""
    saved = facts["trainings_saved"]
    typer.echo(f"trainings saved  {saved:>7,}{time}  (compared with one for each defense cell)")
    for line in sentences(cost):
        typer.echo(line)


@contextlib.contextmanager
def _expanding(sweep: Declared) -> Iterator[None]:
    """Say on a terminal that a large sweep is being expanded, until it is."""
    cells = math.prod(len(getattr(sweep, f"{axis}s")) for axis in AXES)
    if cells < MANY or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    from sweeper.run.display import waiting

    with waiting(Console(stderr=True), f"expanding {sweep.name}, up to {cells:,} rows ..."):
        yield


def cell(
    spec: Spec,
    key: Annotated[str, typer.Argument(help="The cell's key, or its first digits.")],
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Run a method of yours in this process, for a debugger; its row says so."
        ),
    ] = False,
) -> None:
    """Run one cell again, without Ray, for debugging.

    Example: sweeper cell quickstart 3fa9
    """
    from sweeper.engine.isolation import lacking
    from sweeper.run import cells, driver
    from sweeper.run.walk import Walk

    sweep = Sweep.from_yaml(spec, overrides or [])
    job = driver.prepare(sweep.declared, sweep.context(store, data, here=False))
    selected = job.plan.cells[one_key(job.plan.cells, key, f"cells of {sweep.declared.name}")]
    context = job.context_of(selected)
    if lack := lacking(context.device):
        raise SweepError(lack)
    if here and context.portable:
        raise SweepError(
            "--here: cells of precision portable run in a child process: debug them with "
            "--set recipe.precision=fp32, which gives them other keys"
        )
    if here:
        context = dataclasses.replace(context, outside=())
    ancestors = Walk(job.plan.cells, []).ancestors(selected.key)

    result = cells.run_here(selected, ancestors, context, say, force=True)
    error, _ = result.pop("error", ""), result.pop("row", None)
    typer.echo(json.dumps({"key": selected.key, "kind": selected.kind, **selected.axes, **result}))
    if error:
        typer.echo(error, err=True)
        raise typer.Exit(1)


COMMANDS = (run, plan, cell)
"""What `app` registers."""
