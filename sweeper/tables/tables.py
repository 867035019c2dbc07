"""Rows -> a table: only seeds averaged, every gap named, the best marked beyond the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product, starmap
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES, DEVICES, METRICS
from sweeper.plan.view import MAX_ACC_LOSS, View
from sweeper.tables import conditions, fair, layout, published, stats
from sweeper.tables.layout import STATES, Column, Entry, Line, Table
from sweeper.tables.published import AVERAGE
from sweeper.tables.render import render
from sweeper.tables.results import SETTINGS, averages, once, require, spread, trials
from sweeper.tables.titles import titled

__all__ = ["Column", "Entry", "Line", "Table", "build", "render"]

Whole: TypeAlias = npt.NDArray[np.int64]

_NO_END = ("missing", "undefined", "unknown", "mixed")
_RANK = ("ok", *(state for state in STATES if state not in _NO_END), "missing")
_HIGHER = ("acc", "acc_nontarget", "ra", "der", "auroc", "tpr", "tpr_at_5", "precision", "f1")
_LOWER = ("asr", "asr_all", "leak", "fpr")


def build(
    frame: pd.DataFrame,
    *,
    rows: Sequence[str] = ("dataset", "model", "attack", "poison_rate"),
    cols: Sequence[str] = ("defense",),
    values: Sequence[str] = ("acc", "asr"),
    order: Mapping[str, Sequence[Any]] | None = None,
    heads: Mapping[str, Mapping[str, str]] | None = None,
    titles: bool = True,
    title: str = "",
    average: bool = False,
    untaken: bool = False,
    max_acc_loss: float = MAX_ACC_LOSS,
    figures: Sequence[published.Figure] = (),
) -> Table:
    """Return the table of `frame`; the order of its rows decides nothing.

    Only seeds are averaged: an axis that varies and is named nowhere labels the lines too, or the
    columns where they alone decide it (each attack at a rate of its own); one with a single value
    goes to the caption. `results.once` and `results.spread` say which rows count.

    Args:
        frame: From `results.frame` or `results.select`.
        rows: Axes that label the lines.
        cols: Axes that group the columns, outermost first.
        values: Metrics, one column each in every group.
        order: Axis -> its labels in the order to show; others follow, sorted.
        heads: Axis -> label -> what to write for it.
        titles: Whether other labels read as in papers, as `table: titles` has it.
        title: The first words of the caption.
        average: Whether lines that average over attacks follow, by `results.averages`.
        untaken: Whether victims that did not take are averaged over and compete; marked they are.
        max_acc_loss: How far ACC may fall below the victims' for the best of `fair.TRIGGERED`.
        figures: Figures to compare with; each published one has an entry, run or not.

    Raises:
        SweepError: No rows, an unknown name, or a name given twice.
    """
    _check(frame, rows, cols, values)
    data = _completed(frame, figures, average, untaken)
    data, row_axes, cols, constants = _layout(data, rows, cols)
    codes, labels = _codes(data, axes := [*row_axes, *cols], order or {})
    place, data, codes = _place(data, codes, row_axes, cols)
    lost, rivals = fair.untaken(data), _rivals(codes, axes, place)
    grid = [_numbers(data, place, metric, lost) for metric in values]
    _mark(grid, data, values, rivals, lost & (not untaken), max_acc_loss)
    columns = tuple(starmap(Column, product(_labels(codes, place.column, cols, labels), values)))
    lines = _lines(_labels(codes, place.line, row_axes, labels), grid, place.width)
    compared = published.compare(lines, (row_axes, cols), columns, dict(constants), figures)
    built = Table(
        row_axes=tuple(row_axes),
        col_axes=tuple(cols),
        columns=columns,
        constants=constants,
        **_about(data, values, axes, labels),
        **vars(compared),
        max_acc_loss=max_acc_loss,
        counted=untaken,
    )
    return replace(built, title=title, heads=_heads(built, data, heads or {}, titles))


def _heads(
    table: Table, data: pd.DataFrame, given: Mapping[str, Mapping[str, str]], titles: bool
) -> Mapping[str, Mapping[str, str]]:
    """Return axis -> label -> what is written for it: what was given, else a title."""
    found = dict(given)
    for axis in ("attack", "defense") if titles else ():
        known = data.groupby(axis)[f"{axis}_name"].first()
        labels = {str(label): _plain(name) for label, name in known.items()}
        signs = {label: layout.marks(table, label) for label in labels if axis == "defense"}
        own = found.get(axis, {})
        found[axis] = {**own, **titled(axis, labels, own, signs)}
    return found


def _completed(
    frame: pd.DataFrame, figures: Sequence[published.Figure], average: bool, untaken: bool
) -> pd.DataFrame:
    """Return the rows with those of the averages, and one for each published cell they lack."""
    printed = [figure for figure in figures if not figure.measured]
    frame = published.add_missing(frame, [f for f in printed if f.attack != AVERAGE])
    if average:  # after: no average of ours where an attack of the published one has not run
        frame = published.add_missing(averages(frame, AVERAGE, untaken=untaken), printed)
    return frame


def viewed(
    frame: pd.DataFrame,
    view: View,
    order: Mapping[str, Sequence[Any]],
    figures: Sequence[published.Figure] = (),
) -> Table:
    """Return the table of `frame` as a sweep file lays it out; errors are those of `build`."""
    built = build(
        frame,
        rows=view.rows,
        cols=view.cols,
        values=view.values,
        order=order,
        heads=view.labels,
        titles=view.titles,
        title=view.caption,
        average=view.average,
        untaken=view.untaken,
        max_acc_loss=view.max_acc_loss,
        figures=figures,
    )
    return replace(built, starred=view.starred)


def _check(
    frame: pd.DataFrame, rows: Sequence[str], cols: Sequence[str], values: Sequence[str]
) -> None:
    """Refuse what cannot become a table."""
    require(frame)
    axes = (*AXES, *SETTINGS, *dict.fromkeys(DEVICES.values()))
    for flag, what, names, known in (
        ("--rows", "axis", rows, axes),
        ("--cols", "axis", cols, axes),
        ("--values", "metric", values, METRICS),
        ("tables", "status", frame["status"].unique(), _RANK),
    ):
        for name in names:
            if name not in known:
                raise SweepError(f"{flag}: {unknown(what, name, known)}")
    if not values:
        raise SweepError(f"--values: none to show; name at least one of {', '.join(METRICS)}")
    for flag, named in (("--rows, --cols", [*rows, *cols]), ("--values", list(values))):
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise SweepError(f"{flag}: {', '.join(twice)} is named twice; leave one out")


def _layout(
    frame: pd.DataFrame, rows: Sequence[str], cols: Sequence[str]
) -> tuple[pd.DataFrame, list[str], list[str], tuple[tuple[str, Any], ...]]:
    """Return the rows that count, the axes of the lines and of the columns, the constant axes."""
    data, settings = once(frame)
    data = spread(data)
    fixed = [axis for axis in AXES if axis != "seed"]
    open_axes = [axis for axis in dict.fromkeys([*rows, *fixed, *settings]) if axis not in cols]
    varied = [axis for axis in open_axes if data[axis].nunique(dropna=False) > 1]
    named = [axis for axis in varied if axis in rows]
    free = [axis for axis in varied if axis not in rows and not _decide(data, named, axis)]
    cols = [*cols, *[axis for axis in free if _decide(data, cols, axis)]]
    row_axes = [axis for axis in varied if axis not in cols]
    if not row_axes:  # a line needs a name
        row_axes = [next(axis for axis in ("attack", *rows, *fixed) if axis not in cols)]
    constants = [axis for axis in fixed if axis not in row_axes and axis not in cols]
    firsts = ((axis, _plain(data[axis].iloc[0])) for axis in constants)  # a row would mix types
    return data, row_axes, cols, tuple(firsts)


def _decide(data: pd.DataFrame, axes: Sequence[str], axis: str) -> bool:
    """Whether equal labels on `axes` always mean an equal label on `axis`."""
    pairs = data[[*axes, axis]].drop_duplicates()
    return bool(axes) and not pairs.duplicated([*axes]).any()


def _codes(
    data: pd.DataFrame, axes: Sequence[str], order: Mapping[str, Sequence[Any]]
) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """Return the rank of every row's label on `axes`, seed and defense, and the labels by rank.

    Null is last.
    """
    codes, labels = {}, {}
    for axis in dict.fromkeys([*axes, "seed", "defense"]):
        axis_codes, unique = pd.factorize(data[axis])
        values = [_plain(value) for value in unique]
        places = {str(value): i for i, value in enumerate(order.get(axis, ()))}
        unnamed = len(places)
        places[AVERAGE] = unnamed + 1  # after those that `order` does not name
        ranking = sorted(
            range(len(values)), key=lambda i: (places.get(str(values[i]), unnamed), values[i])
        )
        rank = np.empty(len(values) + 1, dtype=np.int64)
        rank[ranking] = np.arange(len(values))
        rank[-1] = len(values)  # where factorize's -1 for null points
        codes[axis] = rank[axis_codes]
        labels[axis] = [values[i] for i in ranking] + [None]
    return pd.DataFrame(codes), labels


@dataclass(frozen=True)
class _Place:
    """Where the rows go."""

    line: Whole
    column: Whole
    cell: Whole
    width: int
    size: int


@dataclass(frozen=True)
class _Numbers:
    """One metric in all cells of the table, line by line."""

    state: npt.NDArray[np.object_]
    mean: stats.Floats
    sd: stats.Floats
    n: Whole
    partial: npt.NDArray[np.bool_]
    best: npt.NDArray[np.bool_]
    untaken: Whole


def _joint(codes: pd.DataFrame, axes: Sequence[str]) -> Whole:
    """Return the rank of every row's combination of `axes`."""
    if not axes:
        return np.zeros(len(codes), dtype=np.int64)
    return np.asarray(codes.groupby(list(axes), sort=True).ngroup(), dtype=np.int64)


