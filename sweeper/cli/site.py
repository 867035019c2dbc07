"""The command that makes a site of a store's results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.api import STORE, place
from sweeper.core.errors import SweepError, unknown
from sweeper.core.outputs import replaced
from sweeper.core.uris import keyless

if TYPE_CHECKING:
    from sweeper.tables.boards import Shown
    from sweeper.tables.site import Method


def _keyless(value: str) -> str:
    return keyless("STORE", value)


def site(
    out: Annotated[Path, typer.Option(help="Folder to write; a site that was there is replaced.")],
    store: Annotated[
        str,
        typer.Argument(envvar="SWEEPER_STORE", help="Where the rows are kept.", callback=_keyless),
    ] = STORE,
    sweeps: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="NAME", help="Only this sweep; may be repeated."),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the site.")] = "Results",
) -> None:
    """Write a store's results as a static site, to be published.

    It has leaderboards, a page for each sweep and each method, all rows, and how they were made.

    Example: sweeper site sweeps-store --out site --title 'Our group'
    """
    from sweeper.tables import site as sites

    shown = _shown(place(store), sweeps or [])
    with replaced(out, sites.made) as folder:
        files, size = sites.write(shown, folder, title=title, describe=_described, say=_say)
    told = f"{len(shown)} sweep{'s' * (len(shown) > 1)}, {files} files, {size / 1e6:.1f} MB"
    typer.echo(f"{out / 'index.html'}: {told}")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _shown(root: str, wanted: list[str]) -> list[Shown]:
    """The sweeps of a store that have rows, each read once.

    Raises:
        SweepError: One asked for is not there, or none has rows.
    """
    from sweeper.plan import document, source, view
    from sweeper.store import ledger
    from sweeper.tables import results
    from sweeper.tables import site as sites
    from sweeper.tables.boards import Shown

    kept = ledger.Ledger(root)
    known = [name for name in kept.sweeps() if source.NAME.fullmatch(name)]
    for name in wanted:
        if name not in known:
            raise SweepError(f"--sweep: {unknown('sweep', name, known)}")
    found = []
    for name in wanted or known:
        tables, order = ledger.load(root, name)
        frame = sites.told(results.frame(tables))
        if frame.empty:
            _say(f"{name}: left out, it has no rows yet")
            continue
        text = kept.sweep_text(name)
        made = document.parse(text or "{}", name, lines=True)
        values = made.values if isinstance(made.values, dict) else {}
        layout = view.of(source.Source(name, values, made))
        found.append(Shown(name, frame, order, layout, text, kept.plan(name).get("data")))
    if not found:
        raise SweepError(
            f"store {root} has no rows of any sweep: name another store, or run a sweep into it "
            "with `sweeper run`"
        )
    return found


def _described(kind: str, name: str) -> Method | None:
    """What the page of a method says; None where it does not ship."""
    from sweeper.cli import describe
    from sweeper.core.names import names
    from sweeper.plan.document import flow
    from sweeper.tables.site import Method

    if name not in names(kind):
        return None
    about = describe.describe(kind, name)
    return Method(
        title=about.title,
        facts={fact: text for fact, text in about.facts.items() if text},
        text=about.head,
        options=[(o.name, flow(o.default), o.range, o.sentence) for o in about.options],
        presets={preset: describe.sets(values) for preset, values in about.presets.items()},
    )


COMMANDS = (site,)
"""What `app` registers."""
