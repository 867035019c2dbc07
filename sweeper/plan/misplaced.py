"""Keys that stand at the top of a sweep file and belong elsewhere: what to write instead."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from sweeper import data, models
from sweeper.core import catalog, names, options
from sweeper.core.errors import SweepError
from sweeper.engine.recipes import Recipe
from sweeper.plan.document import flow
from sweeper.plan.sweep import Entry, Shape, Sweep, entry_fields
from sweeper.plan.view import View

LISTS = {"datasets": "dataset", "models": "model", "attacks": "attack", "defenses": "defense"}
"""Key of a sweep -> what an entry below it begins with."""


def sentence(key: str, value: Any, values: Mapping[str, Any]) -> str:
    """Return what to write for a key that no sweep has at its top; empty where nobody knows.

    Args:
        key: The key.
        value: What stands there.
        values: The whole file.
    """
    several = names.meant("key", f"{key}s", Sweep.model_fields)
    if several := several or names.meant("key", key, Sweep.model_fields):
        return _write(key, "", several, value if isinstance(value, list) else [value])
    if place := within(key):
        whole, field = place
        given = values.get(whole, {})
        base = {"base": given} if whole == "recipe" else {}
        mapping = given if isinstance(given, dict) else base
        return _write(key, f"the {whole}", whole, {**mapping, field: value})
    for listed, kind in LISTS.items():
        entries = values.get(listed)
        for item in entries if isinstance(entries, list) else ():
            with contextlib.suppress(SweepError, ValueError):  # an entry that is wrong is told too
                if key in _options(kind, Entry(**entry_fields(kind, item))):
                    entry = item if isinstance(item, dict) else {kind: item}
                    return _write(key, "an entry", listed, [{**entry, key: value}])
    return ""


def within(key: str) -> tuple[str, str] | None:
    """Return the mapping of a sweep a key belongs into, and what it is called there."""
    if setting := names.meant("option", key, options.names(Recipe)):
        return "recipe", setting
    for whole, model in (("resources", Shape), ("table", View)):
        for field in (key, f"{key}s"):
            if field in model.model_fields:
                return whole, field
    return None


def _write(key: str, place: str, whole: str, value: Any) -> str:
    belongs = f"belongs into {place}: " if place else ""
    return f"{key}: {belongs}write `{whole}: {flow(value)}`"


def _options(kind: str, entry: Entry) -> list[str]:
    """The options an entry may have."""
    if kind in names.KINDS:
        return [*options.names(catalog.method(kind, entry.name)), "preset"]
    if kind == "model":
        return options.names(type(models.family(entry.name, {})))
    source = data.source_of({"dataset": entry.name})
    return ["train_size", "test_size", *(options.names(source) if source else ())]
