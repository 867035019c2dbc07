"""Where the Parquet files of a data set's splits lie, as hubs and people leave them.

| layout | from |
|---|---|
| `train.parquet`, `test.parquet` | people |
| `train-00000-of-00002.parquet`, also with a hash behind | `datasets`, a hub's repository |
| `train/0000.parquet`, `train/*.parquet` | a hub's converted branch, Spark |

Each of them in the data set's folder, in `data/` below it, or in the one other folder there is: the
name of a configuration. The test split may be called test, val, valid or validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sweeper.core.errors import SweepError
from sweeper.core.folders import inside
from sweeper.data._files import TEST_NAMES

_FILE = re.compile(
    r"(?P<split>[a-z]+)(-\d{5}-of-(?P<shards>\d{5})(-[0-9a-f]+)?)?\.parquet", re.IGNORECASE
)
_NUMBERED = re.compile(r"\d{4,}\.parquet", re.IGNORECASE)
_DEEPEST = 3
"""Folders below a data set's in which Parquet files are looked for, to name them."""


def splits(places: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of "train" and, where there are any, of "test"; {} where there is no train.

    Raises:
        SweepError: There are several configurations, each a data set.
    """
    for place in places:
        if place.is_file():
            return {"train": [place]} if _parquet(place) else {}
        for folder in (place, place / "data"):
            if found := _of(folder):
                return found
        configs = {folder.name: _of(folder) for folder in inside(place) if folder.is_dir()}
        configs = {name: found for name, found in configs.items() if found}
        if len(configs) > 1:
            raise SweepError(
                f"{place}: holds {len(configs)} data sets, {', '.join(configs)}: write `path: "
                f"{place / next(iter(configs))}`, or that of another"
            )
        if configs:
            return next(iter(configs.values()))
    return {}


def _of(folder: Path) -> dict[str, list[Path]]:
    """The splits that lie in this folder itself."""
    named: dict[str, list[Path]] = {}
    for path in inside(folder):
        match = _FILE.fullmatch(path.name)
        if match and path.is_file():
            named.setdefault(match["split"].lower(), []).append(path)
        elif path.is_dir() and path.name.lower() in ("train", *TEST_NAMES):
            named.setdefault(path.name.lower(), []).extend(filter(_parquet, inside(path)))
    test = next((named[name] for name in TEST_NAMES if named.get(name)), None)
    if not named.get("train"):
        return {}
    return {"train": named["train"]} | ({} if test is None else {"test": test})


def _parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def whole(name: str, split: str, files: list[Path]) -> None:
    """See that all shards of a split are there.

    Args:
        name: The data set's.
        split: train | test.
        files: What `splits` found of it.

    Raises:
        SweepError: Some are not, or there are those of two splits.
    """
    matches = [_FILE.fullmatch(file.name) for file in files]
    shards = {match["shards"] for match in matches if match}
    numbers = [int(file.stem) for file in files if _NUMBERED.fullmatch(file.name)]
    if shards:
        expected = int(next(iter(shards)) or 1) if len(shards) == 1 else 1
    else:
        expected = max(numbers) + 1 if len(numbers) == len(files) else len(files)
    if len(files) != expected:
        raise SweepError(
            f"{name}: {files[0].parent} holds {len(files)} {split} files where {expected} "
            "make one split: complete the shards or move the others away"
        )


def unread(places: Iterable[Path]) -> str:
    """The sentence about Parquet files that are there, but of no layout; empty without any."""
    for place in filter(Path.is_dir, places):
        seen = [
            str(path.relative_to(place))
            for depth in range(_DEEPEST)
            for path in inside(place, "*/" * depth + "*")
            if _parquet(path)
        ]
        if seen:
            more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
            return (
                f"{place} holds {', '.join(seen[:3])}{more}, but no train.parquet, "
                "train-00000-of-00001.parquet or train/0000.parquet: rename the files, or give "
                "`path` of the training file with `test_share`"
            )
    return ""
