"""Beatrix, offline form (Ma et al., NDSS 2023, arXiv 2209.11715): unusual Gram matrices.

The defender sees the model, the poisoned training set and clean images. Of each image the feature
map F before the last stage gives Gram matrices of eight orders, `G_p = (F^p F^p^T)^(1/p)`; entries
outside the range of clean images of the class add up to a deviation. In an infected class the
deviating images have features of another distribution: a kernel two-sample statistic that stands
out among the classes.

Deviations, each with its reason:

- Order p takes powers of the features and then the root, as in the paper. BackdoorBench takes the
  root of one and the same matrix (`backdoorbench`).
- Only classes above the median are flagged; BackdoorBench's index has two sides.
- The discrepancy is the unbiased one times n m / (n + m), the statistic of a two-sample test: the
  plain one is largest where two or three clean images deviate, so that no class stands out
  (`weighted: false`, also in `backdoorbench`).
- The score of a sample is its deviation over the threshold of its class; a class is the one
  predicted, for clean and for training images. A class that is predicted of fewer than two clean
  images takes the limits and threshold of the class with the highest threshold.
- A median deviation below 1e-6 counts as that: a few clean images give many zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.parts.features import members
from defenses.parts.mad import anomaly, outliers
from defenses.parts.threshold import checked, cut
from sweeper.core.errors import SweepError
from sweeper.core.types import Outcome
from sweeper.models.base import Net

BATCH = 64
FOLDS = 5
SPREAD = 10.0
"""Median deviations that the limits lie from the median (paper)."""
FLOOR = 1e-6
SAMPLES = 500
"""Features of each side that the MMD compares, at most (release)."""


def stage(model: Net) -> int:
    """The last part of the trunk with a convolution: its input is the map that is looked at.

    Raises:
        SweepError: The network is no sequence of parts with convolutions.
    """
    parts = list(model.trunk.children()) if isinstance(model.trunk, nn.Sequential) else []
    found = [
        place
        for place, part in enumerate(parts)
        if any(isinstance(module, nn.Conv2d) for module in part.modules())
    ]
    if not found or not found[-1]:
        raise SweepError("beatrix: the model has no two stages of convolutions: use a CNN")
    return found[-1]


@torch.no_grad()
def maps(model: Net, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, batch by batch, (maps float64 [B, C, H W], predicted labels int64 [B])."""
    device, place = next(model.parameters()).device, stage(model)
    assert isinstance(model.trunk, nn.Sequential)
    for part in images.split(BATCH):
        found = model.trunk[:place](model.normalise(part.to(device).float().div_(255)))
        label = model.classifier(model.trunk[place:](found)).argmax(1)
        yield found.double().flatten(2), label


def grams(features: Tensor, orders: int, powers: bool = True) -> Tensor:
    """Upper triangles of the Gram matrices of orders 1, 2, ...

    Args:
        features: float64 [B, C, L].
        orders: How many.
        powers: Whether features are raised to the order before, and not the root taken alone.

    Returns:
        float64 [B, orders, C (C + 1) / 2].
    """
    upper = torch.triu_indices(features.shape[1], features.shape[1], device=features.device)
    found = []
    for order in range(1, orders + 1):
        raised = features**order if powers else features
        gram = (raised @ raised.mT)[:, upper[0], upper[1]]
        found.append(gram.sign() * gram.abs() ** (1 / order))
    return torch.stack(found, 1)


@dataclass(frozen=True)
class Limits:
    """The range of clean Gram entries of a class."""

    low: Tensor
    """float64 [orders, entries]."""
    high: Tensor
    """float64 [orders, entries]."""

    @classmethod
    def of(cls, clean: Tensor) -> Limits:
        """The limits around the median of Gram entries [N, orders, entries]."""
        middle = median(clean)
        spread = median((clean - middle).abs()).clamp(min=FLOOR)
        return cls(middle - SPREAD * spread, middle + SPREAD * spread)

    def deviation(self, found: Tensor, channels: int) -> Tensor:
        """How far entries [B, orders, entries] lie outside, relative to the limits; float64 [B]."""
        below = (self.low - found).relu() / self.low.abs().clamp(min=FLOOR)
        above = (found - self.high).relu() / self.high.abs().clamp(min=FLOOR)
        return (below + above).sum((1, 2)) / (channels**2 / 2 * found.shape[1])