def _place(
    data: pd.DataFrame, codes: pd.DataFrame, row_axes: Sequence[str], cols: Sequence[str]
) -> tuple[_Place, pd.DataFrame, pd.DataFrame]:
    """Return where the rows go, and both frames sorted by line, column and seed.

    Sums depend on the order of their terms, so the order is part of the result.
    """
    line, column = _joint(codes, row_axes), _joint(codes, cols)
    sort: Whole = np.lexsort((codes["seed"].to_numpy(), column, line))
    line, column = line[sort], column[sort]
    width = int(column.max()) + 1
    place = _Place(line, column, line * width + column, width, (int(line[-1]) + 1) * width)
    return place, data.iloc[sort], codes.iloc[sort]


def _numbers(data: pd.DataFrame, place: _Place, metric: str, lost: pd.Series[bool]) -> _Numbers:
    """Average one metric over the rows that are ok, and say what the others are.

    Args:
        data: The rows, by cell.
        place: Where they go.
        metric: The metric.
        lost: Which of them have a victim that did not take.
    """
    rank = data["status"].map({state: i for i, state in enumerate(_RANK)}).to_numpy(dtype=np.int64)
    ends = pd.Series(rank).groupby(place.cell).agg(["min", "max"])
    state = np.full(place.size, "missing", dtype=object)
    state[ends.index] = np.array(_RANK, dtype=object)[ends["min"]]
    partial = np.zeros(place.size, dtype=np.bool_)
    partial[ends.index] = (ends["min"] == 0) & (ends["max"] > 0)
    value = pd.Series(np.where(rank == 0, data[metric].to_numpy(dtype=np.float64), np.nan))
    agg = value.groupby(place.cell).agg(["mean", "std", "count"])
    mean, sd = np.full(place.size, np.nan), np.full(place.size, np.nan)
    n = np.zeros(place.size, dtype=np.int64)
    mean[agg.index], sd[agg.index], n[agg.index] = agg["mean"], agg["std"], agg["count"]
    state[(state == "ok") & (n == 0)] = "undefined"
    blind = np.bincount(place.cell[fair.unknown(data, metric)], minlength=place.size) > 0
    state[(state == "undefined") & blind] = "unknown"
    if metric in DEVICES:  # seconds of two machines have no mean
        where = data[DEVICES[metric]].where(value.notna().to_numpy())
        several = pd.Series(where.to_numpy()).groupby(place.cell).nunique() > 1
        state[several.index[several]] = "mixed"
    left_out = data.get("left_out", pd.Series(False, data.index)).eq(True)
    marked = (lost | left_out).to_numpy() & value.notna().to_numpy()
    untaken = np.bincount(place.cell[marked], minlength=place.size)
    best = np.zeros(place.size, dtype=np.bool_)
    return _Numbers(state, mean, sd, n, partial & (n > 0), best, untaken)


