"""What `sweeper list` prints: every name a sweep file can use."""

from __future__ import annotations

import dataclasses
from typing import Any

KINDS = ("attacks", "defenses", "datasets", "models", "sweeps")


def records(what: str) -> list[dict[str, Any]]:
    """Return one record per name of `what`, one of `KINDS`."""
    if what == "sweeps":
        from sweeper import source

        return [{"name": name, "purpose": source.purpose(name)} for name in source.shipped()]
    if what == "datasets":
        from sweeper import data

        return [{"name": name, "about": line} for name, line in data.known().items()]
    if what == "models":
        from sweeper import models

        return [
            {"name": name, "options": {f.name: f.default for f in _options(family)}}
            for name, family in models.families().items()
        ]
    from sweeper import catalog

    return catalog.describe(what.removesuffix("s"))


def _options(family: type[Any]) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(family) if item.name != "name"]
