"""Data sets: found by name, decoded once a machine, as uint8 tensors with a content hash.

A source of data is one file in this folder: a subclass of `base.Source`. It is found by its file
name; nothing else is edited.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweeper.core import kept, seeds
from sweeper.core.errors import SweepError, unknown
from sweeper.core.types import Samples
from sweeper.data import _options
from sweeper.data._cache import decoded, place
from sweeper.data._files import folders, same_name
from sweeper.data._shards import unread
from sweeper.data.base import Source, Splits

__all__ = [
    "Dataset",
    "Source",
    "Splits",
    "at_hand",
    "check_options",
    "copy_of",
    "known",
    "lacking",
    "looked_in",
    "open_dataset",
    "source_of",
    "sources",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as a sweep uses it."""

    name: str
    """Its name in the sweep file."""
    train: Samples
    """The training split. Not to be written to: pages of the decoded copy on the disk."""
    test: Samples
    """The test split, likewise."""
    digest: str
    """Hash of what is used: pixels, labels, class names, groups and the subset drawn."""
    mean: tuple[float, ...]
    """Mean of each channel, pixels in [0, 1], 4 decimals, over the official training split."""
    std: tuple[float, ...]
    """Standard deviation likewise."""
    groups: Tensor | None = None
    """int64 [n_train]: images of one group never fall on both sides of a split; None: no groups."""


def sources() -> list[type[Source]]:
    """Return the sources of data in the order they are asked, found by file name."""
    kinds: list[type[Source]] = []
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_") or module.name == "base":
            continue
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        kinds += [
            kind
            for kind in vars(loaded).values()
            if inspect.isclass(kind)
            and issubclass(kind, Source)
            and kind.__module__ == loaded.__name__
            and not inspect.isabstract(kind)
        ]
    return sorted(kinds, key=lambda kind: (kind.order, kind.__name__))


def known() -> dict[str, str]:
    """Return the data sets known by name, each with one line that describes it."""
    lines: dict[str, str] = {}
    for kind in sources():
        for name, line in kind.names.items():
            lines.setdefault(name, line)
    return dict(sorted(lines.items()))


def check_options(options: Mapping[str, Any]) -> None:
    """Check an entry of `datasets` without looking for the data.

    Args:
        options: `{"dataset": name, ...}` as in the sweep file.

    Raises:
        SweepError: Everything wrong with names, types and ranges, one line each.
    """
    _options.check(options, sources())


def open_dataset(
    options: Mapping[str, Any], root: Path | None = None, cache: Path | None = None
) -> Dataset:
    """Find a data set, decode it where no process of this machine has yet, and map it to memory.

    Args:
        options: `{"dataset": name}` and any of `path`, `size`, `train_size`, `test_size` and the
            options of the source that provides it. `train_size` and `test_size` take a subset
            that is fixed by the content and nested: a larger one contains a smaller one.
        root: Folder with one folder a data set; default SWEEPER_DATA or ~/.cache/sweeper/data.
        cache: Folder of decoded copies; default SWEEPER_CACHE or ~/.cache/sweeper/decoded.

    Raises:
        SweepError: An option is wrong, or the data are absent or cannot be read.
    """
    check_options(options)
    root = looked_in(root)
    cache = cache or kept.cache()
    source = _find(options, root)
    source.require(source.name)
    whole = decoded(source, root, cache)
    splits = whole.splits
    train, index = _subset(splits.train, options, "train_size", whole.digest)
    test, test_index = _subset(splits.test, options, "test_size", whole.digest)
    digest = whole.digest
    if index is not None or test_index is not None:
        digest = seeds.digest([whole.digest, len(train), len(test)])
    groups = splits.groups if index is None or splits.groups is None else splits.groups[index]
    return Dataset(source.name, train, test, digest, whole.mean, whole.std, groups)


