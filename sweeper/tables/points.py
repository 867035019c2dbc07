"""Rows -> what figures show: one point a cell of the matrix, fronts, ranks and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES
from sweeper.plan.view import MAX_ACC_LOSS
from sweeper.tables import fair, stats
from sweeper.tables.layout import STATES, head
from sweeper.tables.results import once, require, spread, trials

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
WHOLE = ("asr", "ra", "tpr", "fpr")
"""The measures whose axis has all of 0 to 100 %: both ends are what matters there."""
_RANKING = ("ok", *STATES)
_LABELS = ("dataset", "model", "attack", "defense")
_FIRST = ("oracle", "reached", "reference", "sees", "kind", "attack_name", "defense_name")
"""What the seeds of a point have in common."""


def points(
    frame: pd.DataFrame,
    order: Mapping[str, Sequence[Any]] | None = None,
    *,
    untaken: bool = False,
    max_acc_loss: float = MAX_ACC_LOSS,
) -> pd.DataFrame:
    """Return one line for each combination of `PLACE` that has rows, in the order of the labels.

    Columns: `PLACE` (labels are ordered categories); `state`, `ok` or the worst state where no seed
    is; `runs`, the seeds; `partial`, some of them did not end well; `untaken`, how many of those
    that did have a victim that did not take; `blind`, one came without its trigger; `oracle`,
    `reached`, what `fair.barred` bars; `reference`, no defense at all; `sees`, `kind`,
    `attack_name`, `defense_name`; mean `seconds` and `victim_seconds`; for every measure M of
    `MEASURES` its mean `M` over the `M_n` seeds that are ok, their standard deviation `M_sd`, with
    the 95 % interval from `M_low` to `M_high`: t over seeds, Wilson's for one seed of a proportion,
    else nan; and `M_counted`, the mean over the seeds that count in averages and ranks, where the
    clean model does not.

    Args:
        frame: From `results.frame` or `results.select`, rows of one sweep.
        order: Axis -> its labels in the order to show; others follow, sorted.
        untaken: Whether seeds whose victim did not take (`fair.untaken`) count.
        max_acc_loss: The fall of ACC beyond which a defense leads nothing and ranks last.

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
    data = _ordered(_judged(spread(data)), order or {})
    values = data[list(MEASURES)].astype(np.float64).where(data["status"] == "ok")
    counts = {f"{name}_trials": trials(data, name) for name in MEASURES}
    data = data.assign(**values, **counts, place=data["status"].map(_RANKING.index))
    by = data.groupby(list(PLACE), dropna=False, observed=True)
    whole = by.agg(
        best=("place", "min"),
        worst=("place", "max"),
        runs=("place", "size"),
        untaken=("lost", "sum"),
        blind=("blind", "max"),
        **{name: (name, "first") for name in _FIRST},
        **{name: (name, "mean") for name in ("seconds", "victim_seconds", *counts)},
    )
    whole["state"] = np.array(_RANKING, dtype=object)[whole.pop("best")]
    whole["partial"] = (whole["state"] == "ok") & (whole.pop("worst") > 0)
    whole = _summarised(whole, by)
    counted = data[~data["clean"]]
    counted = counted if untaken else counted[~counted["lost"]]
    means = counted.groupby(list(PLACE), dropna=False, observed=True)[list(MEASURES)].mean()
    whole = whole.join(means.add_suffix("_counted")).assign(max_acc_loss=max_acc_loss)
    return whole.drop(columns=list(counts)).reset_index()


def _summarised(whole: pd.DataFrame, by: Any) -> pd.DataFrame:
    """Return the points with mean, spread, count and interval of every measure."""
    for name in MEASURES:
        summary = by[name].agg(["mean", "std", "count"])
        whole[name], whole[f"{name}_n"] = summary["mean"], summary["count"]
        whole[f"{name}_sd"] = summary["std"]
        for end, value in zip(
            ("low", "high"), _interval(summary, whole[f"{name}_trials"]), strict=True
        ):
            whole[f"{name}_{end}"] = np.clip(value, -1.0 if name == "acc_loss" else 0.0, 1.0)
    return whole


