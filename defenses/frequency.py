"""Frequency detector (Zeng et al., ICCV 2021): triggers seen in cosine transforms.

The defender sees clean images and the training set's images: neither a model nor labels. A small
network learns to tell clean images from the same images with triggers made up at random, by their
discrete cosine transform; real triggers leave high frequencies as well. Smooth ones do not.

Deviations, each with its reason:

- The network is trained on the clean budget, on one part of it, and the cut is the quantile of
  clean images of the other. The release trains on all clean training images and cuts at even odds
  (`cut: odds`).
- Triggers are drawn anew in every step instead of once in each of five rounds.
- Images of other sizes than 32 x 32 are taken as they are where the network can halve them thrice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.parts.threshold import cut
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, OpenShare, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks

SMALLEST, LARGEST, MARGIN = 2, 7, 5
"""Sides of a block in pixels, and its farthest distance from a corner (release)."""
WIDTHS, DROPS = (32, 64, 128), (0.2, 0.3, 0.4)
"""Channels of each pair of convolutions, and the dropout after it (release)."""


def cosines(size: int) -> Tensor:
    """The orthonormal matrix of the DCT-II, a row a frequency; float64 [size, size]."""
    position = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * position[:, None] * (2 * position + 1) / (2 * size))
    basis[0] /= math.sqrt(2)
    return basis * math.sqrt(2 / size)


class Spectrum(nn.Module):
    """Pixels in [0, 1] -> the two-dimensional DCT-II of each channel of pixels in [0, 255]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("down", cosines(height).float(), persistent=False)
        self.register_buffer("across", cosines(width).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W] in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            down, across = self.get_buffer("down"), self.get_buffer("across")
            return down @ (255 * x.float()) @ across.T


