"""WaNet (Nguyen and Tran, ICLR 2021): a smooth warp is the trigger; noisy warps keep their labels.

A random k x k field P of unit mean magnitude is upsampled to the image (bicubic) and scaled by
strength / H in grid coordinates (the image is [-1, 1]); one field warps training and test images:
`T(x) = sample(x, clamp(id + s P / H))`. The attacker controls training: of every batch the first
share is warped and relabelled, the next `cross_ratio` times as many get the field plus uniform
noise of 1 / H, fresh for each image, and keep their labels (the noise mode, `cross_acc`);
augmentation follows. `static: true` is the form on data alone: poisoned and cover images are
stamped once, before training.

Deviations: the warp acts on pixels in [0, 1], which is the same as on normalised pixels because
the clamped grid never leaves the image; warped pixels are rounded to uint8, so that training and
test see the same trigger (the release trains on floats). Augmentation and schedule are the sweep's
recipe, but presets `released` and `backdoorbench` bring their source's (`training`), of 1,000 and
100 epochs. A batch with less than one poisoned image has one by chance, as in BackdoorBench; in the
release it has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from attacks.parts.loop import STAMP_BATCH, LoopAttack, LoopHooks, rounded
from sweeper.core import seeds
from sweeper.core.options import NonNegative, Several, Whole
from sweeper.core.types import Samples, State
from sweeper.engine.training import Hooks


@dataclass(frozen=True, kw_only=True)
class WaNet(LoopAttack):
    """Warping attack with a noise mode."""

    strength: NonNegative = 0.5
    """s of the paper: mean displacement in units of 1 / H of the [-1, 1] grid."""
    grid: Several = 4
    """k of the paper: side of the coarse field."""
    cross_ratio: NonNegative = 2.0
    """Noise-warped samples for each poisoned one; 0 turns the noise mode off."""
    static: bool = False
    """Whether images are stamped once before training, the loop left alone."""
    shared_noise: bool = False
    """Whether all noise-warped images of a call share one noise field (backdoor-toolbox)."""
    field_seed: Whole = 0
    """Seed of the field; victims of one field can be compared."""

    title = "WaNet"
    paper = "Nguyen and Tran, ICLR 2021 (arXiv 2102.10369)"
    rules = ("all2one", "all2all")
    version = 2
    presets = {
        "released": {"chance": False, "training": "released", "epochs": 1000},
        "backdoorbench": {"rounding": "nearest", "training": "backdoorbench", "epochs": 100},
        "backdoor-toolbox": {"static": True, "shared_noise": True},
        "backdoorbox": {"static": True, "cross_ratio": 0.0},
    }

    @property
    def on_disk(self) -> bool:
        """The static form poisons the data."""
        return self.static

    @property
    def extra(self) -> float:
        """Noise-warped samples for each poisoned one."""
        return self.cross_ratio

    def field(self, height: int, width: int) -> Tensor:
        """Return float [1, H, W, 2]: where each pixel is taken from, in [-1, 1], x before y."""
        rng = seeds.generator("wanet", self.field_seed, self.grid)
        coarse = torch.rand(1, 2, self.grid, self.grid, generator=rng) * 2 - 1
        coarse = coarse / coarse.abs().mean()
        fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        shift = self.strength * fine.permute(0, 2, 3, 1) / height
        return (identity(height, width) + shift).clamp(-1, 1)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Warp every image; `cover` images by the field plus noise."""
        (height, width), device = images.shape[2:], images.device
        field, parts = self.field(height, width).to(device), []
        common = torch.rand(1, height, width, 2, generator=rng) if self.shared_noise else None
        for part in images.split(STAMP_BATCH):
            grid = field.expand(len(part), -1, -1, -1)
            if split == "cover":
                noise = torch.rand(grid.shape, generator=rng) if common is None else common
                grid = (grid + ((noise * 2 - 1) / height).to(device)).clamp(-1, 1)
            parts.append(warped(part, grid))
        return torch.cat(parts) if len(images) else images.clone()

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Stamp inside the batch, unless the data already carry the trigger."""
        return None if self.static else LoopHooks(self, train, state, rng)


def identity(height: int, width: int) -> Tensor:
    """Return float [1, H, W, 2]: the grid that leaves an image as it is."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=2)[None]


def warped(images: Tensor, grid: Tensor) -> Tensor:
    """Sample uint8 [B, C, H, W] at the grid [B, H, W, 2], bilinear; uint8, rounded."""
    pixels = images.float().div(255)
    return rounded(functional.grid_sample(pixels, grid, align_corners=True))
