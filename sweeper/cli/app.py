"""The command line. Thin: every command calls one room."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.api import EXECUTORS, STORE, Sweep, rows
from sweeper.cli import commands, figures, remote, storage
from sweeper.cli.arguments import (
    DataOption,
    JsonOption,
    SetOption,
    Spec,
    StoreOption,
    say,
    words,
)
from sweeper.cli.listing import KINDS
from sweeper.cli.typed import Command
from sweeper.core import advice, search
from sweeper.core.errors import SweepError, one_key
from sweeper.core.outputs import written

if TYPE_CHECKING:
    from sweeper.plan.view import View

app = typer.Typer(
    help="Backdoor attacks x defenses: one sweep file in, one table out.\n\n"
    "Example: sweeper run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    """Say what runs here, and end; neither torch nor Ray is imported for it."""
    if not asked:
        return
    found = {}
    for package in ("backdoor-sweeper", "torch", "ray"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    sweeper, torch, ray = found.values()
    typer.echo(f"sweeper {sweeper}, Python {platform.python_version()}, torch {torch}, ray {ray}")
    raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the versions."),
    ] = False,
) -> None: ...


@app.command()
def run(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    executor: Annotated[
        str,
        typer.Option(
            help="ray, or inline: in this process, one cell at a time.",
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
            help="Run again, with all below: an attack, a defense, a key, engine or all; may be "
            "repeated.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each event, and no table.")
    ] = False,
) -> None:
    """Run what is missing of a sweep, then print its table.

    Example: sweeper run quickstart
    """
    sweep = Sweep.from_yaml(spec, overrides or [])
    tell = (lambda event: typer.echo(json.dumps(event))) if as_json else None
    again = fresh or []
    counts = sweep.run(
        store=store, data=data, executor=executor, address=address, fresh=again, tell=tell
    )
    code = int("unfinished" in counts)
    if as_json:
        raise typer.Exit(code)
    typer.echo(_table(sweep.declared.name, store, "", sweep.declared.table))
    if code:
        typer.echo(f"{advice.command('run')} tries them again{_one(sweep, store)}", err=True)
        raise typer.Exit(code)
    latex = advice.command("table", format=["latex"])
    typer.echo(f"Next: {advice.command('report')}: one page with all of it, or {latex}", err=True)


def _one(sweep: Sweep, store: str) -> str:
    """How to see one of a sweep's unfinished rows fail; empty where none has."""
    frame = sweep.results(store=store)
    keys = [
        key
        for status in ("failed", "timeout", "blocked")
        for key in frame.loc[frame["status"] == status, "key"]
    ]
    return f"; {advice.command('cell', keys[0][:8])} shows one fail here" if keys else ""


@app.command()
def plan(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Train 5 s for costs the store does not know.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a sweep would run and cost, and what is done.

    Example: sweeper plan quickstart --json
    """
    from sweeper.run.estimate import Estimate, sentences, spoken
    from sweeper.run.fresh import sentence
    from sweeper.run.summary import why_not

    facts = Sweep.from_yaml(spec, overrides or []).plan(store=store, data=data, calibrate=calibrate)
    if as_json:
        typer.echo(json.dumps(facts))
        return
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
    typer.echo(f"trainings saved  {saved:>7,}{time}  (against one per defense cell)")
    for line in sentences(cost):
        typer.echo(line)
    for label in facts["unresolved"]:
        typer.echo(f"data set {label} is not on this machine: what is done of it is not known")


@app.command()
def table(
    spec: Spec,
    store: StoreOption = STORE,
    down: Annotated[str | None, typer.Option("--rows", help="Axes down the side.")] = None,
    cols: Annotated[str | None, typer.Option(help="Axes across the top.")] = None,
    values: Annotated[str | None, typer.Option(help="Metrics in each cell.")] = None,
    style: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="markdown, csv, latex or html; default: to fit a terminal, else markdown.",
            autocompletion=words("markdown", "csv", "latex", "html"),
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside published and measured figures, with sources.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the screen.")] = None,
) -> None:
    """Print a sweep's table; its file or these flags lay it out.

    Example: sweeper table quickstart --format latex --values acc,asr,der
    """
    from sweeper.plan import source, view

    name = source.name_of(spec)
    texts = {"rows": down, "cols": cols, "values": values}
    changes = {
        key: [part.strip() for part in text.split(",")] for key, text in texts.items() if text
    }
    layout = view.of(source.read(spec)).model_copy(update=changes)
    text = _table(name, store, style or ("markdown" if out else ""), layout, compare)
    if out:
        with written(out):
            out.write_text(text + "\n", encoding="utf-8")
    else:
        typer.echo(text)


def _table(name: str, store: str, style: str, layout: View, compare: bool = False) -> str:
    """The table as text; an empty style is what suits the standard output."""
    from sweeper.tables import measured, published, results, screen, tables

    frame, labels = rows(name, store)
    figures = (*published.of(name), *measured.figures(name, frame)) if compare else ()
    if compare and not figures:
        known = sorted({*published.sweeps(), *measured.sweeps()})
        raise SweepError(
            f"--compare: nothing published or measured is known for sweep {name!r}; it is for "
            f"{', '.join(known)}"
        )
    order = layout.order(labels)
    whole = style == "csv" or figures  # what a machine reads; what is published is of images
    parts = [frame] if whole else results.by_task(frame, order.get("dataset", ()))
    built = [tables.viewed(part, layout, order, figures) for part in parts]
    if not style and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        return "\n\n".join(screen.render(one, width).rstrip() for one in built)
    return "\n\n".join(tables.render(one, style or "markdown").rstrip() for one in built)


@app.command("list")
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


@app.command()
def cell(
    spec: Spec,
    key: Annotated[str, typer.Argument(help="The cell's key, or its first digits.")],
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="A method of yours in this process too, for a debugger; its row says so."
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
            "--here: cells of precision portable run in a child: debug them as those of "
            "--set recipe.precision=fp32, whose keys are others"
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


for command in (*figures.COMMANDS, *remote.COMMANDS, *storage.COMMANDS, *commands.COMMANDS):
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(remote.clusters, name="cluster")
told = (remote.slurm.__doc__ or "").replace("cluster slurm", "slurm")
app.command("slurm", hidden=True, help=told)(remote.slurm)
for registered in (*app.registered_commands, *remote.clusters.registered_commands):
    registered.cls = Command


def main() -> None:
    """Entry point: what the user can fix is one sentence and exit code 2, not a traceback."""
    code: Any = 0
    try:
        search.require_ours()
        app()
    except SweepError as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    except SystemExit as end:
        code = end.code
    switches = sys.modules.get("sweeper.core.switches")
    if switches and switches.LEFT:  # a thread that a method left would keep the process alive
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
