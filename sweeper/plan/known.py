"""What is known of a data set before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sweeper import data
from sweeper.core import code, kept, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Facts
from sweeper.data import splits
from sweeper.engine.recipes import Recipe
from sweeper.plan.sweep import Entry, Sweep


def each(
    sweep: Sweep,
    root: Path | None,
    cache: Path | None,
    *,
    need_data: bool,
    kept: Mapping[str, Facts] | None = None,
) -> dict[str, Facts]:
    """What is known of the data sets of a sweep, by label.

    Args:
        sweep: The sweep.
        root: Folder of the data sets; None: see `sweeper.data.open_dataset`.
        cache: Folder of decoded copies; likewise.
        need_data: Whether a data set that is not here is an error, or left unresolved.
        kept: What is known already: these are not opened.

    Raises:
        SweepError: Data that are here cannot be read, or that are needed are not here.
    """
    facts = dict(kept or {})
    for entry in sweep.datasets:
        if entry.label in facts:
            continue
        if need_data or at_hand(entry, root, cache):
            facts[entry.label] = of(entry, sweep.reserve, root, cache)
        else:
            facts[entry.label] = unresolved(entry)
    return facts


def of(entry: Entry, reserve: float, root: Path | None, cache: Path | None) -> Facts:
    """Return what the matrix must know of a data set; it is opened, and decoded, once a machine.

    What is known is kept beside the decoded copy.
    """
    options = {"dataset": entry.name, **entry.options}
    parts = {name: options.get(name) for name in ("train_size", "test_size")}
    made_by = code.of_modules(__name__, Facts.__module__, splits.__name__, data.__name__)
    asked = [made_by, reserve, parts]
    copy, name = data.copy_of(options, root, cache), f"facts-{seeds.digest(asked)}.json"
    if copy is None:  # it is made now
        data.open_dataset(options, root, cache)
        copy = data.copy_of(options, root, cache)
    assert copy is not None
    found = kept.kept(copy / name, lambda: _opened(options, reserve, root, cache))
    lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    return Facts(**{**found, **lists})


def _opened(
    options: Mapping[str, Any], reserve: float, root: Path | None, cache: Path | None
) -> dict[str, Any]:
    dataset = data.open_dataset(options, root, cache)
    attacker, held = splits.split(dataset, reserve)
    labels = dataset.train.labels[attacker]
    counts: list[int] = []
    if labels.ndim == 1:  # one class each
        counts = torch.bincount(labels, minlength=len(dataset.train.classes)).tolist()
    facts = Facts(
        dataset=options["dataset"],
        digest=dataset.digest,
        classes=len(dataset.train.classes),
        shape=tuple(dataset.train.inputs.shape[1:]),
        class_counts=tuple(counts),
        n_train=len(dataset.train),
        n_reserve=len(held),
        task=dataset.train.task,
    )
    return dataclasses.asdict(facts)


def check(entry: Entry, recipe: Recipe) -> None:
    """See that no augmentation makes other classes of a data set's samples.

    Raises:
        SweepError: One does.
    """
    source = data.source_of({"dataset": entry.name, **entry.options})
    for name in sorted(source.forbids if source else ()):
        if getattr(recipe, name):
            raise SweepError(
                f"recipe: {name}: makes other classes of the samples of {entry.label}: change it, "
                f"as in {{base: RECIPE, {name}: false}}"
            )


def unresolved(entry: Entry) -> Facts:
    """What is known of a data set that is not on this machine.

    Raises:
        SweepError: What its samples need is not installed.
    """
    source = data.source_of({"dataset": entry.name, **entry.options})
    if source is None:
        return Facts(entry.name, "")
    source.require(entry.name)
    return Facts(entry.name, "", shape=source.shape, task=source.task)


def missing(entry: Entry, root: Path | None) -> str:
    """What a run will do about a data set that is not on this machine, or what its user must.

    Args:
        entry: Of a sweep's `datasets`.
        root: The folder data sets are looked for in; None: SWEEPER_DATA, or the default.
    """
    options, folder = {"dataset": entry.name, **entry.options}, data.looked_in(root)
    source, head = data.source_of(options), f"data set {entry.label} is not on this machine"
    if source is None or not source.downloads:
        return f"{head}: {data.lacking(options, folder)}"
    size = source.sizes.get(entry.name.replace("_", "-"), 0)
    about = f"about {size / 10**6:.0f} MB" if size else "it"
    return (
        f"{head}: `run` downloads {about} into {folder / 'torchvision'}; what is done of it is "
        "not known before"
    )


def at_hand(entry: Entry, root: Path | None, cache: Path | None) -> bool:
    """Whether a data set is on this machine, so that opening it downloads nothing."""
    return data.at_hand({"dataset": entry.name, **entry.options}, root, cache)
