"""AGPD: poisoned samples by the direction of their activation gradients (Yuan et al., ICLR 2025).

The defender sees the model, the poisoned training set with the labels given and a few clean images
of each class. A sample's direction at a convolution is the gradient of the logit of its label by
the convolution's output, averaged over the image. In a class that holds two kinds of samples these
directions lie between that of its clean images and another: the class with an outstanding gap names
the target, its layer where it is widest. From the sample farthest from the clean direction c the
group of poisoned ones, p its mean direction, is grown by those of lowest
`r = (1 - cos_p) / (2 - cos_p - cos_c)`, until its growth no longer changes how the others are
spread.

Deviations, each with its reason:

- `tau` has no default in the release: 0.05.
- The clean images are drawn once; the release draws others for each layer and for the filter, from
  test data.
- All convolutions are looked at, shortcuts and the first too; the release lists some by name.
- The samples taken are all that were added before the first round of the chosen window; the
  release leaves out the last of these, and fails where the window is the first or where there are
  fewer rounds than a window has (here it has half as many rounds then).
- A class none of whose clean images the model classifies as labelled takes those there are; one
  without clean images is not judged.
- The score of a sample, which the method does not define, is one minus the cosine between its
  direction and its class's clean one, at the layer chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.features import members
from defenses.parts.mad import anomaly
from defenses.parts.outputs import convolutions, watched
from sweeper.core.options import Count, NonNegative, ProperShare
from sweeper.core.types import Outcome
from sweeper.engine import metrics
from sweeper.models.base import Net

BATCH = 125
BINS = 99
"""Bins of a histogram of ratios (release)."""
WINDOW = 10
"""Rounds over which the histograms must be quiet (release)."""
ROUGH = 5.0
"""Weight of the deviation of a window's distances beside their mean (release)."""
FALLBACK = 0.3
"""Gap of a target in the last layers but one where no class stands out (release)."""


def directions(
    model: nn.Module, convs: Sequence[nn.Conv2d], images: Tensor, labels: Tensor
) -> list[Tensor]:
    """Gradients of the labels' logits by what each convolution puts out, means over the image.

    Args:
        model: In eval mode; no gradient is left on it.
        convs: Convolutions of the model.
        images: uint8 [N, C, H, W], at least one.
        labels: int64 [N].

    Returns:
        float [N, channels] for each convolution, where the model is.
    """
    device = next(model.parameters()).device
    gradients: list[list[Tensor]] = [[] for _ in convs]
    with watched(convs) as outputs:
        for batch, batch_labels in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            logits = model(batch.to(device).float().div_(255))
            label_logits = logits.gather(1, batch_labels.to(device)[:, None]).sum()
            batch_gradients = torch.autograd.grad(label_logits, [outputs[conv] for conv in convs])
            for collected, gradient in zip(gradients, batch_gradients, strict=True):
                collected.append(gradient.mean((2, 3)))
    return [torch.cat(batches) for batches in gradients]


def towards(gradients: Tensor, direction: Tensor) -> Tensor:
    """Cosines between directions [N, C] and one direction [C]; float [N]."""
    return functional.cosine_similarity(gradients, direction[None], dim=1)