def _rivals(codes: pd.DataFrame, axes: Sequence[str], place: _Place) -> pd.DataFrame:
    """Return each row's cell, its seed, and the group of cells that differ only in the defense."""
    group = _joint(codes, [axis for axis in axes if axis != "defense"])
    return pd.DataFrame({"cell": place.cell, "group": group, "seed": codes["seed"].to_numpy()})


def _mark(
    grid: Sequence[_Numbers],
    data: pd.DataFrame,
    values: Sequence[str],
    rivals: pd.DataFrame,
    lost: pd.Series[bool],
    max_acc_loss: float,
) -> None:
    """Mark for each metric the defense that beats every other of its group beyond the noise.

    `none`, what is barred and the rows that are `lost` do not compete. A defense some of whose
    seeds did not end well can keep another from winning, but cannot win itself: its mean is that of
    the survivors. One whose mean ACC fell too far competes in nothing triggered images measure.
    """
    fit = data["status"].eq("ok") & ~fair.bare(data) & ~fair.barred(data) & ~lost
    loss = fair.acc_loss(data).where(fit).groupby(rivals["cell"].to_numpy()).transform("mean")
    guessing = (loss > max_acc_loss + stats.ROUNDING).to_numpy()
    for part, metric in zip(grid, values, strict=True):
        if metric not in (*_HIGHER, *_LOWER):
            continue
        value = data[metric].to_numpy(dtype=np.float64)
        score = value if metric in _HIGHER else -value
        out = np.isnan(value) | (guessing & (metric in fair.TRIGGERED))
        rated = rivals.assign(score=score, count=trials(data, metric))
        competing = rated[fit.to_numpy() & ~out]
        won = stats.winners(competing)
        part.best[won] = ~part.partial[won]


