"""LIRA (Doan et al., ICCV 2021): a generator learns invisible noise together with the classifier.

`T(x) = clip(x + eps * g(x))`, g in (-1, 1). The attacker controls training. Stage one alternates in
every step: g is taught to make the classifier f say the target; f learns
`(1 - a) CE(f(x), y) + a CE(f(T(x)), t)`, triggered by the copy of g of the last epoch. In stage two
g is frozen. No poison rate: every image counts clean and triggered, with a = `weight` for the
triggered half.

Deviations: eps is in normalised units in the paper; here it is multiplied by each channel's
standard deviation over the training images. As 0.01 is then less than one level of uint8, training
rounds triggered images to uint8 with a straight-through gradient, so that the trigger survives
storage (the release never stores an image). Stage one is a sixth of the recipe's epochs, as 50 of
300; both losses come from one pass. The first weights of the generator are a prepared state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.base import Lab
from attacks.parts.loop import in_batches
from attacks.parts.mixed import MixedAttack, MixedHooks, straight_through
from attacks.parts.nets import Autoencoder, built, packed, unpacked
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks


@dataclass(frozen=True, kw_only=True)
class Lira(MixedAttack):
    """Learned additive noise."""

    eps: float = 0.01
    """Largest change of a pixel, in standard deviations of its channel."""
    weight: float = 0.5
    """Weight of the triggered half of the loss; the clean half has the rest."""
    lr: float = 1e-4
    """Learning rate of Adam for the generator."""
    stage_one: float = 1 / 6
    """Share of the epochs in which the generator learns."""

    title = "LIRA"
    paper = "Doan et al., ICCV 2021"
    prepares = True
    state_axes: ClassVar[frozenset[str]] = frozenset({"seed"})
    presets = {"visible": {"eps": 0.1, "lr": 1e-3}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A number out of range.
        """
        super().__post_init__()
        if self.eps <= 0 or self.lr <= 0:
            raise SweepError("eps and lr: above 0")
        if not (0 < self.weight < 1 and 0 < self.stage_one <= 1):
            raise SweepError("weight: in (0, 1); stage_one: in (0, 1]")

    def prepare(self, train: ImageSet, lab: Lab) -> dict[str, Tensor]:
        """Draw the generator's first weights; measure the channels' deviations."""
        channels = train.images.shape[1]
        pixels = train.images[:5000].float().div(255).transpose(0, 1).flatten(1)
        spread = pixels.std(1).view(1, -1, 1, 1)
        net = built(lambda: Autoencoder(channels), lab.rng("generator"))
        return {**packed(net, "generator"), "spread": spread}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Add the noise the generator makes of each image."""
        net = unpacked(lambda: Autoencoder(images.shape[1]), state, "generator", images.device)
        epsilon = self.eps * state["spread"].to(images.device)
        return in_batches(images, lambda x: x + epsilon * net(x))

    def hooks(self, train: ImageSet, state: State, rng: Generator) -> Hooks | None:
        """Teach the generator and mix the losses."""
        return _Hooks(self, train, state)


class _Hooks(MixedHooks):
    """Two copies of the generator: one learns, the other triggers."""

    def __init__(self, attack: Lira, train: ImageSet, state: State) -> None:
        super().__init__(attack, train)
        self.attack = attack
        self.state = state
        self.channels = train.images.shape[1]

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Load both copies."""
        copies = [
            unpacked(lambda: Autoencoder(self.channels), self.state, "generator", device)
            for _ in range(2)
        ]
        self.frozen, self.trainable = copies[0], copies[1].train().requires_grad_(True)
        self.adam = torch.optim.Adam(self.trainable.parameters(), lr=self.attack.lr)
        self.epsilon = self.attack.eps * self.state["spread"].to(device)
        self.model = model

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Keep the recipe: it says when stage one ends."""
        self.stage_one_epochs = max(1, round(self.attack.stage_one * recipe.epochs))
        return super().optimizer(model, recipe)

    def triggered(self, net: nn.Module, images: Tensor) -> Tensor:
        """The images with a copy's noise, rounded as they will be stored."""
        with torch.autocast(images.device.type, enabled=False):
            return straight_through(images + self.epsilon * net(images))

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """In stage one, teach the generator before the classifier's own step."""
        if batch.epoch < self.stage_one_epochs:
            logits = self.model(self.triggered(self.trainable, batch.images))
            labels = torch.full_like(batch.labels, self.target)
            weights = list(self.trainable.parameters())
            gradients = torch.autograd.grad(functional.cross_entropy(logits, labels), weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            self.adam.step()
        return batch

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """Clean and triggered loss, triggered by the frozen copy."""
        with torch.no_grad():
            triggered = self.triggered(self.frozen, batch.images)
        clean_loss, triggered_loss = self.losses(model, batch, triggered, recipe)
        return (1 - self.attack.weight) * clean_loss + self.attack.weight * triggered_loss

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """After an epoch of stage one the frozen copy takes the other's weights."""
        super().epoch(model, epoch)
        if epoch < self.stage_one_epochs:
            self.frozen.load_state_dict(self.trainable.state_dict())

    def learned(self) -> dict[str, Tensor]:
        """The generator that triggers."""
        return {**super().learned(), **packed(self.frozen, "generator")}
