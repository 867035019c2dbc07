"""A sweep file as text -> its values and the line each stands on; the sweeps that ship."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.core.errors import SweepError, unknown
from sweeper.plan import document
from sweeper.plan.document import Document, Loc

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a sweep may be called: it names a folder of the store."""


@dataclass(frozen=True)
class Source:
    """A sweep file as read."""

    path: str
    """As the user gave it."""
    values: dict[str, Any]
    """What YAML makes of it."""
    document: Document
    """What they were made of."""

    def line(self, loc: Loc) -> int:
        """Return the line, from 1, of `loc`, or of the nearest thing around it in the file."""
        return self.document.line(loc)


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
    return of(text, spec)


def of(text: str, path: str) -> Source:
    """Read the text of a sweep file.

    Args:
        text: The YAML.
        path: What errors call it.

    Raises:
        SweepError: It is no YAML mapping.
    """
    made = document.parse(text, path, lines=True)
    if not isinstance(made.values, dict):
        raise SweepError(
            f"{path}: is no sweep file: write keys with values, such as `name: mine`, "
            "`datasets: [digits]`, `attacks: [badnets]`"
        )
    return Source(path, made.values, made)


def name_of(spec: str) -> str:
    """Return the name of a sweep without validating the rest; needs no torch."""
    return name_in(read(spec))


def name_in(file: Source) -> str:
    """Return the name a sweep file gives; for the rest see `name_of`.

    Raises:
        SweepError: It gives none that can name a sweep.
    """
    name = file.values.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SweepError(
            f"{file.path}:{file.line(('name',))}: name: needs letters, digits, dots, underscores "
            f"and hyphens, not {name!r}"
        )
    return name
