"""The tables of docs/time.md: the seconds our own runs of the shipped sweeps took.

`python -m sweeper.tables.durations docs/time.md` writes what stands between their markers anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from sweeper.tables import measured

MARKED = re.compile(r"(<!-- (victims|defenses): ([^>]+?) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

_SETTING = ["model", "model_options", "dataset_options", "recipe", "victim_device", "victim_dtype"]
"""Victims that agree in these take the same time, but for their attack."""


def victims(sweeps: Sequence[str]) -> str:
    """Return one line a sweep: data, model, epochs, and the seconds to train a victim.

    Args:
        sweeps: Shipped sweeps of which something was measured.
    """
    lines = []
    for sweep in sweeps:
        rows = measured.frame(sweep)
        for _, part in rows.groupby(_SETTING, sort=False):
            one, first = part.drop_duplicates(["victim", "victim_seconds"]), part.iloc[0]
            options = json.loads(first["dataset_options"])
            size = options.get("train_size") or options.get("count")
            data = str(first["dataset"]) + (f", {size:,}" if size else "")
            epochs = str(json.loads(first["recipe"])["epochs"])
            memory = f"{part['peak_memory_mb'].max() / 1000:.1f}"
            line = [sweep, _model(first), data, epochs, _span(one["victim_seconds"]), memory]
            lines.append([*line, str(first["victim_dtype"]), _device(first["victim_device"])])
    heads = ["sweep", "model", "data", "epochs", "s a victim", "GB", "precision", "device"]
    return tabulate(lines, heads, tablefmt="pipe", disable_numparse=True)


def defenses(sweeps: Sequence[str]) -> str:
    """Return one line a defense: the seconds of its cells in each sweep; a dash where none ran.

    A sweep that was measured on several devices has a column for each.
    """
    frames = {}
    for sweep in sweeps:
        rows = measured.frame(sweep)
        parts = dict(list(rows[rows["defense"] != "none"].groupby("device", sort=False)))
        for device, part in parts.items():
            frames[sweep if len(parts) == 1 else f"{sweep}, {_device(device)}"] = part
    names = sorted({name for rows in frames.values() for name in rows["defense"]})
    lines = [
        [name, *(_span(rows.loc[rows["defense"] == name, "seconds"]) for rows in frames.values())]
        for name in names
    ]
    return tabulate(lines, ["defense", *frames], tablefmt="pipe", disable_numparse=True)


def _device(name: object) -> str:
    """A device without the marks of its maker."""
    return str(name).replace("(R)", "").removesuffix(" Processor")


def _model(row: pd.Series[str]) -> str:
    """The model of a row, with its width where a sweep narrows it."""
    options = json.loads(row["model_options"])
    return row["model"] + (f", width {options['width']}" if "width" in options else "")


def _span(seconds: pd.Series[float]) -> str:
    """Median, and from where to where; a dash of nothing."""
    if seconds.empty:
        return "-"
    low, middle, high = (_short(float(seconds.quantile(q))) for q in (0, 0.5, 1))
    return middle if low == high else f"{middle} ({low} to {high})"


def _short(seconds: float) -> str:
    """Two digits: 0.87, 4.9, 51, 1,300."""
    return f"{float(f'{seconds:.2g}'):,.10g}"


def rewrite(text: str) -> str:
    """Return a page with the tables between its markers made anew."""

    def made(match: re.Match[str]) -> str:
        start, what, names, end = match.groups()
        table = {"victims": victims, "defenses": defenses}[what]
        return f"{start}\n{table([name.strip() for name in names.split(',')])}\n\n{end}"

    return MARKED.sub(made, text)


if __name__ == "__main__":
    import sys

    for path in map(Path, sys.argv[1:]):
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
