"""The command line. Thin: every command calls one room."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper import arguments, figures, remote
from sweeper.arguments import (
    DEFAULT_STORE,
    DataOption,
    JsonOption,
    SetOption,
    Spec,
    StoreOption,
)
from sweeper.errors import SweepError

if TYPE_CHECKING:
    from rich.console import Console

    from sweeper.run import Walker
    from sweeper.spec import Sweep
    from sweeper.view import View

app = typer.Typer(
    help="Backdoor attacks x defenses: one sweep file in, one table out.\n\n"
    "Example: sweeper run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (remote.submit, remote.status, remote.watch):
    app.command()(command)
app.add_typer(remote.clusters, name="cluster")


def _say(**values: Any) -> None:
    """One line of a cell's progress."""
    typer.echo(" ".join(f"{key} {value}" for key, value in values.items()), err=True)


@app.command()
def run(
    spec: Spec,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    executor: Annotated[
        str, typer.Option(help="ray, or inline: in this process, one cell at a time.")
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default: this machine.")
    ] = None,
) -> None:
    """Run what is missing of a sweep, then print its table.

    Example: sweeper run quickstart
    """
    from rich.console import Console

    from sweeper import spec as specs

    sweep = specs.load(spec, overrides or [])
    if executor not in ("ray", "inline"):
        raise SweepError(f"--executor: {executor!r} is not one of ray, inline")
    from sweeper import run as runs
    from sweeper.display import Display

    job = runs.prepare(sweep, arguments.context(sweep, store, data))
    console = Console(stderr=True, highlight=False, markup=False)
    facts = job.summary()
    console.print(
        f"{sweep.name}: {facts['total']} cells, {facts['done']} done, {facts['to_run']} to run; "
        f"trainings saved by sharing victims: {facts['trainings_saved']}"
    )
    walker: Walker = runs.inline
    slots = 1
    if executor == "ray" and job.todo:
        walker, slots = _with_ray(sweep, address, console)
    with Display(job, console, slots) as display:
        counts = runs.execute(job, walker, display)
    ran = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"
    console.print(f"cells run: {ran}")
    typer.echo(_table(sweep.name, store, "markdown", sweep.table))
    left = len(job.todo) - sum(counts.values())
    if left:
        console.print(f"{left} cells are left; the same command runs them.")
    if set(counts) - {"ok"}:
        console.print(
            f"Not all cells ended well; run `sweeper run {spec}` again to retry them, or "
            f"`sweeper cell {spec} KEY`, with the same --set, to see one fail here.",
            soft_wrap=True,
        )
    if left or set(counts) - {"ok"}:
        raise typer.Exit(1)


def _with_ray(sweep: Sweep, address: str | None, console: Console) -> tuple[Walker, int]:
    """Start or join Ray: what walks the cells, and how many at once."""
    if not address:  # a Ray of our own listens on loopback; read at its import
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from sweeper import schedule

    shape = sweep.resources
    url = schedule.connect(address, shape.cpus, shape.gpus)
    slots = schedule.room(shape.cpus, shape.gpus)
    if url:
        console.print(f"Ray dashboard: {url}")
    if not slots:
        console.print("Ray has no room for a cell now: waiting for nodes that have")
    ahead = schedule.AHEAD if address else 0
    return partial(schedule.walk_with_tune, ahead=ahead), max(1, slots)


