"""What only the methods know: whether a sweep's names, options and combinations exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sweeper import catalog, data, models, recipes
from sweeper.errors import SweepError, unknown
from sweeper.rows import AXES
from sweeper.spec import Entry, Sweep

Problem = tuple[tuple[str | int, ...], str]


def check(sweep: Sweep) -> list[Problem]:
    """Return every mistake of a sweep that its own file shows, with its place."""
    found: list[Problem] = []

    def each(key: str, build: Callable[[Entry], Any]) -> None:
        labels: set[str] = set()
        for place, entry in enumerate(getattr(sweep, key)):
            try:
                build(entry)
            except SweepError as error:
                found.append(((key, place), str(error)))
            if entry.label in labels:
                found.append(
                    ((key, place), f"{entry.label!r} stands twice; name one with `as: OTHER`")
                )
            labels.add(entry.label)

    each("datasets", lambda e: data.check_options({"dataset": e.name, **e.options}))
    each("models", lambda e: models.family(e.name, e.options))
    each("attacks", lambda e: catalog.make("attack", e.name, e.options))
    each("defenses", _defense)
    if not found:
        found += _recipes(sweep)
    return found + _exclusions(sweep)


def _defense(entry: Entry) -> None:
    defense = catalog.make("defense", entry.name, entry.options)
    if "oracle" in defense.sees and not entry.label.endswith("-oracle"):
        raise SweepError(f"it sees test data: its label must end in -oracle, not {entry.label!r}")


def _recipes(sweep: Sweep) -> list[Problem]:
    for dataset in sweep.datasets:
        for model in sweep.models:
            try:
                recipes.resolve(sweep.recipe, dataset.name, model.name)
            except SweepError as error:
                return [(("recipe",), str(error).removeprefix("recipe: "))]
    return []


def _exclusions(sweep: Sweep) -> list[Problem]:
    lists: dict[str, Any] = {axis: getattr(sweep, f"{axis}s") for axis in AXES}
    values: dict[str, Any] = {
        axis: [entry.label if isinstance(entry, Entry) else entry for entry in entries]
        for axis, entries in lists.items()
    }
    for attack in sweep.attacks:
        values["poison_rate"] = [*values["poison_rate"], *(attack.poison_rates or [])]
    found: list[Problem] = []
    for place, pattern in enumerate(sweep.exclude):
        for axis, value in pattern.items():
            if axis not in AXES:
                found.append((("exclude", place, axis), unknown("axis", axis, AXES)))
            elif value not in values[axis]:
                names = [str(known) for known in values[axis]]
                found.append((("exclude", place, axis), unknown(axis, value, names)))
    return found
