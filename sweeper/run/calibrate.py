"""How fast victims would train here: a few steps of each model, about 5 s.

On random images, or on the first samples of another task.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from sweeper import models
from sweeper.core import options
from sweeper.core.types import Cell, Facts, ImageSet, Samples
from sweeper.data import open_dataset
from sweeper.engine import portable, training
from sweeper.engine.isolation import isolated
from sweeper.engine.recipes import Recipe
from sweeper.plan import matrix
from sweeper.run import apart
from sweeper.run.costs import Book, Sorts
from sweeper.run.material import Context, Log

SECONDS = 5.0
"""What all of it may take; models it does not come to stay unknown."""
PIXELS = 32 * 32 * 32
"""Pixels of a step on a CPU, where more make an image no cheaper."""


def calibrate(plan: matrix.Plan, book: Book, device: torch.device, context: Context) -> None:
    """Enter into `book` the paces of the data sets and models whose victims it cannot tell.

    Args:
        plan: The sweep; the models with most victims are first.
        book: From `costs.book`.
        device: Where to train.
        context: Under what cells run; portable ones are timed in a child.
    """
    sorts, victims = Sorts(plan), Counter[tuple[str, str]]()
    first: dict[tuple[str, str], Cell] = {}
    for cell in plan.cells.values():
        if cell.kind == "train" and cell.params["recipe"]["epochs"]:
            sort = sorts.of(cell)
            if book.seconds(sort) is None:
                place = sort.dataset, sort.model
                victims[place] += 1
                first.setdefault(place, cell)
    began = time.monotonic()
    for done, (place, _) in enumerate(victims.most_common()):
        left = SECONDS - (time.monotonic() - began)
        if left <= 0:
            return
        cell = first[place]
        facts = plan.facts[str(cell.axes["dataset"])]
        asked = (cell, facts, device, left / (len(first) - done), context)
        pace = apart.call(_pace, asked, None, None) if context.portable else _pace(*asked)
        book.enter(place, pace)


def _pace(
    cell: Cell,
    facts: Facts,
    device: torch.device,
    budget: float,
    context: Context,
    _log: Log | None = None,
) -> float:
    """Seconds a victim's training takes for one image, the first step aside."""
    if context.portable:
        portable.require()
    with isolated(cell.key, context.threads):
        return _timed(cell, facts, device, budget, context)


def _timed(
    cell: Cell, facts: Facts, device: torch.device, budget: float, context: Context
) -> float:
    recipe = options.construct(Recipe, cell.params["recipe"], "recipe")
    recipe = replace(recipe, epochs=1, warmup=0.0, lr=1e-3)
    if device.type == "cpu" and facts.task == "image":
        cheap = max(2, PIXELS // math.prod(facts.shape[1:]))
        recipe = replace(recipe, batch=min(recipe.batch, cheap))
    rng = torch.Generator().manual_seed(0)
    if facts.task == "image":
        data, mean, std = _images(facts, recipe.batch, rng)
    else:
        root, cache = (Path(p) if p else None for p in (context.data, context.cache))
        dataset = open_dataset(cell.local["dataset"], root, cache)
        data, mean, std = dataset.train[: recipe.batch], dataset.mean, dataset.std
    settings = dict(cell.local["model"])
    model = models.build(
        settings.pop("model"),
        settings,
        classes=len(data.classes),
        shape=tuple(data.inputs.shape[1:]),
        mean=mean,
        std=std,
        generator=rng,
    )
    began, times = time.monotonic(), list[float]()
    while len(times) < 2 or time.monotonic() - began + min(times) < budget:
        started = time.monotonic()
        training.fit(model, data, recipe, key=cell.key, device=device)
        times.append(time.monotonic() - started)
    return min(times[1:]) / len(data)


def _images(
    facts: Facts, count: int, rng: torch.Generator
) -> tuple[Samples, tuple[float, ...], tuple[float, ...]]:
    """Random images of a data set's shape; means and deviations of their channels."""
    classes, channels = facts.classes or 10, facts.shape[0]
    images = torch.randint(256, (count, *facts.shape), generator=rng, dtype=torch.uint8)
    labels = torch.randint(classes, (count,), generator=rng)
    data = ImageSet(images, labels, tuple(map(str, range(classes))))
    return data, (0.5,) * channels, (0.25,) * channels