def source_of(options: Mapping[str, Any]) -> type[Source] | None:
    """Return the source that knows a data set by name, or alone has its options; else None."""
    kinds = sources()
    for kind in kinds:
        if any(same_name(options["dataset"], name) for name in kind.names):
            return kind
    fitting = [kind for kind in kinds if set(options) <= set(_options.every(kind))]
    return fitting[0] if len(fitting) == 1 else None


def at_hand(
    options: Mapping[str, Any], root: Path | None = None, cache: Path | None = None
) -> bool:
    """Whether `open_dataset` would find the data on this machine, without a download.

    Raises:
        SweepError: Files are there, but not as any source reads them.
    """
    root = looked_in(root)
    cache = cache or kept.cache()
    source = _serving(options, root)
    return source is not None and (not source.downloads or place(source, root, cache).is_dir())


def lacking(options: Mapping[str, Any], root: Path) -> str:
    """Return why a data set that is not on this machine cannot be had, and what to do.

    Args:
        options: `{"dataset": name, ...}` as in the sweep file.
        root: The folder data sets are looked for in.
    """
    name, path = options["dataset"], options.get("path")
    owner = source_of(options) or Source
    if path is not None and owner.task != "image":
        return f"{name}: `path: {path}` holds no {owner.wants.rstrip(',')}: correct it"
    if path is not None:
        return (
            f"{name}: `path: {path}` holds neither train.parquet nor train/<class>/ with images, "
            "nor is it a .parquet file: correct it"
        )
    remedy = (
        f"put {owner.wants} into {root / name}, or give `path`, or name the folder of your data "
        "sets with --data DIR"
    )
    if name.replace("_", "-") in known():
        return f"{name}: not found under {root} and not downloadable: {remedy}"
    return f"{unknown('data set', name, known())}. For data of your own {remedy}"


def looked_in(root: Path | None = None) -> Path:
    """Return the folder data sets are looked for in: `root`, SWEEPER_DATA, or the default."""
    return root or kept.folder("SWEEPER_DATA", "data")


def copy_of(
    options: Mapping[str, Any], root: Path | None = None, cache: Path | None = None
) -> Path | None:
    """Return the folder of a data set's decoded copy; None where there is none yet.

    Arguments are those of `open_dataset`.

    Raises:
        SweepError: An option is wrong, or the data are absent.
    """
    check_options(options)
    root = looked_in(root)
    source = _find(options, root)
    source.require(source.name)
    entry = place(source, root, cache or kept.cache())
    return entry if entry.is_dir() else None


def _serving(options: Mapping[str, Any], root: Path) -> Source | None:
    """Return the first source that provides the data set; None where there is no file of it.

    Raises:
        SweepError: There are files, but no source reads them so.
    """
    name, path = options["dataset"], options.get("path")
    kinds = (kind for kind in sources() if kind.asked(options))
    kind = next((kind for kind in kinds if kind(name=name, path=path).serves(root)), None)
    if kind is None or kind.downloads:  # its own files before any download
        if why := unread([Path(path).expanduser()] if path else folders(root, name)):
            raise SweepError(f"datasets: {name}: {why}")
    return None if kind is None else _options.build(kind, options)


def _find(options: Mapping[str, Any], root: Path) -> Source:
    """Return the first source that provides the data set."""
    if source := _serving(options, root):
        return source
    raise SweepError(f"datasets: {lacking(options, root)}")


def _subset(
    part: Samples, options: Mapping[str, Any], option: str, digest: str
) -> tuple[Samples, Tensor | None]:
    """Return the images asked for and their indices, sorted; None where all are used."""
    size = options.get(option)
    if size is None or size == len(part):
        return part, None
    if size > len(part):
        raise SweepError(
            f"datasets: {options['dataset']}: `{option}: {size}`, but the split has only "
            f"{len(part)} images: lower it"
        )
    order = torch.randperm(len(part), generator=seeds.generator(digest, option))
    index = order[:size].sort().values
    return part[index], index
