"""The commands that draw: triggers, looks into victims, figures of rows, the page of all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.api import STORE, Sweep, place
from sweeper.cli.arguments import (
    DataOption,
    SetOption,
    Spec,
    StoreOption,
    WhereOption,
    methods,
    pairs,
    say,
    selected,
    words,
)
from sweeper.core.errors import StoreError
from sweeper.core.outputs import written
from sweeper.core.text import without_homes

if TYPE_CHECKING:
    from sweeper.run.present import Present


def show(
    attack: Annotated[
        str,
        typer.Argument(
            help="An attack, as a sweep file names it.", autocompletion=methods("attack")
        ),
    ],
    dataset: Annotated[str, typer.Option(help="Whose test samples to show.")] = "digits",
    model: Annotated[
        str, typer.Option(help="Network that a trigger is learned on, if it must be.")
    ] = "tiny",
    rate: Annotated[float, typer.Option(help="Poison rate of that training.")] = 0.1,
    epochs: Annotated[int | None, typer.Option(help="Epochs of that training.")] = None,
    store: StoreOption = STORE,
    data: DataOption = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="The attack's options.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("show.png"),
) -> None:
    """Draw what an attack does to samples.

    A trigger that must be learned is learned first, and kept in the store.

    Example: sweeper show badnets --dataset cifar10 --data DIR --set preset=d-br-all2all
    """
    from sweeper.analyses import show as pictures
    from sweeper.tables import plots

    plots.ending(out)  # before a trigger is learned
    entry = {"attack": attack, **pairs("--set", options)}
    values: dict[str, Any] = {"name": "show", "seeds": 1, "defenses": ["none"]}
    values |= {"datasets": [dataset], "models": [model], "attacks": [entry]}
    values |= {"poison_rates": [rate]} | ({"recipe": {"epochs": epochs}} if epochs else {})
    sweep = Sweep.from_values(values)
    clean, triggered = pictures.triggered(sweep.declared, sweep.context(store, data), say)
    with written(out):
        pictures.figure(attack, clean, triggered).savefig(out, dpi=150)
    typer.echo(f"{out}: {pictures.change(clean, triggered)}")
    for before, after in pictures.lines(clean, triggered):
        typer.echo(f"\n{before}\n{after}")


def analyze(
    what: Annotated[str, typer.Argument(help="An analysis; `sweeper list analyses` has them.")],
    spec: Spec,
    victim: Annotated[str, typer.Option(help="Only victims whose key begins with this.")] = "",
    after: Annotated[
        str,
        typer.Option(
            help="Look at the models this defense leaves.", autocompletion=methods("defense")
        ),
    ] = "",
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the analysis."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("analyses"),
) -> None:
    """Look into the victims of a sweep: a picture with numbers.

    Example: sweeper analyze tsne quickstart --after fine-tuning
    """
    from sweeper.analyses import looks
    from sweeper.analyses.analyze import pictures

    sweep = Sweep.from_yaml(spec, overrides or [])
    analysis = looks.make(what, pairs("--option", options))
    context = sweep.context(store, data)
    for path in pictures(what, analysis, sweep.declared, context, out, victim, after, say):
        typer.echo(path)


def plot(
    what: Annotated[
        str,
        typer.Argument(
            help="rates, tradeoff, bars or ranks.",
            autocompletion=words("rates", "tradeoff", "bars", "ranks"),
        ),
    ],
    spec: Spec,
    out: Annotated[Path, typer.Option(help="File to write: .pdf, .svg or .png.")],
    metric: Annotated[str, typer.Option(help="asr, acc, acc_loss, ra, der, ...")] = "asr",
    where: WhereOption = None,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
) -> None:
    """Draw a figure: rate curves, trade-off, bars, average ranks.

    Example: sweeper plot rates quickstart --out rates.pdf --where dataset=digits
    """
    from sweeper.tables import plots, points, results

    found = selected(spec, store, data, overrides, where)
    results.require(found.frame)
    layout = found.layout
    plotted = points.points(
        found.frame,
        found.order,
        untaken=layout.untaken,
        max_acc_loss=layout.max_acc_loss,
    )
    plots.save(plots.draw(what, plotted, metric, layout.heads(found.order)), out)
    typer.echo(out)


def report(
    spec: Spec,
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.html.")] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            help="Draw the triggers anew; default: as the last report did, or where that downloads "
            "and trains nothing."
        ),
    ] = None,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    where: WhereOption = None,
) -> None:
    """Write a sweep's results as one HTML page.

    Example: sweeper report quickstart --out quickstart.html
    """
    from sweeper.store import ledger
    from sweeper.tables import report as pages

    found = selected(spec, store, data, overrides, where)
    name, frame, order, layout = found.name, found.frame, found.order, found.layout
    kept = ledger.Ledger(place(store))
    digests = found.outline.get("data")
    shown, left_out = _triggers(found, spec, store, data, overrides, pictures)
    text = kept.sweep_text(name)
    page = pages.build(
        frame,
        name,
        order,
        heads=layout.heads(order),
        untaken=layout.untaken,
        max_acc_loss=layout.max_acc_loss,
        text=text,
        data=digests,
        pictures=shown,
        left_out=left_out,
    )
    path = out or Path(f"{name}.html")
    with written(path):
        path.write_text(page, encoding="utf-8")
    typer.echo(f"{path}: {len(page.encode()) / 1e6:.1f} MB")


def _triggers(
    present: Present,
    spec: str,
    store: str,
    data: str | None,
    overrides: list[str] | None,
    asked: bool | None,
) -> tuple[Sequence[tuple[str, bytes]], Sequence[str]]:
    """Pictures of a sweep's triggers, and why there are no others; a fault only if `asked` for.

    Drawing them takes torch and the data. So the store keeps those of a sweep that is as it was
    run, and they are drawn anew where they are asked for.
    """
    if asked is False:
        return (), ["No pictures: the report was written with --no-pictures."]
    from sweeper.store.sweeps import Sweeps

    kept, name = Sweeps(place(store)), present.name
    cells = {} if present.changed else kept.plan(name)["cells"]  # of --where there are fewer
    if not asked and (known := kept.gallery(name, cells)):
        return known
    from sweeper.analyses import show

    try:
        sweep = Sweep.from_yaml(spec, overrides or [])
        found = show.gallery(sweep.declared, sweep.context(store, data))
    except Exception as error:  # a method's own fault is no reason for a report without numbers
        if asked:
            raise
        return (), [f"No pictures: {without_homes(str(error))}"]
    if found.whole and found.cells == cells:
        with contextlib.suppress(StoreError):  # who may only read it draws each time
            kept.save_gallery(name, cells, found.pictures, found.left_out)
    return found.pictures, found.left_out


COMMANDS = (show, analyze, plot, report)
"""What `app` registers."""
