"""Intervals, paired differences and winners, against scipy and plain loops."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from sweeper.tables import quantiles
from sweeper.tables.stats import (
    beyond_noise,
    critical_difference,
    ranks,
    summarise,
    wilson,
    wilson_bounds,
    winners,
)

shares = st.integers(0, 1000).map(lambda k: k / 1000)
confidences = st.sampled_from([0.8, 0.95, 0.99])


@given(st.integers(1, 5000), st.floats(0, 1), confidences)
def test_wilson_is_scipys(n, share, confidence):
    k = round(n * share)
    expected = reference.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_at_the_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    for successes, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="wilson"):
            wilson(successes, n)


@given(st.lists(shares, min_size=2, max_size=8), confidences)
def test_summarise_is_numpys_and_scipys(values, confidence):
    summary = summarise(values, confidence)
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.sd == pytest.approx(np.std(values, ddof=1))
    if summary.sd > 1e-9:
        expected = reference.t.interval(
            confidence, len(values) - 1, np.mean(values), reference.sem(values)
        )
        assert (summary.low, summary.high) == pytest.approx(expected)
    else:
        assert (summary.low, summary.high) == pytest.approx((summary.mean, summary.mean))


def test_summarise_few():
    assert summarise([]).n == 0
    assert math.isnan(summarise([]).mean)
    one = summarise([0.5, math.nan])
    assert (one.mean, one.n) == (0.5, 1)
    assert all(math.isnan(value) for value in (one.sd, one.low, one.high))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_quantiles_are_scipys_and_asked_of_it_once(confidence, tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    upper = 0.5 + confidence / 2
    expected = {
        quantiles.normal: ((confidence,), reference.norm.ppf(upper)),
        quantiles.student: ((3, confidence), reference.t.ppf(upper, 3)),
        quantiles.studentized_range: (
            (14, confidence),
            reference.studentized_range.ppf(confidence, 14, np.inf),
        ),
    }
    for quantile, (asked, value) in expected.items():
        assert quantile(*asked) == pytest.approx(value, rel=1e-12)
    monkeypatch.setattr(quantiles, "_READ", {})
    for name in ("special", "stats"):
        monkeypatch.setitem(sys.modules, f"scipy.{name}", None)
    for quantile, (asked, value) in expected.items():
        assert quantile(*asked) == pytest.approx(value, rel=1e-12)


@given(st.lists(st.tuples(shares, shares), min_size=2, max_size=8))
def test_pairs_are_beyond_noise_where_scipys_interval_says_so(pairs):
    a, b = map(np.array, zip(*pairs, strict=True))
    if np.ptp(a - b) > 1e-9:
        interval = reference.ttest_rel(a, b).confidence_interval(0.95)
        assert beyond_noise(a, b) == beyond_noise(b, a) == (not interval.low <= 0 <= interval.high)


def test_beyond_noise_by_number_of_pairs():
    assert beyond_noise([0.9, 0.91, 0.92], [0.5, 0.52, 0.51])
    assert not beyond_noise([0.9, 0.5], [0.8, 0.6]), "the sign of the difference flips"
    assert beyond_noise([0.9], [0.5], counts=(1000, 1000))
    assert not beyond_noise([0.9], [0.5], counts=(5, 5))
    assert not beyond_noise([0.9], [0.5]), "one seed without counts has no interval"
    assert not beyond_noise([math.nan], [0.5], counts=(1000, 1000)), "no pair"
    assert not beyond_noise([0.3, 0.3], [0.1 + 0.2, 0.1 + 0.2]), "rounding is no difference"
    assert beyond_noise([0.3, 0.4], [0.2, 0.3]), "no spread but rounding"
    with pytest.raises(ValueError, match="paired"):
        beyond_noise([1.0], [1.0, 2.0])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.none() | shares, min_size=3, max_size=3), min_size=1, max_size=5))
@example([[0.0, 0.038, None], [None, 0.0, 0.038]])
def test_winners_are_those_of_a_plain_loop(cells):
    rows = [
        {"cell": 7 + cell, "group": 1, "seed": seed, "score": score, "count": 200.0}
        for cell, scores in enumerate(cells)
        for seed, score in enumerate(scores)
        if score is not None
    ]
    columns = ["cell", "group", "seed", "score", "count"]
    found = winners(pd.DataFrame(rows, columns=columns)).tolist()

    values = {7 + i: np.array(scores, dtype=float) for i, scores in enumerate(cells)}
    values = {i: array for i, array in values.items() if not np.isnan(array).all()}
    expected = [
        i
        for i, mine in values.items()
        if len(values) > 1
        and all(
            np.nanmean(mine) > np.nanmean(other) + 1e-12
            and np.nansum(mine - other) > 0
            and beyond_noise(mine, other, counts=(200, 200))
            for j, other in values.items()
            if j != i
        )
    ]
    assert found == expected


def test_groups_do_not_touch():
    rows = [
        {"cell": cell, "group": cell // 2, "seed": seed, "score": score + seed / 1e4, "count": 1e3}
        for cell, score in enumerate((0.1, 0.9, 0.5, 0.5))
        for seed in range(3)
    ]
    assert winners(pd.DataFrame(rows)).tolist() == [1]


def measured(grid):
    """A frame of one ASR for each attack (line) and defense (column)."""
    return pd.DataFrame(grid, columns=[f"d{j}" for j in range(len(grid[0]))], dtype=float)


grids = st.integers(3, 6).flatmap(
    lambda k: st.lists(st.lists(shares, min_size=k, max_size=k), min_size=2, max_size=7)
)


@settings(max_examples=20)
@given(grids, st.booleans())
def test_ranks_are_scipys(grid, higher):
    found = ranks(measured(grid), higher=higher)
    values = np.array(grid)
    expected = reference.rankdata(-values if higher else values, axis=1).mean(0)
    by_name = found.frame.set_index("defense")
    assert by_name["rank"].sort_index().to_numpy() == pytest.approx(expected)
    assert by_name["mean"].sort_index().to_numpy() == pytest.approx(values.mean(0))
    assert found.frame["rank"].is_monotonic_increasing and found.blocks == len(grid)
    assert found.difference == critical_difference(values.shape[1], len(grid))


@pytest.mark.parametrize(
    ("k", "q"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)],
)
def test_the_critical_difference_is_the_tables(k, q):
    """Demsar (JMLR 2006), table 5 a: q at 0.05."""
    assert critical_difference(k, 14) == pytest.approx(q * math.sqrt(k * (k + 1) / 84), abs=1e-3)


@settings(max_examples=10)
@given(st.integers(2, 6), st.integers(2, 9))
def test_the_critical_difference_is_where_nemenyis_p_is_its_level(k, n):
    """scipy's Tukey distribution at the difference gives the level back."""
    apart = critical_difference(k, n) * math.sqrt(2) / math.sqrt(k * (k + 1) / (6 * n))
    assert reference.studentized_range.sf(apart, k, np.inf) == pytest.approx(0.05, abs=1e-6)


def test_ranks_of_lines_on_which_all_have_a_value():
    found = ranks(measured([[0.1, 0.2, 0.3], [0.3, 0.2, None], [0.1, 0.2, 0.2]]), higher=False)
    assert found.blocks == 2
    assert found.frame["rank"].tolist() == [1.0, 2.25, 2.75]
    assert found.frame["defense"].tolist() == ["d0", "d1", "d2"]
    none = ranks(measured([[0.1, None], [None, 0.1]]), higher=False)
    assert none.blocks == 0 and math.isnan(none.difference)
    assert math.isnan(critical_difference(1, 5)) and math.isnan(critical_difference(3, 0))


def test_an_interval_holds_its_own_share_to_the_last_bit() -> None:
    n = np.arange(1, 3000)
    for share in (0.0, 1.0):
        low, high = wilson_bounds(np.full(len(n), share), n)
        assert (low <= share).all() and (high >= share).all(), "bars are drawn by the difference"
