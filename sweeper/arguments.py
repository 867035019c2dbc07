"""What the commands are asked: the options they share, and what these stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.errors import SweepError

if TYPE_CHECKING:
    from sweeper.material import Context
    from sweeper.spec import Sweep

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


def context(sweep: Sweep, store: str, data: str | None) -> Context:
    """Where the cells of a sweep run, and under what."""
    from sweeper.material import Context
    from sweeper.run import new_run

    return Context(
        store=absolute(store),
        sweep=sweep.name,
        run=new_run(),
        data=str(Path(data).expanduser().absolute()) if data else None,
        threads=sweep.resources.cpus,
        device="auto" if sweep.resources.gpus else "cpu",
        timeout=sweep.timeout,
    )


def pairs(flag: str, given: list[str] | None) -> dict[str, Any]:
    """Options written as KEY=VALUE; a value is YAML."""
    import yaml

    found = {}
    for option in given or []:
        key, equals, text = option.partition("=")
        if not equals:
            raise SweepError(f"{flag} {option}: write option=value, such as opacity=0.5")
        found[key] = yaml.safe_load(text)
    return found
