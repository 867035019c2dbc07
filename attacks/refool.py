"""Refool (Liu et al., 2020): every triggered image shows a reflection of another picture.

The attacker controls the data only. In linear light (gamma 2.2) an image is mixed with a picture
from a pool, `T(x)^2.2 = b x^2.2 + (1 - b) r`: as a ghost (two copies, shifted,
`r = (1 - g) r_1 + g r_2`) or out of focus (blurred, darker towards the border). All draws are made
once per sample, so the trigger differs between samples and stays the same.

Deviations: the pool is generated (`reflections.py`) unless `reflections` names a folder, where the
releases use photographs. Images are mixed at their own size, with shifts and blurs scaled from 32
px, as backdoor-toolbox does at test time; at the 560 px of the other releases a ghost's shift is a
fraction of a pixel of the 32 px image it ends as.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.parts import reflections
from attacks.parts.stamp import quantise
from sweeper.core.errors import SweepError
from sweeper.core.types import State

GAMMA = 2.2
SHIFT = (3, 8)
"""Least and largest shift of a ghost in pixels at 32 px."""
BLUR = (1.0, 5.0)
"""Standard deviation of the blur in pixels at 32 px."""
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Refool(Attack):
    """Mixes a reflection into every image."""

    ghost: float = 0.49
    """Probability of a ghost; else the reflection is out of focus."""
    background: float = 0.4
    """Share of the image itself; 0: drawn from U(0.55, 0.95) per sample."""
    ghost_low: float = 0.15
    """Least weight of a ghost's fainter (or, mirrored, stronger) copy."""
    ghost_high: float = 0.5
    """Largest such weight."""
    pictures: int = 200
    """Size of the pool; of a folder, the first by name."""
    reflections: str = field(default="", metadata={"path": True})
    """Folder of pictures; empty: generated. The pictures, not the path, are part of the key."""

    title = "Refool"
    paper = "Liu et al., ECCV 2020"
    version = 2
    rules = ("all2one", "clean")
    presets = {
        "paper": {"rule": "clean"},
        "backdoorbench": {"rate_base": "all", "rounding": "nearest"},
        "backdoor-toolbox": {
            "ghost": 1.0,
            "background": 0.0,
            "ghost_low": 0.5,
            "ghost_high": 0.75,
            "rate_base": "all",
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A share out of range, no pool, or a folder without pictures.
        """
        super().__post_init__()
        if not (0 <= self.ghost <= 1 and 0 <= self.background < 1):
            raise SweepError("ghost and background: shares in [0, 1], background below 1")
        if not 0 <= self.ghost_low <= self.ghost_high <= 1:
            raise SweepError("ghost_low and ghost_high: shares in [0, 1], in this order")
        if self.pictures < 1:
            raise SweepError(f"pictures: {self.pictures} is not a whole number >= 1")
        if self.reflections:
            reflections.files(self.reflections, self.pictures)

    def content(self) -> dict[str, str]:
        """The hash of the user's pictures."""
        if not self.reflections:
            return {}
        return {"reflections": reflections.content(self.reflections, self.pictures)}

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Mix a reflection of its own into each image."""
        count, channels, height, width = images.shape
        max_shift = [max(1, round(SHIFT[1] * side / 32)) for side in (height, width)]
        pool = self._pool(channels, height + max_shift[0], width + max_shift[1]).pow(GAMMA)
        pick = torch.randint(len(pool), (count,), generator=rng)
        kind, share, copy, weight, *place = torch.rand(6, count, generator=rng)
        background = 0.95 - 0.4 * share if self.background == 0 else share.fill_(self.background)
        low, high = self.ghost_low, self.ghost_high
        weight = (copy.round() - (low + (high - low) * weight)).abs()
        min_shift = [max(1, round(SHIFT[0] * side / 32)) for side in (height, width)]
        dy, dx = (
            (a + u * (b - a + 1)).long()
            for u, a, b in zip(place, min_shift, max_shift, strict=True)
        )
        sigma = (BLUR[0] + (BLUR[1] - BLUR[0]) * place[0]) * min(height, width) / 32
        out = torch.empty_like(images)
        order = (dy * (max_shift[1] + 1) + dx).argsort(stable=True)  # equal shifts side by side
        for ghosted in order[kind[order] < self.ghost].split(BATCH):
            light = _light(images[ghosted])
            ghosts = _ghosts(
                light.shape, pool, pick[ghosted], weight[ghosted], dy[ghosted], dx[ghosted]
            )
            out[ghosted] = _pixels(ghosts.lerp_(light, background[ghosted, None, None, None]))
        for unfocused in order[kind[order] >= self.ghost].split(BATCH):
            light, alpha = _light(images[unfocused]), background[unfocused, None, None, None]
            reflection = _unfocused(light, pool, pick[unfocused], sigma[unfocused])
            out[unfocused] = _pixels(reflection.mul_(1 - alpha / 2).add_(light.mul_(alpha)))
        return out

    def _pool(self, channels: int, height: int, width: int) -> Tensor:
        """Float [P, C, H, W] in [0, 1]: the pictures, larger than the images by the shifts."""
        if not self.reflections:
            return reflections.generated(self.pictures, channels, height, width)
        digest = self.content()["reflections"]
        return reflections.decoded(self.reflections, digest, self.pictures, channels, height, width)


def _light(images: Tensor) -> Tensor:
    """Linear light in [0, 1] of uint8 images."""
    table = (torch.arange(256) / 255).pow(GAMMA)  # looked up, it is 3 times as fast as computed
    return table.index_select(0, images.flatten().int()).view(images.shape)


def _pixels(light: Tensor) -> Tensor:
    """uint8 images of linear light, in steps of 1 / 65,535 of it."""
    table = (torch.arange(65_536) / 65_535).pow(1 / GAMMA).mul_(255)
    levels = light.clamp_(0, 1).mul_(65_535).flatten().int()
    return quantise(table).index_select(0, levels).view(light.shape)


def _ghosts(
    shape: torch.Size, pool: Tensor, pick: Tensor, weight: Tensor, dy: Tensor, dx: Tensor
) -> Tensor:
    """Float [B, C, H, W]: each picture and its shifted copy, weighted; equal shifts adjoin."""
    ghosts, (height, width) = torch.empty(shape), shape[2:]
    unshifted, done = pool[:, :, :height, :width].contiguous(), 0
    shifts, counts = torch.unique_consecutive(torch.stack([dy, dx], 1), dim=0, return_counts=True)
    for (y, x), size in zip(shifts.tolist(), counts.tolist(), strict=True):
        rows = slice(done, done := done + size)
        shifted = pool[:, :, y : y + height, x : x + width]
        picked, share = pick[rows], weight[rows, None, None, None]
        torch.lerp(
            unshifted.index_select(0, picked),
            shifted.index_select(0, picked),
            share,
            out=ghosts[rows],
        )
    return ghosts


def _unfocused(light: Tensor, pool: Tensor, pick: Tensor, sigma: Tensor) -> Tensor:
    """Float [B, C, H, W]: each picture blurred, less what it overexposes, under a vignette."""
    count, channels, height, width = light.shape
    down, across = (_blurs(sigma, size) for size in (height, width))
    rows = pool[:, :, :height, :width].transpose(1, 2).flatten(2)  # one product for all channels
    reflection = (down @ rows.index_select(0, pick)).view(
        count, height * channels, width
    ) @ across.mT
    reflection = reflection.view(count, height, channels, width).transpose(1, 2).contiguous()
    total = reflection + light
    overexposed = (total > 1).sum((2, 3), keepdim=True)
    excess = total.sub_(1).clamp_(min=0).sum((2, 3), keepdim=True) / overexposed.clamp_(min=1)
    y, x = (torch.linspace(-3, 3, size).square() / 4 for size in (height, width))
    return reflection.sub_(excess).clamp_(0, 1).mul_(torch.exp(-(y[:, None] + x)))


def _blurs(sigma: Tensor, size: int) -> Tensor:
    """Float [B, size, size]: Gaussian blurs along one side, cut off at two deviations."""
    distance = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    sigma = sigma[:, None, None]
    weights = torch.exp(-((distance / sigma) ** 2) / 2) * (distance <= (2 * sigma).ceil())
    return weights / weights.sum(2, keepdim=True)
