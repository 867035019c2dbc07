"""Names of attacks and defenses, found without importing one of them: completion waits for it."""

from __future__ import annotations

import functools
import pkgutil
from importlib.metadata import EntryPoint, entry_points

import attacks
import defenses

PACKAGES = {"attack": attacks, "defense": defenses}
"""Kind of method -> the package its files lie in."""


@functools.lru_cache(maxsize=2)
def points(kind: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of third parties; looking them up costs 9 ms."""
    return tuple(entry_points(group=f"sweeper.{kind}s"))


def names(kind: str) -> list[str]:
    """Return the names of all attacks or defenses."""
    found = {
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(PACKAGES[kind].__path__)
        if not module.name.startswith("_") and module.name != "base"
    }
    return sorted(found | {point.name for point in points(kind)})
