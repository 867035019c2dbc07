"""Figures for a paper from a sweep's points: rate curves, trade-off, bars, ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from sweeper.core.errors import SweepError, unknown
from sweeper.core.outputs import written
from sweeper.tables import drawing
from sweeper.tables.layout import head, name, word
from sweeper.tables.points import PLACE, means, measure, ranks

FORMATS = ("pdf", "svg", "png")


def draw(
    what: str,
    points: pd.DataFrame,
    metric: str = "asr",
    heads: Mapping[str, Mapping[str, str]] | None = None,
) -> Figure:
    """Return the figure `what`, one of `FIGURES`, of the points of a sweep.

    Args:
        what: The figure.
        points: From `points.points`.
        metric: One of `points.MEASURES`; the trade-off sets it against the ACC loss.
        heads: Axis -> label -> what to write for it, where not its title (`titles.of`).

    Raises:
        SweepError: No such figure or metric, or nothing in the rows to draw.
    """
    if what not in FIGURES:
        raise SweepError(f"plot: {unknown('figure', what, FIGURES)}")
    if points[measure(metric)].isna().all():
        raise SweepError(f"plot: no row has a value of {metric}: choose another with --metric")
    points = drawing.titled(points, heads)
    with rc_context(drawing.STYLE):  # type: ignore[arg-type]  # its keys are literals there
        return FIGURES[what](points, metric)


def save(figure: Figure, out: Path) -> None:
    """Write a figure as the file's ending says.

    Raises:
        SweepError: The ending is not one of `FORMATS`, or the file cannot be written.
    """
    form = ending(out)
    stamp: Mapping[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with written(out), rc_context(drawing.STYLE):  # type: ignore[arg-type]
        figure.savefig(out, dpi=300, metadata=stamp[form])


def ending(out: Path) -> str:
    """Return the format that a file's ending names.

    Raises:
        SweepError: It is not one of `FORMATS`.
    """
    form = out.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise SweepError(f"--out {out}: {unknown('format', form, FORMATS)}; end the name in .pdf")
    return form


def rates(points: pd.DataFrame, metric: str) -> Figure:
    """Draw the metric over the poison rate: a panel an attack of two or more, a line a defense."""
    rated = points[points["poison_rate"] > 0].dropna(subset=[metric])
    rated = rated[rated.groupby("attack", observed=True)["poison_rate"].transform("nunique") > 1]
    if rated.empty:
        raise SweepError(
            "plot rates: no attack has two poison rates, as a curve needs: add to poison_rates"
        )
    single(rated, "attack", "poison_rate", "defense")
    names, looks = drawing.present(rated, "attack"), drawing.looks(rated)
    figure, axes = drawing.panels(len(names))
    for axis, attack in zip(axes, names, strict=False):
        for defense, look in looks.items():
            part = rated[(rated["attack"] == attack) & (rated["defense"] == defense)]
            line = part.sort_values("poison_rate")
            values, low, high = drawing.percent(line, metric)
            x = 100 * line["poison_rate"]
            axis.plot(x, values, clip_on=False, **look)
            axis.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
            lost = line["untaken"].to_numpy() > 0
            hollow = look | {"label": None, "linestyle": "none", "markerfacecolor": "white"}
            if lost.any():  # a line of nothing has no place that the layout could use
                axis.plot(x[lost], values[lost], clip_on=False, **hollow)
        axis.set_xscale("log")
        axis.set_xticks(ticks := sorted(100 * rated["poison_rate"].unique()))
        axis.set_xticklabels([f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(attack)
    figure.supxlabel("poison rate (%)" + _note(rated, "hollow"), fontsize=8)
    low, high = drawing.limits(rated, metric)
    axes[0].set_ylim(low, high)
    figure.supylabel(drawing.named(metric, low), fontsize=8)
    drawing.legend(figure, looks)
    return figure


def tradeoff(points: pd.DataFrame, metric: str) -> Figure:
    """Draw the metric against the ACC loss: small a cell, large a defense's mean, the front.

    The victim without a defense is a hollow diamond, the reference, and on no front.
    """
    average, looks = means(points, metric), drawing.looks(points)
    figure = Figure(figsize=(drawing.WIDTH / 2, drawing.WIDTH / 2.4), layout="constrained")
    axis = figure.subplots()
    for defense, given in looks.items():
        look = given | {"linestyle": "none"}
        cells = points[points["defense"] == defense]
        faint = look | {"label": None, "markersize": 3.5, "alpha": 0.45, "markeredgewidth": 0}
        lost = cells["untaken"] > 0
        ring = faint | {"markerfacecolor": "none", "markeredgewidth": 0.5}
        for part, kind in ((cells[~lost], faint), (cells[lost], ring)):
            if len(part):
                axis.plot(100 * part["acc_loss"], 100 * part[metric], clip_on=False, **kind)
        for row in average[average["defense"] == defense].to_dict("records"):
            hollow = {"markerfacecolor": "none"} if row["barred"] or row["reference"] else {}
            large = look | {"markersize": 7} | hollow
            axis.plot(100 * row["x"], 100 * row["y"], clip_on=False, **large)
    front = average[average["front"]].sort_values("x")
    axis.plot(100 * front["x"], 100 * front["y"], drawstyle="steps-post", color="0.5", zorder=0)
    axis.set_xlabel("ACC loss (points)" + _note(points, "small, hollow"))
    low, high = drawing.limits(points.dropna(subset=[metric]), metric)
    axis.set_ylim(low, high)
    axis.set_ylabel(drawing.named(metric, low))
    drawing.legend(
        figure, {label: look | {"linestyle": "none"} for label, look in looks.items()}, 3
    )
    return figure


def bars(points: pd.DataFrame, metric: str) -> Figure:
    """Draw the metric as bars with intervals: a group an attack, a panel a poison rate.

    Where no attack has two rates all stand in one panel, each with its own.
    """
    given = points.dropna(subset=[metric])
    single(given, "attack", "poison_rate", "defense")
    rated = given[given["poison_rate"] > 0]
    rates_of = rated.groupby("attack", observed=True)["poison_rate"].unique()
    levels = sorted(set(given["poison_rate"]) - {0.0}) or [0.0]  # 0: an attack without a rate
    together = len(levels) > 1 and all(len(rates) == 1 for rates in rates_of)
    looks, attacks = drawing.looks(given), drawing.present(given, "attack")
    width = 0.8 / len(looks)
    if together:
        levels = levels[:1]
    low, high = drawing.limits(given, metric)
    figure = Figure(figsize=(drawing.WIDTH, 1.9 * len(levels) + 0.6), layout="constrained")
    axes = figure.subplots(len(levels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axis, level in zip(axes, levels, strict=True):
        for place, (defense, look) in enumerate(looks.items()):
            here = given["poison_rate"].isin([level, 0.0]) | together
            part = given[(given["defense"] == defense) & here]
            at = [attacks.index(attack) + (place + 0.5) * width - 0.4 for attack in part["attack"]]
            plain = look["linestyle"] in ("-", drawing.REFERENCE["linestyle"])
            hatch = None if plain else "////"
            _columns(axis, at, part, metric, (low, high), width=width, hatch=hatch, **look)
        if together:
            below = [
                f"\n{word('poison_rate', rates_of[a][0])}" if a in rates_of else "" for a in attacks
            ]
            axis.set_xticks(range(len(attacks)), map(str.__add__, attacks, below))
        else:
            axis.set_xticks(range(len(attacks)), attacks)
            axis.set_title(f"poison rate {word('poison_rate', level)}" if level else "no rate")
    axes[0].set_ylim(low, high)
    figure.supylabel(drawing.named(metric, low), fontsize=8)
    if note := _note(given, "°"):
        figure.supxlabel(note.strip(), fontsize=8)
    drawing.legend(figure, looks)
    return figure


def _columns(
    axis: Any,
    at: Sequence[float],
    part: pd.DataFrame,
    metric: str,
    limits: tuple[float, float],
    *,
    width: float,
    hatch: str | None,
    color: str,
    **_: Any,
) -> None:
    """Draw the bars of one defense; those too low to be seen have a stub and their number."""
    values, low, high = drawing.percent(part, metric)
    base = max(0.0, limits[0])
    stub = drawing.STUB / 100 * (limits[1] - limits[0])
    error = np.nan_to_num([values - low, high - values])
    small = np.abs(values - base) < stub
    height = np.where(small, stub, values - base)
    axis.bar(at, height, width, bottom=base, color=color, hatch=hatch)
    style = {"fmt": "none", "elinewidth": 0.6, "ecolor": "0.2"}
    axis.errorbar(at, values, yerr=error, **style)
    for spot, top, value, tiny, lost in zip(
        at, np.maximum(high, base + stub), values, small, part["untaken"] > 0, strict=True
    ):
        text = f"{value:.1f}".replace("-0.0", "0.0") * bool(tiny) + "°" * bool(lost)
        axis.annotate(text, (spot, top), ha="center", va="bottom", fontsize=5, rotation=90 * tiny)


def critical(points: pd.DataFrame, metric: str) -> Figure:
    """Draw average ranks; a bar joins those closer than the critical difference (Demsar, 2006)."""
    ranking = ranks(points, metric)
    rank = ranking.rank
    joined = _cliques(rank.to_numpy(), ranking.difference)
    half = (len(rank) + 1) // 2
    top, low = 0.55 + 0.16 * len(joined), float(half)
    figure = Figure(
        figsize=(drawing.WIDTH * 0.75, 0.2 * (top / 0.22 + half) + 0.55), layout="constrained"
    )
    axis = figure.subplots()
    axis.set(xlim=(len(rank) + 0.5, 0.5), ylim=(low + top, -0.9), yticks=[])
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.spines["top"].set_visible(True)
    axis.xaxis.tick_top()
    axis.set_xticks(range(1, len(rank) + 1))
    for place, (defense, value) in enumerate(rank.items()):
        left = place >= half  # the worse half is written at the left, where high ranks are
        y = top + (len(rank) - 1 - place if left else place)
        edge = len(rank) + 0.4 if left else 0.6
        axis.plot([value, value, edge], [-0.9, y, y], color="0.2", lw=0.8)
        words = f"{defense} {value:.2f}" if left else f"{value:.2f} {defense}"
        axis.annotate(
            words,
            (edge, y),
            (-3 if left else 3, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )
    for place, (first, last) in enumerate(joined):
        y = 0.1 + 0.16 * place - 0.3
        axis.plot([rank.iloc[first] - 0.05, rank.iloc[last] + 0.05], [y, y], color="k", lw=3)
    most = 100 * float(points["max_acc_loss"].max())
    figure.text(
        0.5,
        0.0,
        f"average rank by {head(metric)} over {ranking.blocks} settings; "
        f"critical difference {ranking.difference:.2f}"
        + f"\nlast where it lost more than {most:g} points of ACC: {', '.join(ranking.guessing)}"
        * bool(ranking.guessing),
        ha="center",
        va="bottom",
    )
    return figure


FIGURES: Mapping[str, Callable[[pd.DataFrame, str], Figure]] = {
    "rates": rates,
    "tradeoff": tradeoff,
    "bars": bars,
    "ranks": critical,
}
"""What `draw` can draw."""


def single(points: pd.DataFrame, *free: str) -> None:
    """Do nothing if every axis but `free` has one value.

    Raises:
        SweepError: One has several: a line of the figure would mix them.
    """
    for axis in PLACE:
        values = points[axis].dropna().unique().tolist()
        if axis not in free and len(values) > 1:
            labels = ", ".join(str(value) for value in values)
            raise SweepError(
                f"plot: the sweep has several of {name(axis)} ({labels}), a figure shows one: "
                f"add --where {axis}={values[0]}"
            )


def _note(points: pd.DataFrame, mark: str) -> str:
    """Return the line that explains the mark of victims that did not take, where there are any."""
    if not (points["untaken"] > 0).any():
        return ""
    return f"\n{mark}: the victim carries no backdoor\nor has learned nothing"


def _cliques(rank: Any, difference: float) -> list[tuple[int, int]]:
    """Return the longest runs (first, last) of sorted ranks no further apart than `difference`."""
    runs: list[tuple[int, int]] = []
    for first in range(len(rank)):
        last = int(np.searchsorted(rank, rank[first] + difference, side="right")) - 1
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs
