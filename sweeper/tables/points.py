"""Rows -> what figures show: one point a cell of the matrix, fronts, ranks and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES
from sweeper.tables import stats
from sweeper.tables.layout import STATES
from sweeper.tables.results import once, require, spread

PLACE = tuple(axis for axis in AXES if axis != "seed")
"""The axes that say which point it is."""
MEASURES = {
    **dict.fromkeys(("asr", "acc_loss"), -1),
    **dict.fromkeys(("acc", "ra", "der", "tpr"), 1),
    "fpr": -1,
    "auroc": 1,
}
"""What figures can show -> 1 where more is better, -1 where less is; `acc_loss` is ACC before the
defense less ACC after it. All are fractions."""
_COUNTS = {"acc": "n_test", "asr": "n_triggered", "ra": "n_triggered"}
_RANKING = ("ok", *STATES)
_LABELS = ("dataset", "model", "attack", "defense")


def points(frame: pd.DataFrame, order: Mapping[str, Sequence[Any]] | None = None) -> pd.DataFrame:
    """Return one line for each combination of `PLACE` that has rows, in the order of the labels.

    Columns: `PLACE` (labels are ordered categories); `state`, `ok` or the worst state where no seed
    is; `runs`, the seeds; `partial`, some of them did not end well; `oracle`, `sees`, `kind`; mean
    `seconds` and `victim_seconds`; for every measure M of `MEASURES` its mean `M` over the `M_n`
    seeds that are ok, with the 95 % interval from `M_low` to `M_high`: t over seeds, Wilson's for
    one seed of a proportion, else nan.

    Args:
        frame: From `results.frame` or `results.select`, rows of one sweep.
        order: Axis -> its labels in the order to show; others follow, sorted.

    Raises:
        SweepError: No rows, or rows of several settings under one label.
    """
    require(frame)
    data, settings = once(frame)
    if settings:
        raise SweepError(
            f"figures: rows under the same labels differ in {', '.join(settings)}: draw one sweep, "
            "or give its entries names with `as`"
        )
    data = spread(data)
    for axis in _LABELS:
        present = sorted(data[axis].dropna().unique())
        ordered = [label for label in (order or {}).get(axis, ()) if label in present]
        labels = [*ordered, *(label for label in present if label not in ordered)]
        data[axis] = pd.Categorical(data[axis], labels, ordered=True)
    data = data.assign(acc_loss=data["acc_before"] - data["acc"])
    values = data[list(MEASURES)].astype(np.float64).where(data["status"] == "ok")
    counts = data[["n_test", "n_triggered"]].astype("Float64").astype(np.float64)
    data = data.assign(**values, **counts, place=data["status"].map(_RANKING.index))
    by = data.groupby(list(PLACE), dropna=False, observed=True)
    whole = by.agg(
        best=("place", "min"),
        worst=("place", "max"),
        runs=("place", "size"),
        oracle=("oracle", "any"),
        **{name: (name, "first") for name in ("sees", "kind")},
        **{name: (name, "mean") for name in ("seconds", "victim_seconds", *counts)},
    )
    whole["state"] = np.array(_RANKING, dtype=object)[whole.pop("best")]
    whole["partial"] = (whole["state"] == "ok") & (whole.pop("worst") > 0)
    for name in MEASURES:
        summary = by[name].agg(["mean", "std", "count"])
        whole[name], whole[f"{name}_n"] = summary["mean"], summary["count"]
        trials = whole.get(_COUNTS.get(name, ""), pd.Series(np.nan, whole.index))
        lowest = -1.0 if name == "acc_loss" else 0.0
        for end, value in zip(("low", "high"), _interval(summary, trials), strict=True):
            whole[f"{name}_{end}"] = np.clip(value, lowest, 1.0)
    return whole.drop(columns=list(counts)).reset_index()


def _interval(summary: pd.DataFrame, trials: pd.Series[Any]) -> tuple[stats.Floats, stats.Floats]:
    """Return the 95 % interval of each mean; nan where there is none."""
    mean, sd, n = (summary[name].to_numpy(dtype=np.float64) for name in ("mean", "std", "count"))
    half = stats.half_width(sd, n)
    low, high = stats.wilson_bounds(mean, np.where(n == 1, trials.to_numpy(np.float64), np.nan))
    return np.where(n == 1, low, mean - half), np.where(n == 1, high, mean + half)


def measure(name: str) -> str:
    """Return `name` if it is one of `MEASURES`.

    Raises:
        SweepError: It is not.
    """
    if name not in MEASURES:
        raise SweepError(f"--metric: {unknown('metric', name, MEASURES)}")
    return name


def means(points: pd.DataFrame, x: str = "acc_loss", y: str = "asr") -> pd.DataFrame:
    """Return each defense's mean `x` and `y` over the points that have both, and whether it leads.

    Columns: `defense`, `x`, `y`, `n` points, `oracle`, `front`: no other defense is as good in one
    and better in the other. Oracles are on no front and keep nobody from it.
    """
    both = points.dropna(subset=[x, y])
    by = both.groupby("defense", observed=True)
    out = by.agg(x=(x, "mean"), y=(y, "mean"), n=(x, "size"), oracle=("oracle", "any"))
    loss = out[["x", "y"]].to_numpy() * [-MEASURES[x], -MEASURES[y]]
    rivals = loss[~out["oracle"].to_numpy(dtype=bool)]
    dominated = [((rivals <= point).all(1) & (rivals < point).any(1)).any() for point in loss]
    return out.assign(front=~np.array(dominated, dtype=bool) & ~out["oracle"]).reset_index()


@dataclass(frozen=True)
class Ranks:
    """Average ranks of defenses over the settings in which all of them have a value."""

    rank: pd.Series[float]
    """Defense -> its average rank, 1 is best; sorted."""
    difference: float
    """Nemenyi's critical difference at 5 %: average ranks closer than this may be chance."""
    blocks: int
    """How many settings were compared."""
    left_out: tuple[str, ...]
    """Oracles aside, the defenses with a value in fewer than half of the settings."""


