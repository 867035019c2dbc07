"""Under what the rows of a table were measured, where they differ in it: one sentence."""

from __future__ import annotations

import pandas as pd

from sweeper.core.rows import CONDITIONS
from sweeper.tables import fair

_WITHIN = {"data_hash": "dataset", "capability": "device_kind", "cuda": "device_kind"}
"""A column of which each value of another has its own: it differs where one has several."""
_OLD = ("torch", "victim_torch")
"""Null in rows, and of victims, of code that did not yet say under what it measured."""


def notes(data: pd.DataFrame) -> tuple[str, ...]:
    """Return what must be known of the rows whatever the metrics: `sentence`, and `left_behind`."""
    left = [f"{d}: {fair.shortened(left)}" for d, left in fair.listed(data, "left_behind").items()]
    undone = f"Left behind in its process, with no way back: {'; '.join(left)}." if left else ""
    return tuple(text for text in (tasks(data), sentence(data), undone) if text)


def score(data: pd.DataFrame) -> str:
    """Return what ACC measures in all rows where that is not accuracy; else empty."""
    found = data["score"].dropna().unique()
    return str(found[0]) if len(found) == 1 and found[0] != "accuracy" else ""


def tasks(data: pd.DataFrame) -> str:
    """Return what the samples of each data set are, and what ACC is; empty where all are images."""
    known = data[["dataset", "task", "score"]].dropna().drop_duplicates()
    if (known["task"] == "image").all():
        return ""
    parts = [
        f"{dataset} {task}" + f" (ACC is {score})" * (score != "accuracy")
        for dataset, task, score in known.itertuples(index=False)
    ]
    return f"Samples: {', '.join(parts)}."


def sentence(data: pd.DataFrame) -> str:
    """Return in which of `CONDITIONS` the rows that ended well differ; empty where in none.

    A defense and its victim are said together where they differ alike. Of Python the minor version
    counts. A null counts as nothing; rows of older code have them, and the sentence says so.
    """
    data = data[data["status"] == "ok"]
    values = {name: _values(data, name) for name in CONDITIONS}
    parts = []
    for name, words in CONDITIONS.items():
        twin = f"victim_{name}"
        text = f"{words.removesuffix(' of the defense')} {_joined(values[name])}"
        if name.startswith("victim_"):
            if values[name] and values[name] != values[name.removeprefix("victim_")]:
                parts.append(text)
        elif values[name]:
            alike = values.get(twin) == values[name]
            parts.append(text + " (victims too)" * alike)
    old = any(data[name].isna().any() for name in _OLD)
    if not parts:
        return "Older rows do not say under what they were measured." if old else ""
    return f"Measured with {'; '.join(parts)}{'; older rows do not say' * old}."


def _values(data: pd.DataFrame, name: str) -> list[str]:
    """Return the values of a column in which rows differ, sorted; nothing where they do not."""
    column = data[name].dropna()
    text = column.astype(str)
    if name == "python":
        text = text.str.split(".").str[:2].str.join(".")
    if name == "data_hash":
        text = data["dataset"].loc[text.index] + " " + text.str[:8]
    if name in _WITHIN:
        several = text.groupby(data[_WITHIN[name]].loc[text.index]).transform("nunique") > 1
        text = text[several]
    found = text.unique().tolist()
    return sorted(found, key=lambda value: (len(value), value)) if len(found) > 1 else []


def _joined(values: list[str]) -> str:
    return " and ".join([", ".join(values[:-1]), *values[-1:]]) if values else ""
