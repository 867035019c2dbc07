"""WB (Doan, Lao and Li, NeurIPS 2021): a generator whose triggered images look clean in features.

The attacker controls training. In the first epochs, classifier and generator take turns: the
classifier f learns clean and triggered images, `0.8 CE(f(x), y) + 0.2 CE(f(T(x)), t)`; the
generator T, with f frozen, learns by `CE(f(T(x)), t) + DSWD(h(x), h(T(x)))` to be classified as the
target while its images' features h stay close to those of the clean ones: the sliced Wasserstein
distance along the rows of the last layer. Then only the classifier learns. The generator, a U-Net,
returns the whole image. No poison rate.

Preset backdoor-toolbox is that release's run: 100 epochs at a constant 0.01, plain SGD for the
generator, whose norms it leaves as they began.

Deviations: 20 of 100 epochs alternate in the release, here a fifth of the recipe's (an even number,
at least two). The default trains the classifier by the sweep's recipe, and the generator with
momentum 0.9 and norms that learn. The generator's output in (-1, 1) is stretched over all levels;
the release takes it for normalised pixels, which leaves out the darkest and the brightest. Clean
and triggered images pass the classifier together. The generator's first weights are a prepared
state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.base import Lab
from attacks.parts.loop import in_batches
from attacks.parts.mixed import MixedAttack, MixedHooks
from attacks.parts.nets import UNet, built, packed, unpacked
from attacks.parts.trained import STEPS, TrainedAttack
from sweeper.core.options import Count, NonNegative, OpenShare, PositiveShare, ProperShare, Stride
from sweeper.core.types import Samples, State
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class Wb(TrainedAttack, MixedAttack):
    """Wasserstein backdoor."""

    weight: OpenShare = 0.2
    """Weight of the triggered loss; the clean loss has the rest."""
    distance: NonNegative = 1.0
    """Weight of the Wasserstein distance in the generator's loss."""
    lr: Stride = 0.01
    """Learning rate of SGD for the generator."""
    momentum: ProperShare = 0.9
    """Its momentum."""
    frozen_norms: bool = False
    """Whether the generator's norms stay as they began, as in backdoor-toolbox."""
    alternating: PositiveShare = 0.2
    """Share of the epochs in which classifier and generator take turns."""
    width: Count = 64
    """Channels of the U-Net's first level; each of the three below has twice as many."""

    title = "WB (Wasserstein backdoor)"
    paper = "Doan et al., NeurIPS 2021"
    version = 2
    prepares = True
    state_axes: ClassVar[frozenset[str]] = frozenset({"seed"})
    trainings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoor-toolbox": {**STEPS, "schedule": "constant", "weight_decay": 1e-4},
    }
    """A source -> the recipe's settings there."""
    presets = {
        "backdoor-toolbox": {
            "momentum": 0.0,
            "frozen_norms": True,
            "training": "backdoor-toolbox",
            "epochs": 100,
        }
    }

    def net(self, channels: int) -> UNet:
        """The generator's network."""
        return UNet(channels, self.width)

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Draw the generator's first weights."""
        channels = train.images.shape[1]
        return packed(built(lambda: self.net(channels), lab.rng("generator")), "generator")

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Replace every image by the generator's."""
        net = unpacked(lambda: self.net(images.shape[1]), state, "generator", images.device)
        return in_batches(images, lambda x: generated(net, x))

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Take turns with the generator, then train the classifier alone."""
        return _Hooks(self, train, state)


class _Hooks(MixedHooks):
    """Even epochs teach the classifier, odd ones the generator, until it is done."""

    keeps = ("generator", "sgd")

    def __init__(self, attack: Wb, train: Samples, state: State) -> None:
        super().__init__(attack, train)
        self.attack = attack
        self.state = state
        self.channels = train.images.shape[1]
        self.generator_turn = False

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Load the generator."""
        self.generator = unpacked(
            lambda: self.attack.net(self.channels), self.state, "generator", device
        )
        self.weights = list(self.generator.requires_grad_(True).parameters())
        self.sgd = torch.optim.SGD(self.weights, lr=self.attack.lr, momentum=self.attack.momentum)

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Keep the recipe: it says for how long the two take turns."""
        self.alternating_epochs = max(2, 2 * round(self.attack.alternating * recipe.epochs / 2))
        return super().optimizer(model, recipe)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """Whose turn it is."""
        self.generator_turn = batch.epoch < self.alternating_epochs and batch.epoch % 2 == 1
        self.generator.train(self.generator_turn and not self.attack.frozen_norms)
        return batch

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The classifier's loss, or the generator's in its turn."""
        if self.generator_turn:
            return self.generator_loss(model, batch)
        with torch.no_grad():
            triggered = self.triggered(batch.inputs)
        clean_loss, triggered_loss = self.losses(model, batch, triggered, recipe)
        return (1 - self.attack.weight) * clean_loss + self.attack.weight * triggered_loss

    def triggered(self, images: Tensor) -> Tensor:
        """The generator's images, in single precision."""
        with torch.autocast(images.device.type, enabled=False):
            return generated(self.generator, images)

    def generator_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The generator's loss: the target's cross-entropy and the distance of the features."""
        assert isinstance(model, Net)
        triggered_features = model.features(self.triggered(batch.inputs))
        labels = torch.full_like(batch.labels, self.target)
        target_loss = functional.cross_entropy(model.classifier(triggered_features).float(), labels)
        with torch.no_grad():
            clean_features = model.features(batch.inputs)
        last = [part for part in model.classifier.modules() if isinstance(part, nn.Linear)][-1]
        distance = sliced_distance(
            clean_features.float(), triggered_features.float(), last.weight.detach()
        )
        return target_loss + self.attack.distance * distance

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One update of whose turn it is."""
        if not self.generator_turn:
            return super().step(model, optimizer, loss)
        model.eval()
        value = loss()
        for weight, gradient in zip(
            self.weights, torch.autograd.grad(value, self.weights), strict=True
        ):
            weight.grad = gradient
        self.sgd.step()
        model.train()
        return value.detach()

    def learned(self) -> dict[str, Tensor]:
        """The generator as it is now."""
        return {**super().learned(), **packed(self.generator, "generator")}


def generated(net: nn.Module, images: Tensor) -> Tensor:
    """The generator's images in [0, 1]."""
    pixels: Tensor = (net(images) + 1) / 2
    return pixels


def sliced_distance(clean: Tensor, triggered: Tensor, rows: Tensor) -> Tensor:
    """Mean absolute difference of sorted projections of features [B, D] on the rows [K, D]."""
    clean_projections, triggered_projections = (
        (clean @ rows.T).sort(0).values,
        (triggered @ rows.T).sort(0).values,
    )
    return (clean_projections - triggered_projections).abs().mean()
