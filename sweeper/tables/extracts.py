"""The tables of docs/methods/: measured rows of a shipped sweep between two markers of a page.

    <!-- measured proof: none, ft-200, fip -->
    <!-- end measured -->

`python -m sweeper.tables.extracts docs/methods/*.md` writes what stands between them anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from sweeper.core.errors import SweepError
from sweeper.tables import fair, measured
from sweeper.tables.conditions import score
from sweeper.tables.layout import head

MARKED = re.compile(
    r"(<!-- measured ([\w-]+): ([^>]+?) -->\n).*?(<!-- end measured -->)", re.DOTALL
)

UNTAKEN = f"the backdoor did not take (undefended ASR below {100 * fair.TOOK:g} %)"


def table(sweep: str, defenses: Sequence[str]) -> str:
    """Return ACC / ASR in percent of these defenses, one a line, against the attacks of a sweep.

    Means over the seeds, with the standard deviation where there are several, from the newest row
    of each cell; a dot where none was measured, and n where the seeds of a cell are fewer. A victim
    that did not take counts only where none of its attack did (`fair.taken`), which is marked °.

    Args:
        sweep: A shipped sweep of which something was measured.
        defenses: Labels it declares, in the order of the lines.

    Raises:
        SweepError: The sweep has no such defense, or nothing was measured of it.
    """
    from sweeper.plan import spec

    declared = spec.load(sweep)
    known = [entry.label for entry in declared.defenses]
    if strange := [name for name in defenses if name not in known]:
        raise SweepError(f"{sweep} has no defense {', '.join(strange)}, only {', '.join(known)}")
    rows = measured.frame(sweep).sort_values("started_at").drop_duplicates("key", keep="last")
    rows = rows[rows["defense"].isin(defenses)]
    if rows.empty:
        raise SweepError(f"nothing was measured of {sweep} with {', '.join(defenses)}")
    counted = fair.taken(rows)
    without = rows.loc[~counted, ["attack", "seed"]].drop_duplicates()
    rows = rows[counted]
    vain = set(rows.loc[fair.untaken(rows), "attack"])
    attacks = [entry.label for entry in declared.attacks if entry.label in set(rows["attack"])]
    most = rows["seed"].nunique()
    cells = {place: _cell(cell, most) for place, cell in rows.groupby(["defense", "attack"])}
    lines = [[name, *(cells.get((name, attack), ".") for attack in attacks)] for name in defenses]
    places = ["left", *["right"] * len(attacks)]
    heads = [attack + "°" * (attack in vain) for attack in attacks]
    heads = [f"{head('acc', score(rows))} / ASR", *heads]
    made = tabulate(lines, heads, tablefmt="pipe", colalign=places)
    said = [f"Sweep `{sweep}`, {_said(rows)}."]
    gone = [f"{attack} of seed {seed}" for attack, seed in without.to_numpy()]
    said += [f"Left out is {one}: {UNTAKEN}." for one in gone]
    said += [f"°: {UNTAKEN}."] * bool(vain)
    return f"{made}\n\n{' '.join(said)}"


def _cell(rows: pd.DataFrame, most: int) -> str:
    """Mean ± deviation of ACC and of ASR."""
    shown = []
    for metric in ("acc", "asr"):
        values = 100 * rows[metric].dropna()
        if values.empty:  # a clean model has no ASR
            shown.append("–")
            continue
        shown.append(f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(rows) > 1 else ""))
    few = f" (n = {len(rows)})" if len(rows) < most else ""
    return " / ".join(shown) + few


def _said(rows: pd.DataFrame) -> str:
    """Which seeds, where and when."""
    seeds = sorted(int(seed) for seed in set(rows["seed"]))
    word = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    devices = " and ".join(sorted(set(rows["device"])))
    return f"{word}, {devices}, {str(rows['started_at'].max())[:10]}"


def rewrite(text: str) -> str:
    """Return a page with the tables between its markers made anew."""

    def made(match: re.Match[str]) -> str:
        start, sweep, names, end = match.groups()
        return f"{start}\n{table(sweep, [name.strip() for name in names.split(',')])}\n\n{end}"

    return MARKED.sub(made, text)


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(rewrite(page.read_text(encoding="utf-8")), encoding="utf-8")
