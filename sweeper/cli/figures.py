"""The commands that draw: `sweeper plot` one figure, `sweeper report` a page of all."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeper.api import STORE, Sweep, place, rows
from sweeper.cli.arguments import DataOption, SetOption, Spec, StoreOption, pairs, words
from sweeper.plan import source, view


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
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=VALUE", help="Only these rows; may be repeated."),
    ] = None,
    store: StoreOption = STORE,
) -> None:
    """Draw a figure: rate curves, trade-off, bars, average ranks.

    Example: sweeper plot rates quickstart --out rates.pdf --where dataset=digits
    """
    from sweeper.tables import plots, points, results

    frame, order = rows(source.name_of(spec), store)
    selection: dict[str, list[Any]] = defaultdict(list)
    for text in where or []:
        for axis, value in pairs("--where", [text]).items():
            selection[axis].append(value)
    layout = view.of(source.read(spec))
    plotted = points.points(
        results.select(frame, **selection),
        order,
        untaken=layout.untaken,
        max_acc_loss=layout.max_acc_loss,
    )
    plots.save(plots.draw(what, plotted, metric), out)
    typer.echo(out)


def report(
    spec: Spec,
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.html.")] = None,
    pictures: Annotated[
        bool, typer.Option(help="Show the triggers; the data must be at hand.")
    ] = False,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
) -> None:
    """Write a sweep's results as one HTML page.

    Example: sweeper report quickstart --out quickstart.html
    """
    from sweeper.store import ledger
    from sweeper.tables import report as pages

    name = source.name_of(spec)
    frame, order = rows(name, store)
    kept = ledger.Ledger(place(store))
    digests = (kept.plan(name) or {}).get("data")
    shown: list[tuple[str, bytes]] = []
    if pictures:
        from sweeper.analyses import show

        sweep = Sweep.from_yaml(spec, overrides or [])
        shown = list(show.gallery(sweep.declared, sweep.context(store, data)))
    text = kept.sweep_text(name)
    layout = view.of(source.read(spec))
    page = pages.build(
        frame,
        name,
        order,
        untaken=layout.untaken,
        max_acc_loss=layout.max_acc_loss,
        text=text,
        data=digests,
        pictures=shown,
    )
    path = out or Path(f"{name}.html")
    path.write_text(page, encoding="utf-8")
    typer.echo(f"{path}: {len(page.encode()) / 1e6:.1f} MB")


COMMANDS = (plot, report)
"""What `app` registers."""
