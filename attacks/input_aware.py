"""Input-aware dynamic attack (Nguyen and Tran, NeurIPS 2020): every image has its own trigger.

A mask net M chooses few pixels of an image, a generator G their colours:
`T(x) = x + (G(x) - x) * M(x)`. `prepare` trains M alone (sparse, different for different images)
and draws G's first weights; the attacker then controls training: of every batch the first share
carries its own trigger and the target label, as many the trigger of another image and their true
label (`cross_acc`); G learns with the classifier, by `CE + l mean(d(x, x') / d(G(x), G(x')))`,
which asks for diverse patterns. What G became is kept with the victim. Images are triggered after
augmentation, as in the release.

Deviations: everything acts on pixels in [0, 1] instead of normalised ones, which is the same T;
distances are divided by the channels' standard deviations, as normalisation would. The mask phase
sees images without augmentation. Augmentation and schedule are the sweep's recipe, G's
learning-rate steps at the release's fractions of its epochs (1/3, 1/2, 2/3, 5/6 of 600); presets
`iab-release` and `backdoorbench` bring their source's (`training`), of 600 and 100 epochs, with G's
steps at 200, 300, 400, 500. A batch with less than one poisoned image has one by chance, as in
BackdoorBench; in the release it has none, and a tenth of every batch is crossed at any rate. The
release never zeroes G's gradients: that quirk is `accumulate`. The widths 32, 64, 128 end in 256
above 64 px and are 16, 32 for grey images. M and the first weights of G are shared by all seeds of
a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.base import Lab
from attacks.parts.loop import STAMP_BATCH, LoopAttack, LoopHooks, others, rounded
from attacks.parts.nets import PatternNet, built, packed, squash, unpacked
from attacks.parts.trained import RELEASED
from sweeper.core.options import NonNegative, OpenShare, Share, Stride, Whole
from sweeper.core.types import Samples, State
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks

MILESTONES = (200, 300, 400, 500)
"""Epochs after which G's learning rate falls to a tenth in the release."""
EPOCHS = 600
"""Epochs of the release."""
BETAS = (0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class InputAware(LoopAttack):
    """Trigger generator learned with the victim."""

    density: OpenShare = 0.032
    """Share of the pixels the mask may take without a penalty."""
    diversity: NonNegative = 1.0
    """Weight of the diversity terms."""
    mask_epochs: Whole = 25
    """Epochs of the mask net alone."""
    lr: Stride = 0.01
    """Learning rate of Adam for both nets."""
    cross_ratio: NonNegative = 1.0
    """Images with another image's trigger for each poisoned one."""
    crossed_share: Share | None = field(default=None, metadata={"added": True})
    """Share of every batch that gets another image's trigger, in place of `cross_ratio`."""
    accumulate: bool = False
    """Whether the generator's gradients are never zeroed (the release's quirk)."""

    title = "Input-aware"
    paper = "Nguyen and Tran, NeurIPS 2020 (arXiv 2010.08138)"
    rules = ("all2one", "all2all")
    prepares = True
    version = 2
    trainings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {**RELEASED, "crop_probability": 1.0, "rotation_probability": 1.0},
        "backdoorbench": {**RELEASED, "crop": 4, "crop_probability": 1.0, "rotation": 0.0},
    }
    """A source -> the recipe's settings there: in BackdoorBench its common augmentation."""
    presets = {
        "iab-release": {
            "accumulate": True,
            "crossed_share": 0.1,
            "chance": False,
            "training": "released",
            "epochs": 600,
        },
        "backdoorbench": {"rounding": "nearest", "training": "backdoorbench", "epochs": 100},
    }

    @property
    def extra(self) -> float:
        """Images with another image's trigger for each poisoned one."""
        return self.cross_ratio

    @property
    def extra_share(self) -> float | None:
        """Their share of a batch, where it is an option of its own."""
        return self.crossed_share

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Train the mask net; draw the generator's first weights."""
        shape = train.images.shape[1:]
        mask = built(lambda: net(shape, 1), lab.rng("mask")).to(lab.device)
        optimizer = torch.optim.Adam(mask.parameters(), lr=self.lr, betas=BETAS)
        images, rng = train.images.to(lab.device), lab.rng("draws")
        spread = deviation(train.images).to(lab.device)
        for epoch in range(self.mask_epochs):
            for group in optimizer.param_groups:  # release: x0.1 at 10 and 20 of 25
                group["lr"] = self.lr * 0.1 ** sum(
                    epoch >= f * self.mask_epochs for f in (0.4, 0.8)
                )
            streams = [training.order(len(train), 128, rng) for _ in range(2)]
            for first, second in zip(*streams, strict=True):
                x1, x2 = (images[i.to(lab.device)].float().div(255) for i in (first, second))
                m1, m2 = threshold(mask(x1)), threshold(mask(x2))
                density_loss = functional.relu(m1 - self.density).mean()
                diversity_loss = (distance(x1, x2, spread) / (distance(m1, m2) + 1e-7)).mean()
                optimizer.zero_grad(set_to_none=True)
                (100 * density_loss + self.diversity * diversity_loss).backward()
                optimizer.step()
            lab.log(epoch=epoch + 1, epochs=self.mask_epochs)
        generator = built(lambda: net(shape, shape[0]), lab.rng("generator"))
        return {**packed(mask, "mask"), **packed(generator, "generator")}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Give every image its own trigger, `cover` images that of another image of the call."""
        shape, crossed = images.shape[1:], split == "cover"
        if len(images) < 1 + crossed:
            return images.clone()
        donors = images[others(len(images), rng).to(images.device)] if crossed else images
        mask = unpacked(lambda: net(shape, 1), state, "mask", images.device)
        generator = unpacked(lambda: net(shape, shape[0]), state, "generator", images.device)
        parts = []
        with torch.inference_mode():
            for part, donor in zip(
                images.split(STAMP_BATCH), donors.split(STAMP_BATCH), strict=True
            ):
                x, z = part.float().div(255), donor.float().div(255)
                parts.append(rounded(x + (generator(z) - x) * threshold(mask(z))))
        return torch.cat(parts)

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Trigger images inside the batch and learn the generator."""
        return _Hooks(self, train, state, rng)


