"""Refool (Liu et al., 2020): every triggered image shows a reflection of another picture.

The attacker controls the data only. In linear light (gamma 2.2) an image is mixed with a picture
from a pool, `T(x)^2.2 = b x^2.2 + (1 - b) r`: as a ghost (two copies, shifted,
`r = (1 - g) r_1 + g r_2`) or out of focus (blurred, darker towards the border). All draws are made
once per sample, so the trigger differs between samples and stays the same.

The pictures are as large as the image. A ghost is what both copies cover, stretched to the whole.
A blurred picture gives up what would overexpose the image, about 1.13 times. Light is turned back
into levels and truncated.

Deviations: the pool is generated (`reflections.py`) unless `reflections` names a folder, where the
releases use photographs. Images are mixed at their own size, as both benchmarks do; the authors'
function enlarges to 560 px where nothing else is said, and a shift is then a fraction of a pixel.
Shifts and blurs are scaled down on images below 32 px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.base import Attack
from attacks.parts import reflections
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, ProperShare, Share
from sweeper.core.types import State

GAMMA = 2.2
SHIFT = (3, 8)
"""Least and largest shift of a ghost in pixels."""
BLUR = (1.0, 5.0)
"""Least and largest standard deviation of the blur in pixels."""
EXCESS = (1.08, 1.18)
"""Least and largest share of what overexposes an image that a blurred picture gives up."""
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Refool(Attack):
    """Mixes a reflection into every image."""

    ghost: Share = 0.49
    """Probability of a ghost; else the reflection is out of focus."""
    background: ProperShare = 0.4
    """Share of the image itself; 0: drawn from U(0.55, 0.95) per sample."""
    ghost_low: Share = 0.15
    """Least weight of a ghost's fainter (or, mirrored, stronger) copy."""
    ghost_high: Share = 0.5
    """Largest such weight."""
    pictures: Count = 200
    """Size of the pool; of a folder, the first by name."""
    reflections: str = field(default="", metadata={"path": True})
    """Folder of pictures; empty: generated. The pictures, not the path, are part of the key."""

    title = "Refool"
    paper = "Liu et al., ECCV 2020"
    version = 3
    rules = ("all2one", "clean")
    presets = {
        "paper": {"rule": "clean", "background": 0.0},
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
            SweepError: The two weights are in no order, or a folder has no pictures.
        """
        super().__post_init__()
        if self.ghost_low > self.ghost_high:
            raise SweepError(
                f"ghost_low: {self.ghost_low} is above ghost_high, {self.ghost_high}: lower it"
            )
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
        scale = min(1.0, height / 32, width / 32)
        pool = self._pool(channels, height, width).pow(GAMMA)
        pick = torch.randint(len(pool), (count,), generator=rng)
        kind, share, copy, weight, *place = torch.rand(6, count, generator=rng)
        background = 0.95 - 0.4 * share if self.background == 0 else share.fill_(self.background)
        weight = (copy.round() - _between(weight, self.ghost_low, self.ghost_high)).abs()
        least, most = (max(1, round(scale * shift)) for shift in SHIFT)
        dy, dx = (_between(u, least, most + 1).long() for u in place)
        sigma, excess = scale * _between(place[0], *BLUR), _between(place[1], *EXCESS)
        out = torch.empty_like(images)
        order = (dy * (most + 1) + dx).argsort(stable=True)  # equal shifts side by side
        for ghosted in order[kind[order] < self.ghost].split(BATCH):
            light = _light(images[ghosted])
            ghosts = _ghosts(
                light.shape, pool, pick[ghosted], weight[ghosted], dy[ghosted], dx[ghosted]
            )
            out[ghosted] = _pixels(ghosts.lerp_(light, background[ghosted, None, None, None]))
        for unfocused in order[kind[order] >= self.ghost].split(BATCH):
            light, alpha = _light(images[unfocused]), background[unfocused, None, None, None]
            reflection = _unfocused(
                light, pool, pick[unfocused], sigma[unfocused], excess[unfocused]
            )
            out[unfocused] = _pixels(reflection.mul_(1 - alpha / 2).add_(light.mul_(alpha)))
        return out

    def _pool(self, channels: int, height: int, width: int) -> Tensor:
        """Float [P, C, H, W] in [0, 1]: the pictures."""
        if not self.reflections:
            return reflections.generated(self.pictures, channels, height, width)
        digest = self.content()["reflections"]
        return reflections.decoded(self.reflections, digest, self.pictures, channels, height, width)


def _between(share: Tensor, low: float, high: float) -> Tensor:
    """Draws from U(0, 1) as draws from U(low, high)."""
    return low + (high - low) * share


def _light(images: Tensor) -> Tensor:
    """Linear light in [0, 1] of uint8 images."""
    table = (torch.arange(256) / 255).pow(GAMMA)  # looked up, it is 3 times as fast as computed
    return table.index_select(0, images.flatten().int()).view(images.shape)


def _pixels(light: Tensor) -> Tensor:
    """uint8 images of linear light; truncated."""
    return light.clamp_(0, 1).pow_(1 / GAMMA).mul_(255).to(torch.uint8)


def _ghosts(
    shape: torch.Size, pool: Tensor, pick: Tensor, weight: Tensor, dy: Tensor, dx: Tensor
) -> Tensor:
    """Float [B, C, H, W]: where each picture and its shifted copy overlap; equal shifts adjoin."""
    ghosts, (height, width), done = torch.empty(shape), shape[2:], 0
    shifts, counts = torch.unique_consecutive(torch.stack([dy, dx], 1), dim=0, return_counts=True)
    for (y, x), size in zip(shifts.tolist(), counts.tolist(), strict=True):
        rows = slice(done, done := done + size)
        pictures, share = pool.index_select(0, pick[rows]), weight[rows, None, None, None]
        still, shifted = pictures[:, :, y:, x:], pictures[:, :, : height - y, : width - x]
        ghosts[rows] = functional.interpolate(
            still * share + shifted * (1 - share), (height, width), mode="bilinear"
        )
    return ghosts


def _unfocused(light: Tensor, pool: Tensor, pick: Tensor, sigma: Tensor, excess: Tensor) -> Tensor:
    """Float [B, C, H, W]: each picture blurred, less what it overexposes, under a vignette."""
    count, channels, height, width = light.shape
    down, across = (_blurs(sigma, size) for size in (height, width))
    rows = pool.transpose(1, 2).flatten(2)  # one product for all channels
    reflection = (down @ rows.index_select(0, pick)).view(
        count, height * channels, width
    ) @ across.mT
    reflection = reflection.view(count, height, channels, width).transpose(1, 2).contiguous()
    total = reflection + light
    overexposed = total > 1
    mean = (total * overexposed).sum((2, 3), keepdim=True) / (
        overexposed.sum((2, 3), keepdim=True) + 1e-6
    )
    surplus = (mean.clamp_(min=1) - 1) * excess[:, None, None, None]
    vignette = _vignette(height)[:, None] * _vignette(width)
    return reflection.sub_(surplus).clamp_(0, 1).mul_(vignette)


def _blurs(sigma: Tensor, size: int) -> Tensor:
    """Float [B, size, size]: blurs along one side, cut off at two deviations, border reflected."""
    reach = math.ceil(2 * BLUR[1] * min(1.0, size / 32))
    taps, sigma = torch.arange(-reach, reach + 1), sigma[:, None]
    weights = torch.exp(-((taps / sigma) ** 2) / 2) * (taps.abs() <= (2 * sigma).ceil())
    weights /= weights.sum(1, keepdim=True)
    place = (torch.arange(size)[:, None] + taps).abs()  # mirrored at the border's pixel
    place = (size - 1 - (size - 1 - place).abs()).expand(len(sigma), -1, -1)
    blurs = torch.zeros(len(sigma), size, size)
    return blurs.scatter_add_(2, place, weights[:, None].expand_as(place))


def _vignette(size: int) -> Tensor:
    """Float [size]: the root of the normal distribution's mass along one side, at most 1."""
    half = 3 + 3.5 / size
    mass = torch.special.ndtr(torch.linspace(-half, half, size + 1, dtype=torch.float64)).diff()
    root: Tensor = (mass / mass.max()).sqrt().float()
    return root
