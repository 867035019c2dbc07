"""Poisoned training of random 32x32 images twice: by this engine, and the way toolboxes do it.

The toolbox way is written here after the common pattern of the field's public code: a data set of
PIL images whose poisoned members are stamped when they are read, torchvision transforms, a
DataLoader with two workers, single precision, running loss and accuracy read at every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from attacks.badnets import BadNets
from sweeper import models
from sweeper.core.types import ImageSet
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from sweeper.models.base import Normalise
from tests.benchmarks._crew import line_up

BATCH, CLASSES, SIDE, RATE, TARGET = 128, 10, 32, 0.1, 0
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CPU = torch.device("cpu")
Rates = dict[str, float]
"""What is measured -> images/s."""


def network(name: str) -> nn.Module:
    """The same network for both."""
    shape, rng = (3, SIDE, SIDE), torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"classes": CLASSES, "shape": shape, "mean": MEAN, "std": STD}
    return models.build(name, {}, **given, generator=rng)


def random_set(count: int) -> ImageSet:
    """Random images, labels in turn."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))))


def recipe(precision: str) -> Recipe:
    return Recipe(epochs=1, crop=4, flip=True, precision=precision)


class Clock(Hooks):
    """Times the loop after its first `warm` steps, and the steps' part of it."""

    def __init__(self, warm: int) -> None:
        self.warm, self.count = warm, 0
        self.inside = self.whole = self.started = 0.0
        self.best = float("inf")

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        started = time.perf_counter()
        found = super().step(model, optimizer, loss)
        self.inside += time.perf_counter() - started
        return found

    def stepped(self, model: nn.Module, step: int) -> None:
        if step + 1 == self.warm:
            line_up()
            self.inside, self.whole, self.started = 0.0, 0.0, time.perf_counter()
        before, self.whole = self.whole, time.perf_counter() - self.started
        self.count = step + 1 - self.warm
        if self.count > 0:
            self.best = min(self.best, self.whole - before)

    def rates(self) -> Rates:
        images = BATCH * self.count
        whole, inside = images / self.whole, images / self.inside
        return {"training": whole, "step": inside, "best": BATCH / self.best}


def engine(model: str, precision: str, steps: int, warm: int = 1) -> Rates:
    """Poison a set and train on it with `training.fit`."""
    train = random_set(BATCH * (warm + steps))
    rng = torch.Generator().manual_seed(0)
    poisoned = BadNets(target=TARGET).poison(train, RATE, {}, rng)
    data, clock = poisoned.samples, Clock(warm)
    given: dict[str, Any] = {"key": "benchmark", "device": CPU, "hooks": clock}
    training.fit(network(model), data, recipe(precision), **given)
    return clock.rates()


def engine_pipeline(batches: int) -> Rates:
    """Draw batches, crop, mirror and normalise."""
    images = training.on_device(random_set(50_000).images, CPU)
    rng, settings, normalise = (
        torch.Generator().manual_seed(0),
        recipe("fp32"),
        Normalise(MEAN, STD),
    )
    for index in training.order(len(images), BATCH, rng)[:20]:
        training.augmented(images.index_select(0, index), settings, rng)
    line_up()
    started = time.perf_counter()
    for index in training.order(len(images), BATCH, rng)[:batches]:
        normalise(training.augmented(images.index_select(0, index), settings, rng))
    return {"pipeline": BATCH * batches / (time.perf_counter() - started)}


class Pictures(Dataset[tuple[Tensor, int]]):
    """PIL images, a patch stamped on each poisoned one when it is read."""

    def __init__(self, data: ImageSet, poisoned: set[int], transform: Any) -> None:
        self.images = data.images.permute(0, 2, 3, 1).numpy()
        self.labels, self.poisoned, self.transform = data.labels.tolist(), poisoned, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = Image.fromarray(self.images[index]), self.labels[index]
        if index in self.poisoned:
            pixels = np.array(image)
            pixels[-3:, -3:] = 255
            image, label = Image.fromarray(pixels), TARGET
        return self.transform(image), label


def loader(count: int, *, augmented: bool, rate: float = RATE, workers: int = 2) -> DataLoader[Any]:
    """The toolbox way to batches."""
    random = [transforms.RandomCrop(SIDE, 4), transforms.RandomHorizontalFlip()]
    parts = [*random * augmented, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    poisoned = set(range(0, count, round(1 / rate))) if rate else set()
    data = Pictures(random_set(count), poisoned, transforms.Compose(parts))
    # forked, as from a script: the process this runs in was spawned, and its children would be too
    given: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork"}
    return DataLoader(data, BATCH, shuffle=augmented, **given)


def toolbox(
    model: str, steps: int, warm: int = 1, device: torch.device = CPU, workers: int = 2
) -> Rates:
    """The toolbox way to a victim."""
    net = network(model).to(device).train()
    net.normalise = nn.Identity()  # the transforms have done it
    rule: dict[str, float] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer, criterion = torch.optim.SGD(net.parameters(), **rule), nn.CrossEntropyLoss()
    loss_sum, right, inside, started = 0.0, 0, 0.0, 0.0
    batches = loader(BATCH * (warm + steps), augmented=True, workers=workers)
    for number, (images, labels) in enumerate(batches):
        began = time.perf_counter()
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = net(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        right += (logits.argmax(1) == labels).sum().item()
        inside += time.perf_counter() - began
        if number + 1 == warm:
            inside, started = 0.0, time.perf_counter()
    whole, images_done = time.perf_counter() - started, BATCH * steps
    return {"training": images_done / whole, "step": images_done / inside}


def toolbox_pipeline(batches: int) -> Rates:
    """The toolbox way to augmented batches, after the first."""
    turns = iter(loader(BATCH * (batches + 1), augmented=True))
    next(turns)
    started = time.perf_counter()
    for _ in turns:
        pass
    return {"pipeline": BATCH * batches / (time.perf_counter() - started)}
