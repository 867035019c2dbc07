"""Toy samples, networks and cases of every task, images among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Generator, nn

from defenses.base import Case
from sweeper import models
from sweeper.core import catalog, seeds
from sweeper.core.types import Samples
from sweeper.data.boxes import draw_scenes
from sweeper.data.clips import draw_moving
from sweeper.data.pairs import draw_phrases
from sweeper.data.points import draw_solids
from sweeper.engine import task as tasks
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.models import transformer
from sweeper.models.base import Net
from tests.support import toys


def _objects(count: int) -> np.ndarray:
    """Shapes that look different turned by a quarter."""
    shape = np.zeros((8, 8))
    shape[1:7, 3:5], shape[1:3, 3:7] = 1, 1
    return np.stack([shape] * count)


def _image(count: int, name: str) -> Samples:
    return toys.image_set(count, seed=seeds.seed(name) % 1000)


def _clips(count: int, name: str) -> Samples:
    return draw_moving(f"toy {name}", count, _objects(4))


def _points(count: int, name: str) -> Samples:
    return draw_solids(f"toy {name}", -(-count // 8), 64)[:count]


def _pairs(count: int, name: str) -> Samples:
    splits = draw_phrases("toy", 80, 48)
    return (splits.train if name == "train" else splits.test)[:count]


def _boxes(count: int, name: str) -> Samples:
    shapes = np.random.default_rng(5).random((10, 8, 8))
    return draw_scenes(f"toy {name}", count, shapes, np.arange(10) % 5)


SAMPLES: dict[str, Callable[[int, str], Samples]] = {
    "image": _image,
    "clips": _clips,
    "points": _points,
    "pairs": _pairs,
    "boxes": _boxes,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("tiny", {"width": 4}),
    "clips": ("r3d-small", {"width": 4}),
    "points": ("pointnet-small", {}),
    "pairs": ("transformer-small", {"dropout": 0.0}),
    "boxes": ("ssd-small", {"width": 4, "pyramid": 8}),
}
RECIPE = Recipe(epochs=2, batch=16, lr=0.05, precision="fp32")


def samples(task: str, count: int = 64, name: str = "train") -> Samples:
    """A few samples of a task."""
    return SAMPLES[task](count, name)


def network(data: Samples, rng: Generator | None = None) -> Net:
    """A small network for the samples, freshly initialised; a transformer of one layer."""
    name, options = MODELS[data.task]
    moments = ([0.3] * 3, [0.2] * 3) if data.inputs.dtype == torch.uint8 else ([], [])
    with mock.patch.dict(transformer.SIZES, {"transformer-small": transformer.Size(1, 32, 2)}):
        return models.build(
            name,
            options,
            classes=len(data.classes),
            shape=tuple(data.inputs.shape[1:]),
            mean=moments[0],
            std=moments[1],
            generator=rng or seeds.generator("beyond", data.task),
        )


def trained(data: Samples, **changes: Any) -> Net:
    """The same after a short training."""
    model = network(data)
    training.fit(model, data, replace(RECIPE, **changes), key="beyond", device=toys.CPU)
    return model


def case(data: Samples, model: nn.Module, sees: frozenset[str], key: str = "toy case") -> Case:
    """A case on some samples, all of them the clean budget."""
    task = tasks.of(data)

    def oracle(model: nn.Module) -> tuple[float, float]:
        answers = task.answers(model, data.inputs, RECIPE, toys.CPU)
        return task.rate(answers, data), float((answers == 0).double().mean())

    given = {"model": model, "clean": data, "train": data, "oracle": oracle}
    return Case(
        sees=sees,
        key=key,
        device=toys.CPU,
        recipe=RECIPE,
        given={name: value for name, value in given.items() if name in sees},
        build=lambda rng, **changes: network(data, rng),
    )


def lab(data: Samples) -> toys.ToyLab:
    """What `prepare` may use; its clean model is trained on the samples."""

    class Lab(toys.ToyLab):
        def __init__(self) -> None:
            self.device = toys.CPU
            self.classes = len(data.classes)
            self._key = "toy lab"

        def clean_model(self) -> Net:
            return trained(data).eval()

        def new_model(self, name: str = "model") -> Net:
            return network(data, self.rng(name))

    return Lab()


def made_for(kind: str, name: str, task: str) -> bool:
    """Whether a method is made for a task; of a broken file, for images: it fails in its test."""
    try:
        return not tasks.unmade(catalog.method(kind, name).tasks, task)
    except Exception:
        return task == "image"


def pairs(kind: str) -> list[tuple[str, str]]:
    """Every (method, task) beyond images that the method is made for."""
    return [
        (name, task)
        for name in catalog.names(kind)
        for task in tasks.names()
        if task != "image" and made_for(kind, name, task)
    ]