def ranks(points: pd.DataFrame, name: str = "asr") -> Ranks:
    """Rank the defenses by measure `name` in every setting (Demsar, JMLR 2006, section 3.2.2).

    A setting is a data set, model, attack, rate, target and budget. Oracles do not compete.

    Raises:
        SweepError: Fewer than two defenses have values in two settings in common.
    """
    fair = points[~points["oracle"].astype(bool)].dropna(subset=[measure(name)])
    setting = [axis for axis in PLACE if axis != "defense"]
    grid = fair.pivot_table(index=setting, columns="defense", values=name, observed=True)
    few = grid.columns[grid.notna().sum() < len(grid) / 2]
    grid = grid.drop(columns=few).dropna()
    blocks, rivals = grid.shape
    if blocks < 2 or rivals < 2:
        raise SweepError(
            f"ranks: {rivals} defenses have {name} in {blocks} settings in common, and two of each "
            "are needed: run more of the sweep"
        )
    ranking = stats.ranks(grid, higher=MEASURES[name] > 0)
    rank = ranking.frame.set_index("defense")["rank"]
    return Ranks(rank, ranking.difference, blocks, tuple(map(str, few)))


@dataclass(frozen=True)
class Costs:
    """Where the time of a sweep went, in seconds on whatever device each cell had."""

    defenses: pd.DataFrame
    """`defense`, `device`, `cells` that ended well, their `mean` and `total` seconds."""
    victims: int
    """Victims whose training time is known."""
    training: float
    """Seconds their trainings took."""
    saved: float
    """Seconds a training for each defense cell would have taken beyond that."""


def costs(frame: pd.DataFrame) -> Costs:
    """Add up the seconds of the rows that are ok; a row that several sweeps share counts once."""
    data, _ = once(frame)
    data = data[data["status"] == "ok"]
    by = data.groupby(["defense", "device"], dropna=False)["seconds"]
    table = by.agg(["size", "mean", "sum"]).set_axis(["cells", "mean", "total"], axis=1)
    by_victim = data.dropna(subset=["victim", "victim_seconds"]).groupby("victim")["victim_seconds"]
    seconds, users = by_victim.first(), by_victim.size()
    saved = float((seconds * (users - 1)).sum())
    return Costs(table.reset_index(), len(seconds), float(seconds.sum()), saved)
