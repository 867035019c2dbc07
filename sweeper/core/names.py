"""Names of attacks and defenses, found without importing one of them: completion waits for it."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

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


@functools.cache
def title(kind: str, name: str) -> str:
    """Return a method's title as its file has it: `Adversarial Neuron Pruning (ANP)`.

    Empty where no file of `attacks/` or `defenses/` is called so.
    """
    for folder in importlib.import_module(f"{kind}s").__path__:
        file = Path(folder) / f"{name.replace('-', '_')}.py"
        if name in names(kind) and file.is_file():
            for part in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(part, ast.Assign) and (value := _assigned(part, "title")):
                    return value
    return ""


def _assigned(part: ast.Assign, name: str) -> str:
    """The text that an assignment gives a name, alone or among several; empty where it does not."""
    (target,) = part.targets[:1]
    pairs: list[tuple[ast.expr, ast.expr]] = [(target, part.value)]
    if isinstance(target, ast.Tuple) and isinstance(part.value, ast.Tuple):
        pairs = list(zip(target.elts, part.value.elts, strict=True))
    for to, value in pairs:
        if isinstance(to, ast.Name) and to.id == name and isinstance(value, ast.Constant):
            return str(value.value)
    return ""


def short(kind: str, name: str) -> str:
    """Return what a paper's table calls a method: `ANP`, `BadNets`.

    The abbreviation its title has in brackets, else the title up to its first comma or bracket;
    the name itself where it has no title, as one that does not ship.
    """
    whole = title(kind, name)
    if bracket := re.search(r"\(([\w-]*[A-Z][\w-]*)\)", whole):
        return bracket[1]
    return re.split(r",| \(", whole)[0] or name
