"""What papers and releases print for the cells of our sweeps, and how our tables compare with it.

`sweeps/published.csv` holds one line a published cell: the labels our sweeps give its data set,
model, attack and defense, the figures as printed (rates in percent, seconds), and where they stand.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeper.core.rows import METRICS
from sweeper.tables.layout import PLAIN, Column, Entry, Line, Published
from sweeper.tables.stats import ROUNDING

AVERAGE = "average"
"""The attack label of a line that averages over attacks, ours as the papers'."""
TOLERANCE = 0.02
"""A rate of ours is marked where it is off by more than this and by more than the seeds' spread."""
Cell = tuple[Any, Any, Any]
"""Data set, attack and defense: what a published cell and ours must have in common."""


@dataclass(frozen=True)
class Figure:
    """One published cell."""

    sweep: str
    """The shipped sweep that measures it; empty where none does."""
    dataset: str
    """Our label; what the source says where we have none. The next three likewise."""
    model: str
    """The architecture."""
    attack: str
    """The attack, or `AVERAGE`."""
    poison_rate: float | None
    """A share of the attack's base; None where the source does not say."""
    defense: str
    """The defense."""
    values: Mapping[str, float]
    """Metric -> fraction, or seconds."""
    source: str
    """Whose figure, and in which of its tables."""
    wording: str
    """Data set, model, attack and defense in the source's own words."""
    note: str
    """What the source adds."""

    @property
    def cell(self) -> Cell:
        """What it has in common with our cell."""
        return self.dataset, self.attack, self.defense


@functools.cache
def figures() -> tuple[Figure, ...]:
    """Return every published cell, in the order of the file."""
    file = importlib.resources.files("sweeper.sweeps") / "published.csv"
    return tuple(map(_figure, csv.DictReader(file.read_text("utf-8").splitlines())))


def of(sweep: str) -> tuple[Figure, ...]:
    """Return the published cells of a shipped sweep's table."""
    return tuple(figure for figure in figures() if figure.sweep == sweep)


def sweeps() -> list[str]:
    """Return the shipped sweeps something is published for."""
    return sorted({figure.sweep for figure in figures() if figure.sweep})


def _figure(line: Mapping[str, str]) -> Figure:
    printed = {name: float(line[name]) for name in METRICS if line.get(name)}
    words = ("sweep", "dataset", "model", "attack", "defense", "note")
    return Figure(
        **{name: line[name] for name in words},
        poison_rate=float(line["poison_rate"]) if line["poison_rate"] else None,
        values={name: v if name in PLAIN else v / 100 for name, v in printed.items()},
        source=f"{line['source']}, {line['table']}",
        wording=line["as_published"],
    )


def add_missing(data: pd.DataFrame, published: Iterable[Figure]) -> pd.DataFrame:
    """Return `data` (not empty) with a row of status `missing` for each published cell it lacks.

    What a published cell does not say (target, seed, clean budget) is taken from the row nearest to
    it: of its attack, else of its data set, else any.
    """
    published = list(published)
    if not published:  # spares a set of all rows
        return data
    have = set(zip(data["dataset"], data["attack"], data["defense"], strict=True))
    lacking = {f.cell: f for f in published if f.cell not in have}
    rows = []
    for figure in lacking.values():
        here = data[data["dataset"] == figure.dataset]
        same = here[here["attack"] == figure.attack]
        like = next(part for part in (same, here, data) if len(part)).iloc[0]
        rate = like["poison_rate"] if len(same) else figure.poison_rate
        rows.append(
            {
                "sweep": like["sweep"],
                "key": "/".join(figure.cell),
                "status": "missing",
                "dataset": figure.dataset,
                "model": like["model"] if len(here) else figure.model,
                "attack": figure.attack,
                "poison_rate": rate,
                "target": like["target"],
                "clean_budget": 0.0,
                "defense": figure.defense,
                "seed": like["seed"],
            }
        )
    if not rows:
        return data
    added = pd.DataFrame(rows)
    return pd.concat([data, added.astype(data.dtypes[added.columns])], ignore_index=True)