def gap(gradients: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """How far the directions of a class [N, C] lie between the clean one [C] and the farthest.

    Returns:
        (the root of the mean squared difference of their cosines with the two, float; those with
        the clean direction, float [N]).
    """
    cosines = towards(gradients, clean)
    differences = (cosines - towards(gradients, gradients[cosines.argmin()])).square()
    return ((differences.sum() - differences[cosines.argmin()]) / len(gradients)).sqrt(), cosines


def standing(gaps: Tensor) -> Tensor:
    """Anomaly index of gaps [K] above their median, 0 for those below it; float64 [K]."""
    return anomaly(gaps).where(gaps >= gaps.double().quantile(0.5), 0.0)


def ratios(gradients: Tensor, clean: Tensor, poisoned: Tensor) -> Tensor:
    """How much nearer directions [N, C] are to `poisoned` [C] than to `clean` [C]; 0 to 1, [N]."""
    to_poisoned, to_clean = 1 - towards(gradients, poisoned), 1 - towards(gradients, clean)
    total = (to_poisoned + to_clean).clamp(min=1e-12)
    return (to_poisoned / total).clamp(0, 1)


def grown(gradients: Tensor, clean: Tensor, tau: float) -> tuple[Tensor, list[float]]:
    """Grow a group from the direction farthest from the clean one until it holds all.

    Args:
        gradients: float [N, C], the directions of a class.
        clean: float [C].
        tau: In each round those join whose ratio lies in this lowest part of the others' range.

    Returns:
        (int64 [N]: the round each joined in, the first in round 0; for each round from 1 how far
        the histogram of those left moved: Jensen-Shannon distances).
    """
    joined = torch.full((len(gradients),), -1)
    joined[towards(gradients, clean).argmin()] = 0
    histogram = _histogram(ratios(gradients, clean, gradients[joined == 0].mean(0))[joined < 0])
    moved: list[float] = []
    while bool((joined < 0).any()):
        ratio = ratios(gradients, clean, gradients[joined >= 0].mean(0))
        remaining = ratio[joined < 0]
        low, high = remaining.min(), remaining.max()
        joined[(joined < 0) & (ratio <= low + tau * (high - low))] = len(moved) + 1
        before, histogram = histogram, _histogram(ratio[joined < 0])
        moved.append(distance(before, histogram))
    return joined, moved


def _histogram(values: Tensor) -> Tensor:
    """Shares of values in [0, 1] by bin, all 0 of none; float64 [BINS]."""
    return values.double().histc(BINS, 0, 1) / max(1, len(values))


def distance(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon distance of two histograms, in nats; 1 where one is empty."""
    if not bool(p.any() and q.any()):
        return 1.0
    distributions = torch.stack([p, q, (p + q) / 2])
    entropy = -torch.xlogy(distributions, distributions).sum(1)
    return (entropy[2] - entropy[:2].mean()).clamp(min=0).sqrt().item()


def quiet(moved: Sequence[float]) -> int:
    """The place at which the window begins whose distances are least and least uneven."""
    if not moved:
        return 0
    width = WINDOW if len(moved) >= WINDOW else (len(moved) + 1) // 2
    windows = torch.tensor(moved, dtype=torch.float64).unfold(0, width, 1)
    return int((windows.mean(1) + ROUGH * windows.std(1, correction=0)).argmin())


@dataclass(frozen=True, kw_only=True)
class AGPD(Defense):
    """Samples whose gradients point away from those of clean images of their class."""

    per_class: Count = 10
    """Clean images of a class that give its clean direction, at most."""
    tau: ProperShare = 0.05
    """Part of the range of ratios that joins the poisoned group in a round."""
    theta: NonNegative = math.e**2
    """Anomaly index of its gap above which a class is a target."""

    title = "AGPD"
    paper = "Yuan et al., ICLR 2025"
    kind = "detection"
    sees = frozenset({"model", "clean", "train"})

    def applies(self, needs: Needs) -> str | None:
        """Refuse few classes, and networks without convolutions."""
        if needs.classes < 6:
            return "AGPD compares classes with their median: it needs six"
        if needs.model.startswith("vit"):
            return "AGPD compares gradients at convolutions: a transformer has but one of these"
        return None

    def least_clean(self, needs: Needs) -> int:
        """One of each class."""
        return needs.classes

    def defend(self, case: Case) -> Outcome:
        """Measure the gaps of all classes at all layers, then filter the targets."""
        model, data = case.fresh_model(), case.train
        convs = convolutions(model)
        clean = self.clean(case, model, convs)
        gaps: dict[int, Tensor] = {}
        clean_cosines = torch.ones(len(convs), len(data))
        for label, index in members(data.labels, len(data.classes)):
            if label in clean:
                gradients = directions(model, convs, data.images[index], data.labels[index])
                pairs = [
                    gap(gradient, direction)
                    for gradient, direction in zip(gradients, clean[label], strict=True)
                ]
                gaps[label] = torch.stack([width for width, _ in pairs]).cpu()
                clean_cosines[:, index] = torch.stack([cosines for _, cosines in pairs]).cpu()
                case.log(step=label + 1, steps=len(data.classes))
        layer, places, anomalies = self.targets(torch.stack(list(gaps.values()), 1))
        flagged = torch.zeros(len(data), dtype=torch.bool)
        targets = [list(gaps)[place] for place in places]
        for label in targets:
            positions = (data.labels == label).nonzero().flatten()
            (layer_gradients,) = directions(
                model, [convs[layer]], data.images[positions], data.labels[positions]
            )
            joined, moved = grown(layer_gradients.cpu(), clean[label][layer].cpu(), self.tau)
            flagged[positions] = joined <= quiet(moved)
        notes = {
            "layer": layer,
            "classes": targets,
            "anomaly": anomalies,
            "gaps": {str(label): widths[layer].item() for label, widths in gaps.items()},
        }
        return Outcome(scores=1 - clean_cosines[layer], flagged=flagged, notes=notes)

    def clean(self, case: Case, model: Net, convs: Sequence[nn.Conv2d]) -> dict[int, list[Tensor]]:
        """The clean direction of each class at each convolution, from the clean budget."""
        clean = case.clean
        clean = clean[torch.randperm(len(clean), generator=case.rng("clean"))]
        correct = metrics.predict(model, clean.images, case.recipe, case.device) == clean.labels
        clean_directions = {}
        for label, index in members(clean.labels, len(clean.classes)):
            index = index[correct[index]] if bool(correct[index].any()) else index
            index = index[: self.per_class]
            gradients = directions(model, convs, clean.images[index], clean.labels[index])
            clean_directions[label] = [layer_gradients.mean(0) for layer_gradients in gradients]
        return clean_directions

    def targets(self, gaps: Tensor) -> tuple[int, list[int], Tensor]:
        """Choose the layer and the classes whose gaps [layers, classes] are outstanding there.

        Returns:
            (layer, places of the targets, anomaly indices at the layer float64 [classes]).
        """
        anomalies = torch.stack([standing(row) for row in gaps])
        layer = int(anomalies.amax(1).argmax())
        targeted = anomalies[layer] > self.theta
        if not bool(targeted.any()):
            last = list(range(len(gaps)))[-4:-1]
            wide = gaps[last] > FALLBACK
            if bool(wide.any()):
                place = int(wide.sum(1).argmax())
                layer, targeted = last[place], wide[place]
        return layer, targeted.nonzero().flatten().tolist(), anomalies[layer]
