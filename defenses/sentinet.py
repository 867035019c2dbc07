"""SentiNet (Chou et al., 2018, arXiv 1812.00292; DLS 2020): a salient region that fools anywhere.

The defender sees the model and clean images. Grad-CAM of the predicted class gives the region of
an input that speaks for it. The region is pasted on clean images: the share of them that takes the
input's class is `fooled`. Where noise fills the region instead, the mean confidence says how much
it hides. Clean inputs lie below a curve in this plane, fitted to the highest clean points; the
score is the distance above the curve. The trigger must be a region: blends and warps are not.

Deviations, each with its reason:

- No authors' code was available: this follows the description and two toolboxes' choices. The mask
  is that of the predicted class alone; the paper also takes proposals of other classes.
- The region is the `share` of pixels with the highest values, so that all masks are equally large;
  BackdoorBench takes all above 0.85 of the maximum. Without a ReLU the order is the same.
- Curve, overlays and threshold are had from disjoint parts of the clean budget. Backdoor-toolbox
  takes the trigger's true place on triggered inputs, BackdoorBench a confidence above 0.9 alone.
- The map is the last one above 1x1: on small images of a VGG it has 2 x 2 cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.nad import levels, recorded
from defenses.parts.threshold import cut, drawn
from sweeper.core.options import Count, OpenShare
from sweeper.core.types import Outcome
from sweeper.models.base import Net

BATCH = 500
BIN = 0.02
"""Width in confidence of the intervals whose highest point the curve is fitted to (toolboxes)."""


@dataclass(frozen=True, kw_only=True)
class SentiNet(Defense):
    """Refuse inputs whose salient region alone decides the prediction."""

    steps: Count = 100
    """Clean images a region is pasted on, two forward passes each; at most half of the budget."""
    share: OpenShare = 0.15
    """Part of the pixels that is the region."""
    rate: OpenShare = 0.05
    """Clean images that may be refused, as a share."""

    title = "SentiNet"
    paper = "Chou et al., 2018 (DLS 2020)"
    kind = "input filter"
    sees = frozenset({"model", "clean"})
    presets = {"small": {"steps": 20}}

    def applies(self, needs: Needs) -> str | None:
        """Refuse transformers."""
        if needs.model.startswith("vit"):
            return "SentiNet looks at feature maps of convolutions: a transformer has none"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One each for the overlays, the curve and the threshold."""
        return 3

    def defend(self, case: Case) -> Outcome:
        """Fit the curve on one part of the clean budget, the threshold on another."""
        model, asked = case.fresh_model(), case.asked_model()  # gradients by the first alone
        overlay_set, holdout = drawn(case, self.steps)
        overlays = overlay_set.images.to(case.device).float().div_(255)
        noise = torch.rand(overlays.shape[1:], generator=case.rng("noise")).to(case.device)
        name = levels(asked, 255 * overlays[:1])[-1]

        def measure(images: Tensor) -> Tensor:
            parts = []
            for part in images.split(BATCH):
                pixels = part.to(case.device).float().div_(255)
                with case.autocast():
                    label, saliency = grad_cam(model, name, pixels)
                    mask = region(saliency, self.share)
                    parts.append(effect(asked, pixels, label, mask, overlays, noise).cpu())
                case.log(step=sum(map(len, parts)), steps=len(images))
            return torch.cat(parts)

        half = len(holdout) // 2
        points = measure(holdout.images[:half])
        curve, low, high = upper(points), float(points[:, 0].min()), float(points[:, 0].max())

        def score(images: Tensor) -> Tensor:
            return above(curve, measure(images), low, high)

        threshold = cut(score(holdout.images[half:]), self.rate)
        notes = {"threshold": threshold, "curve": curve.tolist(), "map": name}
        return Outcome(filter=score, threshold=threshold, notes=notes)


def grad_cam(model: Net, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Where an input speaks for the class predicted.

    Args:
        model: In eval mode.
        name: The module whose output [B, C, h, w] is the map.
        pixels: float [B, C, H, W] in [0, 1].

    Returns:
        (the class predicted, int64 [B, 1]; the map's channels weighted by the mean gradient of that
        class's logit, float [B, H, W]).
    """
    with torch.enable_grad(), recorded(model, [name]) as maps:
        logits = model(pixels)
        label = logits.argmax(1, keepdim=True)
        (gradient,) = torch.autograd.grad(logits.gather(1, label).sum(), maps[name])
    weighted = (gradient.float().mean((2, 3), keepdim=True) * maps[name].detach()).float()
    cam = weighted.sum(1, keepdim=True)
    upsampled = functional.interpolate(cam, pixels.shape[2:], mode="bilinear", align_corners=False)
    return label, upsampled[:, 0]


def region(saliency: Tensor, share: float) -> Tensor:
    """The `share` of pixels with the highest of values [B, H, W], one at least; bool [B, 1, H, W].

    Of equal values those come first that stand first.
    """
    flat = saliency.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    order = flat.argsort(dim=1, descending=True, stable=True)[:, :count]
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
    return mask.view_as(saliency)[:, None]


@torch.no_grad()
def effect(
    model: Net, pixels: Tensor, label: Tensor, mask: Tensor, overlays: Tensor, noise: Tensor
) -> Tensor:
    """Paste regions on other images.

    Args:
        model: In eval mode.
        pixels: float [B, C, H, W] in [0, 1], whose regions are pasted.
        label: int64 [B, 1], the classes predicted for them.
        mask: bool [B, 1, H, W], the regions.
        overlays: float [N, C, H, W], what they are pasted on.
        noise: float [C, H, W], what fills the region of the inert copies.

    Returns:
        float64 [B, 2]: mean confidence of the inert copies; share of pasted ones that is fooled.
    """
    total = torch.zeros(len(pixels), 2, dtype=torch.float64, device=pixels.device)
    for overlay in overlays:
        pasted, inert = torch.where(mask, pixels, overlay), torch.where(mask, noise, overlay)
        total[:, 0] += model(inert).float().softmax(1).amax(1)
        total[:, 1] += model(pasted).argmax(1) == label[:, 0]
    return total / len(overlays)


def upper(points: Tensor) -> Tensor:
    """The parabola through the highest points: of each interval of confidence the most fooled.

    Args:
        points: float64 [N, 2], confidence and share fooled.

    Returns:
        float64 [3]: its coefficients, constant first; of fewer than three intervals the shortest.
    """
    bins = (points[:, 0] / BIN).long()
    highest = [
        inside[inside[:, 1].argmax()]
        for inside in (points[bins == number] for number in bins.unique())
    ]
    confidence, fooled = torch.stack(highest).unbind(1)
    powers = confidence[:, None] ** torch.arange(3)
    coefficients: Tensor = torch.linalg.pinv(powers, rtol=1e-6) @ fooled
    return coefficients


def above(curve: Tensor, points: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Distance of points [N, 2] from a parabola over [0, 1], negative below it; float64 [N].

    Outside `low` to `high`, the confidences it was fitted to, the curve goes on level.
    """

    def height(confidence: Tensor) -> Tensor:
        return (confidence.clamp(low, high)[:, None] ** torch.arange(3)) @ curve

    confidence = torch.linspace(0, 1, 1001, dtype=torch.float64)
    distance = torch.cdist(points, torch.stack([confidence, height(confidence)], 1)).amin(1)
    return torch.where(points[:, 1] > height(points[:, 0]), distance, -distance)
