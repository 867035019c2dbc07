"""Blend (Chen et al., 2017): every pixel is mixed with one picture; the label becomes the target.

`T(x) = (1 - a) x + a P`. The attacker controls the data only; the same picture P triggers at
training and test time. Pictures:

- `noise`: Gaussian noise N(125, 75^2), drawn once at native size (ANP, FIP);
- `strip`: the sinusoidal strip mask of the D-BR release at 32 px ("Blend-Strip");
- `sine`: what it has at 224 px instead, the signed wave `20 sin(2 pi 6 j / W)`, not wrapped;
- `generated`: a bright, low-frequency picture drawn here, in place of the copyrighted cartoon of
  the releases ("Blend-Kitty"), with its channel means (199, 175, 149);
- `file`: the RGB picture named by `trigger_image`, resized bilinearly.

Deviations: the noise the ANP and FIP releases store has a standard deviation of 74 after clipping,
that of N(125, 75^2) is 69. Pixels are truncated to whole levels; backdoor-toolbox trains on floats,
and BackdoorBench's picture passes through floats, which may cost it a level.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.parts import pictures
from attacks.parts.stamp import mix, stripes
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.options import PositiveShare
from sweeper.core.types import State

PICTURES = ("noise", "strip", "sine", "generated", "file")
PALETTE = ((240, 90, 90), (250, 200, 60), (90, 140, 220), (250, 250, 250), (60, 50, 50))
MEAN = (199.0, 175.0, 149.0)
"""Channel means of the picture the releases use."""


@dataclass(frozen=True, kw_only=True)
class Blend(Attack):
    """Blends a picture over the whole image."""

    picture: str = "noise"
    """noise | strip | sine | generated | file."""
    opacity: PositiveShare = 0.2
    """Share of the picture."""
    trigger_image: str = field(default="", metadata={"path": True})
    """The picture of `picture: file`; its content, not its path, is part of the key."""
    antialias: bool = field(default=True, metadata={"added": True})
    """Whether a larger picture is averaged where it shrinks; the D-BR release does not."""

    title = "Blend"
    paper = "Chen et al., 2017 (arXiv 1712.05526)"
    presets = {
        "anp": {},
        "fip": {},
        "d-br-strip": {"picture": "strip"},
        "d-br-strip-imagenet": {"picture": "sine"},
        "d-br-kitty": {"picture": "generated", "antialias": False},
        "backdoorbench": {"picture": "generated", "rate_base": "all", "rounding": "nearest"},
        "backdoor-toolbox": {"picture": "generated", "rate_base": "all"},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown picture, or a picture file that is not there.
        """
        super().__post_init__()
        if self.picture not in PICTURES:
            raise SweepError(f"picture: {self.picture!r} is not one of {', '.join(PICTURES)}")
        pictures.check(self.trigger_image, self.picture == "file", "picture: file")

    def content(self) -> dict[str, str]:
        """The hash of the user's picture."""
        return pictures.content(self.trigger_image)

    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        """Float [C, H, W] of 0..255: the picture on this canvas; the sine is signed, in doubles."""
        if self.picture == "strip":
            return stripes(height, width).expand(channels, height, width)
        if self.picture == "sine":
            angle = 2 * math.pi * 6 * torch.arange(width, dtype=torch.float64) / width
            return (20 * angle.sin()).expand(channels, height, width)
        if self.picture == "noise":
            rng = seeds.generator("blend", "noise", channels, height, width)
            noise = torch.randn(channels, height, width, generator=rng)
            return (125 + 75 * noise).round().clamp(0, 255)
        image = _drawn() if self.picture == "generated" else pictures.read(self.trigger_image)
        return pictures.fitted(image, channels, height, width, antialias=self.antialias)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Mix the picture into every image."""
        channels, height, width = images.shape[1:]
        return mix(images, self.pattern(channels, height, width), self.opacity)


@functools.lru_cache(maxsize=1)
def _drawn() -> Image.Image:
    """Draw the generated picture: 12 ellipses and 6 lines on 256x256, blurred, shifted to MEAN."""
    rng = seeds.numpy_generator("blend", "generated")
    image = Image.new("RGB", (256, 256), (235, 225, 215))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        (x, y), (a, b) = rng.uniform(0, 256, 2), rng.uniform(20, 80, 2)
        pen.ellipse((x - a, y - b, x + a, y + b), fill=PALETTE[rng.integers(len(PALETTE))])
    for _ in range(6):
        ends = tuple(rng.uniform(0, 256, 4))
        pen.line(ends, fill=(40, 40, 40), width=round(rng.uniform(6, 14)))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float64)
    for _ in range(8):  # clipping moves the mean a little: a few rounds settle it
        pixels = np.clip(pixels + np.array(MEAN) - pixels.mean(axis=(0, 1)), 0, 255)
    return Image.fromarray(pixels.round().astype(np.uint8))
