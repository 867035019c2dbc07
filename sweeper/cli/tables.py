"""Commands that show rows as text: tables, all columns, what is published, what moved."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.api import STORE, place
from sweeper.cli.arguments import (
    DataOption,
    JsonOption,
    SetOption,
    Spec,
    StoreOption,
    WhereOption,
    selected,
    words,
)
from sweeper.core import advice
from sweeper.core.errors import SweepError, unknown
from sweeper.core.outputs import written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from sweeper.run.present import Present
    from sweeper.tables.layout import Table


def table(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    where: WhereOption = None,
    down: Annotated[str | None, typer.Option("--rows", help="Axes down the side.")] = None,
    cols: Annotated[str | None, typer.Option(help="Axes across the top.")] = None,
    values: Annotated[str | None, typer.Option(help="Metrics in each cell.")] = None,
    style: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="markdown, csv, latex, html; default: fit for the screen.",
            autocompletion=words("markdown", "csv", "latex", "html"),
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside published and measured figures, with sources.")
    ] = False,
    mark: Annotated[str, typer.Option("--label", help="Label for references in LaTeX.")] = "",
    bare: Annotated[
        bool, typer.Option("--bare", help="Only the LaTeX tabular, without a float around it.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the screen.")] = None,
) -> None:
    """Print a sweep's table, as its file or these flags lay it out.

    Example: sweeper table quickstart --format latex --values acc,asr,der
    """
    from sweeper.tables.footnotes import letter

    found = selected(spec, store, data, overrides, where)
    texts = {"rows": down, "cols": cols, "values": values}
    changes = {
        key: [part.strip() for part in text.split(",")] for key, text in texts.items() if text
    }
    layout = found.layout.model_copy(update=changes)
    found = dataclasses.replace(found, layout=layout)
    if (mark or bare) and style != "latex":
        flag = "--label" if mark else "--bare"
        raise SweepError(f"{flag}: is of LaTeX: add --format latex, or leave it out")
    if not re.fullmatch(r"[\w:./+-]*", mark, re.ASCII):
        raise SweepError(f"--label {mark}: write letters, digits and : . / + - _, such as tab:main")
    style = style or ("markdown" if out else "")
    built = built_of(found, style, compare)
    for number, one in enumerate(built):  # one for each task
        own = mark and mark + f"-{letter(number)}" * (number > 0)
        built[number] = dataclasses.replace(one, tex_label=own, bare=bare)
    _put(text_of(built, style), out)


def built_of(found: Present, style: str, compare: bool = False) -> list[Table]:
    """The tables of a sweep, one for each task where a style takes no more in one.

    Raises:
        SweepError: There are no figures to compare with, or see `sweeper.tables.tables.build`.
    """
    from sweeper.tables import measured, published, results, tables

    name, frame, layout = found.name, found.whole, found.layout
    figures = (*published.of(name), *measured.figures(name, found.frame)) if compare else ()
    if compare and not figures:
        known = sorted({*published.sweeps(), *measured.sweeps()})
        raise SweepError(
            f"--compare: nothing published or measured is known for sweep {name!r}; it is for "
            f"{', '.join(known)}"
        )
    order = layout.order(found.order)
    whole = style == "csv" or figures  # what a machine reads; what is published is of images
    parts = [frame] if whole else results.by_task(frame, order.get("dataset", ()))
    return [tables.viewed(part, layout, order, figures) for part in parts]


def text_of(built: Sequence[Table], style: str) -> str:
    """Tables as text; an empty style is what suits the standard output."""
    from sweeper.tables import screen, tables

    if not style and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        return "\n\n".join(screen.render(one, width).rstrip() for one in built)
    return "\n\n".join(tables.render(one, style or "markdown").rstrip() for one in built)


def _put(text: str, out: Path | None) -> None:
    """Write a text to a file, or to the screen."""
    if out is None:
        typer.echo(text)
        return
    with written(out):
        out.write_text(text + "\n", encoding="utf-8")


def rows(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    where: WhereOption = None,
    style: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv, json or parquet; default: as the file's name ends, else csv.",
            autocompletion=words("csv", "json", "parquet"),
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the screen.")] = None,
) -> None:
    """Print all rows of a sweep, every column, rates as fractions.

    Example: sweeper rows quickstart --format parquet --out rows.parquet
    """
    from sweeper.tables import flat, results

    ending = out.suffix[1:] if out else ""
    style = style or (ending if ending in flat.FORMATS else "csv")
    if style == "parquet" and out is None:
        raise SweepError("--format parquet: is no text for a screen: name a file with --out")
    found = selected(spec, store, data, overrides, where)
    results.require(found.frame)
    content = flat.encoded(found.frame, style)
    if out is None:
        typer.echo(content.decode(), nl=False)
        return
    with written(out):
        out.write_bytes(content)


def published(
    name: Annotated[
        str | None,
        typer.Argument(help="A shipped sweep; default: list all that have figures."),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            "--format",
            help="markdown, csv, latex, html; default: fit for the screen.",
            autocompletion=words("markdown", "csv", "latex", "html"),
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="File to write; default: the screen.")] = None,
) -> None:
    """Print the published figures of a shipped sweep, without a run.

    Example: sweeper published d-br-cifar10
    """
    from sweeper.plan import source, spec
    from sweeper.tables import printed
    from sweeper.tables import published as figures

    if name is None:
        _put(printed.known(), out)
        return
    if name not in figures.sweeps():
        known = unknown("shipped sweep with published figures", name, figures.sweeps())
        raise SweepError(f"published: {known}")
    file = source.read(name)
    declared = spec.form(file) or spec.loaded(file)
    labels = {
        axis: [entry.label for entry in getattr(declared, f"{axis}s")]
        for axis in ("dataset", "model", "attack", "defense")
    }
    layout = declared.table
    style = style or ("markdown" if out else "")
    _put(text_of([printed.table(name, layout, layout.order(labels))], style), out)


def diff(
    before: Annotated[str, typer.Argument(help="A store (folder or URI), or a sweep of --store.")],
    after: Annotated[str, typer.Argument(help="What to compare it with, likewise.")],
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Say which numbers of two stores moved beyond the noise.

    It compares two stores, two sweeps, or a sweep with the same sweep in a store. Cells are paired
    by key, else by their labels. The exit code is 1 where a number moved beyond the noise or a cell
    ended with another status, else 0.

    Example: sweeper diff sweeps-store s3://bucket/sweeps
    """
    from sweeper.tables import diff as differences

    sides = [_side(text, store) for text in (before, after)]
    names = [name for _, name in sides if name]
    frames = [side(names[0] if len(names) == 1 else "") for side, _ in sides]
    found = differences.compare(*frames, by_sweep=not names)
    if as_json:
        typer.echo(json.dumps(differences.record(found)))
    else:
        typer.echo(differences.text(found, (before, after)))
    raise typer.Exit(int(found.moved))


def _side(text: str, store: str) -> tuple[Callable[[str], pd.DataFrame], str]:
    """One side of a comparison.

    Returns:
        What reads its rows, given the one sweep that is wanted of a store, or nothing for all; and
        the name of its sweep, empty for a store.
    """
    from sweeper.core.uris import keyless
    from sweeper.store import ledger
    from sweeper.tables import results

    if "://" not in text and not Path(text).is_dir():

        def told(name: str, typed: Sequence[str]) -> str:
            return shlex.join(["sweeper", name, text, *typed, "--store", store])

        with advice.told_by(told):
            found = selected(text, store, None, None, None, quiet=True)
            results.require(found.frame)
        return (lambda _: found.frame), found.name
    root = place(keyless("diff", text))

    def read(wanted: str) -> pd.DataFrame:
        names = [wanted] if wanted else ledger.Ledger(root).sweeps()
        if not names:
            raise SweepError(f"diff: {text} is no store, or no sweep was run into it: name another")
        return results.frame([part for name in names for part in ledger.load(root, name)[0]])

    return read, ""


COMMANDS = (table, rows, published, diff)
"""What `app` registers."""