class Drop(nn.Module):
    """Dropout that draws from a generator of its own."""

    def __init__(self, share: float, rng: Generator) -> None:
        super().__init__()
        self.share = share
        self.rng = rng

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share of the values in train mode, and scale the rest up."""
        if not self.training:
            return x
        mask = torch.rand(x.shape, generator=self.rng).to(x.device) >= self.share
        return x * mask / (1 - self.share)


def detector(shape: tuple[int, int, int], rng: Generator) -> nn.Sequential:
    """The release's network: pixels in [0, 1] -> logits of clean and triggered [B, 2]."""
    channels, height, width = shape
    layers: list[nn.Module] = [Spectrum(height, width)]
    for outputs, drop in zip(WIDTHS, DROPS, strict=True):
        for inputs in (channels, outputs):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            layers += [convolution, nn.ELU(), nn.BatchNorm2d(outputs)]
        layers += [nn.MaxPool2d(2), Drop(drop, rng)]
        channels = outputs
    layers += [nn.Flatten(), nn.Linear(channels * (height // 8) * (width // 8), 2)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def triggered(images: Tensor, rng: Generator) -> Tensor:
    """Give each image one made-up trigger: a block, noise, a shadow or another image.

    Args:
        images: float [B, C, H, W] in [0, 1].
        rng: A CPU generator.

    Returns:
        The same shape, in [0, 1].
    """
    count, device = len(images), images.device
    fill = torch.rand(images.shape, generator=rng).to(device)
    deviation = (10 + 60 * torch.rand(count, 1, 1, 1, generator=rng)).sqrt().to(device) / 255
    noise = torch.randn(images.shape, generator=rng).to(device)
    block = blocks(count, images.shape[2], images.shape[3], rng).to(device)
    shade = shadows(count, images.shape[2], images.shape[3], rng).to(device)
    depth = (0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=rng)).to(device)
    overlay = images[torch.randperm(count, generator=rng).to(device)]
    variants = torch.stack(
        [
            torch.where(block, 1.0, images),
            torch.where(block, fill, images),
            images + deviation * noise,
            torch.where(shade, depth * images, images),
            images + 0.3 * overlay,
        ]
    )
    kind = torch.randint(len(variants), (count,), generator=rng).to(device)
    return variants[kind, torch.arange(count, device=device)].clamp(0, 1)


def blocks(count: int, height: int, width: int, rng: Generator) -> Tensor:
    """Where a block at a random corner of each image lies; bool [count, 1, height, width]."""
    sides = torch.randint(SMALLEST, LARGEST + 1, (2, count, 1), generator=rng)
    margins = torch.randint(MARGIN + 1, (2, count, 1), generator=rng)
    far = torch.randint(2, (2, count, 1), generator=rng).bool()
    inside = []
    for axis, size in enumerate((height, width)):
        room = size - sides[axis]
        near = torch.minimum(margins[axis], room)
        offset = torch.where(far[axis], room - near, near)
        pixel = torch.arange(size)
        inside.append((pixel >= offset) & (pixel < offset + sides[axis]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def shadows(count: int, height: int, width: int, rng: Generator) -> Tensor:
    """Where a random triangle covers each image; bool [count, 1, height, width]."""
    corners = torch.rand(count, 3, 2, generator=rng)
    down, across = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    vertex, edge = corners[..., None, None], (corners.roll(-1, 1) - corners)[..., None, None]
    cross = edge[:, :, 0] * (across - vertex[:, :, 1]) - edge[:, :, 1] * (down - vertex[:, :, 0])
    return ((cross >= 0).all(1) | (cross <= 0).all(1))[:, None]


class DetectorTraining(Hooks):
    """Trains a detector on each batch beside itself with triggers."""

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """Adadelta, as released."""
        return torch.optim.Adadelta(model.parameters(), lr=recipe.lr)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        """Append a triggered copy of the batch; labels say which is which."""
        images = torch.cat([batch.inputs, triggered(batch.inputs, rng)])
        labels = torch.arange(2, device=images.device).repeat_interleave(len(batch.inputs))
        return replace(batch, inputs=images, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Frequency(Defense):
    """Flag training images whose spectrum looks triggered."""

    epochs: Whole = 50
    """Passes over the part of the clean budget to learn from."""
    batch: Count = 32
    """Clean images of a step; as many triggered ones join them."""
    lr: LearningRate = 0.05
    """Learning rate (Adadelta)."""
    cut: str = "quantile"
    """Where to cut: quantile (of clean images, by `rate`) | odds (even odds, as released)."""
    rate: OpenShare = 0.05
    """Clean images that may be flagged, as a share."""

    title = "Frequency detector"
    paper = "Zeng et al., ICCV 2021"
    kind = "detection"
    sees = frozenset({"clean", "train"})
    presets = {"released": {"cut": "odds"}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        if self.cut not in ("quantile", "odds"):
            raise SweepError(f"cut: {self.cut!r} is not one of quantile, odds")

    def applies(self, needs: Needs) -> str | None:
        """Refuse images the network cannot halve thrice."""
        if any(side % 8 for side in needs.shape[1:]):
            return "the frequency detector needs images whose sides are multiples of 8"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One to learn from, one to cut by."""
        return 2

    def defend(self, case: Case) -> Outcome:
        """Train the detector; score the training set."""
        fitted, holdout = case.split()
        shape = fitted.images.shape
        model = detector((shape[1], shape[2], shape[3]), case.rng("detector")).to(case.device)
        losses = self.learn(case, model, fitted)
        scores = log_odds(case, model, case.train.images)
        threshold = 0.0
        if self.cut == "quantile":
            threshold = cut(log_odds(case, model, holdout.images), self.rate)
        return Outcome(
            scores=scores,
            flagged=scores > threshold,
            notes={"threshold": threshold, "loss": losses[-1:]},
        )

    def learn(self, case: Case, model: nn.Module, data: Samples) -> list[float]:
        """Train in place; the loss of each epoch."""
        return case.fit(
            model,
            data,
            name="detector",
            hooks=DetectorTraining(),
            epochs=self.epochs,
            batch=min(self.batch, len(data)),
            lr=self.lr,
            schedule="constant",
            warmup=0.0,
            label_smoothing=0.0,
            crop=0,
            flip=False,
            rotation=0.0,
            erase=0.0,
        )


@torch.inference_mode()
def log_odds(case: Case, model: nn.Module, images: Tensor) -> Tensor:
    """Log odds of being triggered of uint8 images; float [N] on the CPU."""
    model.eval()
    parts = []
    with case.autocast():
        for part in images.split(1000):
            logits = model(part.to(case.device).float().div_(255)).float()
            parts.append((logits[:, 1] - logits[:, 0]).cpu())
    return torch.cat(parts)
