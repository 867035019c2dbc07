"""What stands under a table: units, signs, the figures of others, what each defense sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from string import ascii_lowercase

from sweeper.tables.fair import TRIGGERED, UNTAKEN, reaching
from sweeper.tables.layout import PLAIN, STATES, Entry, Table, head, label, threat


@dataclass(frozen=True)
class Style:
    """How one format writes text, emphasis and signs."""

    escape: Callable[[str], str]
    """Makes any text harmless."""
    bold: Callable[[str], str]
    """Sets escaped text in bold."""
    signs: Mapping[str, str]
    """State or other mark -> its sign, as `SIGNS`."""


def footnotes(table: Table, style: Style) -> list[str]:
    """Return the lines under a table: units, the signs that occur, and the threat model."""
    entries = [entry for line in table.lines for entry in line.entries]
    states = {entry.state for entry in entries}
    lines = []
    unit = "" if all(c.metric in PLAIN for c in table.columns) else "Rates in percent"
    spread = "mean ± standard deviation (number of seeds)" if len(table.seeds) > 1 else ""
    if unit or spread:
        text = "; ".join(part for part in (unit, spread) if part)
        lines.append(style.escape(f"{text[0].upper()}{text[1:]}."))
    if any(entry.best for entry in entries):
        lines.append(
            f"{style.bold('Bold')}: "
            + style.escape(
                "better than every other defense (oracles not counted) beyond the noise "
                "(95 % intervals: paired t over seeds, Wilson for one seed)" + _condition(table)
            )
        )
    told = STATES if table.ours else {"missing": "nothing published"}
    signs = [(state, text) for state, text in told.items() if state in states]
    if any(entry.outside for entry in entries):
        signs.append(("outside", "off by more than 2 points and by more than the seeds' spread"))
    if any(entry.partial for entry in entries):
        signs.append(("partial", "without the seeds that are not run yet or did not end well"))
    if any(entry.untaken for entry in entries):
        signs.append(("untaken", UNTAKEN + _untaken(table, entries)))
    if table.oracles:
        signs.append(
            ("oracle", "chosen with test data or told of the attack; not a fair comparison")
        )
    if table.reached:
        called = {label(table, "defense", name): what for name, what in table.reached.items()}
        signs.append(("reached", reaching(called)))
    lines += [f"{style.signs[sign]}: {style.escape(text)}." for sign, text in signs]
    lines += [style.escape(note) for note in table.notes]
    if table.devices:
        lines.append(style.escape(f"Seconds and memory on: {'; '.join(table.devices)}."))
    lines += [style.escape(text) for text in _comparison(table)]
    if table.sees:
        said = (threat(label(table, "defense", defense), sees) for defense, sees in table.sees)
        lines.append("Sees: " + style.escape("; ".join(said)) + ".")
    return lines


def warnings(table: Table) -> list[str]:
    """Return what a reader of the bare numbers must know of them: the last column of a CSV."""
    entries = [entry for line in table.lines for entry in line.entries]
    found = [f"untaken: {UNTAKEN}{_untaken(table, [])}."] * any(e.untaken for e in entries)
    found += [f"{reaching(table.reached)}."] * bool(table.reached)
    return [*found, *table.notes]


def _untaken(table: Table, entries: list[Entry]) -> str:
    """Return what follows from a victim that did not take, and how some of the seeds are told."""
    text = (
        "" if table.counted else "; never bold, in no average (an average marked ° leaves some out)"
    )
    some = next((e for e in entries if 0 < e.untaken < e.n), None)
    if some and len(table.seeds) > 1:
        text += f"; ({some.n}, {some.untaken}°): {some.untaken} of {some.n} seeds"
    return text


def _condition(table: Table) -> str:
    """Return what the best in a metric must fulfil beside, and the end of the sentence."""
    shown = dict.fromkeys(column.metric for column in table.columns)
    heads = [head(metric) for metric in shown if metric in TRIGGERED]
    if not heads or table.max_acc_loss >= 1:
        return "."
    return (
        f"; in {', '.join(heads)} only where {head('acc', table.score)} fell by no more than "
        f"{100 * table.max_acc_loss:g} points."
    )


def _comparison(table: Table) -> list[str]:
    """Return what must be known to read the figures of others."""
    lines, kinds = [], []
    if table.sources:
        kinds.append("published [a]" if table.measured else "published [source]")
        named = zip(map(letter, count()), table.sources, strict=False)
        lines.append(f"Published: {'; '.join(f'[{mark}] {text}' for mark, text in named)}.")
    if table.settings:
        lines.append(f"Published at another setting: {'; '.join(table.settings)}.")
    if table.measured:
        kinds.append("measured by this project [1]")
        named = zip(map(number, count()), table.measured, strict=False)
        lines.append(f"Measured: {'; '.join(f'[{mark}] {text}' for mark, text in named)}.")
    if table.measured_settings:
        lines.append(f"Measured at another setting: {'; '.join(table.measured_settings)}.")
    if not kinds or not table.ours:
        return lines
    less = "ours minus published" if table.sources else "ours minus measured"
    if len(kinds) > 1:
        less += " (or measured, where nothing is published)"
    return [f"Each entry: {' / '.join(kinds)} / ours / {less}; a single number is ours.", *lines]


def letter(place: int) -> str:
    """Return the mark of a published source."""
    return ascii_lowercase[place]


def number(place: int) -> str:
    """Return the mark of a measured one."""
    return str(place + 1)
