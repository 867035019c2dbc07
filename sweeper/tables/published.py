"""What papers and releases print for the cells of our sweeps, and how our tables compare with it.

`sweeps/published.csv` holds one line a published cell: the labels our sweeps give its data set,
model, attack and defense, the figures as printed (rates in percent, seconds), and where they stand.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sweeper.core.rows import METRICS
from sweeper.tables.layout import PLAIN, Column, Entry, Line, Reference
from sweeper.tables.stats import ROUNDING

AVERAGE = "average"
"""The attack label of a line that averages over attacks, ours as the papers'."""
TOLERANCE = 0.02
"""A rate of ours is marked where it is off by more than this and by more than the seeds' spread."""
Cell = tuple[Any, Any, Any]
"""Data set, attack and defense: what a published cell and ours must have in common."""


@dataclass(frozen=True)
class Figure:
    """What a paper prints, or this project measured, for one cell."""

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
    measured: bool = False
    """Measured by this project (`tables.measured`), not printed by a paper; what follows too."""
    sd: Mapping[str, float] = field(default_factory=dict)
    """Metric -> standard deviation over the seeds, where there are several."""
    target: Any = None
    """The target label."""
    clean_budget: float = 0.0
    """Clean images of the defender as the sweep says it; 0 where the defense sees none."""
    score: str = ""
    """What ACC measures, where it is not accuracy."""
    differs: tuple[str, ...] = ()
    """Where its setting is not the one of the rows it stands beside."""

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
    return Figure(
        sweep=line["sweep"],
        dataset=line["dataset"],
        model=line["model"],
        attack=line["attack"],
        defense=line["defense"],
        note=line["note"],
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
    """What is said of published and measured figures beside the table."""

    lines: tuple[Line, ...]
    """The table's lines, with the figures in their entries."""
    sources: tuple[str, ...] = ()
    """Whose published figures they are; an entry says the place of its source."""
    settings: tuple[str, ...] = ()
    """Where the published setting is not ours."""
    measured: tuple[str, ...] = ()
    """On what, when and how this project measured its figures, likewise."""
    measured_settings: tuple[str, ...] = ()
    """Where that setting is not the one of the rows."""


def compare(
    lines: Sequence[Line],
    axes: tuple[Sequence[str], Sequence[str]],
    columns: Sequence[Column],
    constants: Mapping[str, Any],
    figures: Sequence[Figure],
) -> Comparison:
    """Set published and measured figures into the lines of a table.

    A published figure belongs to the cells of its data set, attack and defense: to those with its
    model and poison rate where there are such, else to all of them, and the setting is noted. A
    measured one belongs to the cell with its labels on every axis.

    Args:
        lines: The table's.
        axes: Those that label the lines, and those that group the columns.
        columns: The table's.
        constants: The axes with one value in the whole table.
        figures: The published and the measured cells.
    """
    if not figures:
        return Comparison(tuple(lines))
    grid = [[_axes(line, column, axes, constants) for column in columns] for line in lines]
    our_settings: dict[Cell, set[tuple[Any, Any]]] = {}
    for row in grid:
        for spot in row:
            our_settings.setdefault(_cell(spot), set()).add(_setting(spot))

    def near(figure: Figure, spot: Mapping[str, Any]) -> bool:
        return _setting(spot) in _nearest(figure, our_settings[figure.cell])

    printed = _References([f for f in figures if not f.measured], near)
    measured = _References([f for f in figures if f.measured], _same)

    def with_references(spot: Mapping[str, Any], column: Column, entry: Entry) -> Entry:
        theirs, ours = printed.at(spot, column, entry), measured.at(spot, column, entry)
        return entry._replace(published=theirs, measured=ours)

    compared = tuple(
        Line(line.labels, tuple(map(with_references, row, columns, line.entries)))
        for line, row in zip(lines, grid, strict=True)
    )
    said = (printed.sources, printed.settings, measured.sources, measured.settings)
    return Comparison(compared, *map(tuple, said))


class _References:
    """Figures of one kind, and what must be said of those a table shows."""

    def __init__(
        self, figures: Iterable[Figure], belongs: Callable[[Figure, Mapping[str, Any]], bool]
    ) -> None:
        self.sources: list[str] = []
        self.settings: dict[str, None] = {}
        self._belongs = belongs
        self._by_cell: dict[Cell, list[Figure]] = {}
        for figure in figures:
            self._by_cell.setdefault(figure.cell, []).append(figure)

    def at(self, spot: Mapping[str, Any], column: Column, entry: Entry) -> Reference | None:
        """What stands in an entry; None where there is nothing."""
        value, sd, places = None, 0.0, []
        for figure in self._by_cell.get(_cell(spot), ()):
            if column.metric not in figure.values or not self._belongs(figure, spot):
                continue
            if figure.source not in self.sources:
                self.sources.append(figure.source)
            places.append(self.sources.index(figure.source))
            if value is None:
                value, sd = figure.values[column.metric], figure.sd.get(column.metric, 0.0)
            self.settings.update(dict.fromkeys(_other(figure, spot)))
            if figure.measured:  # the newest is the first
                break
        if value is None:
            return None
        return Reference(value, tuple(places), outside(value, entry, column.metric, sd))


def _same(figure: Figure, spot: Mapping[str, Any]) -> bool:
    """Whether a measured figure has the labels of an entry on every axis."""
    budgets = figure.clean_budget, spot["clean_budget"]
    return (
        _setting(spot) == (figure.model, figure.poison_rate)
        and spot["target"] == figure.target
        and (not all(budgets) or budgets[0] == budgets[1])
    )


def outside(value: float, entry: Entry, metric: str, sd: float = 0.0) -> bool:
    """Whether ours is off by more than `TOLERANCE` and the seeds' spread; seconds never are.

    Args:
        value: The figure.
        entry: Ours, with the spread of our seeds.
        metric: What both are of.
        sd: The spread of the figure's seeds, where it says one.
    """
    if entry.state != "ok" or metric in PLAIN:
        return False
    off = abs(entry.mean - value) - ROUNDING
    return off > TOLERANCE and off > sd and not off <= entry.sd


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
    """Say where the setting of a figure is not ours."""
    if figure.measured or figure.attack == AVERAGE:
        yield from figure.differs
        return
    model, rate = _setting(spot)
    if not _agree(figure.model, model):
        yield f"model {figure.model}, ours {model}"
    if not _agree(figure.poison_rate, rate):
        yield f"{figure.attack} at {100 * (figure.poison_rate or 0):.6g} %, ours {100 * rate:.6g} %"
