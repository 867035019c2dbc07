"""Names of attacks and defenses, found without importing one of them: completion waits for it."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points

KINDS = ("attack", "defense")
"""Kinds of method; each has a package of its name in the plural, one file a method."""


@functools.lru_cache(maxsize=2)
def points(kind: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of third parties; looking them up costs 9 ms."""
    return tuple(entry_points(group=f"sweeper.{kind}s"))


def names(kind: str) -> list[str]:
    """Return the names of all attacks or defenses."""
    package = importlib.import_module(f"{kind}s")
    files = {
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(package.__path__)
        if not (module.ispkg or module.name.startswith("_") or module.name == "base")
    }
    return sorted(files | {point.name for point in points(kind)})
