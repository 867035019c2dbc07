"""The command that looks into one model of whose training nothing need be known."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.api import STORE, load_victim
from sweeper.cli.arguments import DataOption, numbers, pairs, without_keys
from sweeper.core.errors import SweepError
from sweeper.core.outputs import written

if TYPE_CHECKING:
    from sweeper.analyses.inspect.suspect import Suspect

USUAL = "clp,bnp,fine-tuning"
"""Repairs that are tried where none is named: a minute or less each for a small model on a CPU."""
PlaceOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="SWEEPER_STORE",
        show_envvar=False,
        help="The victim's store.",
        callback=without_keys,
    ),
]
OptionOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the architecture."),
]


def inspect(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="safetensors, a file of torch, or a victim's folder.")
    ] = None,
    model: Annotated[str, typer.Option(help="Its architecture; `sweeper list models`.")] = "",
    dataset: Annotated[str, typer.Option(help="Its data, as a sweep file names them.")] = "",
    data: DataOption = None,
    option: OptionOption = None,
    mean: Annotated[str, typer.Option(help="Inputs' mean, 0.49,0.48,0.45.")] = "",
    std: Annotated[str, typer.Option(help="Their standard deviation.")] = "",
    victim: Annotated[
        str | None, typer.Option(help="In place of a file: a victim of the store.")
    ] = None,
    store: PlaceOption = STORE,
    budget: Annotated[int, typer.Option(help="Clean images that methods may see.")] = 500,
    epochs: Annotated[int, typer.Option(help="Epochs of the trigger search, at most.")] = 60,
    fixes: Annotated[str, typer.Option("--repairs", help="Repairs to try, or none.")] = USUAL,
    out: Annotated[Path, typer.Option(help="The page; JSON beside it.")] = Path("inspection.html"),
) -> None:
    """Say what is wrong with a model: does it look backdoored?

    Example: sweeper inspect net.pt --model resnet18 --dataset cifar10
    """
    import json

    from sweeper.analyses import inspect as inspections
    from sweeper.tables import inspected

    given: dict[str, Any] = {"model": model, "options": pairs("--option", option)}
    given |= {"mean": numbers("--mean", mean), "std": numbers("--std", std)}
    if (checkpoint is None) == (victim is None):
        raise SweepError("inspect: name one model: a CHECKPOINT, or --victim KEY with --store")
    if any(given.values()) and (victim is not None or (checkpoint and checkpoint.is_dir())):
        raise SweepError(
            "inspect: a victim of a store, or of a folder, is known: leave out --model, --option, "
            "--mean and --std"
        )
    if out.suffix != ".html":
        raise SweepError(f"--out: {out} must end in .html: the JSON is written beside it")
    with written(out):  # a place that takes none is said before anything is computed
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if checkpoint is None:
        suspect = _of_store(victim or "", store, dataset, data, budget)
    else:
        suspect = _of_place(checkpoint, dataset, data, budget, given)
    named = [] if fixes == "none" else [name.strip() for name in fixes.split(",")]
    found = inspections.inspect(suspect, inversion={"epochs": epochs}, asked=named, say=_say)
    with written(out):
        out.write_text(inspected.page(found.facts, found.pictures), encoding="utf-8")
    with written(out.with_suffix(".json")) as path:
        text = json.dumps(found.facts, indent=1, allow_nan=False)
        path.write_text(f"{text}\n", encoding="utf-8")
    typer.echo("\n".join(inspected.lines(found.facts)))
    typer.echo(f"{out} shows all of it, {out.with_suffix('.json')} has the numbers", err=True)


def _entry(text: str) -> dict[str, Any]:
    """An entry of `datasets`: a name, or a mapping in braces."""
    value = pairs("--dataset", [f"dataset={text}"])["dataset"]
    return dict(value) if isinstance(value, dict) else {"dataset": value}


def _opened(entry: dict[str, Any], folder: str | None) -> Any:
    from sweeper import data

    return data.open_dataset(entry, Path(folder).expanduser() if folder else None)


def _of_place(
    place: Path, dataset: str, folder: str | None, budget: int, given: dict[str, Any]
) -> Suspect:
    """The model of a file, or of a folder with a victim."""
    from sweeper.analyses import exchange
    from sweeper.analyses.inspect import suspect

    if place.is_dir():
        entry = _entry(dataset) if dataset else suspect.about(place).get("dataset")
        if not entry:
            raise SweepError(
                f"--dataset: {place} does not say its data: write --dataset cifar10, or another"
            )
        return suspect.of_folder(place, _opened(dict(entry), folder), budget)
    for flag, text in (("--model resnet18", given["model"]), ("--dataset cifar10", dataset)):
        if not text:
            raise SweepError(f"inspect: a file of weights needs `{flag}`, or another: write it")
    opened = _opened(_entry(dataset), folder)
    count = len(opened.train.classes)  # of several heads that of the data
    foreign = exchange.Foreign(weights=place, trigger=None, classes=count, **given)
    return suspect.of_file(foreign, opened, budget)


def _of_store(key: str, store: str, dataset: str, folder: str | None, budget: int) -> Suspect:
    """A victim of a store, which was not trained on the reserve of its data."""
    from sweeper.analyses.inspect import suspect

    victim = load_victim(key, store=store)
    opened = _opened(_entry(dataset or str(victim.axes["dataset"])), folder)
    weights = victim.model.state_dict()
    return suspect.of_victim(victim.key, victim.params, weights, opened, budget)


def _say(line: str, passing: bool) -> None:
    """A line of progress; one that passes is shown on a terminal alone, and written over."""
    live = sys.stderr.isatty()
    if not passing:
        typer.echo(f"\r\x1b[K{line}" if live else line, err=True)
    elif live:
        typer.echo(f"\r\x1b[K{line}", nl=False, err=True)


COMMANDS = (inspect,)
"""What `app` registers."""
