"""The options of a data set in a sweep file: which there are, and of what type."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from sweeper.core.errors import SweepError, unknown
from sweeper.core.options import Count, misfit, names
from sweeper.data.base import Source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SUBSET: dict[str, Any] = {"train_size": Count | None, "test_size": Count | None}
"""Options every source's data sets have: how many images of a split to use."""


@functools.cache  # a sweep file is checked several times, and each time by all sources
def hints(kind: type[Source]) -> Mapping[str, Any]:
    """Return the options of a source with their types."""
    types = get_type_hints(kind, include_extras=True)
    return {name: types[name] for name in names(kind) if name != "name"}


def every(kind: type[Source]) -> list[str]:
    """Return the names of all that may stand in an entry of a source's data set."""
    return ["dataset", *hints(kind), *SUBSET]


def check(options: Mapping[str, Any], kinds: Sequence[type[Source]]) -> None:
    """Check the name of a data set and its options against those of all `kinds`.

    Raises:
        SweepError: What is wrong, all of it, one line each.
    """
    name = options.get("dataset")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SweepError(
            f"datasets: {name!r} is no name of a data set: write `dataset: NAME` with letters, "
            "digits, dots, underscores and hyphens; a place goes into `path`"
        )
    allowed: dict[str, list[Any]] = {key: [hint] for key, hint in SUBSET.items()}
    for kind in sorted(kinds, key=lambda kind: name not in kind.names):  # its own first
        for key, hint in hints(kind).items():
            allowed.setdefault(key, []).append(hint)
    problems = []
    for key, value in options.items():
        if key == "dataset":
            continue
        if key not in allowed:
            problems.append(unknown("option", key, allowed))
        elif all(lacks := [misfit(value, hint) for hint in allowed[key]]):
            problems.append(f"{key}: {lacks[0]}")
    if problems:
        raise SweepError("\n".join(f"datasets: {name}: {problem}" for problem in problems))


def build(kind: type[Source], options: Mapping[str, Any]) -> Source:
    """Return the source that provides a data set, with the options meant for it.

    Raises:
        SweepError: An option belongs to another source.
    """
    allowed = hints(kind)
    for key, value in options.items():
        if key not in allowed and key not in SUBSET and key != "dataset":
            sentence = unknown("option", key, [*allowed, *SUBSET])
            raise SweepError(
                f"datasets: {options['dataset']}: read as {kind.__name__.lower()}, which has "
                f"{sentence}"
            )
        if key in allowed and (lack := misfit(value, allowed[key])):
            raise SweepError(f"datasets: {options['dataset']}: {key}: {lack}")
    return kind(name=options["dataset"], **{k: v for k, v in options.items() if k in allowed})
