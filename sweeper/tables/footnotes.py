"""What stands under a table: units, signs, the figures of others, what each defense sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from string import ascii_lowercase

from sweeper.tables.layout import PLAIN, STATES, Table, threat


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
                "(95 % intervals: paired t over seeds, Wilson for one seed)."
            )
        )
    signs = [(state, text) for state, text in STATES.items() if state in states]
    if any(entry.outside for entry in entries):
        signs.append(("outside", "off by more than 2 points and the seeds' spread"))
    if any(entry.partial for entry in entries):
        signs.append(("partial", "without the seeds that did not end well"))
    if table.oracles:
        signs.append(("oracle", "chosen with test data; not a fair comparison"))
    lines += [f"{style.signs[sign]}: {style.escape(text)}." for sign, text in signs]
    if table.devices:
        lines.append(style.escape(f"Seconds and memory on: {'; '.join(table.devices)}."))
    lines += [style.escape(text) for text in _comparison(table)]
    if table.sees:
        lines.append("Sees: " + style.escape("; ".join(threat(*pair) for pair in table.sees)) + ".")
    return lines


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
    if not kinds:
        return []
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
