"""MixMatch (Berthelot et al., NeurIPS 2019) over a split that is drawn anew before every epoch.

What DBD and ASD share: training samples held to be clean keep their labels, the others lend their
images only. Labels of these are guessed from two views and sharpened; then all images and targets
of a step are mixed: `CE(p, y) + w |p_u - q|^2`, where the weight w of the guesses q rises from 0
over the whole training.

Deviations:

- One forward pass takes all images of a step, so that BatchNorm sees the labelled and the others
  together; the releases interleave the two and make three passes to this end.
- Each image has a mixing weight of its own, as in MixMatch; the releases draw one a step
  (`one_mix`).
- Losses are those of the images as they lie in the training set; the releases augment them, so
  that a ranking is of one random view (`augmented_scores`: cropped and mirrored by the recipe).
- Images are drawn with replacement, augmented as the victim's recipe does.
- The releases keep the epoch of best test accuracy; here the last one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense
from defenses.parts.losses import losses_of
from defenses.parts.steps import descend
from sweeper.core.options import Count, LearningRate, NonNegative, OpenShare, Positive
from sweeper.core.types import Samples
from sweeper.engine import augment, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch


def symmetric(logits: Tensor, labels: Tensor) -> Tensor:
    """Symmetric cross-entropy (Wang et al., ICCV 2019): 0.1 of it, and of its reverse all.

    The reverse takes ln 0 for ln 1e-4, so it is 9.21 times the share of all other classes, each
    not below 1e-7.

    Args:
        logits: float [B, K].
        labels: int64 [B].

    Returns:
        float [B].
    """
    other_probability = logits.softmax(1).clamp(1e-7, 1).scatter(1, labels[:, None], 0.0).sum(1)
    return (
        0.1 * functional.cross_entropy(logits, labels, reduction="none")
        - math.log(1e-4) * other_probability
    )


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """Raise probabilities [B, K] to the power 1 / temperature, and scale them to the sum 1."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def weights(count: int, beta: float, rng: Generator, single: bool) -> Tensor:
    """Draw float [count], the larger of w and 1 - w, w from Beta(beta, beta); `single` for all."""
    from scipy.special import betaincinv

    uniform = torch.rand(1 if single else count, generator=rng, dtype=torch.float64)
    drawn = torch.from_numpy(betaincinv(beta, beta, uniform.numpy())).float()
    return torch.maximum(drawn, 1 - drawn).expand(count)


def mixed(values: Tensor, weight: Tensor, partner: Tensor) -> Tensor:
    """Mix each of [B, ...] by its weight, float [B], with the one at index `partner`, int64 [B]."""
    weight = weight.view(-1, *[1] * (values.ndim - 1))
    return weight * values + (1 - weight) * values[partner]


