"""Two sets of rows of the same cells: which numbers moved, and whether beyond the noise.

A number is a metric of a setting: of all its axes but the seed. It moved beyond the noise where the
paired t-interval over the seeds in both sets excludes 0; with one seed, where Wilson's intervals of
the two rates do not overlap (`stats.separated`). Without seeds or counts its noise is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from sweeper.core.rows import AXES, CONDITIONS, DEVICES, METRICS
from sweeper.tables import layout, results, stats

COMPARED = tuple(name for name in METRICS if name not in DEVICES and not name.endswith("_before"))
"""The metrics that are compared: costs are those of a device, the others' are the victim's own."""
VERDICTS = {
    "same": "the same to the last bit",
    "within": "moved within the noise",
    "beyond": "moved beyond it",
    "unknown": "moved with no noise known",
}
"""What can be said of a number in both."""
_SETTING = tuple(axis for axis in AXES if axis != "seed")
MOST = 30
"""Lines that are printed; `--json` has all."""


@dataclass(frozen=True)
class Diff:
    """What two sets of rows have in common, and in what they differ."""

    numbers: pd.DataFrame
    """One line a number: the axes but the seed, metric, before, after, difference (fractions, means
    over the seeds in both), seeds, verdict (of `VERDICTS`); the largest difference first."""
    states: pd.DataFrame
    """The cells that ended with another status: all axes, before, after."""
    cells: int
    """Cells in both."""
    other_keys: int
    """Those of them that have another key: other options, recipe, data or version."""
    only_before: int
    """Cells in the first set alone."""
    only_after: int
    """Cells in the second alone."""
    conditions: tuple[str, ...]
    """In what the conditions of cells in both differ."""

    @property
    def moved(self) -> bool:
        """Whether a number moved beyond the noise, or a cell ended with another status."""
        return bool(self.numbers["verdict"].eq("beyond").any()) or not self.states.empty


def compare(before: pd.DataFrame, after: pd.DataFrame, *, by_sweep: bool) -> Diff:
    """Compare two sets of rows.

    Cells are paired by key, else by their axes.

    Args:
        before: From `results.frame`.
        after: Likewise.
        by_sweep: Whether cells without a common key must be of sweeps of one name.
    """
    first, second = (_cells(frame) for frame in (before, after))
    axes = [*AXES, *["sweep"] * by_sweep]
    pairs = _paired(first, second, axes)
    left, right = first.loc[pairs["before"]], second.loc[pairs["after"]]
    left, right = left.reset_index(drop=True), right.reset_index(drop=True)
    both = [_numbers(left, right, metric) for metric in COMPARED]
    numbers = pd.concat([part for part in both if len(part)] or both[:1], ignore_index=True)
    numbers = numbers.sort_values(
        "difference", key=np.abs, ascending=False, kind="stable", ignore_index=True
    )
    ended = left["status"] != right["status"]
    states = left.loc[ended, [*AXES]].assign(
        before=left["status"][ended], after=right["status"][ended]
    )
    return Diff(
        numbers=numbers,
        states=states.reset_index(drop=True),
        cells=len(pairs),
        other_keys=int((left["key"] != right["key"]).sum()),
        only_before=len(first) - len(pairs),
        only_after=len(second) - len(pairs),
        conditions=_conditions(left, right),
    )


def _cells(frame: pd.DataFrame) -> pd.DataFrame:
    data = results.one_each(frame, ["key"])
    return data.assign(clean_budget=data["clean_budget"].fillna(0.0))


def _paired(first: pd.DataFrame, second: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The places of the cells in both: those with one key, then those with the same axes."""
    left, right = first.assign(before=first.index), second.assign(after=second.index)
    same = left[["key", "before"]].merge(right[["key", "after"]], on="key")
    rest = left[~left["before"].isin(same["before"])].drop_duplicates(axes)
    others = right[~right["after"].isin(same["after"])].drop_duplicates(axes)
    alike = rest[[*axes, "before"]].merge(others[[*axes, "after"]], on=[*axes])
    return pd.concat([same[["before", "after"]], alike[["before", "after"]]], ignore_index=True)


