"""How long a trigger takes to stamp, and a training set to poison, for every attack on data.

Attacks that must prepare something or own the loop are left out; median of five on random images
of 32x32 pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from attacks.base import Attack
from sweeper.core import catalog
from sweeper.core.types import Facts, ImageSet

CLASSES = 10
REPEATS = 5


def seconds(work: Callable[[], Any]) -> float:
    """The median time of `work` after one warm-up."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_set(count: int) -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    return ImageSet(images, labels, tuple(map(str, range(CLASSES))))


def static() -> Iterator[tuple[str, Attack]]:
    """Every attack on images whose trigger needs nothing but the image."""
    for name in catalog.ready("attack"):
        attack: Attack = catalog.make("attack", name, {})
        if attack.controls == "data" and not attack.prepares and attack.rule != "semantic":
            yield name, attack


def rows() -> list[dict[str, Any]]:
    """One row an attack: ms to stamp 10,000 test images, to poison 10 % of 50,000."""
    test, train = random_set(10_000), random_set(50_000)
    facts = Facts("random", "0", CLASSES, (3, 32, 32), (5000,) * CLASSES, 50_000)
    found = []
    for name, attack in static():
        rate = 0.1 if attack.applies(facts, 0.1) is None else 1.0

        def stamp(attack: Attack = attack) -> None:
            rng = torch.Generator().manual_seed(0)
            attack.stamp(test.images, split="test", state={}, rng=rng)

        def poison(attack: Attack = attack, rate: float = rate) -> None:
            attack.poison(train, rate, {}, torch.Generator().manual_seed(0))

        times = {"stamp_ms": seconds(stamp), "poison_ms": seconds(poison)}
        found.append({"attack": name} | {k: round(1000 * v, 1) for k, v in times.items()})
    return found
