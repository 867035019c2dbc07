"""docs/expected.md: the published figures, how near to expect ours, and the command that shows it.

`python -m sweeper.tables.expected docs/expected.md` writes it anew.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tabulate import tabulate

from sweeper.core.rows import METRICS
from sweeper.plan import source, view
from sweeper.tables import measured, published
from sweeper.tables.layout import PLAIN, head
from sweeper.tables.published import AVERAGE, TOLERANCE, Figure

HEAD = f"""# What to expect

Written by `python -m sweeper.tables.expected docs/expected.md` from `sweeper/sweeps/published.csv`
and `sweeper/sweeps/measured/`. Each section is a sweep that ships. Its tables have the figures that
the source published, then those that this project measured (mean ± standard deviation over the
seeds) with device, date and setting. Rates are in percent; attacks and defenses have the labels of
our sweeps.

Expect your rates within {100 * TOLERANCE:g} points of these, or within the spread of the seeds
where that is larger; `sweeper table SWEEP --compare` marks others with ≠. Seconds depend on the
device, so expect only their order between defenses. The command of a section runs one cell and
what it needs, at the size of the paper; how long that takes was not measured. To get an average,
run the whole sweep. Our averages leave out the victims that carry no backdoor.
"""


def text() -> str:
    """Return docs/expected.md."""
    parts = [HEAD]
    for name in sorted({*published.sweeps(), *measured.sweeps()}):
        printed, ours = published.of(name), _measured(name)
        cells = [f for f in printed or ours if f.attack != AVERAGE]
        first = next((f for f in cells if f.defense != "none"), None)
        command = _command(name, first) if first else f"sweeper run {name} --data DIR"
        swap = " (for another cell, put its labels in place of these)" if first else ""
        parts += [f"## {name}", f"{source.purpose(name)}.", f"One cell{swap}:", f"    {command}"]
        parts += _tables(printed)
        parts += ["Measured by this project:", *_tables(ours)] * bool(ours)
    parts += ["## Published, but in no shipped sweep"]
    parts += _tables([figure for figure in published.figures() if not figure.sweep])
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _measured(name: str) -> list[Figure]:
    """Return what was measured of a sweep in its order, averages where its table has them."""
    from sweeper.plan import spec

    declared, average = spec.load(name), view.of(source.read(name)).average
    attacks = [*(entry.label for entry in declared.attacks), AVERAGE]
    defenses = [entry.label for entry in declared.defenses]

    def place(figure: Figure) -> tuple[int, float, int]:
        defense = (*defenses, figure.defense).index(figure.defense)
        attack = (*attacks, figure.attack).index(figure.attack)
        return attack, figure.poison_rate or 0.0, defense

    kept = [figure for figure in measured.figures(name) if average or figure.attack != AVERAGE]
    return sorted(kept, key=place)


def _command(name: str, figure: Figure) -> str:
    """Return the command that runs one cell of a sweep, in lines that fit the site's column."""
    axes = ("dataset", "attack", "defense")
    values = source.read(name).values
    several = [axis for axis in axes if len(values[f"{axis}s"]) > 1]
    picks = "".join(f" --set\xa0'{axis}s=[{getattr(figure, axis)}]'" for axis in several)
    place = "" if values["datasets"] == ["digits"] else " --data\xa0DIR"
    whole = f"sweeper run {name}{picks} --set\xa0seeds=1{place}"
    lines = textwrap.wrap(whole, 86, subsequent_indent=8 * " ", break_on_hyphens=False)
    return " \\\n".join(lines).replace("\xa0", " ")  # no option is parted from its value


def _tables(figures: Sequence[Figure]) -> Iterable[str]:
    """Return for each source and setting a table of its figures."""
    for (where, dataset, model), group in groupby(sorted(figures, key=_setting), key=_setting):
        lines = list(group)
        shown = view.of(source.read(lines[0].sweep)).values if lines[0].measured else METRICS
        metrics = [metric for metric in shown if any(metric in f.values for f in lines)]
        yield f"{where}: {', '.join(part for part in (dataset, model) if part)}."
        heads = ["attack", "poison rate", "defense", *(head(m, lines[0].score) for m in metrics)]
        yield tabulate(
            [_line(figure, metrics) for figure in lines],
            headers=heads if lines[0].measured else [*heads, "note"],
            tablefmt="pipe",
            disable_numparse=True,
        )


def _setting(figure: Figure) -> tuple[str, str, str]:
    return figure.source, figure.dataset, figure.model


def _line(figure: Figure, metrics: Sequence[str]) -> list[str]:
    rate = "-" if figure.poison_rate is None else f"{100 * figure.poison_rate:g} %"
    shown = []
    for metric in metrics:
        value, spread = figure.values.get(metric), figure.sd.get(metric)
        scale, digits = (1, 1) if metric in PLAIN else (100, 2)
        text = "-" if value is None else f"{scale * value:.{digits}f}"
        shown.append(text if spread is None else f"{text} ± {scale * spread:.{digits}f}")
    note = [] if figure.measured else [figure.note or "-"]
    return [figure.attack, rate, figure.defense, *shown, *note]


if __name__ == "__main__":
    import sys

    for path in sys.argv[1:]:
        Path(path).write_text(text(), encoding="utf-8")
