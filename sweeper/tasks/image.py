"""Images: uint8 [N, C, H, W] with one label each; the model is shown pixels in [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from sweeper.core.types import Samples
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Batch
from sweeper.tasks.base import Classification


class Image(Classification):
    """Image classification."""

    title = "image classification"
    augments = frozenset({"crop", "flip", "rotation", "erase"})
    mixing = "MixUp (Zhang et al., ICLR 2018)"

    def load(self, samples: Samples, device: torch.device) -> dict[str, Tensor]:
        """Images with their channels last: uint8 [N, H, W, C]."""
        images = training.on_device(samples.images, device)
        return {"inputs": images, "labels": samples.labels.to(device)}

    def augmented(self, batch: Batch, recipe: Recipe, rng: Generator) -> Batch:
        """Cropped, mirrored, rotated, erased; float [B, C, H, W]."""
        return replace(batch, inputs=training.augmented(batch.inputs, recipe, rng))

    def mixed(
        self, batch: Batch, share: float, order: Tensor, rng: Generator
    ) -> tuple[Batch, float]:
        """`share x + (1 - share) x'`."""
        inputs = share * batch.inputs + (1 - share) * batch.inputs[order]
        return replace(batch, inputs=inputs), share

    def pictures(self, samples: Samples) -> Tensor:
        """The images themselves."""
        return samples.inputs