def _ordered(data: pd.DataFrame, order: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return the rows with their labels as categories, those of `order` first."""
    named = {}
    for axis in _LABELS:
        present = sorted(data[axis].dropna().unique())
        ordered = [label for label in order.get(axis, ()) if label in present]
        labels = [*ordered, *(label for label in present if label not in ordered)]
        named[axis] = pd.Categorical(data[axis], labels, ordered=True)
    return data.assign(**named)


def _judged(data: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with their loss of ACC, and with what keeps them from being compared.

    The clean model (attack `none`) is in no average and no rank, unless there is nothing else.
    """
    clean = data["attack_name"].fillna(data["attack"]).eq("none")
    return data.assign(
        acc_loss=fair.acc_loss(data),
        lost=fair.untaken(data) & data["status"].eq("ok"),
        blind=fair.blind(data),
        clean=clean & (not clean.all()),
        oracle=data["defense"].isin(fair.oracles(data)),
        reached=data["defense"].isin(fair.reached(data)),
        reference=fair.bare(data),
    )


def _interval(summary: pd.DataFrame, tried: pd.Series[Any]) -> tuple[stats.Floats, stats.Floats]:
    """Return the 95 % interval of each mean; nan where there is none."""
    mean, sd, n = (summary[name].to_numpy(dtype=np.float64) for name in ("mean", "std", "count"))
    half = stats.half_width(sd, n)
    low, high = stats.wilson_bounds(mean, np.where(n == 1, tried.to_numpy(np.float64), np.nan))
    return np.where(n == 1, low, mean - half), np.where(n == 1, high, mean + half)


def measure(name: str) -> str:
    """Return `name` if it is one of `MEASURES`.

    Raises:
        SweepError: It is not.
    """
    if name not in MEASURES:
        raise SweepError(f"--metric: {unknown('metric', name, MEASURES)}")
    return name


def means(points: pd.DataFrame, name: str = "asr") -> pd.DataFrame:
    """Return each defense's mean ACC loss and `name` over the points that count in both.

    Columns: `defense`, `x` (the ACC loss), `y`, `n` points, `barred`, `reference`, `front`: no
    other defense is as good in one and better in the other. The reference, what is barred, and what
    lost more ACC than allowed, is on no front and keeps nobody from it.
    """
    x, y = "acc_loss_counted", f"{name}_counted"
    both = points.assign(barred=points["oracle"] | points["reached"]).dropna(subset=[x, y])
    by = both.groupby("defense", observed=True)
    kinds = {kind: (kind, "any") for kind in ("barred", "reference")}
    out = by.agg(x=(x, "mean"), y=(y, "mean"), n=(x, "size"), **kinds)
    out = out.astype(dict.fromkeys(kinds, bool))
    loss = out[["x", "y"]].to_numpy() * [1, -MEASURES[name]]
    fit = ~out["barred"] & ~out["reference"] & ~lost_acc(out["x"], both["max_acc_loss"].max())
    rivals = loss[fit.to_numpy(dtype=bool)]
    dominated = [((rivals <= point).all(1) & (rivals < point).any(1)).any() for point in loss]
    return out.assign(front=~np.array(dominated, dtype=bool) & fit).reset_index()


def lost_acc(acc_loss: pd.Series[float], most: Any) -> pd.Series[bool]:
    """Return which losses of ACC are more than `most`; an unknown one is not."""
    return acc_loss.gt(most + stats.ROUNDING)


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
    """Barred ones aside, the defenses with a value in fewer than half of the settings."""
    guessing: tuple[str, ...] = ()
    """The defenses that lost more ACC than allowed in some setting, and are last there."""


def ranks(points: pd.DataFrame, name: str = "asr") -> Ranks:
    """Rank the defenses by measure `name` in every setting (Demsar, JMLR 2006, section 3.2.2).

    A setting is a data set, model, attack, rate, target and budget. No defense at all and what is
    barred (`fair.barred`) do not compete, seeds whose victim did not take do not count, and in what
    triggered images measure a defense that lost more ACC than allowed is last.

    Raises:
        SweepError: Fewer than two defenses have values in two settings in common.
    """
    value = f"{measure(name)}_counted"
    outside = points["oracle"] | points["reached"] | points["reference"]
    rivals = points[~outside].dropna(subset=[value])
    guessing = lost_acc(rivals["acc_loss_counted"], rivals["max_acc_loss"])
    guessing &= name in fair.TRIGGERED
    rivals = rivals.assign(_score=rivals[value].mask(guessing, -MEASURES[name] * np.inf))
    setting = [axis for axis in PLACE if axis != "defense"]
    grid = rivals.pivot_table(index=setting, columns="defense", values="_score", observed=True)
    few = grid.columns[grid.notna().sum() < len(grid) / 2]
    grid = grid.drop(columns=few).dropna()
    blocks, count = grid.shape
    if blocks < 2 or count < 2:
        lost = ", victims without a backdoor left out" * bool((points["untaken"] > 0).any())
        raise SweepError(
            f"ranks: {count} defenses have {head(name)} in {blocks} settings in common{lost}, and "
            "two of each are needed: run more of the sweep"
        )
    ranking = stats.ranks(grid, higher=MEASURES[name] > 0)
    rank = ranking.frame.set_index("defense")["rank"]
    last = [defense for defense in grid if np.isinf(grid[defense]).any()]
    return Ranks(rank, ranking.difference, blocks, tuple(map(str, few)), tuple(map(str, last)))


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
