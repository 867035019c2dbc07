"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper.core import advice
from sweeper.core.errors import SweepError
from sweeper.core.uris import keyless

if TYPE_CHECKING:
    from sweeper.run.present import Present


def specs(incomplete: str) -> list[str]:
    """Complete a sweep: those that ship, and files here."""
    from sweeper.plan import source

    files = Path().glob(f"{incomplete}*")
    shown = [str(path) for path in files if path.suffix in (".yaml", ".yml")]
    return sorted([*shown, *(name for name in source.shipped() if name.startswith(incomplete))])


def methods(kind: str) -> Callable[[str], list[str]]:
    """Complete the name of an attack or a defense; waits for no torch."""

    def complete(incomplete: str) -> list[str]:
        from sweeper.core.names import names

        return [name for name in names(kind) if name.startswith(incomplete)]

    return complete


def words(*choices: str) -> Callable[[str], list[str]]:
    """Complete one of these words."""
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


def without_keys(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """A store's or data set's place; refused where it holds keys, before anything tells it."""
    return value and keyless(parameter.opts[0], value)


Spec = Annotated[
    str,
    typer.Argument(help="A sweep file, or the name of a shipped sweep.", autocompletion=specs),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="SWEEPER_STORE",
        help="Where victims and rows are kept.",
        callback=without_keys,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", envvar="SWEEPER_DATA", help="Folder of the data sets.", callback=without_keys
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the file, e.g. seeds=1, scale=small; repeatable.",
    ),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="AXIS=VALUE",
        help="Only rows with this value; repeatable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def selected(
    spec: str,
    store: str,
    data: str | None,
    overrides: list[str] | None,
    where: list[str] | None,
    *,
    quiet: bool = False,
) -> Present:
    """The matrix of a sweep as its file stands, of which --where leaves a part.

    It says on standard error how much of it was never run, unless `quiet`.

    Raises:
        SweepError: See `sweeper.run.present`, or one of `where` has no `=`.
    """
    from sweeper.api import place
    from sweeper.run import present

    conditions: dict[str, list[str]] = {}
    for option in where or []:
        axis, equals, value = option.partition("=")
        if not equals:
            raise SweepError(f"--where {option}: write AXIS=VALUE, such as attack=badnets")
        conditions.setdefault(axis.strip(), []).append(value.strip())
    found = present.read(spec, place(store), overrides or [], data)
    if found.unrun and not (quiet or found.frame.empty):  # else an error says it
        cells = f"{found.unrun:,} cells were" if found.unrun > 1 else "1 cell was"
        typer.echo(f"{cells} never run: {advice.command('run')}", err=True)
    return found.where(conditions)


def pairs(flag: str, given: list[str] | None) -> dict[str, Any]:
    """Options written as KEY=VALUE; a value is YAML.

    Raises:
        SweepError: One has no `=`, or its value is not YAML.
    """
    from sweeper.plan import document

    values = {}
    for option in given or []:
        key, equals, text = option.partition("=")
        if not equals:
            raise SweepError(f"{flag} {option}: write option=value, such as opacity=0.5")
        values[key] = document.parse(text, f"{flag} {option}").values
    return values


def numbers(
    flag: str, text: str, kind: type = float, such: str = "0.49,0.48,0.45"
) -> list[Any] | None:
    """Numbers written with commas between them; None of an empty text.

    Raises:
        SweepError: One is none.
    """
    if not text:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise SweepError(f"{flag} {text}: needs numbers such as {such}") from None


def say(**values: Any) -> None:
    """One line of a cell's progress."""
    typer.echo(" ".join(f"{key} {value}" for key, value in values.items()), err=True)
