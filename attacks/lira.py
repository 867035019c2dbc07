"""LIRA (Doan et al., ICCV 2021): a generator learns invisible noise together with the classifier.

`T(x) = clip(x + eps * g(x))`, g in (-1, 1). The attacker controls training. Stage one alternates in
every step: g is taught to make the classifier f say the target; f learns
`(1 - a) CE(f(x), y) + a CE(f(T(x)), t)`, triggered by the copy of g of the last epoch. In stage two
g is frozen. No poison rate: every image counts clean and triggered, with a = `weight` for the
triggered half.

- backdoorbench: an autoencoder, 0.01 in both stages, 50 and 250 epochs; the classifier goes on.
- released (the authors on CIFAR-10): a U-Net, 0.1 in stage one and 0.01 in stage two, 50 and 500
  epochs; the classifier begins anew in stage two.

Deviations: eps is in normalised units in the paper; here it is multiplied by each channel's
standard deviation over the training images. Triggered test images are truncated to uint8, as
BackdoorBench stores them; the authors store none. Stage one is a share of the recipe's epochs and
has its weight decay, which the releases use in stage two alone. The generator of the last epoch
triggers in stage two, where the authors take the best on test images. In their variant too, images
are augmented by the sweep's recipe. Both losses come from one pass. The first weights of the
generator are a prepared state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.base import Lab
from attacks.parts.loop import in_batches
from attacks.parts.mixed import MixedAttack, MixedHooks
from attacks.parts.nets import Autoencoder, UNet, built, packed, unpacked
from attacks.parts.trained import RELEASED, STEPS, TrainedAttack
from sweeper.core.errors import SweepError
from sweeper.core.options import NonNegative, OpenShare, Positive, PositiveShare, Stride
from sweeper.core.types import Samples, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks

NETS: dict[str, Callable[[int], nn.Module]] = {"autoencoder": Autoencoder, "unet": UNet}


@dataclass(frozen=True, kw_only=True)
class Lira(TrainedAttack, MixedAttack):
    """Learned additive noise."""

    eps: Positive = 0.01
    """Largest change of a pixel, in standard deviations of its channel."""
    stage_one_eps: NonNegative = 0.0
    """Likewise while the generator learns; 0: `eps`."""
    weight: OpenShare = 0.5
    """Weight of the triggered half of the loss; the clean half has the rest."""
    lr: Stride = 1e-4
    """Learning rate of Adam for the generator."""
    stage_one: PositiveShare = 1 / 6
    """Share of the epochs in which the generator learns."""
    generator: str = "autoencoder"
    """autoencoder | unet."""
    anew: bool = False
    """Whether the classifier begins anew in stage two."""

    title = "LIRA"
    paper = "Doan et al., ICCV 2021"
    version = 2
    prepares = True
    state_axes: ClassVar[frozenset[str]] = frozenset({"seed"})
    trainings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoorbench": {
            **RELEASED,
            "milestones": (100, 150, 200, 250),
            "crop_probability": 1.0,
            "rotation_probability": 1.0,
        },
        "released": {**STEPS, "milestones": (150, 250, 350, 450)},
    }
    """A source -> the recipe's settings there, for both stages together: rates fall at the source's
    epochs of stage two."""
    presets = {
        "visible": {"eps": 0.1, "lr": 1e-3},
        "backdoorbench": {"training": "backdoorbench", "epochs": 300},
        "released": {
            "stage_one_eps": 0.1,
            "stage_one": 1 / 11,
            "generator": "unet",
            "anew": True,
            "training": "released",
            "epochs": 550,
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown generator.
        """
        super().__post_init__()
        if self.generator not in NETS:
            raise SweepError(f"generator: {self.generator!r} is not one of {', '.join(NETS)}")

    def net(self, channels: int) -> nn.Module:
        """The generator's network."""
        return NETS[self.generator](channels)

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Draw the generator's first weights; measure the channels' deviations."""
        channels = train.images.shape[1]
        pixels = train.images[:5000].float().div(255).transpose(0, 1).flatten(1)
        spread = pixels.std(1).view(1, -1, 1, 1)
        net = built(lambda: self.net(channels), lab.rng("generator"))
        return {**packed(net, "generator"), "spread": spread}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Add the noise the generator makes of each image."""
        net = unpacked(lambda: self.net(images.shape[1]), state, "generator", images.device)
        epsilon = self.eps * state["spread"].to(images.device)
        return in_batches(images, lambda x: triggered(net, x, epsilon).mul(255).floor().div(255))

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Teach the generator and mix the losses."""
        return _Hooks(self, train, state)


class _Hooks(MixedHooks):
    """Two copies of the generator: one learns, the other triggers."""

    keeps = ("frozen", "trainable", "adam")

    def __init__(self, attack: Lira, train: Samples, state: State) -> None:
        super().__init__(attack, train)
        self.attack = attack
        self.state = state
        self.channels = train.images.shape[1]

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Load both copies."""
        copies = [
            unpacked(lambda: self.attack.net(self.channels), self.state, "generator", device)
            for _ in range(2)
        ]
        self.frozen, self.trainable = copies[0], copies[1].train().requires_grad_(True)
        self.adam = torch.optim.Adam(self.trainable.parameters(), lr=self.attack.lr)
        self.spread = self.state["spread"].to(device)
        self.model = model
        self.first_weights = copy.deepcopy(model.state_dict()) if self.attack.anew else {}

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Keep the recipe: it says when stage one ends."""
        self.stage_one_epochs = max(1, round(self.attack.stage_one * recipe.epochs))
        self.all_epochs = recipe.epochs
        self.sgd = super().optimizer(model, recipe)
        return self.sgd

    def triggered(self, net: nn.Module, images: Tensor) -> Tensor:
        """The images with a copy's noise, of the size this stage allows."""
        with torch.autocast(images.device.type, enabled=False):
            return triggered(net, images, self.eps * self.spread)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """In stage one, teach the generator before the classifier's own step."""
        learns = batch.epoch < self.stage_one_epochs
        self.eps = (self.attack.stage_one_eps if learns else 0) or self.attack.eps
        if learns:
            logits = self.model(self.triggered(self.trainable, batch.inputs))
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
            images = self.triggered(self.frozen, batch.inputs)
        clean_loss, triggered_loss = self.losses(model, batch, images, recipe)
        return (1 - self.attack.weight) * clean_loss + self.attack.weight * triggered_loss

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """After an epoch of stage one the frozen copy takes the other's weights."""
        super().epoch(model, epoch)
        if epoch < self.stage_one_epochs:
            self.frozen.load_state_dict(self.trainable.state_dict())
        if self.first_weights and epoch + 1 == self.stage_one_epochs < self.all_epochs:
            model.load_state_dict(self.first_weights)
            self.sgd.state.clear()

    def learned(self) -> dict[str, Tensor]:
        """The generator that triggers."""
        return {**super().learned(), **packed(self.frozen, "generator")}


def triggered(net: nn.Module, images: Tensor, epsilon: Tensor) -> Tensor:
    """Float images in [0, 1] with the generator's noise, at most `epsilon` [1, C, 1, 1]."""
    noise: Tensor = net(images)
    return (images + epsilon * noise).clamp(0, 1)
