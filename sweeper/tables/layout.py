"""A table as a plain structure, and the words that stand on it whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from sweeper.core.rows import DEVICES

STATES = {
    "missing": "not run yet",
    "failed": "failed",
    "timeout": "timeout, stopped before its end",
    "diverged": "diverged, weights or losses not finite",
    "blocked": "blocked by a cell that did not end well",
    "not_applicable": "does not apply",
    "undefined": "no such value for this defense",
    "unknown": "not known, as the victim came without its trigger",
    "mixed": "several devices, not averaged: put device, or victim_device, among the rows",
}
"""What an entry without a number can be, worst first after `missing`, as the legend says it."""

_AXES = {"poison_rate": "poison rate", "clean_budget": "clean budget"}
_HEADS = {
    "acc_loss": "ACC loss",
    "acc_before": "ACC before",
    "acc_nontarget": "ACC non-target",
    "acc_nontarget_before": "ACC non-target before",
    "asr_before": "ASR before",
    "asr_all": "ASR all",
    "ra_before": "RA before",
    "leak": "leak",
    "precision": "precision",
    "tpr_at_5": "TPR at 5 % FPR",
    "seconds": "seconds",
    "victim_seconds": "victim seconds",
    "peak_memory_mb": "peak MB",
}
PLAIN = tuple(DEVICES)
"""The metrics that are no fractions: shown as they are."""


class Reference(NamedTuple):
    """What a paper prints, or this project measured, for an entry."""

    value: float
    """A fraction where the metric is one."""
    sources: tuple[int, ...]
    """Places in the table's `sources`, or in its `measured`."""
    outside: bool
    """Ours is off by more than the tolerance and the seeds' spread."""


class Entry(NamedTuple):
    """What stands where a line and a column meet."""

    state: str
    """`ok`, or a key of `STATES`."""
    mean: float
    """Mean over the seeds that are ok, a fraction where the metric is one; nan unless ok."""
    sd: float
    """Standard deviation over them; nan for n < 2."""
    n: int
    """How many they are."""
    partial: bool
    """Some seeds did not end well and are not in the mean."""
    best: bool
    """Better than every other defense of its line beyond the noise."""
    untaken: int = 0
    """The seeds in the mean whose victim did not take; in a line of averages, those that leave a
    victim out."""
    published: Reference | None = None
    """The published figure; None where there is none, or none was asked for."""
    measured: Reference | None = None
    """What this project measured, likewise."""

    @property
    def outside(self) -> bool:
        """It is off by more than the tolerance: from the published figure, else the measured."""
        reference = self.published or self.measured
        return bool(reference and reference.outside)


@dataclass(frozen=True)
class Column:
    """One column of numbers."""

    groups: tuple[Any, ...]
    """Its value on each of the table's column axes, outermost first."""
    metric: str
    """The column of the rows it shows."""


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    labels: tuple[Any, ...]
    """Its value on each of the table's row axes; None where the rows have none."""
    entries: tuple[Entry, ...]
    """One for each column."""


@dataclass(frozen=True)
class Table:
    """A table without a format."""

    row_axes: tuple[str, ...]
    """The axes that label the lines, at least one."""
    col_axes: tuple[str, ...]
    """The axes that group the columns, outermost first."""
    columns: tuple[Column, ...]
    """In order; equal groups stand together."""
    lines: tuple[Line, ...]
    """In order."""
    constants: tuple[tuple[str, Any], ...]
    """The axes with one value in all lines, and that value."""
    seeds: tuple[int, ...]
    """The seeds averaged over, sorted; empty where the seed is an axis of the table."""
    sees: tuple[tuple[Any, str | None], ...]
    """What each defense sees, comma-separated; None where no row says."""
    oracles: frozenset[Any]
    """The defenses that know what no defender does."""
    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Axis -> label -> what to write for it."""
    title: str = ""
    """The first words of the caption."""
    devices: tuple[str, ...] = ()
    """Where the costs it shows were measured."""
    sources: tuple[str, ...] = ()
    """Whose published figures stand in the entries."""
    settings: tuple[str, ...] = ()
    """Where their setting is not ours."""
    measured: tuple[str, ...] = ()
    """On what, when and how the measured figures in the entries were measured."""
    measured_settings: tuple[str, ...] = ()
    """Where their setting is not that of the rows."""
    reached: Mapping[Any, str] = field(default_factory=dict)
    """Defense -> what it was seen to reach beyond what it was given."""
    notes: tuple[str, ...] = ()
    """What else must be known of the rows, a sentence each."""
    max_acc_loss: float = 1.0
    """The fall of ACC beyond which no ASR is bold; 1: nothing is asked."""
    counted: bool = False
    """Whether untaken victims count in averages and for what is bold."""
    score: str = ""
    """What ACC measures in all rows, where it is not accuracy: BLEU."""
    ours: bool = True
    """Whether it shows rows of ours; else published figures alone."""
    tex_label: str = ""
    """What LaTeX refers to it by."""
    starred: bool = False
    """Whether LaTeX sets it across both columns of a page."""
    bare: bool = False
    """Whether LaTeX gets the tabular alone."""


def marks(table: Table, defense: Any) -> str:
    """Return the signs a defense carries: ‡ an oracle, § one seen to reach beyond its inputs."""
    return "‡" * (defense in table.oracles) + "§" * (defense in table.reached)


def label(table: Table, axis: str, value: Any) -> str:
    """Return how people read a value of an axis: `10 %`, `500`, `anp`.

    An oracle carries ‡, a defense that was seen to reach beyond what it was given §.
    """
    text = table.heads.get(axis, {}).get(str(value)) or word(axis, value)
    return text + marks(table, value) if axis == "defense" else text


def word(axis: str, value: Any) -> str:
    """Return how people read a value of an axis, whatever stands beside it; – for none."""
    if value is None or (axis == "poison_rate" and not value):  # the attack has none
        return "–"
    if axis == "poison_rate" or (axis == "clean_budget" and value < 1):
        return f"{100 * value:.6g} %"
    return f"{value:.0f}" if axis == "clean_budget" else str(value)


def caption(table: Table) -> str:
    """Return the axes that do not vary, and the seeds, in words."""
    parts = [
        "no clean data"
        if axis == "clean_budget" and not value
        else f"{name(axis)} {label(table, axis, value)}"
        for axis, value in table.constants
        if value or axis != "poison_rate"  # 0 where the attacks have none
    ]
    if table.seeds:
        parts.append(f"seed{'s' * (len(table.seeds) > 1)} {_ranges(table.seeds)}")
    words = ", ".join(parts)
    return f"{table.title.rstrip('.')}: {words}" if table.title else words


def name(axis: str) -> str:
    """Return how people call an axis."""
    return _AXES.get(axis, axis.replace("_", " "))


def head(metric: str, score: str = "") -> str:
    """Return how people call a metric; `score` is what ACC measures, where it is not accuracy."""
    text = _HEADS.get(metric, metric.upper())
    return text.replace("ACC", score) if score else text


def threat(defense: Any, sees: str | None) -> str:
    """Return what a defense sees, in words: `anp: model, clean`."""
    if sees is None:
        return f"{defense}: not recorded"
    parts = [part.strip() for part in sees.split(",") if part.strip()]
    return f"{defense}: {', '.join(parts) or 'nothing'}"


def _ranges(seeds: Sequence[int]) -> str:
    """Return sorted whole numbers in short: `0-2, 5`."""
    runs = groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0])
    spans = [[seed for _, seed in run] for _, run in runs]
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans)