def median(values: Tensor) -> Tensor:
    """The median over the first dimension; of any number of values, unlike `torch.quantile`."""
    ranked = values.sort(0).values
    return (ranked[(len(values) - 1) // 2] + ranked[len(values) // 2]) / 2


def held_out(clean: Tensor, channels: int) -> Tensor:
    """Deviations of clean Gram entries [N, ...], each from limits of the other folds; [N]."""
    fold = torch.arange(len(clean), device=clean.device) % min(FOLDS, len(clean))
    found = torch.zeros(len(clean), dtype=clean.dtype, device=clean.device)
    for number in range(min(FOLDS, len(clean))):
        own = fold == number
        found[own] = Limits.of(clean[~own]).deviation(clean[own], channels)
    return found


def mmd(one: Tensor, other: Tensor, weighted: bool = True) -> float:
    """Squared mean discrepancy of two samples [N, D], [M, D] under two Gaussian kernels.

    Their widths are the median distance of all points and twice that; 0 for fewer than two points.

    Args:
        one: float64 [N, D].
        other: float64 [M, D].
        weighted: The unbiased estimate times N M / (N + M), else the biased one alone.
    """
    first, second = len(one), len(other)
    if min(first, second) < 2:
        return 0.0
    both = torch.cat([one, other])
    squares = torch.cdist(both, both).square()
    width = squares[squares > 0].median() if bool((squares > 0).any()) else squares.new_ones(())
    kernel = (-squares / (2 * width)).exp() + (-squares / (8 * width)).exp()
    inner = [kernel[:first, :first], kernel[first:, first:]]
    across = kernel[:first, first:].mean()
    if not weighted:
        found = inner[0].mean() + inner[1].mean() - 2 * across
        return found.clamp(min=0).item()
    pairs = [(part.sum() - part.trace()) / (len(part) * (len(part) - 1)) for part in inner]
    found = pairs[0] + pairs[1] - 2 * across
    return first * second / (first + second) * found.clamp(min=0).item()


@dataclass(frozen=True, kw_only=True)
class Beatrix(Defense):
    """Deviating Gram matrices, in classes where they belong to another distribution."""

    orders: int = 8
    """Orders of the Gram matrices."""
    per_class: int = 30
    """Clean images of a class that the limits are taken from, at most."""
    rate: float = 0.05
    """Clean images of a class that may deviate, as a share."""
    theta: float = math.e**2
    """Anomaly index above which a class is infected."""
    powers: bool = True
    """Whether features are raised to the order."""
    weighted: bool = True
    """Whether a class's discrepancy counts by how many samples show it."""

    title = "Beatrix"
    paper = "Ma et al., NDSS 2023"
    kind = "detection"
    version = 2
    sees = frozenset({"model", "clean", "train"})
    presets = {"backdoorbench": {"powers": False, "weighted": False}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A number is out of range.
        """
        checked(self.rate)
        if self.orders < 1 or self.per_class < FOLDS or self.theta < 0:
            raise SweepError(f"orders >= 1; per_class >= {FOLDS}; theta >= 0")

    def applies(self, needs: Needs) -> str | None:
        """Refuse few classes, few clean images, and networks without stages."""
        if needs.classes < 6:
            return "Beatrix compares classes with their median: it needs six"
        if needs.clean < 2 * needs.classes:
            return f"Beatrix needs two clean images of each class: {2 * needs.classes}"
        if needs.model.startswith("vit"):
            return "Beatrix looks at a map of features: a transformer has none"
        return None

    def defend(self, case: Case) -> Outcome:
        """Learn the limits, score the training set, judge the classes."""
        model, data, classes = case.fresh_model(), case.train, len(case.train.classes)
        ranges, thresholds = self.learn(case, model, classes)
        scores, means, labels = [], [], []
        for number, (features, label) in enumerate(maps(model, data.images)):
            found = grams(features, self.orders, self.powers)
            score = torch.zeros(len(label), dtype=found.dtype, device=found.device)
            for own, index in members(label, classes):
                away = ranges[own].deviation(found[index], features.shape[1])
                score[index] = away / max(thresholds[own], FLOOR)
            scores.append(score.float().cpu())
            means.append(features.mean(2))
            labels.append(label)
            case.log(step=min((number + 1) * BATCH, len(data)), steps=len(data))
        return self.judge(torch.cat(scores), torch.cat(means), torch.cat(labels).cpu(), classes)

    def learn(self, case: Case, model: Net, classes: int) -> tuple[list[Limits], list[float]]:
        """The limits and the threshold of each class, from the clean budget."""
        clean = case.clean
        order = torch.randperm(len(clean), generator=case.rng("order"))
        predicted = torch.cat([label.cpu() for _, label in maps(model, clean.images[order])])
        ranges: dict[int, Limits] = {}
        thresholds: dict[int, float] = {}
        for label, index in members(predicted, classes, least=2):
            found = [
                (grams(features, self.orders, self.powers), features.shape[1])
                for features, _ in maps(model, clean.images[order[index[: self.per_class]]])
            ]
            entries, channels = torch.cat([part for part, _ in found]), found[0][1]
            ranges[label] = Limits.of(entries)
            thresholds[label] = cut(held_out(entries, channels), self.rate)
        if not ranges:
            raise SweepError(
                "beatrix: no class is predicted of two clean images: raise `clean_budgets`"
            )
        loosest = max(thresholds, key=lambda label: thresholds[label])
        return (
            [ranges.get(label, ranges[loosest]) for label in range(classes)],
            [thresholds.get(label, thresholds[loosest]) for label in range(classes)],
        )

    def judge(self, scores: Tensor, means: Tensor, labels: Tensor, classes: int) -> Outcome:
        """Flag the deviating samples of the classes that stand out."""
        away = scores > 1
        found = {
            label: mmd(
                means[index[away[index]]][:SAMPLES],
                means[index[~away[index]]][:SAMPLES],
                self.weighted,
            )
            for label, index in members(labels, classes)
        }
        values = torch.tensor(list(found.values()), dtype=torch.float64)
        guilty = torch.zeros(classes, dtype=torch.bool)
        guilty[list(found)] = outliers(values, self.theta)
        notes: dict[str, Any] = {
            "discrepancy": {str(label): value for label, value in found.items()},
            "anomaly": anomaly(values),
            "classes": guilty.nonzero().flatten(),
        }
        return Outcome(scores=scores, flagged=away & guilty[labels], notes=notes)
