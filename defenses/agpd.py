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
from sweeper.core.errors import SweepError
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
    found: list[list[Tensor]] = [[] for _ in convs]
    with watched(convs) as seen:
        for part, own in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            logits = model(part.to(device).float().div_(255))
            wanted = logits.gather(1, own.to(device)[:, None]).sum()
            slopes = torch.autograd.grad(wanted, [seen[conv] for conv in convs])
            for into, slope in zip(found, slopes, strict=True):
                into.append(slope.mean((2, 3)))
    return [torch.cat(parts) for parts in found]


def towards(found: Tensor, way: Tensor) -> Tensor:
    """Cosines between directions [N, C] and one direction [C]; float [N]."""
    return functional.cosine_similarity(found, way[None], dim=1)


def gap(found: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """How far the directions of a class [N, C] lie between the clean one [C] and the farthest.

    Returns:
        (the root of the mean squared difference of their cosines with the two, float; those with
        the clean direction, float [N]).
    """
    near = towards(found, clean)
    away = (near - towards(found, found[near.argmin()])).square()
    return ((away.sum() - away[near.argmin()]) / len(found)).sqrt(), near


def standing(gaps: Tensor) -> Tensor:
    """Anomaly index of gaps [K] above their median, 0 for those below it; float64 [K]."""
    return anomaly(gaps).where(gaps >= gaps.double().quantile(0.5), 0.0)


def ratios(found: Tensor, clean: Tensor, poisoned: Tensor) -> Tensor:
    """How much nearer directions [N, C] are to `poisoned` [C] than to `clean` [C]; 0 to 1, [N]."""
    to_poisoned, to_clean = 1 - towards(found, poisoned), 1 - towards(found, clean)
    both = (to_poisoned + to_clean).clamp(min=1e-12)
    return (to_poisoned / both).clamp(0, 1)


def grown(found: Tensor, clean: Tensor, tau: float) -> tuple[Tensor, list[float]]:
    """Grow a group from the direction farthest from the clean one until it holds all.

    Args:
        found: float [N, C], the directions of a class.
        clean: float [C].
        tau: In each round those join whose ratio lies in this lowest part of the others' range.

    Returns:
        (int64 [N]: the round each joined in, the first in round 0; for each round from 1 how far
        the histogram of those left moved: Jensen-Shannon distances).
    """
    joined = torch.full((len(found),), -1)
    joined[towards(found, clean).argmin()] = 0
    spread = _histogram(ratios(found, clean, found[joined == 0].mean(0))[joined < 0])
    moved: list[float] = []
    while bool((joined < 0).any()):
        ratio = ratios(found, clean, found[joined >= 0].mean(0))
        left = ratio[joined < 0]
        low, high = left.min(), left.max()
        joined[(joined < 0) & (ratio <= low + tau * (high - low))] = len(moved) + 1
        before, spread = spread, _histogram(ratio[joined < 0])
        moved.append(distance(before, spread))
    return joined, moved


def _histogram(values: Tensor) -> Tensor:
    """Shares of values in [0, 1] by bin, all 0 of none; float64 [BINS]."""
    return values.double().histc(BINS, 0, 1) / max(1, len(values))


def distance(one: Tensor, other: Tensor) -> float:
    """Jensen-Shannon distance of two histograms, in nats; 1 where one is empty."""
    if not bool(one.any() and other.any()):
        return 1.0
    both = torch.stack([one, other, (one + other) / 2])
    entropy = -torch.xlogy(both, both).sum(1)
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

    per_class: int = 10
    """Clean images of a class that give its clean direction, at most."""
    tau: float = 0.05
    """Part of the range of ratios that joins the poisoned group in a round."""
    theta: float = math.e**2
    """Anomaly index of its gap above which a class is a target."""

    title = "AGPD"
    paper = "Yuan et al., ICLR 2025"
    kind = "detection"
    sees = frozenset({"model", "clean", "train"})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A number is out of range.
        """
        if self.per_class < 1 or not 0 <= self.tau < 1 or self.theta < 0:
            raise SweepError("per_class >= 1; tau lies in [0, 1); theta >= 0")

    def applies(self, needs: Needs) -> str | None:
        """Refuse few classes, too few clean images, and networks without convolutions."""
        if needs.classes < 6:
            return "AGPD compares classes with their median: it needs six"
        if needs.clean < needs.classes:
            return f"AGPD needs a clean image of each class: {needs.classes}"
        if needs.model.startswith("vit"):
            return "AGPD compares gradients at convolutions: a transformer has but one of these"
        return None

    def defend(self, case: Case) -> Outcome:
        """Measure the gaps of all classes at all layers, then filter the targets."""
        model, data = case.fresh_model(), case.train
        convs = convolutions(model)
        clean = self.clean(case, model, convs)
        gaps: dict[int, Tensor] = {}
        near = torch.ones(len(convs), len(data))
        for label, index in members(data.labels, len(data.classes)):
            if label in clean:
                found = directions(model, convs, data.images[index], data.labels[index])
                pairs = [gap(part, way) for part, way in zip(found, clean[label], strict=True)]
                gaps[label] = torch.stack([width for width, _ in pairs]).cpu()
                near[:, index] = torch.stack([cosines for _, cosines in pairs]).cpu()
                case.log(step=label + 1, steps=len(data.classes))
        layer, chosen, index = self.targets(torch.stack(list(gaps.values()), 1))
        flagged = torch.zeros(len(data), dtype=torch.bool)
        targets = [list(gaps)[place] for place in chosen]
        for label in targets:
            own = (data.labels == label).nonzero().flatten()
            (ways,) = directions(model, [convs[layer]], data.images[own], data.labels[own])
            joined, moved = grown(ways.cpu(), clean[label][layer].cpu(), self.tau)
            flagged[own] = joined <= quiet(moved)
        notes = {
            "layer": layer,
            "classes": targets,
            "anomaly": index,
            "gaps": {str(label): found[layer].item() for label, found in gaps.items()},
        }
        return Outcome(scores=1 - near[layer], flagged=flagged, notes=notes)

    def clean(self, case: Case, model: Net, convs: Sequence[nn.Conv2d]) -> dict[int, list[Tensor]]:
        """The clean direction of each class at each convolution, from the clean budget."""
        held = case.clean
        held = held[torch.randperm(len(held), generator=case.rng("clean"))]
        right = metrics.predict(model, held.images, case.recipe, case.device) == held.labels
        found = {}
        for label, index in members(held.labels, len(held.classes)):
            index = index[right[index]] if bool(right[index].any()) else index
            index = index[: self.per_class]
            parts = directions(model, convs, held.images[index], held.labels[index])
            found[label] = [part.mean(0) for part in parts]
        return found

    def targets(self, gaps: Tensor) -> tuple[int, list[int], Tensor]:
        """Choose the layer and the classes whose gaps [layers, classes] are outstanding there.

        Returns:
            (layer, places of the targets, anomaly indices at the layer float64 [classes]).
        """
        index = torch.stack([standing(row) for row in gaps])
        layer = int(index.amax(1).argmax())
        chosen = index[layer] > self.theta
        if not bool(chosen.any()):
            last = list(range(len(gaps)))[-4:-1]
            wide = gaps[last] > FALLBACK
            if bool(wide.any()):
                place = int(wide.sum(1).argmax())
                layer, chosen = last[place], wide[place]
        return layer, chosen.nonzero().flatten().tolist(), index[layer]
