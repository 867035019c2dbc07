"""STRIP's score: how sure a model stays of an image while others are laid over it.

Shared by the input filter (`strip.py`) and the detector of training samples (`strip_cleanser.py`).
All images are laid under the same overlays, so that a score depends on its image alone.

Deviations, each with its reason:

- The cut is the empirical quantile of clean images that are no overlays; the paper fits a normal
  distribution, which entropies near 0 do not follow (`released`).
- Entropies are in bits, the toolboxes' in nats; backdoor-toolbox adds 1e-8 to every probability,
  which moves an entropy by less than 5e-6 nats.
- The clean images behind the cut are no overlays; the toolboxes' cleansers lay theirs over each
  other and over themselves.

Presets `backdoor-toolbox` are its calls, not its classes' defaults: the filter adds pixels and
clips, the cleanser adds normalised images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from defenses.base import Case, Defense, Needs
from defenses.parts.threshold import cut, drawn
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, OpenShare, Positive

BATCH = 1000


def entropy(logits: Tensor) -> Tensor:
    """Entropy in bits of the softmax of logits [B, K]; float [B] in [0, log2 K]."""
    nats: Tensor = torch.special.entr(logits.float().softmax(1)).sum(1)
    return nats / math.log(2)


@dataclass(frozen=True, kw_only=True)
class Blended(Defense):
    """The options of the score, and the score."""

    steps: Count = 100
    """Overlays laid over each image, a forward pass each; at most half of the clean budget."""
    image_weight: Positive = field(default=1.0, metadata={"key": "alpha"})
    """Weight of the image in a blend."""
    overlay_weight: Positive = field(default=1.0, metadata={"key": "beta"})
    """Weight of the overlay."""
    clip: bool = False
    """Whether a blend is clipped to [0, 1]."""
    normalised: bool = field(default=False, metadata={"added": True})
    """Whether normalised images are blended, in place of pixels."""
    rate: OpenShare = 0.05
    """Clean images that may be flagged, as a share."""
    fit: str = "quantile"
    """How the cut is had from clean scores: quantile | normal (of a fitted distribution)."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown, or two options do not fit together.
        """
        if self.fit not in ("quantile", "normal"):
            raise SweepError(f"fit: {self.fit!r} is not one of quantile, normal")
        if self.clip and self.normalised:
            raise SweepError("clip: normalised images have no range to clip to: leave one of both")

    def least_clean(self, needs: Needs) -> int:
        """One to lay over others, one for the threshold."""
        return 2

    def scorer(self, case: Case) -> tuple[Callable[[Tensor], Tensor], float]:
        """Return the score of uint8 images [B, C, H, W], float [B], and its cut."""
        model = case.asked_model()
        overlays, held_out = drawn(case, self.steps)
        scaled = self.overlay_weight * overlays.images.to(case.device).float().div_(255)
        if self.normalised:  # pixels whose normalised form is the blend of normalised images
            excess = self.image_weight + self.overlay_weight - 1
            scaled = scaled - excess * model.normalise.get_buffer("mean")

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            scores = []
            for batch in images.split(BATCH):
                image = self.image_weight * batch.to(case.device).float().div_(255)
                total = image.new_zeros(len(image))
                with case.autocast():
                    for overlay in scaled:
                        blend = image + overlay
                        total += entropy(model(blend.clamp(0, 1) if self.clip else blend))
                scores.append(-total / len(scaled))
                case.log(step=sum(map(len, scores)), steps=len(images))
            return torch.cat(scores).cpu()

        clean = score(held_out.images)
        if self.fit == "quantile":
            return score, cut(clean, self.rate)
        deviation = clean.double().std(correction=0).item()
        upper = torch.special.ndtri(torch.tensor(1 - self.rate, dtype=torch.float64)).item()
        return score, clean.double().mean().item() + upper * deviation
