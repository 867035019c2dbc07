"""What a few seeds allow to be said: intervals, paired differences, and what is only noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from sweeper.tables import quantiles

Floats: TypeAlias = npt.NDArray[np.float64]
"""A float64 array; the functions over arrays are elementwise."""

ROUNDING = 1e-12
"""Differences and spreads below this are rounding: rates are multiples of 1 / n_test > 1e-8."""


@dataclass(frozen=True)
class Summary:
    """A metric over seeds."""

    mean: float
    """Mean; nan without values."""
    sd: float
    """Standard deviation of a sample (n - 1); nan for n < 2."""
    n: int
    """Number of values that are not nan."""
    low: float
    """Lower end of the t-interval of the mean; nan for n < 2."""
    high: float
    """Upper end of the t-interval of the mean; nan for n < 2."""


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval (low, high) of a proportion; (0, 1) for n = 0: nothing is known.

    Raises:
        ValueError: Not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    low, high = wilson_bounds(np.array([successes / n]), np.array([float(n)]), confidence)
    return float(low[0]), float(high[0])


def wilson_bounds(share: Floats, n: Floats, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Return Wilson's intervals of the proportions `share` of `n` trials; nan for n = 0 or nan."""
    n = np.where(n > 0, n, np.nan)
    square = quantiles.normal(confidence) ** 2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = np.sqrt(square * (share * (1 - share) / n + square / (4 * n * n))) / (1 + square / n)
    low, high = np.minimum(middle - half, share), np.maximum(middle + half, share)  # rounding
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def half_width(sd: Floats, n: npt.NDArray[Any], confidence: float = 0.95) -> Floats:
    """Return half the width of the t-interval of a mean of `n` values; nan for n < 2."""
    sizes, inverse = np.unique(np.where(n >= 2, n, 1), return_inverse=True)
    shares = [
        quantiles.student(int(size) - 1, confidence) / math.sqrt(size) if size > 1 else math.nan
        for size in sizes
    ]
    width: Floats = np.array(shares, dtype=np.float64)[inverse] * sd
    return width


def summarise(values: Sequence[float] | Floats, confidence: float = 0.95) -> Summary:
    """Return mean, spread and t-interval of `values`; nan among them (no value) is left out."""
    data = np.asarray(values, dtype=np.float64)
    data = data[~np.isnan(data)]
    n = len(data)
    mean = float(data.mean()) if n else math.nan
    sd = float(data.std(ddof=1)) if n > 1 else math.nan
    half = float(half_width(np.array([sd]), np.array([n]), confidence)[0])
    return Summary(mean, sd, n, mean - half, mean + half)


def beyond_noise(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    *,
    counts: tuple[float, float] | None = None,
    confidence: float = 0.95,
) -> bool:
    """Return whether `a` and `b`, paired by seed, differ by more than the noise.

    Two pairs or more: the paired t-interval excludes 0. One pair: the Wilson intervals of the two
    proportions do not overlap; without the counts there is no interval, and the answer is no.
    No pair: no.

    Args:
        a: One value a seed; nan where there is none.
        b: The same seeds.
        counts: Test samples behind a value of `a` and of `b`, used with a single pair.
        confidence: Of the intervals.
    """
    first, second = _pairs(a, b)
    total = summarise(first - second, confidence)
    if not total.n:
        return False
    count_a, count_b = counts or (math.nan, math.nan)
    apart = separated(
        np.array([total.mean]),
        np.array([total.sd]),
        np.array([total.n]),
        (first[:1], np.array([count_a])),
        (second[:1], np.array([count_b])),
        confidence,
    )
    return bool(apart[0])


def separated(
    mean: Floats,
    sd: Floats,
    n: npt.NDArray[Any],
    a: tuple[Floats, Floats],
    b: tuple[Floats, Floats],
    confidence: float = 0.95,
) -> npt.NDArray[np.bool_]:
    """Decide `beyond_noise` for many comparisons at once.

    Args:
        mean: Mean of the paired differences.
        sd: Their standard deviation; nan for n < 2.
        n: Number of pairs.
        a: Proportion and count of the one side, used where n is 1; nan: not known.
        b: The same of the other side.
        confidence: Of the intervals.
    """
    many = np.abs(mean) > half_width(sd, n, confidence) + ROUNDING
    low_a, high_a = wilson_bounds(*a, confidence)
    low_b, high_b = wilson_bounds(*b, confidence)
    single = (low_a > high_b) | (low_b > high_a)
    return np.where(n >= 2, many, (n == 1) & single)


