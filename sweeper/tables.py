"""Rows -> a table: seeds averaged and nothing else, gaps named, the best marked beyond the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from sweeper import stats
from sweeper.errors import SweepError, unknown
from sweeper.layout import STATES, Column, Entry, Line, Table
from sweeper.render import render
from sweeper.results import latest, require
from sweeper.rows import AXES, METRICS

__all__ = ["Column", "Entry", "Line", "Table", "build", "render"]

Whole: TypeAlias = npt.NDArray[np.int64]

SETTINGS = (
    "attack_name attack_options rule defense_name defense_options dataset_options model_options "
    "recipe"
).split()
"""What can differ under one label: becomes an axis where two rows would else share a seed."""

_RANK = ("ok", *(state for state in STATES if state not in ("missing", "undefined")))
_HIGHER = ("acc", "acc_nontarget", "ra", "der", "auroc", "tpr", "tpr_at_5", "precision", "f1")
_LOWER = ("asr", "asr_all", "leak", "fpr")
_COUNTS = {"acc": "n_test", "asr": "n_triggered", "ra": "n_triggered"}
"""The test samples behind a proportion; the others have no interval with a single seed."""


def build(
    frame: pd.DataFrame,
    *,
    rows: Sequence[str] = ("dataset", "model", "attack", "poison_rate"),
    cols: Sequence[str] = ("defense",),
    values: Sequence[str] = ("acc", "asr"),
    order: Mapping[str, Sequence[Any]] | None = None,
) -> Table:
    """Return the table of `frame`; the order of its rows decides nothing.

    Only seeds are averaged: an axis that varies and is named nowhere labels the lines as well; one
    with a single value goes to the caption. Where two rows differ in nothing but their key (the
    code of a method changed), the one that started last counts. Defenses without clean data (budget
    0) stand beside every clean budget of their line.

    Args:
        frame: What `results.frame` or `results.select` returned.
        rows: Axes that label the lines.
        cols: Axes that group the columns, outermost first.
        values: Metrics, one column each in every group.
        order: Axis -> its labels in the order to show; others follow, sorted.

    Raises:
        SweepError: No rows, an unknown name, or an axis named twice.
    """
    _check(frame, rows, cols, values)
    data, settings = _once(frame)
    data = _spread(data)
    row_axes, constants = _layout(data, rows, cols, settings)
    axes = [*row_axes, *cols]
    at, labels = _codes(data, [*axes, "seed"], order or {})
    if "seed" not in axes:
        at["seed"] = pd.factorize(data["seed"], sort=True)[0]
    line, column = _numbers(at, row_axes), _numbers(at, list(cols))
    sort = np.lexsort((at["seed"], column, line))
    data, at = data.iloc[sort].reset_index(drop=True), at.iloc[sort].reset_index(drop=True)
    line, column = line[sort], column[sort]
    width = int(column.max()) + 1
    cell = line * width + column
    grid = _grid(data, cell, (int(line.max()) + 1) * width, values)
    for metric in {*values} & {*_HIGHER, *_LOWER}:
        _mark(grid[metric], data, metric, cell, _numbers(at, [a for a in axes if a != "defense"]))
    groups = _labels(at, column, cols, labels)
    ranked = labels.get("defense") or sorted(data["defense"].dropna().unique())
    return Table(
        row_axes=tuple(row_axes),
        col_axes=tuple(cols),
        columns=tuple(Column(group, metric) for group in groups for metric in values),
        lines=_lines(_labels(at, line, row_axes, labels), grid, width),
        constants=constants,
        seeds=() if "seed" in axes else tuple(sorted(data["seed"].dropna().unique().tolist())),
        sees=_sees(data, ranked),
        oracles=frozenset(data.loc[_flag(data["oracle"]), "defense"]),
    )


def _check(
    frame: pd.DataFrame, rows: Sequence[str], cols: Sequence[str], values: Sequence[str]
) -> None:
    """Refuse what cannot become a table."""
    require(frame)
    for what, names, known in (
        ("row axis", rows, (*AXES, *SETTINGS)),
        ("column axis", cols, (*AXES, *SETTINGS)),
        ("value", values, METRICS),
        ("status", frame["status"].unique(), _RANK),
    ):
        for name in names:
            if name not in known:
                raise SweepError(f"tables: {unknown(what, name, known)}")
    if not values:
        raise SweepError(f"tables: no value to show; name at least one of {', '.join(METRICS)}")
    for named in ([*rows, *cols], list(values)):
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise SweepError(f"tables: {', '.join(twice)} is named twice; leave one out")


def _once(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return each cell once, and the settings that must be axes so that no seed counts twice."""
    data = latest(frame, ["key"])  # several sweeps share cells
    data["clean_budget"] = data["clean_budget"].fillna(0.0)
    again = data[data.duplicated(list(AXES), keep=False)]
    if again.empty:
        return data, []
    same = again.groupby(list(AXES), dropna=False)
    settings = [name for name in SETTINGS if (same[name].nunique() > 1).any()]
    return latest(data, [*AXES, *settings]), settings


