"""Commands that show a sweep's rows as text."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.api import STORE, rows
from sweeper.cli.arguments import Spec, StoreOption, words
from sweeper.core.errors import SweepError
from sweeper.core.outputs import written

if TYPE_CHECKING:
    from sweeper.plan.view import View


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
    text = text_of(name, store, style or ("markdown" if out else ""), layout, compare)
    if out:
        with written(out):
            out.write_text(text + "\n", encoding="utf-8")
    else:
        typer.echo(text)


def text_of(name: str, store: str, style: str, layout: View, compare: bool = False) -> str:
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


COMMANDS = (table,)
"""What `app` registers."""
