"""A sweep as one HTML page that opens from disk: its texts, styles and scripts are all inside.

The page's parts lie in `page/`. Vega-Lite draws, from the bundle the package vl-convert carries.
What the store holds enters as JSON and the scripts set it as text; the page's policy lets it run
only the two scripts it was written with, and load nothing.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from sweeper.core import kept
from sweeper.core.errors import SweepError
from sweeper.core.rows import METRICS
from sweeper.core.text import without_homes
from sweeper.plan.view import MAX_ACC_LOSS
from sweeper.tables import conditions, fair, glossary, tables, titles
from sweeper.tables.elements import asset, digest, filled
from sweeper.tables.layout import STATES, head, threat
from sweeper.tables.points import MEASURES, PLACE, WHOLE, costs, points, ranks
from sweeper.tables.render import SIGNS
from sweeper.tables.results import by_task, once

SCRIPTS = ("base.js", "tables.js", "charts.js", "report.js")
"""The parts of the page's own script, in this order: each knows those before it."""
_LABELS = ("dataset", "model", "attack", "defense")
_DOWN = tuple(axis for axis in PLACE if axis != "defense")
_MARKED = tuple(name for name in MEASURES if name in METRICS)
_NOTES = {
    "partial": "without the seeds that did not end well",
    "untaken": f"{fair.UNTAKEN}, in one seed at least",
    "oracle": "chosen with test data or told of the attack; not a fair comparison",
}


def build(
    frame: pd.DataFrame,
    sweep: str,
    order: Mapping[str, Sequence[str]],
    *,
    heads: Mapping[str, Mapping[str, str]] | None = None,
    untaken: bool = False,
    max_acc_loss: float = MAX_ACC_LOSS,
    text: str = "",
    data: Mapping[str, str] | None = None,
    pictures: Iterable[tuple[str, bytes]] = (),
    left_out: Iterable[str] = (),
) -> str:
    """Return the page of a sweep; the same rows and pictures give the same page.

    Args:
        frame: The sweep's rows, from `results.frame`.
        sweep: Its name.
        order: Axis -> its labels in the order of the sweep file.
        heads: Axis -> label -> what to write for it, where not its title (`titles.of`).
        untaken: Whether victims that did not take (`fair.untaken`) count in means and ranks.
        max_acc_loss: The fall of ACC beyond which a defense leads nothing and ranks last.
        text: The sweep file.
        data: Data set -> its digest.
        pictures: (title, PNG) of triggered images.
        left_out: Why there are no others, a sentence each.

    Raises:
        SweepError: No rows, or rows of several settings under one label.
    """
    frame = pd.concat(by_task(frame, order.get("dataset", ())))
    policy: dict[str, Any] = {"untaken": untaken, "max_acc_loss": max_acc_loss}
    sweep_points = points(frame, order, **policy)
    best = _best(sweep_points, tables.build(frame, rows=_DOWN, values=_MARKED, **policy))
    rows, _ = once(frame)
    score = conditions.score(rows)
    facts = {
        "sweep": sweep,
        "order": {axis: list(sweep_points[axis].cat.categories) for axis in _LABELS},
        "titles": titles.of(rows, heads),
        "measures": _measures(score),
        "glossary": glossary.sentences(
            [name for name in MEASURES if sweep_points[name].notna().any()], score
        ),
        "max_acc_loss": max_acc_loss,
        "counted": untaken,
        "notes": [*filter(None, [fair.sentence(fair.victims(rows))]), *conditions.notes(rows)],
        "states": _states(rows, max_acc_loss),
        "sizes": {"points": len(sweep_points), "rows": len(rows)},
        "points": _columns(sweep_points.drop(columns="max_acc_loss").assign(**best)),
        "rows": _columns(rows),
        "ranks": _ranks(sweep_points),
        "costs": _costs(frame),
        "about": _about(rows, data or {}),
        "text": without_homes(text),
        "pictures": [(title, _image(png)) for title, png in pictures],
        "left_out": list(left_out),
    }
    return _page(sweep, facts)


def _page(sweep: str, facts: Mapping[str, Any]) -> str:
    """Return the page that holds these facts."""
    parts = {"library": _library(), "script": _script()}
    parts |= {"policy": _policy(parts.values()), "style": asset("report.css")}
    parts |= {"title": html.escape(sweep), "data": _json(facts)}
    return filled("report.html", parts)


