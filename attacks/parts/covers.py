"""Attacks with covers: stamped samples that keep their label, so the trigger alone says little.

Covers are disjoint from the poisoned samples. Where there are several training triggers, every
sample carries one of them, balanced over the poisoned samples and over the covers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.parts.select import draw
from sweeper.core.options import NonNegative
from sweeper.core.types import Facts, Poisoned, Role, Samples, State


@dataclass(frozen=True, kw_only=True)
class CoverAttack(Attack):
    """Stamps a second set of samples without relabelling it."""

    rate_base: str = "all"
    """What the poison rate is a share of: all (the release) | non-target | target-class."""
    cover_ratio: NonNegative = 1.0
    """Cover samples per poisoned sample."""

    patterns: ClassVar[int] = 1
    """How many training triggers there are."""

    @abstractmethod
    def mark(self, images: Tensor, pattern: Tensor, rng: Generator) -> Tensor:
        """Stamp the training trigger `pattern` (int64 [B]) on each image; uint8, as `stamp`."""

    @abstractmethod
    def reveal(self, images: Tensor) -> Tensor:
        """Stamp the test trigger on every image; uint8, as `stamp`."""

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """The test trigger, or one training trigger an image."""
        if split == "test":
            return self.reveal(images)
        return self.mark(images, balanced(len(images), self.patterns, rng), rng)

    def cover_pool(self, labels: Tensor) -> Tensor:
        """Bool [N]: the samples that may be covers, if they are not poisoned."""
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_count(self, labels: Tensor, rate: float) -> int:
        """How many covers there are at this poison rate."""
        return int(self.cover_ratio * self.count(labels, rate) + 1e-9)

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where poisoned samples and covers together are more than there are."""
        why = super().applies(facts, rate)
        if why or not facts.class_counts:
            return why
        class_counts = torch.tensor(facts.class_counts)
        labels = torch.repeat_interleave(torch.arange(facts.classes), class_counts)
        pool, covers = self.cover_pool(labels), self.cover_count(labels, rate)
        poisoned = min(self.count(labels, rate), int((pool & self.pool(labels)).sum()))
        free = int(pool.sum()) - poisoned
        if covers <= free:
            return None
        return f"needs {covers} covers, has {free} images for them: lower the rate or `cover_ratio`"

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """Draw, stamp and relabel the poisoned samples; draw and stamp the covers.

        Raises:
            SweepError: The rate asks for more samples than there are.
        """
        labels, images = train.labels.clone(), train.images.clone()
        role = torch.full((len(train),), int(Role.CLEAN), dtype=torch.uint8)
        pattern = torch.full((len(train),), -1)
        poisoned = draw(self.pool(labels), self.count(labels, rate), rng)
        cover_pool = self.cover_pool(labels)
        cover_pool[poisoned] = False
        covers = draw(cover_pool, self.cover_count(labels, rate), rng)
        for index, kind in ((poisoned, Role.POISON), (covers, Role.COVER)):
            role[index] = int(kind)
            pattern[index] = balanced(len(index), self.patterns, rng)
            images[index] = self.mark(train.images[index], pattern[index], rng)
        labels[poisoned] = self.relabel(train.labels[poisoned], len(train.classes))
        index = torch.arange(len(train))
        samples = train.changed(images=images, labels=labels)
        return Poisoned(samples, train.labels.clone(), role, index, pattern)


def balanced(count: int, patterns: int, rng: Generator) -> Tensor:
    """int64 [count]: a random assignment that uses every pattern equally often, within one."""
    return torch.randperm(count, generator=rng) % patterns