def _labels(
    codes: pd.DataFrame, place: Whole, axes: Sequence[str], labels: Mapping[str, list[Any]]
) -> list[tuple[Any, ...]]:
    """Return the labels of each place, first to last."""
    if not axes:
        return [()]
    _, first = np.unique(place, return_index=True)
    rows = codes[list(axes)].iloc[first].itertuples(index=False, name=None)
    return [tuple(labels[axis][i] for axis, i in zip(axes, row, strict=True)) for row in rows]


def _lines(labels: list[tuple[Any, ...]], grid: list[_Numbers], width: int) -> tuple[Line, ...]:
    """Return the lines with their entries, the metrics of a group side by side."""
    entries = [
        map(Entry, *(array.tolist() for array in vars(g).values()))  # in the order of its fields
        for g in grid
    ]
    flat = list(chain.from_iterable(zip(*entries, strict=True)))
    step = width * len(grid)
    return tuple(
        Line(label, tuple(flat[i * step : (i + 1) * step])) for i, label in enumerate(labels)
    )


def _about(
    data: pd.DataFrame,
    values: Sequence[str],
    axes: Sequence[str],
    labels: Mapping[str, Sequence[Any]],
) -> Mapping[str, Any]:
    """Return what the rows say of the defenses, and of how they were measured."""
    return {
        "seeds": () if "seed" in axes else tuple(s for s in labels["seed"] if s is not None),
        "sees": _sees(data, labels["defense"]),
        "oracles": fair.oracles(data),
        "reached": fair.reached(data),
        "devices": _devices(data, values),
        "notes": conditions.notes(data[data["attack"] != AVERAGE]),
        "score": conditions.score(data),
    }


def _sees(data: pd.DataFrame, defenses: Sequence[Any]) -> tuple[tuple[Any, str | None], ...]:
    """Return what each defense sees, from any of its rows that says."""
    pairs = data[["defense", "sees"]].dropna().drop_duplicates().sort_values(["defense", "sees"])
    sees = pairs.groupby("defense")["sees"].agg(" or ".join).to_dict()
    return tuple((defense, sees.get(defense)) for defense in defenses if defense is not None)


def _devices(data: pd.DataFrame, values: Sequence[str]) -> tuple[str, ...]:
    """Return where the costs among `values` were measured, sorted."""
    columns = {DEVICES[metric] for metric in values if metric in DEVICES}
    well = data[data["status"] == "ok"]
    return tuple(sorted({name for column in columns for name in well[column].dropna()}))


def _plain(value: Any) -> Any:
    """Return a label as a Python object; None for null."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