def _spread(data: pd.DataFrame) -> pd.DataFrame:
    """Repeat the rows with clean budget 0 for every budget of their line."""
    free = (data["clean_budget"] == 0).to_numpy()
    budgets = np.sort(data.loc[~free, "clean_budget"].unique())
    if not len(budgets) or not free.any():
        return data
    peers = ["dataset", "model", "attack", "poison_rate", "target"]
    pairs = data.loc[~free, [*peers, "clean_budget"]].drop_duplicates()
    left = data.loc[free, peers].assign(position=np.flatnonzero(free))
    joined = left.merge(pairs, on=peers, how="left")
    lost = joined["clean_budget"].isna()  # nothing that uses clean data ran on this line yet
    alone = joined.loc[lost, "position"].to_numpy()
    positions = [
        np.flatnonzero(~free),
        joined.loc[~lost, "position"].to_numpy(),
        np.repeat(alone, len(budgets)),
    ]
    given = [
        data.loc[~free, "clean_budget"],
        joined.loc[~lost, "clean_budget"],
        np.tile(budgets, len(alone)),
    ]
    out = data.iloc[np.concatenate(positions)].reset_index(drop=True)
    return out.assign(clean_budget=np.concatenate(given))


def _layout(
    data: pd.DataFrame, rows: Sequence[str], cols: Sequence[str], settings: Sequence[str]
) -> tuple[list[str], tuple[tuple[str, Any], ...]]:
    """Return the axes that label the lines, and the constant ones with their values."""
    fixed = [axis for axis in AXES if axis != "seed"]
    open_axes = [axis for axis in dict.fromkeys([*rows, *fixed, *settings]) if axis not in cols]
    row_axes = [axis for axis in open_axes if data[axis].nunique(dropna=False) > 1]
    if not row_axes:  # a line needs a name
        row_axes = [next(axis for axis in ("attack", *rows, *fixed) if axis not in cols)]
    constants = [axis for axis in fixed if axis not in row_axes and axis not in cols]
    first = data[constants].iloc[0]
    return row_axes, tuple((axis, _plain(first[axis])) for axis in constants)


def _codes(
    data: pd.DataFrame, axes: Sequence[str], order: Mapping[str, Sequence[Any]]
) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """Return for each axis the rank of every row's label, and the labels by rank; null is last."""
    codes, labels = {}, {}
    for axis in axes:
        found, unique = pd.factorize(data[axis])
        values = [_plain(value) for value in unique]
        places = {str(value): i for i, value in enumerate(order.get(axis, ()))}
        ranking = sorted(
            range(len(values)), key=lambda i: (places.get(str(values[i]), len(places)), values[i])
        )
        rank = np.empty(len(values) + 1, dtype=np.int64)
        rank[ranking] = np.arange(len(values))
        rank[-1] = len(values)  # where factorize's -1 for null points
        codes[axis] = rank[found]
        labels[axis] = [values[i] for i in ranking] + [None]
    return pd.DataFrame(codes), labels