@dataclass(frozen=True)
class Comparison:
    """What is said of the published figures beside the table."""

    lines: tuple[Line, ...]
    """The table's lines, with the published figures in their entries."""
    sources: tuple[str, ...]
    """Whose figures they are; an entry says the place of its source."""
    settings: tuple[str, ...]
    """Where the published setting is not ours."""


def compare(
    lines: Sequence[Line],
    axes: tuple[Sequence[str], Sequence[str]],
    columns: Sequence[Column],
    constants: Mapping[str, Any],
    published: Sequence[Figure],
) -> Comparison:
    """Set the published figures into the lines of a table.

    A figure belongs to the cells of its data set, attack and defense: to those with its model and
    poison rate where there are such, else to all of them, and the setting is noted.

    Args:
        lines: The table's.
        axes: Those that label the lines, and those that group the columns.
        columns: The table's.
        constants: The axes with one value in the whole table.
        published: The published cells.
    """
    if not published:
        return Comparison(tuple(lines), (), ())
    grid = [[_axes(line, column, axes, constants) for column in columns] for line in lines]
    our_settings: dict[Cell, set[tuple[Any, Any]]] = {}
    for row in grid:
        for spot in row:
            our_settings.setdefault(_cell(spot), set()).add(_setting(spot))
    sources: list[str] = []
    settings: dict[str, None] = {}
    by_cell: dict[Cell, list[Figure]] = {}
    for figure in published:
        by_cell.setdefault(figure.cell, []).append(figure)

    def with_published(spot: Mapping[str, Any], column: Column, entry: Entry) -> Entry:
        value, places = None, []
        for figure in by_cell.get(_cell(spot), ()):
            if column.metric not in figure.values:
                continue
            if _setting(spot) not in _nearest(figure, our_settings[figure.cell]):
                continue
            if figure.source not in sources:
                sources.append(figure.source)
            places.append(sources.index(figure.source))
            value = figure.values[column.metric] if value is None else value
            if figure.attack != AVERAGE:
                settings.update(dict.fromkeys(_other(figure, spot)))
        if value is None:
            return entry
        far = outside(value, entry, column.metric)
        return entry._replace(published=Published(value, tuple(places), far))

    compared = tuple(
        Line(line.labels, tuple(map(with_published, row, columns, line.entries)))
        for line, row in zip(lines, grid, strict=True)
    )
    return Comparison(compared, tuple(sources), tuple(settings))


def outside(value: float, entry: Entry, metric: str) -> bool:
    """Whether ours is off by more than `TOLERANCE` and the seeds' spread; seconds never are."""
    if entry.state != "ok" or metric in PLAIN:
        return False
    off = abs(entry.mean - value) - ROUNDING
    return off > TOLERANCE and not off <= entry.sd


def _axes(
    line: Line,
    column: Column,
    axes: tuple[Sequence[str], Sequence[str]],
    constants: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the value of every axis where a line and a column meet."""
    down, across = axes
    labels = dict(zip(down, line.labels, strict=True))
    labels |= dict(zip(across, column.groups, strict=True))
    return {**constants, **labels}


def _cell(spot: Mapping[str, Any]) -> Cell:
    return spot["dataset"], spot["attack"], spot["defense"]


def _setting(spot: Mapping[str, Any]) -> tuple[Any, Any]:
    return spot["model"], spot["poison_rate"]


def _nearest(figure: Figure, settings: set[tuple[Any, Any]]) -> set[tuple[Any, Any]]:
    """Return the settings with the figure's poison rate and model, as far as there are such."""
    for place, value in ((1, figure.poison_rate), (0, figure.model)):
        settings = {s for s in settings if _agree(value, s[place])} or settings
    return settings


def _agree(published: Any, ours: Any) -> bool:
    """Whether a setting is ours; a rate the source does not say, and one we do not have, is."""
    return published in (None, "", ours) or not ours


def _other(figure: Figure, spot: Mapping[str, Any]) -> Iterable[str]:
    """Say where a published setting is not ours."""
    model, rate = _setting(spot)
    if not _agree(figure.model, model):
        yield f"model {figure.model}, ours {model}"
    if not _agree(figure.poison_rate, rate):
        yield f"{figure.attack} at {100 * (figure.poison_rate or 0):.6g} %, ours {100 * rate:.6g} %"
