"""Point clouds: float32 [N, P, 3] with one label each, in the unit ball."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from sweeper.core.types import Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Batch
from sweeper.tasks.base import Classification

SIDE = 72
"""Pixels of a picture's half."""


class Points(Classification):
    """Shape recognition. No MixUp is named for it, and none is offered."""

    title = "point cloud classification"
    recipe = {"epochs": 30, "batch": 32, "lr": 0.02, "crop": 0}
    augments = frozenset({"rotation"})

    def augmented(self, batch: Batch, recipe: Recipe, rng: Generator) -> Batch:
        """Each cloud turned about the z axis by up to the recipe's `rotation`."""
        if not recipe.rotation:
            return batch
        count = len(batch.inputs)
        angle = (torch.rand(count, generator=rng) * 2 - 1) * math.radians(recipe.rotation)
        if recipe.rotation_probability < 1:
            angle *= torch.rand(count, generator=rng) < recipe.rotation_probability
        return replace(batch, inputs=turned(batch.inputs, angle.to(batch.inputs.device)))

    def pictures(self, samples: Samples) -> Tensor:
        """Each cloud from the front (x, z) and from above (x, y), near points darker."""
        halves = [
            drawn(samples.inputs, across=0, up=up, depth=depth) for up, depth in ((2, 1), (1, 2))
        ]
        return torch.cat(halves, 3)


def turned(clouds: Tensor, angle: Tensor) -> Tensor:
    """Turn clouds [N, P, 3] about the z axis by radians [N], counter-clockwise from above."""
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    x, y, z = clouds.unbind(2)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], 2)


def drawn(clouds: Tensor, *, across: int, up: int, depth: int, reach: float = 1.25) -> Tensor:
    """Project clouds [N, P, 3] along an axis; uint8 [N, 3, SIDE, SIDE], points of 3 pixels.

    Args:
        clouds: Drawn within `reach` of the origin; what lies beyond stands at the border.
        across: Axis to the right.
        up: Axis to the top.
        depth: Axis towards the eye: nearer points are darker, and cover others.
        reach: Half of a picture's side.
    """
    scale = (SIDE - 3) / (2 * reach)
    columns = ((clouds[..., across] + reach) * scale).round().clamp(0, SIDE - 3).long() + 1
    rows = ((reach - clouds[..., up]) * scale).round().clamp(0, SIDE - 3).long() + 1
    near = ((clouds[..., depth] + reach) / (2 * reach)).clamp(0, 1)
    ink = torch.zeros(len(clouds), SIDE * SIDE)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            place = (rows + down) * SIDE + columns + right
            ink.scatter_reduce_(1, place, 0.25 + 0.75 * near, "amax")
    picture = torch.stack([255 - 235 * ink, 255 - 175 * ink, 255 - 90 * ink], 1)
    whole: Tensor = picture.round().to(torch.uint8).unflatten(2, (SIDE, SIDE))
    return whole
