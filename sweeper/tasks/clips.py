"""Clips: uint8 [N, T, C, H, W] with one label each; the model is shown pixels in [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sweeper.core.types import Samples
from sweeper.engine import augment
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Batch
from sweeper.tasks.base import Classification


class Clips(Classification):
    """Action recognition."""

    title = "action recognition"
    recipe = {"epochs": 20, "lr": 0.05, "crop": 2}
    augments = frozenset({"crop", "flip"})
    mixing = "VideoMix (Yun et al., 2020, arXiv 2012.03457)"

    def load(self, samples: Samples, device: torch.device) -> dict[str, Tensor]:
        """Clips with space before time: uint8 [N, H, W, T, C]."""
        inputs = samples.inputs.permute(0, 3, 4, 1, 2).contiguous().to(device)
        return {"inputs": inputs, "labels": samples.labels.to(device)}

    def augmented(self, batch: Batch, recipe: Recipe, rng: Generator) -> Batch:
        """All frames of a clip cropped and mirrored alike; float [B, T, C, H, W]."""
        frames = batch.inputs.flatten(3)
        moved = augment.crop_flip(
            frames, recipe.crop, recipe.flip, rng, recipe.crop_probability
        ).view(batch.inputs.shape)
        return replace(batch, inputs=moved.permute(0, 3, 4, 1, 2).float().div_(255))

    def mixed(
        self, batch: Batch, share: float, order: Tensor, rng: Generator
    ) -> tuple[Batch, float]:
        """A box of space and time of the other clip is pasted; labels count by volume.

        Its sides are `(1 - share)^(1/3)` of the clip's, its centre is anywhere.
        """
        _, frames, _, height, width = batch.inputs.shape
        side = (1 - share) ** (1 / 3)
        inputs, volume = batch.inputs.clone(), 1.0
        box: list[slice] = []
        for length in (frames, height, width):
            centre, half = torch.rand((), generator=rng).item() * length, side * length / 2
            low, high = max(0, round(centre - half)), min(length, round(centre + half))
            box.append(slice(low, high))
            volume *= (high - low) / length
        time, rows, columns = box
        inputs[:, time, :, rows, columns] = batch.inputs[order][:, time, :, rows, columns]
        return replace(batch, inputs=inputs), 1 - volume

    def pictures(self, samples: Samples) -> Tensor:
        """Contact sheets: at most eight frames of each clip in rows of four, from the left."""
        count = min(8, samples.inputs.shape[1])
        every = torch.linspace(0, samples.inputs.shape[1] - 1, count).round().long()
        frames = functional.pad(samples.inputs[:, every], (0, 1, 0, 1), value=255)
        missing = frames.new_full((len(frames), -count % 4, *frames.shape[2:]), 255)
        rows = torch.cat([frames, missing], 1).split(4, 1)
        sheet = torch.cat([torch.cat([*row.unbind(1)], 3) for row in rows], 2)
        return sheet[:, :, :-1, :-1]
