"""Attacks that stamp inside the training loop: shares of a batch, and the set they amount to.

Of every batch the first `int(rate * batch)` samples that may be poisoned are stamped and
relabelled, the next ones carry a cross trigger or noise and keep their labels, the rest is clean.
Where `rate * batch` is below 1, one sample is poisoned with that probability (BackdoorBench), or
none (the authors: `chance: false`). The training set on disk stays clean; a defense that sees it is
given the set one epoch amounts to: as many stamped images as the loop stamped in an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from attacks.parts.select import draw
from attacks.parts.trained import TrainedAttack
from sweeper.core.errors import SweepError
from sweeper.core.types import Poisoned, Role, Samples, State
from sweeper.engine.training import Batch, Hooks

STAMPED = "stamped"
"""What every loop attack's hooks leave: int64 [2], images an epoch poisons and images it stamps
that keep their labels (attacks on the loss: int64, images stamped over all of training)."""
STAMP_BATCH = 500
"""Images stamped at once where a network or a warp needs memory."""


@dataclass(frozen=True, kw_only=True)
class LoopAttack(TrainedAttack):
    """An attack whose batches are stamped in the loop; rates are of all images by default."""

    chance: bool = field(default=True, metadata={"added": True})
    """Whether a batch that holds less than one poisoned image has one with that probability."""

    extra_role: ClassVar[Role] = Role.COVER
    """Role of the samples that carry a cross trigger or noise."""

    @property
    def base(self) -> str:
        """What the poison rate is a share of: all, unless the option says otherwise."""
        return self.rate_base or "all"

    @property
    def on_disk(self) -> bool:
        """Whether the data are poisoned before training, and the loop is left alone."""
        return False

    @property
    def extra(self) -> float:
        """Samples with a cross trigger or noise for each poisoned one."""
        return 0.0

    @property
    def extra_share(self) -> float | None:
        """The share of a batch they are, where it does not follow from the poisoned ones."""
        return None

    def extras(self, poisoned: int, size: int) -> int:
        """Samples with a cross trigger or noise among `size`, of which so many are poisoned."""
        share = self.extra_share
        return int(self.extra * poisoned if share is None else share * size + 1e-9)

    def crossed(self, images: Tensor, train: Tensor, state: State, rng: Generator) -> Tensor:
        """Stamp the samples that keep their labels; `train`: images others may be drawn from."""
        return self.stamp(images, split="cover", state=state, rng=rng)

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """The clean set before the loop has run; after it, the set an epoch of it amounts to."""
        if self.on_disk:
            count = self.count(train.labels, rate)
            extra = self.extras(count, len(train))
        elif STAMPED in state:
            count, extra = state[STAMPED].tolist()
        else:
            return clean(train)
        poisoned = self.poisoned(train, count, state, rng)
        pool = poisoned.role == int(Role.CLEAN)
        index = draw(pool, min(extra, int(pool.sum())), rng)
        images = train.images[index]
        poisoned.images[index] = self.crossed(images, train.images, state, rng)
        poisoned.role[index] = int(self.extra_role)
        return poisoned

    def cross_set(self, test: Samples, state: State, rng: Generator) -> Samples | None:
        """The test images as the samples that keep their labels are stamped."""
        if not (self.extra if self.extra_share is None else self.extra_share):
            return None
        images = self.stamp(test.images, split="cover", state=state, rng=rng)
        return test.shown(images)


class LoopHooks(Hooks):
    """Stamps the first samples of every batch before augmentation, by the attack's own `stamp`."""

    keeps: ClassVar[tuple[str, ...]] = ("rng", "stamped")
    """The draws of the loop, and how many images it has stamped."""

    def __init__(self, attack: LoopAttack, train: Samples, state: State, rng: Generator) -> None:
        self.attack = attack
        self.state = state
        self.rng = rng
        self.classes = len(train.classes)
        self.share = attack.poison_rate * attack.count(train.labels, 1.0) / len(train)
        self.train = train
        self.stamped = [0, 0]
        self.epochs = 1

    def parts(self, labels: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Positions in the batch of the poisoned samples and of those that keep their labels.

        Only at rates near 1 of the non-target images can a batch hold too few of them; the target's
        images that then fill up are stamped and keep the target label.

        Raises:
            SweepError: Not even the first batch, which is the largest, holds a poisoned sample.
        """
        size = len(labels)
        expected = self.share * size
        count = min(int(expected + 1e-9), size)
        if self.attack.chance and 0 < expected < 1:
            count = int(float(torch.rand((), generator=self.rng)) < expected)
        if not (count or self.attack.chance or any(self.stamped)):
            raise SweepError(
                f"poisons no image: rate {self.attack.poison_rate:g} of a batch of {size} is less "
                "than one: raise the rate, or give `chance: true`"
            )
        order = torch.arange(size, device=labels.device)
        if self.attack.base != "all":
            pool = self.attack.pool(labels)
            order = torch.argsort((~pool).to(torch.uint8), stable=True)
        poison, extra = order[:count], order[count : count + self.attack.extras(count, size)]
        self.stamped = [self.stamped[0] + count, self.stamped[1] + len(extra)]
        self.epochs = epoch + 1
        return poison, extra

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        """Stamp and relabel the first samples, stamp the next with noise or a cross trigger."""
        poison, extra = self.parts(batch.labels, batch.epoch)
        images, labels = batch.inputs.clone(), batch.labels.clone()
        for index, stamp in ((poison, self.triggered), (extra, self.crossed)):
            if len(index):
                samples = batch.inputs[index].permute(0, 3, 1, 2)
                images[index] = stamp(samples).permute(0, 2, 3, 1)
        labels[poison] = self.attack.relabel(labels[poison], self.classes)
        return replace(batch, inputs=images, labels=labels)

    def triggered(self, samples: Tensor) -> Tensor:
        """Stamp poisoned samples, uint8 [B, C, H, W]."""
        return self.attack.stamp(samples, split="train", state=self.state, rng=self.rng)

    def crossed(self, samples: Tensor) -> Tensor:
        """Stamp samples that keep their labels, uint8 [B, C, H, W]."""
        return self.attack.crossed(samples, self.train.images, self.state, self.rng)

    def learned(self) -> dict[str, Tensor]:
        """How many images an epoch has stamped, on average: that the loop has run."""
        return {STAMPED: torch.tensor([round(count / self.epochs) for count in self.stamped])}


def clean(train: Samples) -> Poisoned:
    """The training set as it is, every role CLEAN."""
    role = torch.full((len(train),), int(Role.CLEAN), dtype=torch.uint8)
    labels = train.labels.clone()
    return Poisoned(train.changed(labels=labels), labels.clone(), role, torch.arange(len(train)))


def rounded(pixels: Tensor) -> Tensor:
    """Map float [0, 1] -> the nearest uint8 level."""
    return pixels.detach().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def in_batches(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` (float [B, C, H, W] in [0, 1] to the same) to uint8 images; uint8, rounded."""
    parts = []
    with torch.inference_mode():
        for part in images.split(STAMP_BATCH):
            parts.append(rounded(change(part.float().div(255))))
    return torch.cat(parts) if len(images) else images.clone()


def others(count: int, rng: Generator) -> Tensor:
    """A random partner for each of `count` samples, never itself where there are two or more."""
    permutation = torch.randperm(count, generator=rng)
    partner = torch.empty_like(permutation)
    partner[permutation] = permutation.roll(1)
    return partner
