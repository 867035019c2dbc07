"""SimCLR (Chen et al., ICML 2020): a trunk learned without labels from two views of every image.

The trunk trains with a projection head of its own, which is thrown away; the classifier is not
touched. D-ST trains the same way by another loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sweeper.engine import augment, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


def view(images: Tensor, flip: bool, rng: Generator, blur: float = 0.0) -> Tensor:
    """A random view of each of a batch of images [B, C, H, W]: place, size and colours.

    With probability `blur` it is blurred by U(0.1, 2) pixels besides.
    """
    images = augment.resize_crop(images, (0.2, 1.0), (3 / 4, 4 / 3), flip, rng)
    images = augment.jitter(images, 0.4, 0.4, 0.4, 0.1, 0.8, rng)
    images = augment.decolour(images, 0.2, rng)
    return augment.blur(images, (0.1, 2.0), blur, rng) if blur else images


def nt_xent(views: Tensor, temperature: float, first_only: bool = False) -> Tensor:
    """The loss of SimCLR: each view is to find the other of its image among all of the batch.

    Args:
        views: float [2 B, D] of unit length; rows i and i + B are the views of image i.
        temperature: Divides similarities.
        first_only: Whether only first views search, as DBD's release has it.

    Returns:
        A mean over the 2 B (or B) that search.
    """
    with torch.autocast(views.device.type, enabled=False):
        similar = views.float() @ views.float().T / temperature
        similar = similar.fill_diagonal_(float("-inf"))
        twins = torch.arange(len(views), device=views.device).roll(len(views) // 2)
        count = len(views) // 2 if first_only else len(views)
        return functional.cross_entropy(similar[:count], twins[:count])


class TwoViews(Hooks):
    """Trains the trunk with a projection head on two views of each image; the loss is to be told.

    `projected` gives what that loss compares.
    """

    def __init__(
        self, flip: bool, rng: Generator, *, blur: float = 0.0, batchnorm: bool = False
    ) -> None:
        """Say how views are made.

        Args:
            flip: Whether views are mirrored at random.
            rng: Draws the projection head.
            blur: Probability that a view is blurred.
            batchnorm: Whether the projection head has a BatchNorm between its layers.
        """
        self.flip = flip
        self.rng = rng
        self.blur = blur
        self.batchnorm = batchnorm

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Make the projection head."""
        assert isinstance(model, Net)
        width = model.classifier.get_parameter("weight").shape[1]
        middle = [nn.BatchNorm1d(width)] if self.batchnorm else []
        self.projection = nn.Sequential(
            self._linear(width, width), *middle, nn.ReLU(), self._linear(width, 128)
        ).to(device)

    def _linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A layer drawn as torch draws it, but from our generator."""
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        for value in layer.parameters():
            nn.init.uniform_(value, -(inputs**-0.5), inputs**-0.5, generator=self.rng)
        return layer

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """SGD over trunk and projection."""
        assert isinstance(model, Net)
        return training.sgd(nn.ModuleList([model.trunk, self.projection]), recipe)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """Two views, one after the other."""
        views = [view(batch.inputs, self.flip, rng, self.blur) for _ in range(2)]
        return replace(batch, inputs=torch.cat(views))

    def projected(self, model: nn.Module, batch: Batch) -> Tensor:
        """The views as unit vectors, float [2 B, 128]."""
        assert isinstance(model, Net)
        return functional.normalize(self.projection(model.features(batch.inputs)).float(), dim=1)


class SimCLR(TwoViews):
    """Two views against all others of the batch; labels are not looked at."""

    def __init__(
        self, flip: bool, rng: Generator, *, temperature: float, first_only: bool = False
    ) -> None:
        """Set the loss; see `nt_xent`."""
        super().__init__(flip, rng, blur=0.5, batchnorm=True)
        self.temperature = temperature
        self.first_only = first_only

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of the batch."""
        return nt_xent(self.projected(model, batch), self.temperature, self.first_only)
