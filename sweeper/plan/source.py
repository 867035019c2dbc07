"""A sweep file as text -> its values and the line each stands on; the sweeps that ship."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from sweeper.core.errors import SweepError, unknown

Loc = tuple[str | int, ...]
"""Where a value stands in a sweep file: the keys and places that lead to it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a sweep may be called: it names a folder of the store."""


@dataclass(frozen=True)
class Source:
    """A sweep file as read."""

    path: str
    """As the user gave it."""
    values: dict[str, Any]
    """What YAML makes of it."""
    lines: Mapping[Loc, int]
    """Keys and places -> line, counted from 1."""

    def line(self, loc: Loc) -> int:
        """Return the line of `loc`, or of the nearest thing around it that the file has."""
        while loc not in self.lines:
            loc = loc[:-1]
        return self.lines[loc]


def shipped() -> list[str]:
    """Return the names of the sweeps that ship with the package."""
    folder = importlib.resources.files("sweeper.sweeps")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def _text(name: str) -> str:
    return (importlib.resources.files("sweeper.sweeps") / f"{name}.yaml").read_text("utf-8")


def purpose(name: str) -> str:
    """Return the first sentence of a shipped sweep's header."""
    lines = (line[1:].strip() for line in _text(name).splitlines() if line.startswith("#"))
    return " ".join(lines).partition(". ")[0].strip()


def read(spec: str) -> Source:
    """Read a sweep file by path, or a shipped sweep by name.

    Raises:
        SweepError: There is no such file, or it is no YAML mapping.
    """
    path = Path(spec)
    try:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
        elif spec in shipped():
            text = _text(spec)
        elif path.suffix in (".yaml", ".yml") or "/" in spec:
            raise SweepError(f"no file {spec}; shipped sweeps: {', '.join(shipped())}")
        else:
            raise SweepError(unknown("sweep file or shipped sweep", spec, shipped()))
    except OSError as error:
        raise SweepError(f"{spec}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SweepError(f"{spec}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    try:
        node = _compose(text)
        values = SafeConstructor().construct_document(node) if node else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{spec}:{mark.line + 1}" if mark else spec
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise SweepError(f"{where}: not YAML: {why}") from None
    if not isinstance(values, dict):
        raise SweepError(
            f"{spec}: is no sweep file: write keys with values, such as `name: mine`, "
            "`datasets: [digits]`, `attacks: [badnets]`"
        )
    lines: dict[Loc, int] = {}
    _mark(node, (), lines, spec)
    return Source(spec, values, lines)


def _compose(text: str) -> Any:
    """Parse YAML in C where PyYAML has that: ten times as fast; the other has the better errors."""
    try:
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return yaml.compose(text, Loader=yaml.SafeLoader)


def _mark(node: Any, loc: Loc, lines: dict[Loc, int], spec: str) -> None:
    """Note the line of every key and item; refuse a key that stands twice."""
    lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*loc, key.value)
            line = key.start_mark.line + 1
            if inner in lines:
                first = lines[inner]
                raise SweepError(
                    f"{spec}:{line}: {key.value}: stands twice, first in line {first}; remove one"
                )
            lines[inner] = line
            _mark(value, inner, lines, spec)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            _mark(value, (*loc, place), lines, spec)


def name_of(spec: str) -> str:
    """Return the name of a sweep without validating the rest; needs no torch."""
    source = read(spec)
    name = source.values.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SweepError(
            f"{spec}:{source.line(('name',))}: name: needs letters, digits, dots, underscores and "
            f"hyphens, not {name!r}"
        )
    return name
