"""What an attack does to images, as one picture: clean, triggered, difference amplified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sweeper import catalog, data, seeds
from sweeper.errors import SweepError


@dataclass(frozen=True)
class Quality:
    """How visible a trigger is, on average over images; pixels of 0..255."""

    psnr: float
    """Peak signal-to-noise ratio in dB; infinite where nothing changes."""
    ssim: float
    """Structural similarity, 1 where nothing changes."""
    linf: float
    """Largest change of a pixel."""


def quality(clean: Tensor, triggered: Tensor) -> Quality:
    """Compare uint8 images [B, C, H, W] before and after the trigger."""
    one, other = clean.double(), triggered.double()
    error = (one - other).square().mean((1, 2, 3))
    psnr = 10 * torch.log10(255**2 / error)
    return Quality(float(psnr.mean()), float(ssim(one, other)), float((one - other).abs().max()))


def ssim(one: Tensor, other: Tensor, sigma: float = 1.5) -> Tensor:
    """Structural similarity of images [B, C, H, W] of 0..255, mean over all (Wang et al., 2004).

    A Gaussian window of 11 pixels, or the largest odd side that fits.
    """
    channels, side = one.shape[1], min(one.shape[2], one.shape[3], 11)
    side -= 1 - side % 2
    taps = torch.arange(side, dtype=one.dtype) - side // 2
    bell = torch.exp(-(taps**2) / (2 * sigma**2))
    bell = bell / bell.sum()
    window = (bell[:, None] * bell[None, :]).expand(channels, 1, side, side)

    def blur(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, groups=channels)

    mean_one, mean_other = blur(one), blur(other)
    var_one = blur(one * one) - mean_one**2
    var_other = blur(other * other) - mean_other**2
    both = blur(one * other) - mean_one * mean_other
    small, large = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_one * mean_other + small) * (2 * both + large)
    bottom = (mean_one**2 + mean_other**2 + small) * (var_one + var_other + large)
    return (top / bottom).mean()


def triggered(
    attack: str, asked: Mapping[str, Any], dataset: data.Dataset, count: int = 8
) -> tuple[Tensor, Tensor]:
    """Return test images and the same with the trigger, both uint8 [B, C, H, W].

    Raises:
        SweepError: The attack learns its trigger, so there is none before a sweep has run.
    """
    method = catalog.make("attack", attack, asked)
    if method.prepares or method.controls != "data":
        raise SweepError(
            f"{attack}: its trigger is learned or trained; `show` draws triggers that need neither"
        )
    images = dataset.test.images[:count]
    rng = seeds.generator("show", attack)
    return images, method.stamp(images, split="test", state={}, rng=rng)


def figure(attack: str, clean: Tensor, hit: Tensor) -> Any:
    """Draw the rows clean, triggered and difference as a matplotlib figure."""
    from matplotlib.figure import Figure

    found, count = quality(clean, hit), len(clean)
    gap = (hit.float() - clean.float()).abs()
    times = 255 / max(1.0, float(gap.max()))
    rows = {
        "clean": clean,
        "triggered": hit,
        f"difference x {times:.3g}": (gap * times).to(torch.uint8),
    }
    picture = Figure(figsize=(1.1 * count + 1.2, 4.2), layout="constrained")
    axes = picture.subplots(3, count, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for place, image in zip(line, images, strict=True):
            pixels = np.asarray(image.permute(1, 2, 0))
            grey = pixels.shape[2] == 1
            place.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=255)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name)
    picture.suptitle(
        f"{attack}: PSNR {found.psnr:.1f} dB, SSIM {found.ssim:.3f}, L-inf {found.linf:.0f} of 255"
    )
    return picture