def _numbers(left: pd.DataFrame, right: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of all settings, from rows that stand beside each other."""
    a, b = (part[metric].astype(np.float64) for part in (left, right))
    here = left["status"].eq("ok") & right["status"].eq("ok") & a.notna() & b.notna()
    data = left.loc[here, [*_SETTING]].assign(
        before=a[here],
        after=b[here],
        difference=(b - a)[here],
        n_before=results.trials(left, metric)[here],
        n_after=results.trials(right, metric)[here],
        exact=(a == b)[here],
    )
    by = data.groupby([*_SETTING], dropna=False, sort=False)
    means, first = by[["before", "after", "difference"]].mean(), by.first()
    seeds, sd = by.size(), by["difference"].std()
    n = seeds.to_numpy()

    def side(name: str) -> tuple[stats.Floats, stats.Floats]:
        return _floats(first[name]), _floats(first[f"n_{name}"])

    old, new = side("before"), side("after")
    apart = stats.separated(_floats(means["difference"]), _floats(sd), n, old, new)
    blind = (n < 2) & np.isnan(old[1] + new[1])
    same = by["exact"].all().to_numpy(dtype=bool)
    verdict = np.select([same, blind, apart], ["same", "unknown", "beyond"], "within")
    return means.assign(metric=metric, seeds=n, verdict=verdict).reset_index()


def _floats(column: pd.Series[Any]) -> stats.Floats:
    return np.asarray(column, dtype=np.float64)


def _conditions(left: pd.DataFrame, right: pd.DataFrame) -> tuple[str, ...]:
    """Say what the rows of the cells in both were measured under, where it differs."""
    said = []
    for name, words in {**CONDITIONS, "code": "code of attack, defense or engine"}.items():
        pairs = pd.DataFrame({"a": left[name], "b": right[name]}).dropna()
        pairs = pairs[pairs["a"] != pairs["b"]].drop_duplicates()
        if len(pairs) and name in ("code", "data_hash"):
            said.append(words)
        elif len(pairs):
            told = {f"{a} against {b}" for a, b in pairs.itertuples(index=False)}
            said.append(f"{words} {', '.join(sorted(told))}")
    return tuple(said)


def text(found: Diff, names: tuple[str, str]) -> str:
    """Return what people read of a comparison.

    Args:
        found: What `compare` returned.
        names: How to call the two sets.
    """
    counts = Counter(found.numbers["verdict"])
    parts = [f"{counts[verdict]:,} {words}" for verdict, words in VERDICTS.items()]
    lines = [
        f"{len(found.numbers):,} numbers of {found.cells:,} cells in both: {', '.join(parts)}.",
        f"{found.only_before:,} cells only in {names[0]}, {found.only_after:,} only in {names[1]}, "
        f"{len(found.states):,} ended with another status.",
    ]
    if found.other_keys:
        lines.append(
            f"{found.other_keys:,} cells have another key: their options, recipe, data or version "
            "differ."
        )
    if found.conditions:
        lines.append(f"Measured with another {'; '.join(found.conditions)}.")
    elif found.cells:
        lines.append("Both were measured under the same conditions, as far as the rows say.")
    moved = found.numbers[found.numbers["verdict"] == "beyond"]
    if len(moved):
        lines += ["", "Beyond the noise, rates in percent:", "", _table(moved, names)]
    if len(moved) > MOST:
        lines.append(f"and {len(moved) - MOST:,} more: --json has all")
    if len(found.states):
        states = [
            [*map(_word, AXES, values), before, after]
            for *values, before, after in found.states.head(MOST).itertuples(index=False)
        ]
        heads = [*map(layout.name, AXES), *names]
        lines += [
            "",
            "Cells that ended with another status:",
            "",
            tabulate(states, heads, disable_numparse=True),
        ]
    return "\n".join(lines)


def _table(moved: pd.DataFrame, names: tuple[str, str]) -> str:
    """The largest differences; an axis that does not vary in them is left out."""
    axes = [axis for axis in _SETTING if moved[axis].nunique(dropna=False) > 1] or ["attack"]
    shown = moved.head(MOST)
    lines = [
        [
            *(_word(axis, line[axis]) for axis in axes),
            layout.head(str(line["metric"])),
            *(f"{100 * line[side]:.2f}" for side in ("before", "after")),
            f"{100 * line['difference']:+.2f}",
            str(line["seeds"]),
        ]
        for line in shown.to_dict("records")
    ]
    heads = [*map(layout.name, axes), "metric", *names, "difference", "seeds"]
    places = ["left"] * (len(axes) + 1) + ["right"] * 4
    return tabulate(lines, heads, colalign=places, disable_numparse=True)


def _word(axis: str, value: Any) -> str:
    return layout.word(axis, None if pd.isna(value) else value)


def record(found: Diff) -> Mapping[str, Any]:
    """Return a comparison as JSON values."""

    def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
        plain = frame.astype(object).where(frame.notna(), None)
        return [{str(k): v for k, v in one.items()} for one in plain.to_dict("records")]

    return {
        "counts": {
            verdict: int(found.numbers["verdict"].eq(verdict).sum()) for verdict in VERDICTS
        },
        "cells": found.cells,
        "other_keys": found.other_keys,
        "only_before": found.only_before,
        "only_after": found.only_after,
        "conditions": list(found.conditions),
        "numbers": records(found.numbers),
        "states": records(found.states),
    }
