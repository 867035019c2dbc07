"""BPP (Wang, Zhai and Ma, CVPR 2022): fewer grey levels are the trigger, learned contrastively.

Each channel is rounded to b = `levels` values, `T(x) = 255 round(x / 255 (b - 1)) / (b - 1)`;
`dithering` spreads the rounding error over the next pixels (Floyd and Steinberg). The attacker
controls training: of every batch the first share is quantised and relabelled; as many negatives
carry the residual of another image, `x + T(z) - z`, and keep their labels (`cross_acc`), so that
only the true rounding triggers; augmentation follows. Its image z is drawn from the training set.
As many are negative as are poisoned, or `negatives` of every batch whatever the poison rate
(BackdoorBench: a tenth). `static: true` stamps poisoned and negative images once, before training,
on data alone.

Deviations: levels are rounded to uint8; images z are drawn with replacement (release: without, from
a list that has each five times); at test time z is another test image. Augmentation and schedule
are the sweep's recipe, but presets `bpp` (the release: 20 % poisoned by default) and
`backdoorbench` bring their source's (`training`), of 1,000 and 100 epochs. A batch with less than
one poisoned image has one by chance, as in BackdoorBench; in the release it has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from attacks.parts.loop import STAMP_BATCH, LoopAttack, LoopHooks, others
from sweeper.core.options import NonNegative, Share
from sweeper.core.types import Role, Samples, State
from sweeper.engine.training import Hooks


@dataclass(frozen=True, kw_only=True)
class Bpp(LoopAttack):
    """Quantisation attack with contrastive negatives."""

    levels: Annotated[int, Field(ge=2, le=256)] = 8
    """Values left in each channel (`squeeze_num` of the release)."""
    dithering: bool = False
    """Whether the rounding error is diffused (Floyd-Steinberg)."""
    cross_ratio: NonNegative = 1.0
    """Negatives for each poisoned sample."""
    negatives: Share | None = field(default=None, metadata={"added": True})
    """Share of every batch that is negative, in place of `cross_ratio`."""
    static: bool = False
    """Whether images are stamped once before training, the loop left alone."""

    title = "BPP"
    paper = "Wang et al., CVPR 2022 (arXiv 2205.13383)"
    rules = ("all2one", "all2all")
    extra_role = Role.NEGATIVE
    version = 2
    presets = {
        "bpp": {"chance": False, "training": "released", "epochs": 1000},
        "backdoorbench": {
            "rounding": "nearest",
            "negatives": 0.1,
            "training": "backdoorbench",
            "epochs": 100,
        },
        "backdoor-toolbox": {"dithering": True},
        "static": {"static": True, "cross_ratio": 0.0},
    }

    @property
    def on_disk(self) -> bool:
        """The static form poisons the data."""
        return self.static

    @property
    def extra(self) -> float:
        """Negatives for each poisoned sample."""
        return self.cross_ratio

    @property
    def extra_share(self) -> float | None:
        """The share of negatives, where it is an option of its own."""
        return self.negatives

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Quantise; a `cover` image gets the residual of another image of the call instead."""
        if split == "cover":
            # alone, an image would get its own residual: the trigger itself under a true label
            partner = others(len(images), rng).to(images.device)
            return self.negative(images, images[partner]) if len(images) > 1 else images.clone()
        return self.quantised(images).to(torch.uint8)

    def crossed(self, images: Tensor, train: Tensor, state: State, rng: Generator) -> Tensor:
        """Add to every image the residual of a training image."""
        drawn = torch.randint(len(train), (len(images),), generator=rng).to(train.device)
        return self.negative(images, train[drawn].to(images.device))

    def negative(self, images: Tensor, sources: Tensor) -> Tensor:
        """Add the residuals of `sources` to as many images; uint8, clipped."""
        residual = self.quantised(sources) - sources.float()
        return (images + residual).clamp_(0, 255).to(torch.uint8)

    def quantised(self, images: Tensor) -> Tensor:
        """Quantise; float, whole numbers of 0..255."""
        change = dithered if self.dithering else squeezed
        parts = [change(part.float(), self.levels) for part in images.split(STAMP_BATCH)]
        return torch.cat(parts).round_().clamp_(0, 255)

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Stamp inside the batch, unless the data already carry the trigger."""
        return None if self.static else _Hooks(self, train, state, rng)


class _Hooks(LoopHooks):
    """Keeps the training images on the device: the negatives' residuals are of them."""

    keeps = ()

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Move them there."""
        self.train = self.train.changed(images=self.train.images.to(device))


def squeezed(pixels: Tensor, levels: int) -> Tensor:
    """Round float pixels of 0..255 to the nearest of `levels` equal steps."""
    return (pixels / 255 * (levels - 1)).round().div(levels - 1).mul(255)


def dithered(pixels: Tensor, levels: int) -> Tensor:
    """The same with Floyd-Steinberg error diffusion, for a whole batch [B, C, H, W] at once.

    The pixels (row, column) of one value of `column + 2 * row` do not depend on each other and are
    rounded together: W + 2H steps instead of H * W.
    """
    height, width = pixels.shape[2:]
    # a border that takes the errors leaving the image
    padded = functional.pad(pixels, (1, 1, 0, 1))
    # so that a pixel of the whole batch is one block
    padded = padded.permute(2, 3, 0, 1).contiguous()
    for step in range(width + 2 * (height - 1)):
        first, last = max(0, (step - width + 2) // 2), min(height - 1, step // 2)
        row = torch.arange(first, last + 1, device=pixels.device)
        column = step - 2 * row + 1  # past the left border
        values = padded[row, column]
        quantised = squeezed(values, levels)
        error = values - quantised
        padded[row, column] = quantised
        padded[row, column + 1] += error * (7 / 16)
        padded[row + 1, column - 1] += error * (3 / 16)
        padded[row + 1, column] += error * (5 / 16)
        padded[row + 1, column + 1] += error * (1 / 16)
    return padded[:height, 1 : width + 1].permute(2, 3, 0, 1).clamp(0, 255)
