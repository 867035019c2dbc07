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
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from defenses.base import Case, Defense, Needs
from defenses.parts.features import members
from defenses.parts.mad import anomaly, outliers
from defenses.parts.threshold import cut
from sweeper.core.errors import SweepError
from sweeper.core.options import CEILING, Count, NonNegative, OpenShare
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
    children = list(model.trunk.children()) if isinstance(model.trunk, nn.Sequential) else []
    stages = [
        place
        for place, child in enumerate(children)
        if any(isinstance(module, nn.Conv2d) for module in child.modules())
    ]
    if not stages or not stages[-1]:
        raise SweepError("beatrix: the model has no two stages of convolutions: use a CNN")
    return stages[-1]


@torch.no_grad()
def maps(model: Net, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, batch by batch, (maps float64 [B, C, H W], predicted labels int64 [B])."""
    device, place = next(model.parameters()).device, stage(model)
    assert isinstance(model.trunk, nn.Sequential)
    for batch in images.split(BATCH):
        features = model.trunk[:place](model.normalise(batch.to(device).float().div_(255)))
        label = model.classifier(model.trunk[place:](features)).argmax(1)
        yield features.double().flatten(2), label


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
    triangles = []
    for order in range(1, orders + 1):
        raised = features**order if powers else features
        gram = (raised @ raised.mT)[:, upper[0], upper[1]]
        triangles.append(gram.sign() * gram.abs() ** (1 / order))
    return torch.stack(triangles, 1)


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

    def deviation(self, entries: Tensor, channels: int) -> Tensor:
        """How far entries [B, orders, entries] lie outside, relative to the limits; float64 [B]."""
        below = (self.low - entries).relu() / self.low.abs().clamp(min=FLOOR)
        above = (entries - self.high).relu() / self.high.abs().clamp(min=FLOOR)
        return (below + above).sum((1, 2)) / (channels**2 / 2 * entries.shape[1])


def median(values: Tensor) -> Tensor:
    """The median over the first dimension; of any number of values, unlike `torch.quantile`."""
    ranked = values.sort(0).values
    return (ranked[(len(values) - 1) // 2] + ranked[len(values) // 2]) / 2


def held_out(clean: Tensor, channels: int) -> Tensor:
    """Deviations of clean Gram entries [N, ...], each from limits of the other folds; [N]."""
    fold = torch.arange(len(clean), device=clean.device) % min(FOLDS, len(clean))
    deviations = torch.zeros(len(clean), dtype=clean.dtype, device=clean.device)
    for number in range(min(FOLDS, len(clean))):
        in_fold = fold == number
        deviations[in_fold] = Limits.of(clean[~in_fold]).deviation(clean[in_fold], channels)
    return deviations


def mmd(x: Tensor, y: Tensor, weighted: bool = True) -> float:
    """Squared mean discrepancy of two samples [N, D], [M, D] under two Gaussian kernels.

    Their widths are the median distance of all points and twice that; 0 for fewer than two points.

    Args:
        x: float64 [N, D].
        y: float64 [M, D].
        weighted: The unbiased estimate times N M / (N + M), else the biased one alone.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return 0.0
    points = torch.cat([x, y])
    squares = torch.cdist(points, points).square()
    width = squares[squares > 0].median() if bool((squares > 0).any()) else squares.new_ones(())
    kernel = (-squares / (2 * width)).exp() + (-squares / (8 * width)).exp()
    inner = [kernel[:n, :n], kernel[n:, n:]]
    across = kernel[:n, n:].mean()
    if not weighted:
        estimate = inner[0].mean() + inner[1].mean() - 2 * across
        return estimate.clamp(min=0).item()
    pairs = [(block.sum() - block.trace()) / (len(block) * (len(block) - 1)) for block in inner]
    estimate = pairs[0] + pairs[1] - 2 * across
    return n * m / (n + m) * estimate.clamp(min=0).item()


@dataclass(frozen=True, kw_only=True)
class Beatrix(Defense):
    """Deviating Gram matrices, in classes where they belong to another distribution."""

    orders: Count = 8
    """Orders of the Gram matrices."""
    per_class: Annotated[int, Field(ge=FOLDS, le=CEILING)] = 30
    """Clean images of a class that the limits are taken from, at most."""
    rate: OpenShare = 0.05
    """Clean images of a class that may deviate, as a share."""
    theta: NonNegative = math.e**2
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

    def applies(self, needs: Needs) -> str | None:
        """Refuse few classes, and networks without stages."""
        if needs.classes < 6:
            return "Beatrix compares classes with their median: it needs six"
        if needs.model.startswith("vit"):
            return "Beatrix looks at a map of features: a transformer has none"
        return None

    def least_clean(self, needs: Needs) -> int:
        """Two of each class."""
        return 2 * needs.classes

    def defend(self, case: Case) -> Outcome:
        """Learn the limits, score the training set, judge the classes."""
        model, data, classes = case.fresh_model(), case.train, len(case.train.classes)
        ranges, thresholds = self.learn(case, model, classes)
        scores, means, labels = [], [], []
        for number, (features, predicted) in enumerate(maps(model, data.images)):
            entries = grams(features, self.orders, self.powers)
            score = torch.zeros(len(predicted), dtype=entries.dtype, device=entries.device)
            for label, index in members(predicted, classes):
                deviation = ranges[label].deviation(entries[index], features.shape[1])
                score[index] = deviation / max(thresholds[label], FLOOR)
            scores.append(score.float().cpu())
            means.append(features.mean(2))
            labels.append(predicted)
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
            batches = [
                (grams(features, self.orders, self.powers), features.shape[1])
                for features, _ in maps(model, clean.images[order[index[: self.per_class]]])
            ]
            entries, channels = torch.cat([gram for gram, _ in batches]), batches[0][1]
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
        deviating = scores > 1
        discrepancies = {
            label: mmd(
                means[index[deviating[index]]][:SAMPLES],
                means[index[~deviating[index]]][:SAMPLES],
                self.weighted,
            )
            for label, index in members(labels, classes)
        }
        values = torch.tensor(list(discrepancies.values()), dtype=torch.float64)
        infected = torch.zeros(classes, dtype=torch.bool)
        infected[list(discrepancies)] = outliers(values, self.theta)
        notes: dict[str, Any] = {
            "discrepancy": {str(label): value for label, value in discrepancies.items()},
            "anomaly": anomaly(values),
            "classes": infected.nonzero().flatten(),
        }
        return Outcome(scores=scores, flagged=deviating & infected[labels], notes=notes)
