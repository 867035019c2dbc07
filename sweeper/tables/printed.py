"""The table of what is published for a shipped sweep, in its layout, without a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tabulate import tabulate

from sweeper.core import rows
from sweeper.plan.view import View
from sweeper.tables import published, results, tables
from sweeper.tables.layout import Table

_OURS = ("target", "clean_budget")
"""Axes a publication's figures do not have here."""


def table(sweep: str, view: View, order: Mapping[str, Sequence[Any]]) -> Table:
    """Return the published figures of a sweep with their sources.

    Args:
        sweep: One of `published.sweeps`.
        view: Its layout.
        order: Axis -> its labels in the order to show.
    """
    figures = published.of(sweep)
    given = {}
    for figure in figures:
        axes = {
            "dataset": figure.dataset,
            "model": figure.model,
            "attack": figure.attack,
            "poison_rate": figure.poison_rate,
            "defense": figure.defense,
        }
        key = "/".join(map(str, axes.values()))
        other = {"sweep": sweep, "key": key, "status": "missing", "target": 0, "seed": 0}
        given[key] = {**axes, **other, "clean_budget": 0.0}
    frame = results.frame([rows.table(list(given.values()))])
    shown = [metric for metric in view.values if any(metric in f.values for f in figures)]
    view = view.model_copy(update={"average": False, "values": shown})
    built = tables.viewed(frame, view, order, figures)
    kept = tuple((axis, value) for axis, value in built.constants if axis not in _OURS)
    return replace(built, constants=kept, seeds=(), sees=(), ours=False)


def known() -> str:
    """Return which shipped sweeps have published figures, how many, and whose."""
    lines = []
    for name in published.sweeps():
        figures = published.of(name)
        whose = Counter(figure.source.rpartition(", ")[0] for figure in figures)
        lines.append([name, sum(len(figure.values) for figure in figures), "; ".join(whose)])
    return tabulate(lines, ["sweep", "figures", "printed by"], disable_numparse=True)
