"""What `sweeper list` prints: every name a sweep file can use.

`python -m sweeper.cli.listing README.md docs/methods.md` writes their lists of methods anew.
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sweeper.core import names

KINDS = ("attacks", "defenses", "datasets", "models", "sweeps", "analyses")


def records(what: str) -> list[dict[str, Any]]:
    """Return one record per name of `what`, one of `KINDS`."""
    if what == "sweeps":
        from sweeper.plan import source

        return [{"name": name, "purpose": source.purpose(name)} for name in source.shipped()]
    if what == "analyses":
        from sweeper.analyses import looks

        kinds = {name: looks.analysis(name) for name in looks.names()}
        return [
            {
                "name": name,
                "title": kind.title,
                "source": kind.source,
                "options": {f.name: f.default for f in dataclasses.fields(kind)},
            }
            for name, kind in kinds.items()
        ]
    if what == "datasets":
        from sweeper import data

        return [{"name": name, "about": line} for name, line in data.known().items()]
    if what == "models":
        from sweeper import models

        return [
            {
                "name": name,
                "tasks": sorted(family.tasks),
                "options": {f.name: f.default for f in _options(family)},
            }
            for name, family in models.families().items()
        ]
    from sweeper.core import catalog

    return catalog.describe(what.removesuffix("s"))


SHOWN = {
    "attacks": ("name", "title", "controls", "rules"),
    "defenses": ("name", "title", "kind", "sees"),
    "datasets": ("name", "about"),
    "models": ("name", "tasks"),
    "sweeps": ("name", "purpose"),
    "analyses": ("name", "title", "source"),
}
"""What `sweeper list` shows of a record; `sweeper describe` says the rest."""
LEAST = 10
"""Columns a title is left on a terminal, however narrow."""


def lines(what: str, width: int | None = None) -> list[str]:
    """Return a line for each name of `what`, in columns.

    Args:
        what: One of `KINDS`.
        width: Of the terminal: there is a head, titles are abbreviated where they have no room,
            and each line is cut to it; None: for another program.
    """
    found = records(what)
    if width is None:
        return _columns([_words(record, SHOWN[what]) for record in found])
    rows = [list(SHOWN[what]), *(_words(record, SHOWN[what]) for record in found)]
    rest = sum(max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[2:])
    room = max(LEAST, width - rest - 2 - max(len(row[0]) for row in rows))
    if rest and max(len(row[1]) for row in rows) > room:
        for row, record in zip(rows[1:], found, strict=True):
            kind = what.removesuffix("s")
            row[1] = names.short(kind, record["name"]) if kind in names.KINDS else row[1]
        for row in rows:
            row[1] = _cut(row[1], room)
    return [_cut(line, width) for line in _columns(rows)]


def _words(record: dict[str, Any], columns: Iterable[str]) -> list[str]:
    values = (record[name] for name in columns)
    return [", ".join(value) if isinstance(value, list) else str(value) for value in values]


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


COLUMNS = {
    "attacks": ("name", "title", "paper", "tasks", "rules", "controls", "rate_base", "presets"),
    "defenses": ("name", "title", "paper", "kind", "sees", "presets"),
    "support": ("name", "tasks", "sees", "rules", "models"),
}
"""Columns of the tables in docs/methods.md."""
GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "attacks": (
        "controls",
        {"data": "on the data", "training": "in training", "model": "on the model"},
    ),
    "defenses": (
        "kind",
        {kind: kind for kind in ("repair", "secure training", "detection", "input filter")},
    ),
}
"""Field by which the README sorts the names, and the word it has for each of its values."""


def markdown(what: str) -> str:
    """Return the table of attacks or defenses, or of what each defense needs (`support`)."""
    head = COLUMNS[what]
    titles = " | ".join(name.replace("_", " ") for name in head)
    lines = [f"| {titles} |", "|---" * len(head) + "|"]
    for record in support() if what == "support" else records(what):
        words = [record[name] for name in head]
        shown = [", ".join(word) if isinstance(word, list) else str(word) for word in words]
        page = "attacks" if what == "attacks" else "defenses"
        shown[0] = f"[`{shown[0]}`]({page}.md#{shown[0]})"
        lines.append("| " + " | ".join(word or "-" for word in shown) + " |")
    return "\n".join(lines)


def support() -> list[dict[str, Any]]:
    """Return what every defense sees, what it is made for and which architectures it runs on."""
    from sweeper.core import catalog

    return [{**found, "models": runs_on(found["name"])} for found in catalog.describe("defense")]


def runs_on(name: str) -> str:
    """The architectures a defense runs on: `all`, or `all but vit-tiny`.

    Asked of the method itself: `requires` and `applies`, with CIFAR-10 and 500 clean images.
    """
    from sweeper.core import catalog
    from sweeper.engine.task import unmade
    from sweeper.plan import matrix

    defense = catalog.make("defense", name, {})
    asked = [v for v in _victims() if not unmade(defense.tasks, v.task)]
    out = [v.model for v in asked if matrix.misfit(defense, v, v.model)]
    return f"all but {', '.join(out)}" if out else "all"


@functools.cache
def _victims() -> list[Any]:
    """A victim of each architecture and task, as defenses ask of them."""
    from defenses.base import Needs
    from sweeper import models

    return [
        Needs(10, kind.usual, name, models.has_batchnorm(name, {}, 10, kind.usual), 500, task)
        for name, kind in models.families().items()
        for task in kind.tasks
    ]


def summary() -> str:
    """Return the names of all attacks and defenses, one item a kind."""
    lines = []
    for what, (field, words) in GROUPS.items():
        groups: dict[str, list[str]] = {word: [] for word in words}
        for record in records(what):
            groups[record[field]].append(record["name"])
        lines.append(f"**{what.capitalize()}**\n")
        for group, members in groups.items():
            item = f"- {words[group]}: {', '.join(members)}"
            lines += textwrap.wrap(item, 100, subsequent_indent="  ", break_on_hyphens=False)
        lines.append("")
    return "\n".join(lines).rstrip()


def rewrite(text: str) -> str:
    """Return a page with its tables and names of methods made anew, between their markers."""
    for what in (*COLUMNS, "names"):
        before, start, rest = text.partition(f"<!-- {what} -->\n")
        _, end, after = rest.partition(f"<!-- end {what} -->")
        if start and end:
            made = summary() if what == "names" else markdown(what)
            text = f"{before}{start}{made}\n{end}{after}"
    return text


def _options(family: type[Any]) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(family) if item.name != "name"]


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:]:
        Path(name).write_text(rewrite(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