@app.command()
def plan(
    spec: Spec,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a sweep would run, what sharing saves, and what is done.

    Example: sweeper plan quickstart --json
    """
    from sweeper import run as runs
    from sweeper import spec as specs

    sweep = specs.load(spec, overrides or [])
    facts = runs.prepare(sweep, arguments.context(sweep, store, data), need_data=False).summary()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"sweep {facts['sweep']}: {facts['total']} cells")
    for kind, count in facts["cells"].items():
        left = facts["to_run_by_kind"].get(kind, 0)
        if count:
            typer.echo(f"  {kind:<15}{count:>7}" + (f", {left} to run" if left else ""))
    typer.echo(f"done already      {facts['done']:>5}")
    typer.echo(f"trainings saved   {facts['trainings_saved']:>5}  (against one per defense cell)")
    for label in facts["unresolved"]:
        typer.echo(f"data set {label} is not on this machine: what is done of it is not known")


@app.command()
def table(
    spec: Spec,
    store: StoreOption = DEFAULT_STORE,
    rows: Annotated[str | None, typer.Option(help="Axes down the side.")] = None,
    cols: Annotated[str | None, typer.Option(help="Axes across the top.")] = None,
    values: Annotated[str | None, typer.Option(help="Metrics in each cell.")] = None,
    style: Annotated[
        str, typer.Option("--format", help="markdown, csv, latex or html.")
    ] = "markdown",
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside the published figures, each with its source.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the screen.")] = None,
) -> None:
    """Print a sweep's table from its rows, laid out by its `table:` section and these flags.

    Example: sweeper table quickstart --format latex --values acc,asr,der
    """
    from sweeper import source, view

    name = source.name_of(spec)
    asked = {"rows": rows, "cols": cols, "values": values}
    given = {key: [part.strip() for part in text.split(",")] for key, text in asked.items() if text}
    layout = view.of(source.read(spec)).model_copy(update=given)
    text = _table(name, store, style, layout, compare)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        typer.echo(text)


def _table(name: str, store: str, style: str, layout: View, compare: bool = False) -> str:
    from sweeper import ledger, published, results, tables

    found, labels = ledger.load(arguments.absolute(store), name)
    known = published.of(name) if compare else ()
    if compare and not known:
        raise SweepError(
            f"--compare: nothing published is known for sweep {name!r}; it is for "
            f"{', '.join(published.sweeps())}"
        )
    built = tables.build(
        results.frame(found),
        rows=layout.rows,
        cols=layout.cols,
        values=layout.values,
        order=layout.order(labels),
        heads=layout.labels,
        title=layout.caption,
        average=layout.average,
        known=known,
    )
    return tables.render(built, style).rstrip()


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="attacks, defenses, datasets, models or sweeps.")],
    as_json: JsonOption = False,
) -> None:
    """List what a sweep file can name.

    Example: sweeper list defenses
    """
    from sweeper.listing import KINDS, records

    if what not in KINDS:
        from sweeper.errors import unknown

        raise SweepError(f"list: {unknown('kind', what, KINDS)}")
    found = records(what)
    if as_json:
        typer.echo(json.dumps(found))
        return
    from tabulate import tabulate

    shown = [
        {
            key: ", ".join(map(str, value)) if isinstance(value, list | dict) else value
            for key, value in record.items()
        }
        for record in found
    ]
    typer.echo(tabulate(shown, headers="keys", maxcolwidths=40))


@app.command()
def cell(
    spec: Spec,
    key: Annotated[str, typer.Argument(help="The cell's key, or its first digits.")],
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    overrides: SetOption = None,
) -> None:
    """Run one cell again in this process, for debugging; its row is written anew.

    Example: sweeper cell quickstart 3fa9
    """
    from sweeper import cells
    from sweeper import run as runs
    from sweeper import spec as specs
    from sweeper.walk import Walk

    sweep = specs.load(spec, overrides or [])
    context = arguments.context(sweep, store, data)
    job = runs.prepare(sweep, context)
    found = [known for known in job.plan.cells if known.startswith(key)]
    if len(found) != 1:
        raise SweepError(
            f"{len(found) or 'no'} cells of {sweep.name} have a key that starts with {key!r}: "
            "`sweeper run` prints the key of each failed cell, the rows have all of them; --set "
            "must be as it was"
        )
    chosen = job.plan.cells[found[0]]
    above = Walk(job.plan.cells, []).ancestors(chosen.key)

    result = cells.run(chosen, above, context, _say, force=True, last_try=True)
    error = result.pop("error", "")
    typer.echo(json.dumps({"key": chosen.key, "kind": chosen.kind, **chosen.axes, **result}))
    if error:
        typer.echo(error, err=True)
        raise typer.Exit(1)


@app.command()
def show(
    attack: Annotated[str, typer.Argument(help="An attack, as a sweep file names it.")],
    dataset: Annotated[str, typer.Option(help="Whose test images to show.")] = "digits",
    model: Annotated[
        str, typer.Option(help="What a trigger that is learned is learned on.")
    ] = "tiny",
    rate: Annotated[float, typer.Option(help="The poison rate it is learned at.")] = 0.1,
    epochs: Annotated[int | None, typer.Option(help="Epochs of that victim.")] = None,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The attack's options.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("show.png"),
) -> None:
    """Draw what an attack does to images: clean, triggered, difference.

    A trigger that must be learned is learned first, and kept in the store.

    Example: sweeper show badnets --dataset cifar10 --data DIR --set preset=d-br-all2all
    """
    from sweeper import show as pictures
    from sweeper import spec as specs

    asked = {"attack": attack, **arguments.pairs("--set", options)}
    values: dict[str, Any] = {"name": "show", "seeds": 1, "defenses": ["none"]}
    values |= {"datasets": [dataset], "models": [model], "attacks": [asked]}
    values |= {"poison_rates": [rate]} | ({"recipe": {"epochs": epochs}} if epochs else {})
    sweep = specs.parse(values)
    context = arguments.context(sweep, store, data)
    clean, hit = pictures.triggered(sweep, context, _say)
    pictures.figure(attack, clean, hit).savefig(out, dpi=150)
    typer.echo(f"{out}: {pictures.quality(clean, hit)}")


@app.command()
def analyze(
    what: Annotated[str, typer.Argument(help="An analysis; `sweeper list analyses` has them.")],
    spec: Spec,
    victim: Annotated[str, typer.Option(help="Only victims whose key begins so.")] = "",
    after: Annotated[str, typer.Option(help="Look at the models this defense leaves.")] = "",
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the analysis."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("analyses"),
) -> None:
    """Look into the victims of a sweep that has run: a picture and its numbers for each.

    Example: sweeper analyze tsne quickstart --after fine-tuning
    """
    from sweeper import analyze as looks
    from sweeper import spec as specs

    sweep = specs.load(spec, overrides or [])
    analysis = looks.make(what, arguments.pairs("--option", options))
    context = arguments.context(sweep, store, data)
    for picture in looks.pictures(what, analysis, sweep, context, out, victim, after):
        typer.echo(picture)


for command in (figures.plot, figures.report):
    app.command()(command)


def main() -> None:
    """Entry point: what the user can fix is one sentence and exit code 2, not a traceback."""
    try:
        app()
    except SweepError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