@dataclass(frozen=True, kw_only=True)
class MixMatch(Defense):
    """A secure training whose main part is semi-supervised."""

    labelled: OpenShare = 0.5
    """Share of the training set that keeps its labels."""
    iterations: Count = 1024
    """MixMatch: steps of an epoch."""
    batch: Count = 64
    """MixMatch: labelled images of a step, and as many others."""
    lr: LearningRate = 2e-3
    """MixMatch: learning rate (Adam, constant)."""
    temperature: Positive = 0.5
    """MixMatch: guesses are raised to the power of 1 over this."""
    beta: Positive = 0.75
    """MixMatch: mixing weights are Beta(beta, beta), the larger side to the image itself."""
    weight: NonNegative = 15.0
    """MixMatch: weight of the guesses at the end of training; it rises linearly from 0."""
    one_mix: bool = False
    """MixMatch: whether all images of a step have one mixing weight, as released."""
    augmented_scores: bool = False
    """Whether the losses that split are of augmented images, as released."""

    def losses(self, case: Case, model: nn.Module, data: Samples, name: str) -> Tensor:
        """Symmetric cross-entropy of each sample, float [N]; the model is in eval mode."""
        if self.augmented_scores:
            recipe, rng = case.recipe, case.rng(f"{name} view")
            images = data.images.permute(0, 2, 3, 1)
            images = augment.crop_flip(
                images, recipe.crop, recipe.flip, rng, recipe.crop_probability
            )
            data = data.changed(images=images.permute(0, 3, 1, 2))
        return losses_of(case, model, data, symmetric)

    def mixmatch(
        self,
        case: Case,
        model: nn.Module,
        data: Samples,
        epochs: int,
        choose: Callable[[int], Tensor],
    ) -> list[float]:
        """Train in place; the model is left in eval mode.

        Args:
            case: The case.
            model: What to train; all of it.
            data: Of which some keep their labels.
            epochs: Epochs of `iterations` steps.
            choose: Called before each epoch (from 0), the model in eval mode: bool [N], which keep
                their labels; some do and some do not.

        Returns:
            The loss at the end of each epoch.
        """
        recipe = replace(case.recipe, batch=self.batch, lr=self.lr, schedule="constant")
        model.to(case.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        losses = []
        model.eval()
        for epoch in range(epochs):
            labelled = choose(epoch)
            loss = _Loss(self, case, model, data.images[~labelled], recipe, epoch, epochs)
            model.train()
            ends = descend(
                case,
                model,
                data[labelled],
                recipe,
                self.iterations,
                loss=loss,
                name=f"mixmatch {epoch}",
                optimizer=optimizer,
            )
            model.eval()
            losses.append(ends[-1])
            case.log(epoch=epoch + 1, epochs=epochs, loss=losses[-1])
        return losses


class _Loss:
    """The loss of the steps of one epoch."""

    def __init__(
        self,
        options: MixMatch,
        case: Case,
        model: nn.Module,
        unlabelled: Tensor,
        recipe: Recipe,
        epoch: int,
        epochs: int,
    ) -> None:
        """Take `unlabelled`, uint8 [M, C, H, W], the images without labels."""
        self.options = options
        self.case = case
        self.model = model
        self.unlabelled = training.on_device(unlabelled, case.device)
        self.recipe = recipe
        self.epoch, self.epochs = epoch, epochs
        self.rng = case.rng(f"others {epoch}")

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of augmented labelled images with as many others."""
        images, labels = batch.inputs, batch.labels
        count, options, device = len(images), self.options, images.device
        index = torch.randint(len(self.unlabelled), (count,), generator=self.rng).to(device)
        twice = self.unlabelled.index_select(0, index).repeat(2, 1, 1, 1)
        views = training.augmented(twice, self.recipe, self.rng)
        guesses = sharpened(self.guessed(views), options.temperature)
        one_hot = functional.one_hot(labels, guesses.shape[1]).to(guesses.dtype)
        weight = weights(3 * count, options.beta, self.rng, options.one_mix).to(device)
        partner = torch.randperm(3 * count, generator=self.rng).to(device)
        targets = mixed(torch.cat([one_hot, guesses, guesses]), weight, partner)
        with self.case.autocast():
            logits = self.model(mixed(torch.cat([images, views]), weight, partner)).float()
        supervised = functional.cross_entropy(logits[:count], targets[:count])
        consistency = (logits[count:].softmax(1) - targets[count:]).square().mean()
        total: Tensor = supervised + self.ramp(batch.step) * consistency
        return total

    @torch.no_grad()
    def guessed(self, views: Tensor) -> Tensor:
        """Mean probabilities [B, K] over the two views, float [2 B, C, H, W], of each image.

        Under an autocast of its own: weights it casts without gradients must not be met again.
        """
        with self.case.autocast():
            probabilities = self.model(views).float().softmax(1)
        return torch.stack(probabilities.chunk(2)).mean(0)

    def ramp(self, step: int) -> float:
        """Weight of the guesses at a step of this epoch."""
        return self.options.weight * (self.epoch + step / self.options.iterations) / self.epochs