def winners(rows: pd.DataFrame, confidence: float = 0.95) -> npt.NDArray[np.int64]:
    """Return the cells that beat every other cell of their group by `beyond_noise`.

    The seeds in common decide, and the mean over all seeds must be ahead too. A cell without a
    rival beats nobody; a rival without a seed in common cannot be beaten.

    Args:
        rows: One line a seed of a cell: `cell`, `group` (whole numbers), `seed`, `score` (higher is
            better: a proportion, or minus one) and `count`, the samples behind it (nan: unknown).
        confidence: Of the intervals.
    """
    if rows.empty:
        return np.empty(0, dtype=np.int64)
    rows = rows.assign(mean=rows.groupby("cell")["score"].transform("mean"))
    top = rows.loc[rows.groupby("group")["mean"].idxmax()].set_index("group")["cell"]
    lead = rows["group"].map(top)
    leading = rows["cell"] == lead
    rivals = rows[~leading].assign(lead=lead[~leading])
    leaders = rows.loc[leading, ["group", "seed", "score", "count", "mean"]]
    pairs = rivals.merge(leaders, on=["group", "seed"], suffixes=("", "_lead"))
    pairs["ahead"] = pairs["score_lead"] - pairs["score"]
    by = pairs.groupby("cell")
    ahead, first = by["ahead"].agg(["mean", "std", "count"]), by.first()
    apart = separated(
        _floats(ahead["mean"]),
        _floats(ahead["std"]),
        _floats(ahead["count"]),
        (_floats(first["score_lead"].abs()), _floats(first["count_lead"])),
        (_floats(first["score"].abs()), _floats(first["count"])),
        confidence,
    )
    clear = (ahead["mean"] > 0) & (first["mean_lead"] > first["mean"] + ROUNDING)
    beaten = ahead.index[apart & clear]
    unbeaten = rivals.loc[~rivals["cell"].isin(beaten), "lead"]
    return np.setdiff1d(rivals["lead"].to_numpy(dtype=np.int64), unbeaten.to_numpy(dtype=np.int64))


@dataclass(frozen=True)
class Ranking:
    """Defenses ranked over the lines of a table."""

    frame: pd.DataFrame
    """`defense`, `rank` (mean over the blocks, 1 is best, ties share) and `mean`, best first."""
    blocks: int
    """The lines on which every defense has a value; the others are left out."""
    difference: float
    """Nemenyi's critical difference: mean ranks further apart differ; nan without blocks."""


def ranks(grid: pd.DataFrame, *, higher: bool, confidence: float = 0.95) -> Ranking:
    """Rank the columns of `grid` in each of its lines (Nemenyi; Demsar, JMLR 2006).

    Args:
        grid: A line a block, a column a defense; a line with a gap does not count.
        higher: Whether more is better.
        confidence: Of the critical difference.
    """
    grid = grid.dropna()
    n, k = grid.shape
    if not n:
        return Ranking(pd.DataFrame(columns=["defense", "rank", "mean"]), 0, math.nan)
    values = grid.astype(np.float64)
    ranked = values.round(12).rank(axis=1, ascending=not higher)
    columns = {"rank": ranked.to_numpy().mean(0), "mean": values.to_numpy().mean(0)}
    table = pd.DataFrame({"defense": list(grid.columns), **columns})
    table = table.sort_values(["rank", "defense"], ignore_index=True)
    return Ranking(table, n, critical_difference(k, n, confidence))


def critical_difference(k: int, n: int, confidence: float = 0.95) -> float:
    """Return by how much the mean ranks of two of `k` must differ over `n` blocks (Nemenyi).

    It is q sqrt(k (k + 1) / 6 n), q the studentized range for `k` and infinite freedom over
    sqrt(2); nan for fewer than two defenses or no block.
    """
    if k < 2 or n < 1:
        return math.nan
    q = quantiles.studentized_range(k, confidence) / math.sqrt(2)
    return q * math.sqrt(k * (k + 1) / (6 * n))


def _floats(column: pd.Series[Any]) -> Floats:
    """Return a column as an array."""
    return column.to_numpy(dtype=np.float64)


def _pairs(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """Return `a` and `b` where neither is nan."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values: {first.shape} against {second.shape}")
    both = ~(np.isnan(first) | np.isnan(second))
    return first[both], second[both]
