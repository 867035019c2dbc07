"""`sweeper new`: a working method and its test, written where a sweep file can name them."""

from __future__ import annotations

import importlib.resources
import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from sweeper.core.errors import SweepError, unknown
from sweeper.core.names import KINDS, names
from sweeper.core.outputs import written


@dataclass(frozen=True)
class Written:
    """What `write` left."""

    method: Path
    """The method's file."""
    test: Path
    """Its test."""
    entry: str
    """What a sweep file calls it."""


def write(kind: str, name: str, to: Path | None = None) -> Written:
    """Write the template of a method, and its test, under another name.

    Args:
        kind: attack | defense.
        name: Words of letters and digits, joined by hyphens or underscores.
        to: A folder of the user's; default: `attacks/` or `defenses/`, and their folder in
            `tests/`, of the checkout that is the working directory.

    Raises:
        SweepError: The name cannot be a module's, is taken, or there is no such place.
    """
    if kind not in KINDS:
        raise SweepError(f"new: {unknown('kind of method', kind, KINDS)}")
    module = name.replace("-", "_")
    _check(kind, name, module)
    if to is None:
        folder, tests = Path(f"{kind}s"), Path("tests", f"{kind}s")
        if not (folder / "base.py").is_file():
            raise SweepError(
                f"new {kind} {name}: no {folder}/base.py in this folder: go to a checkout of "
                "sweeper, or name a folder of your own with --to DIR"
            )
    else:
        folder = tests = to
        if importlib.util.find_spec(module):
            raise SweepError(f"new {kind} {name}: Python has a module {module}: take another name")
    title = " ".join(word[:1].upper() + word[1:] for word in module.split("_"))
    cls = title.replace(" ", "")
    entry = f"{module}:{cls}" if to else module.replace("_", "-")
    made = Written(folder / f"{module}.py", tests / f"test_{module}.py", entry)
    for path in (made.method, made.test):
        if path.exists():
            raise SweepError(f"new {kind} {name}: {path} is there: take another name or move it")
    words = {'"""Template': f'"""{title}', '"Template"': f'"{title}"', "Template": cls}
    words |= {"template": entry}
    for path, source in ((made.method, kind), (made.test, f"{kind}_test")):
        text = (importlib.resources.files("sweeper.cli.templates") / f"{source}.py").read_text(
            "utf-8"
        )
        for old, new in words.items():
            text = text.replace(old, new)
        with written(path):
            path.write_text(text, encoding="utf-8")
    return made


def _check(kind: str, name: str, module: str) -> None:
    """Refuse a name that no module can have, or that a method has."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise SweepError(
            f"new {kind} {name!r}: needs a name of small letters and digits, joined by hyphens, "
            "that is no word of Python, such as my-patch"
        )
    if module == "base" or module.replace("_", "-") in names(kind):
        raise SweepError(f"new {kind} {name}: there is one of this name: take another")
