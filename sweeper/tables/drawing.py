"""How figures for papers look: colours, names, axes, legends."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sweeper.tables import titles
from sweeper.tables.layout import head
from sweeper.tables.points import WHOLE

STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text: conferences refuse Type 3 fonts
    "svg.fonttype": "none",
    "svg.hashsalt": "sweeper",
}
"""What the figures look like; the same rows give the same bytes as .svg."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Okabe and Ito's palette, which colour-blind readers tell apart (jfly.uni-koeln.de, 2008)."""
MARKERS = "os^vPX*"
REFERENCE: Mapping[str, Any] = {"color": "#000000", "marker": "D", "linestyle": (0, (4, 2))}
"""What the victim without a defense looks like."""
STUB = 1.2
"""Percent of an axis: the height of a bar of nothing, and what is too low to be seen without."""
WIDTH = 7.0
"""Inches: the text width of a two-column page."""
PANELS = 3
"""Panels side by side."""


def present(points: pd.DataFrame, axis: str) -> list[str]:
    """Return the labels of an axis that occur, in their order."""
    return list(points[axis].cat.remove_unused_categories().cat.categories)


def titled(points: pd.DataFrame, heads: Mapping[str, Mapping[str, str]] | None) -> pd.DataFrame:
    """Return the points with what to write for their attacks and defenses, signs included."""
    texts = titles.of(points, heads)
    for sign, kind in (("‡", "oracle"), ("§", "reached")):
        for label in points.loc[points[kind], "defense"].unique():
            texts["defense"][label] += sign
    return points.assign(
        **{axis: points[axis].cat.rename_categories(found) for axis, found in texts.items()}
    )


def limits(points: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Return the ends of a metric's axis in percent, such that its means use the space.

    An interval may go beyond them: those of two seeds are wider than all differences.
    """
    if metric in WHOLE:
        return 0.0, 100.0
    values = 100 * points[metric]
    low, high = 5 * np.floor((values.min() - 0.5) / 5), 5 * np.ceil((values.max() + 0.5) / 5)
    if metric == "acc_loss":  # bars of it begin at 0
        return min(0.0, float(low)), float(high)
    return max(0.0, float(low)), min(100.0, float(high))


def named(metric: str, low: float) -> str:
    """Return what stands beside an axis that begins at `low`."""
    return f"{head(metric)} ({'points' if metric == 'acc_loss' else '%'})" + (
        f", axis from {low:g}" if low > 0 else ""
    )


def looks(points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return how each defense is drawn: a colour and a marker; beyond seven, another line too."""
    pairs = itertools.product(
        ("-", "--", ":", "-.", (0, (5, 1))), zip(COLORS, MARKERS, strict=True)
    )
    reference = set(points.loc[points["reference"], "defense"])
    names = present(points, "defense")
    found = {name: {**REFERENCE, "label": name} for name in names if name in reference}
    for name, (style, (color, marker)) in zip(
        [name for name in names if name not in reference], pairs, strict=False
    ):
        found[name] = {"color": color, "marker": marker, "linestyle": style, "label": name}
    return found


def panels(count: int) -> tuple[Figure, list[Any]]:
    """Return a figure with `count` panels on common axes."""
    rows, columns = -(-count // PANELS), min(count, PANELS)
    figure = Figure(figsize=(WIDTH, 1.8 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel().tolist()
    for above, axis in zip(axes[count - columns :], axes[count:], strict=False):
        above.tick_params(labelbottom=True)
        axis.set_visible(False)
    return figure, axes[:count]


def percent(part: pd.DataFrame, metric: str) -> tuple[Any, Any, Any]:
    """Return mean, low and high in percent, the mean where there is no interval."""
    middle = 100 * part[metric].to_numpy(dtype=np.float64)
    ends = [100 * part[f"{metric}_{end}"].to_numpy(dtype=np.float64) for end in ("low", "high")]
    low, high = (np.where(np.isnan(end), middle, end) for end in ends)
    return middle, low, high


def legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]], columns: int = 6) -> None:
    """Set a legend of these looks above a figure."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for look in looks.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(looks), columns))