def _image(png: bytes) -> str:
    """Return a picture as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _best(sweep_points: pd.DataFrame, table: tables.Table) -> dict[str, list[bool]]:
    """Return for each measure M a column `M_best`: which points the table has in bold."""
    won = set()
    for line in table.lines:
        spot = dict(table.constants) | dict(zip(table.row_axes, line.labels, strict=True))
        for column, entry in zip(table.columns, line.entries, strict=True):
            if entry.best:
                place = spot | dict(zip(table.col_axes, column.groups, strict=True))
                won.add((column.metric, *(place[axis] for axis in PLACE)))
    places = list(sweep_points[list(PLACE)].itertuples(index=False, name=None))
    return {f"{name}_best": [(name, *place) in won for place in places] for name in _MARKED}


def _measures(score: str) -> list[dict[str, Any]]:
    """Return what the figures can show; `score` is what ACC measures, where it is not accuracy."""
    return [
        {
            "name": m,
            "head": head(m, score),
            "better": better,
            "triggered": m in fair.TRIGGERED,
            "whole": m in WHOLE,
        }
        for m, better in MEASURES.items()
    ]


def _states(rows: pd.DataFrame, max_acc_loss: float) -> dict[str, dict[str, str]]:
    """Return every sign a cell can have, and what it says."""
    guessing = f"ACC fell by more than {100 * max_acc_loss:g} points"
    found = {"guessing": guessing, "reached": fair.reaching(fair.reached(rows))}
    return {s: {"sign": SIGNS[s], "text": t} for s, t in (STATES | _NOTES | found).items()}


def _script() -> str:
    """Return the page's own script, its names hidden from the library's."""
    return "\n".join(['"use strict";', "(() => {", *map(asset, SCRIPTS), "})();"])


@functools.lru_cache(maxsize=1)
def _library() -> str:
    """Return Vega, Vega-Lite and their embedding as one script.

    Bundling them takes 1.5 to 3 s of a core, so the script is kept, by the package's version.
    """
    import vl_convert

    file = kept.cache() / f"vega-embed-{vars(vl_convert)['__version__']}.json"
    made = kept.kept(file, lambda: vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    return str(made)


def _policy(scripts: Iterable[str]) -> str:
    """Return a content security policy that allows these scripts, and nothing from elsewhere."""
    allowed = " ".join(map(digest, scripts))
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _json(value: Any) -> str:
    """Return JSON that no text in it can end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Return columns short: numbers to six digits, texts as places in a list of their levels."""
    out: dict[str, Any] = {}
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            numbers = column.astype("Float64").to_numpy(np.float64, na_value=np.nan).tolist()
            out[str(name)] = [_number(value) for value in numbers]
        else:
            codes, levels = pd.factorize(column)
            out[str(name)] = {"levels": levels.tolist(), "codes": codes.tolist()}
    return out


def _number(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _ranks(sweep_points: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the ranks by each measure on each data set, or why there are none."""
    out = []
    for dataset, part in sweep_points.groupby("dataset", observed=True):
        for name in MEASURES:
            entry: dict[str, Any] = {"dataset": dataset, "measure": name}
            try:
                ranking = ranks(part, name)
            except SweepError as error:
                entry["why"] = str(error).partition(": ")[2]
            else:
                entry |= {
                    "defenses": list(ranking.rank.index),
                    "rank": [_number(value) for value in ranking.rank],
                    "difference": _number(ranking.difference),
                    "blocks": ranking.blocks,
                    "left_out": ranking.left_out,
                    "guessing": ranking.guessing,
                }
            out.append(entry)
    return out


def _minute(moment: str) -> str:
    """Return a moment of a row as people write it: `2026-11-29 15:04 UTC`."""
    return f"{datetime.fromisoformat(moment).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def _costs(frame: pd.DataFrame) -> dict[str, Any]:
    totals = costs(frame)
    cells = totals.defenses.astype(object).where(totals.defenses.notna(), None)
    return {
        "cells": cells.to_dict("records"),
        "victims": totals.victims,
        "training": totals.training,
        "saved": totals.saved,
    }


def _about(rows: pd.DataFrame, data: Mapping[str, str]) -> dict[str, list[str]]:
    """Return where the numbers come from: code, devices, data, times, settings."""

    def counted(name: str) -> list[str]:
        counts = rows[name].value_counts().items()
        return [f"{value} ({count} rows)" for value, count in counts] or ["not recorded"]

    settings = rows[list(PLACE)].drop_duplicates()
    started = rows["started_at"].dropna()
    sees = {threat(*pair) for pair in zip(rows["defense"], rows["sees"], strict=True)}
    return {
        "rows": [f"{len(rows)}, of {len(settings)} settings"],
        "started": [" to ".join(dict.fromkeys([_minute(started.min()), _minute(started.max())]))]
        if len(started)
        else ["not recorded"],
        "versions": [re.sub(r'[{}"]', "", version) for version in counted("versions")],
        "devices": counted("device"),
        "data digests": [f"{label}: {digest}" for label, digest in data.items()]
        or ["not recorded; a run records them"],
        "sees": ["; ".join(sorted(sees))],
    }
