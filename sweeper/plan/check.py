"""What only the methods know: whether a sweep's names, options and combinations exist."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from sweeper import data, models
from sweeper.core import catalog
from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES
from sweeper.engine import recipes
from sweeper.plan.document import Loc
from sweeper.plan.sweep import Entry, Problem, Sweep


def check(sweep: Sweep, skip: Collection[Loc] = ()) -> list[Problem]:
    """Return every mistake of a sweep that its own file shows, with its place.

    Args:
        sweep: The sweep, its form being right.
        skip: Keys, and (key, place) of entries, whose form was wrong: something else stands there.
    """
    problems = _entries(sweep, skip)
    if ("recipe",) not in skip:
        problems += _recipes(sweep)
    if not any(loc[0] in (*(f"{axis}s" for axis in AXES), "exclude") for loc in skip):
        problems += _exclusions(sweep)
    return problems


def _entries(sweep: Sweep, skip: Collection[Loc]) -> list[Problem]:
    """Names and options; labels that stand twice, and options that do under two labels."""
    problems: list[Problem] = []
    builders: dict[str, Callable[[Entry], Any]] = {
        "datasets": _dataset,
        "models": lambda entry: models.family(entry.name, entry.options),
        "attacks": _attack,
        "defenses": _defense,
    }
    for key, build in builders.items():
        labels: set[str] = set()
        twins = _Twins()
        for place, entry in enumerate(getattr(sweep, key)):
            loc: Loc = (key, place)
            if (key,) in skip or loc in skip:
                continue
            built: Any = object()
            try:
                built = entry.name, build(entry), tuple(entry.poison_rates or ())
            except SweepError as error:
                problems.extend(_placed(loc, error, entry.options))
            twin = twins.of(entry.label, built)
            if entry.label in labels:
                text = f"{entry.label!r} stands twice; name one of them with `as: OTHER`"
                problems.append((loc, f"{key}: {text}"))
            elif twin is not None:
                text = f"{entry.label!r} is the same as {twin!r} in every option; leave one out"
                problems.append((loc, f"{key}: {text}"))
            labels.add(entry.label)
    return problems


class _Twins:
    """Finds equal values among many; not all of them have a hash."""

    def __init__(self) -> None:
        self._hashed: dict[Any, str] = {}
        self._unhashed: list[tuple[Any, str]] = []

    def of(self, label: str, value: Any) -> str | None:
        """The label of the first value equal to this one; None where it is new."""
        try:
            first = self._hashed.setdefault(value, label)
        except TypeError:
            first = next((name for seen, name in self._unhashed if seen == value), label)
            self._unhashed.append((value, label))
        return None if first is label else first


def _placed(loc: Loc, error: SweepError, options: Iterable[str]) -> Iterable[Problem]:
    """The sentences of an error, each at the option it is about."""
    for line in str(error).splitlines():
        text = line.removeprefix(f"{loc[0]}: ")
        about = "preset" if ": no preset " in text else ""
        for option in options:
            if re.search(rf"(?:^|: ){re.escape(option)}: |option {re.escape(repr(option))}", text):
                about = option
        yield (*loc, about) if about else loc, f"{loc[0]}: {text}"


def _dataset(entry: Entry) -> Any:
    data.check_options({"dataset": entry.name, **entry.options})
    return entry.options


def _attack(entry: Entry) -> Any:
    attack = catalog.make("attack", entry.name, entry.options)
    for item in dataclasses.fields(attack):
        if (what := item.metadata.get("required")) and not getattr(attack, item.name):
            raise SweepError(f"{entry.name}: {item.name}: is missing: needs {what}")
    return attack


def _defense(entry: Entry) -> Any:
    defense = catalog.make("defense", entry.name, entry.options)
    if "oracle" in defense.sees and not entry.label.endswith("-oracle"):
        raise SweepError(
            f"{entry.name} knows what no defender does, so its label must say so: "
            f"`as: {entry.label}-oracle`, not {entry.label!r}"
        )
    return defense


def _recipes(sweep: Sweep) -> list[Problem]:
    changes = sweep.recipe if isinstance(sweep.recipe, dict) else {}
    for dataset in sweep.datasets:
        for model in sweep.models:
            try:
                recipes.resolve(sweep.recipe, dataset.name, model.name)
            except SweepError as error:
                return list(_placed(("recipe",), error, changes))
    return []


def _exclusions(sweep: Sweep) -> list[Problem]:
    lists: dict[str, Any] = {axis: getattr(sweep, f"{axis}s") for axis in AXES}
    values: dict[str, Any] = {
        axis: [entry.label if isinstance(entry, Entry) else entry for entry in entries]
        for axis, entries in lists.items()
    }
    for attack in sweep.attacks:
        values["poison_rate"] = [*values["poison_rate"], *(attack.poison_rates or [])]
    problems: list[Problem] = []
    for place, pattern in enumerate(sweep.exclude):
        for axis, value in pattern.items():
            if axis not in AXES:
                text = unknown("axis", axis, AXES)
            elif not isinstance(value, str | int | float):
                text = f"{axis}: needs one value, not {value!r}; write an entry for each"
            elif value not in values[axis]:
                text = unknown(axis.replace("_", " "), value, map(str, values[axis]))
            else:
                continue
            problems.append((("exclude", place, axis), f"exclude: {text}"))
    return problems
