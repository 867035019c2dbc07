"""BPP (Wang, Zhai and Ma, CVPR 2022): fewer grey levels are the trigger, learned contrastively.

Each channel is rounded to b = `levels` values, `T(x) = 255 round(x / 255 (b - 1)) / (b - 1)`;
`dithering` spreads the rounding error over the next pixels (Floyd and Steinberg). The attacker
controls training: of every batch the first share is quantised and relabelled; as many negatives
carry the residual of another image, `x + T(z) - z`, and keep their labels (`cross_acc`), so that
only the true rounding triggers; augmentation follows. `static: true` stamps poisoned and negative
images once, before training, on data alone.

Deviations: a negative's residual comes from another negative of its batch, not from a list drawn
once from the whole training set; levels are rounded to uint8. Augmentation and schedule are the
sweep's recipe (the paper: 20 % poisoned and negative each, SGD 0.02, 1,000 epochs; BackdoorBench
10 % each, SGD 0.01): the share is the sweep's poison rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.parts.loop import STAMP_BATCH, LoopAttack, LoopHooks, others
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Role, State
from sweeper.engine.training import Hooks


@dataclass(frozen=True, kw_only=True)
class Bpp(LoopAttack):
    """Quantisation attack with contrastive negatives."""

    levels: int = 8
    """Values left in each channel (`squeeze_num` of the release)."""
    dithering: bool = False
    """Whether the rounding error is diffused (Floyd-Steinberg)."""
    cross_ratio: float = 1.0
    """Negatives for each poisoned sample."""
    static: bool = False
    """Whether images are stamped once before training, the loop left alone."""

    title = "BPP"
    paper = "Wang et al., CVPR 2022 (arXiv 2205.13383)"
    rules = ("all2one", "all2all")
    extra_role = Role.NEGATIVE
    presets = {
        "bpp": {"dithering": True},
        "backdoorbench": {"rounding": "nearest"},
        "backdoor-toolbox": {"dithering": True},
        "static": {"static": True, "cross_ratio": 0.0},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Fewer than two levels, or a negative ratio.
        """
        super().__post_init__()
        if not 2 <= self.levels <= 256:
            raise SweepError(f"levels: {self.levels} is not in 2..256")
        if self.cross_ratio < 0:
            raise SweepError(f"cross_ratio: {self.cross_ratio} is below 0")

    @property
    def on_disk(self) -> bool:
        """The static form poisons the data."""
        return self.static

    @property
    def extra(self) -> float:
        """Negatives for each poisoned sample."""
        return self.cross_ratio

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Quantise; a `cover` image gets the residual of another image of the call instead."""
        change = dithered if self.dithering else squeezed
        parts = [change(part.float(), self.levels) for part in images.split(STAMP_BATCH)]
        pixels = torch.cat(parts).round_().clamp_(0, 255)
        if split == "cover":
            partner = others(len(images), rng).to(images.device)
            residual = (pixels - images.float())[partner]
            # alone, an image would get its own residual: the trigger itself under a true label
            pixels = images + residual if len(images) > 1 else images.float()
            pixels = pixels.clamp_(0, 255)
        return pixels.to(torch.uint8)

    def hooks(self, train: ImageSet, state: State, rng: Generator) -> Hooks | None:
        """Stamp inside the batch, unless the data already carry the trigger."""
        return None if self.static else LoopHooks(self, train, state, rng)


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
