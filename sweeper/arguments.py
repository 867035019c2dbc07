"""What commands of the command line ask for alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Spec = Annotated[str, typer.Argument(help="A sweep file, or the name of a shipped sweep.")]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="SWEEPER_STORE", help="Where victims and rows are kept.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", envvar="SWEEPER_DATA", help="Folder of the data sets.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Over the file, e.g. seeds=1, recipe.epochs=2 or scale=small; may be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
DEFAULT_STORE = "sweeps-store"


def absolute(store: str) -> str:
    """A store as every process finds it, wherever it was started."""
    return store if "://" in store else str(Path(store).expanduser().absolute())
