"""Names of attacks and defenses, found without importing one of them; and what people type for one.

Only the name of a file is a name: another spelling is answered with it, not taken for it, so that
one method is called the same in every sweep file, key and row.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = ("attack", "defense")
"""Kinds of method; each has a package of its name in the plural, one file a method."""
ELSEWHERE: dict[str, dict[str, str]] = {
    "attack": {
        "benign": "none",
        "blended": "blend",
        "clean": "none",
        "iab": "input-aware",
        "lc": "clean-label",
    },
    "defense": {"finetune": "fine-tuning", "spectral": "spectral-signatures"},
    "option": {"batchsize": "batch", "learningrate": "lr", "wd": "weight_decay"},
    "key": {"architectures": "models", "pratio": "poison_rates"},
}
"""What is named -> the letters other projects write -> our name: BackdoorBench's `--attack` and
`--defense`, and words of training loops. Abbreviations of titles need no line here."""


@functools.lru_cache(maxsize=2)
def points(kind: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of third parties; looking them up costs 9 ms, importing how 25."""
    from importlib.metadata import entry_points

    return tuple(entry_points(group=f"sweeper.{kind}s"))


def shipped(kind: str) -> set[str]:
    """Return the names of the attacks or defenses that have a file here."""
    package = importlib.import_module(f"{kind}s")
    return {
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(package.__path__)
        if not (module.ispkg or module.name.startswith("_") or module.name == "base")
    }


def names(kind: str) -> list[str]:
    """Return the names of all attacks or defenses."""
    return sorted(shipped(kind) | {point.name for point in points(kind)})


def exist(kind: str, asked: Collection[str]) -> bool:
    """Return whether all these are names; third parties are asked only for what is not ours."""
    return shipped(kind).issuperset(asked) or set(names(kind)).issuperset(asked)


@functools.cache
def title(kind: str, name: str) -> str:
    """Return a method's title as its file has it: `Adversarial Neuron Pruning (ANP)`.

    Empty where no file of `attacks/` or `defenses/` is called so.
    """
    for folder in importlib.import_module(f"{kind}s").__path__:
        file = Path(folder) / f"{name.replace('-', '_')}.py"
        if name in shipped(kind) and file.is_file():
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


def letters(text: str) -> str:
    """What two spellings of a name share: `Fine_Tuning` and `fine-tuning` have the same."""
    return re.sub(r"[^a-z0-9+]", "", text.lower())


def aliases(kind: str) -> Mapping[str, str]:
    """Return the letters people type for a method -> its name.

    Those of names come first; what several titles share (the MCR of two files) stands for none.
    """
    return _aliases(kind, tuple(names(kind)))


@functools.cache  # for these names: there may be another file at the next call
def _aliases(kind: str, known: tuple[str, ...]) -> Mapping[str, str]:
    own = {letters(name): name for name in known}
    found: dict[str, set[str]] = {}
    for name in known:
        whole = re.sub(r" \(.*", "", title(kind, name))
        for spelled in (short(kind, name), *whole.split(" / ")):
            found.setdefault(letters(spelled), set()).add(name)
    single = {spelled: min(them) for spelled, them in found.items() if len(them) == 1}
    return single | ELSEWHERE[kind] | own


def other_kind(kind: str, typed: str) -> str:
    """Return the other kind of method, where one of that is meant; else empty."""
    kinds = [other for other in KINDS if letters(typed) in aliases(other)]
    return kinds[0] if kinds and kind in KINDS and kind not in kinds else ""


def meant(what: str, typed: str, known: Collection[str]) -> str:
    """Return the one name that is meant by another spelling or an abbreviation; else empty.

    Args:
        what: What it would name: attack, data set, option; several kinds in words, or `name`
            for a method of either kind.
        typed: What was typed.
        known: The names there are; only one of them is meant.
    """
    asked = letters(typed)
    if not re.search("[a-z]", asked):
        return ""
    same = [name for name in known if letters(name) == asked]
    if len(same) == 1:
        return same[0]
    tables = [aliases(kind) for kind in KINDS if kind in what or what == "name"]
    right = [table[asked] for table in (*tables, ELSEWHERE.get(what, {})) if asked in table]
    return next((name for name in right if name in known), "")


def introduced(what: str, name: str, typed: str) -> str:
    """Return a name with its abbreviation, where neither that nor what was typed spells it."""
    asked = [kind for kind in KINDS if kind in what or what == "name"]
    called = next((short(kind, name) for kind in asked if name in names(kind)), name)
    own = letters(name) in (letters(typed), letters(called))
    return name if own else f"{name} ({called})"
