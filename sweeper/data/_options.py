"""The options of a data set in a sweep file: which there are, and of what type."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from sweeper.core.errors import SweepError, unknown
from sweeper.core.options import fits, spelled
from sweeper.data.base import Source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SUBSET: dict[str, Any] = {"train_size": int | None, "test_size": int | None}
"""Options every source's data sets have: how many images of a split to use."""
_COUNTS = ("size", "train_size", "test_size")


def hints(kind: type[Source]) -> dict[str, Any]:
    """Return the options of a source with their types."""
    types = get_type_hints(kind)
    return {f.name: types[f.name] for f in dataclasses.fields(kind) if f.name != "name"}


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
    for kind in kinds:
        for key, hint in hints(kind).items():
            allowed.setdefault(key, []).append(hint)
    problems = []
    for key, value in options.items():
        if key == "dataset":
            continue
        if key not in allowed:
            problems.append(unknown("option", key, allowed))
        elif not any(fits(value, hint) for hint in allowed[key]):
            expected = " or ".join(dict.fromkeys(spelled(hint) for hint in allowed[key]))
            problems.append(f"{key}: needs {expected}, not {value!r}")
        elif key in _COUNTS and value is not None and value < 1:
            problems.append(f"{key}: needs a whole number of at least 1, not {value!r}")
        elif key == "test_share" and value is not None and not 0 < value < 1:
            problems.append(f"{key}: needs a share between 0 and 1, such as 0.2, not {value!r}")
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
        if key in allowed and not fits(value, allowed[key]):
            raise SweepError(
                f"datasets: {options['dataset']}: {key}: needs {spelled(allowed[key])}, "
                f"not {value!r}"
            )
    return kind(name=options["dataset"], **{k: v for k, v in options.items() if k in allowed})