class _Hooks(LoopHooks):
    """Learns the generator together with the classifier."""

    keeps = ("generator", "adam", "gradients")

    def __init__(self, attack: InputAware, train: Samples, state: State, rng: Generator) -> None:
        super().__init__(attack, train, state, rng)
        self.options = attack
        self.spread = deviation(train.images)

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Move the nets and the second stream's images to the device."""
        shape = self.train.images.shape[1:]
        self.mask = unpacked(lambda: net(shape, 1), self.state, "mask", device)
        generator = unpacked(lambda: net(shape, shape[0]), self.state, "generator", device)
        self.generator = generator.train().requires_grad_(True)
        self.adam = torch.optim.Adam(generator.parameters(), lr=self.options.lr, betas=BETAS)
        self.images = training.on_device(self.train.images, device)
        self.spread = self.spread.to(device)

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Keep the recipe: it augments the second stream."""
        self.recipe = recipe
        return super().optimizer(model, recipe)

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        """Nothing yet: triggers come after augmentation."""
        return batch

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """Relabel the poisoned samples; draw the images whose triggers the crossed ones get."""
        self.poison, self.extra = self.parts(batch.labels, batch.epoch)
        count = len(self.extra)
        drawn = torch.randint(len(self.train), (max(count, 1),), generator=self.rng)
        images = self.images[drawn.to(self.images.device)]
        self.donors = training.augmented(images, self.recipe, self.rng)[:count]
        labels = batch.labels.clone()
        labels[self.poison] = self.attack.relabel(labels[self.poison], self.classes)
        return replace(batch, labels=labels)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """Cross-entropy on the triggered batch and the diversity of the patterns."""
        count = len(self.poison)
        if not count and not len(self.extra):
            return super().loss(model, batch, recipe)
        images = batch.inputs
        poison_images, cross_images = images[self.poison], images[self.extra]
        with torch.autocast(images.device.type, enabled=False):
            # one pass for both: alone, a single image has no batch statistics
            sources = torch.cat([poison_images, self.donors])
            pattern, mask = self.generator(sources), threshold(self.mask(sources))
            triggered = poison_images + (pattern[:count] - poison_images) * mask[:count]
            cross_triggered = cross_images + (pattern[count:] - cross_images) * mask[count:]
            pairs = min(count, len(cross_images))
            pattern_distance = distance(
                pattern[:pairs], pattern[count : count + pairs], self.spread
            )
            diversity_loss = distance(poison_images[:pairs], self.donors[:pairs], self.spread) / (
                pattern_distance + 1e-7
            )
        images = images.index_copy(0, self.poison, triggered).index_copy(
            0, self.extra, cross_triggered
        )
        loss = super().loss(model, replace(batch, inputs=images), recipe)
        return loss + self.options.diversity * diversity_loss.mean() if pairs else loss

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One update of the classifier and the generator by the same loss."""
        if not self.options.accumulate:
            self.adam.zero_grad(set_to_none=True)
        value = super().step(model, optimizer, loss)
        self.adam.step()
        return value

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        """The generator's, which `accumulate` carries from epoch to epoch."""
        return tuple(weight.grad for weight in self.generator.parameters())

    @gradients.setter
    def gradients(self, given: Sequence[Tensor | None]) -> None:
        for weight, gradient in zip(self.generator.parameters(), given, strict=True):
            weight.grad = gradient

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """Lower the generator's learning rate at its milestones."""
        length = EPOCHS if self.options.training else self.recipe.epochs
        passed = sum((epoch + 1) * EPOCHS >= milestone * length for milestone in MILESTONES)
        for group in self.adam.param_groups:
            group["lr"] = self.options.lr * 0.1**passed

    def learned(self) -> dict[str, Tensor]:
        """The generator as it is now."""
        return {**super().learned(), **packed(self.generator, "generator")}


def net(shape: torch.Size, outputs: int) -> PatternNet:
    """The generator (`outputs` = channels) or the mask net (1) for images of this shape."""
    widths = (16, 32) if shape[0] == 1 else (32, 64, 128)
    return PatternNet(shape[0], outputs, (*widths, 256) if max(shape[1:]) > 64 else widths)


def threshold(mask: Tensor) -> Tensor:
    """Push the mask net's output in (0, 1) towards 0 or 1."""
    return squash(20 * mask - 10)


def distance(first: Tensor, second: Tensor, spread: Tensor | float = 1.0) -> Tensor:
    """Root mean square difference of each pair, float [B], in units of `spread`."""
    difference = ((first - second) / spread).flatten(1)
    return (difference.square().mean(1) + 1e-12).sqrt()  # the root has no slope at 0


def deviation(images: Tensor) -> Tensor:
    """Standard deviation of each channel in [0, 1], of up to 5,000 images; float [1, C, 1, 1]."""
    pixels = images[:5000].float().div(255).transpose(0, 1).flatten(1)
    return pixels.std(1).clamp(min=1e-3).view(1, -1, 1, 1)
