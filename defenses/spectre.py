"""SPECTRE (Hayase et al., ICML 2021, arXiv 2104.11315): spectral signatures in robust units.

The defender sees the model, the poisoned training set with the labels given, and bounds the share
of poisoned samples of a class. The features of each class are whitened by a covariance estimated
without their outliers; samples are scored by quantum entropy, `x^T M x` with
`M = exp(alpha (S - 1) / (|S| - 1))` of trace one, which weighs directions by how much of all
samples' variance S is left in them. Of several numbers of directions the one is kept with which
whitening by the samples that stay leaves the most.

Deviations, each with its reason:

- The class is not known: those whose criterion stands out among the classes are cut. The release is
  told it; a toolbox takes the largest criterion, which accuses one class of any clean set
  (`backdoor-toolbox`). With fewer than six classes the largest is taken here too.
- The matrix exponential is one; toolboxes exponentiate the entries, which has no such meaning.
- The filter tests the share of samples beyond a deviation, as its derivation has it; the release
  tests the share below it.
- The bound is an option, never the true rate. It holds of a class: at 10 % of ten equal classes,
  all into one, half of that class is poisoned, beyond what any robust covariance stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from defenses.base import Case, Defense
from defenses.parts.features import features_of, members, principal
from defenses.parts.mad import outliers
from defenses.spectral_signatures import removed
from sweeper.core.errors import SweepError
from sweeper.core.options import NonNegative
from sweeper.core.types import Outcome

DIMS = tuple(root**2 for root in range(1, 11))
"""Numbers of directions that are tried (release)."""
TAU = 0.1
"""Chance of dropping a sample of a Gaussian at once (release)."""
ROUNDS = 30
"""Power iterations on the fourth moment."""
LEAST = 10
"""Samples a class must have to be judged."""
STANDS = 6
"""Classes from which on one can stand out."""


def whitened(points: Tensor, kept: Tensor) -> Tensor:
    """Centre and whiten points [N, d] by the mean and covariance of those kept (bool [N])."""
    centred = points - points[kept].mean(0)
    values, vectors = torch.linalg.eigh(centred[kept].T @ centred[kept] / int(kept.sum()))
    values = values.clamp(min=1e-12 * float(values[-1].clamp(min=1e-300)))
    white: Tensor = centred @ (vectors * values.rsqrt()) @ vectors.T
    return white


def robust(points: Tensor, eps: float, rng: Generator) -> Tensor:
    """Filter points until their fourth moments are those of a Gaussian with few outliers.

    Args:
        points: float64 [N, d].
        eps: Bound on the share of outliers, in [0, 1).
        rng: A CPU generator, for the power iterations.

    Returns:
        bool [N], the points kept: all but 2 eps at least.
    """
    kept = torch.ones(len(points), dtype=torch.bool, device=points.device)
    limit = int(2 * eps * len(points) + 1e-9)
    while limit > 0:
        white = whitened(points, kept)
        squared_norms = white.square().sum(1).where(kept, 0.0)
        far = squared_norms >= 10 * white.shape[1] * math.log(len(points) / TAU)
        scores = squared_norms
        if not bool(far.any()):
            along = _fourth(white[kept], rng)
            if along.square().mean() <= 1 + 10 * eps * math.log(1 / eps) ** 2:
                break
            scores = torch.zeros_like(squared_norms)
            scores[kept] = (along - along.quantile(0.5)).abs()
            far = scores > _beyond(scores[kept], eps)
        count = min(limit, int(far.sum()))
        if not count:
            break
        kept = kept & ~removed(scores, count)
        limit -= count
    return kept


def _fourth(white: Tensor, rng: Generator) -> Tensor:
    """Whitened points as the quadratic form of largest variance has them, Gaussian: 1; [N]."""
    width = white.shape[1]
    form = torch.randn(width, width, generator=rng, dtype=white.dtype).to(white.device)
    form = form + form.T
    for _ in range(ROUNDS):
        form = form / form.norm()
        value = (white @ form * white).sum(1) - form.trace()
        form = white.T @ (value[:, None] * white) / len(white)
        form = (form + form.T) / 2
    form = form / form.norm()
    along: Tensor = (white @ form * white).sum(1) - form.trace()
    return along / math.sqrt(2)


def _beyond(deviations: Tensor, eps: float) -> float:
    """The first deviation beyond which lie more points than a Gaussian with outliers has."""
    ranked = deviations.sort().values
    excess = ranked - 3
    tail = 1 - torch.arange(len(ranked), dtype=ranked.dtype, device=ranked.device) / len(ranked)
    bound = 3 * eps / (excess * excess.clamp(min=1 + 1e-9).log()).square()
    passed = (excess > 10 * math.log(1 / eps)) & (tail >= bound)
    first = passed.nonzero().flatten()[:1]
    return float(excess[first]) if len(first) else math.inf


def que(covariance: Tensor, alpha: float) -> Tensor:
    """The weights of quantum entropy scores: a matrix exponential of trace one; float64 [d, d].

    Args:
        covariance: float64 [d, d], of all points whitened robustly.
        alpha: How strongly the largest excess counts; where there is none all directions are equal.
    """
    values, vectors = torch.linalg.eigh(covariance)
    excess = float(values[-1] - 1)
    power = alpha * (values - 1) / excess if excess > 1e-6 else torch.zeros_like(values)
    weights: Tensor = (vectors * power.softmax(0)) @ vectors.T
    return weights


@dataclass(frozen=True, kw_only=True)
class SPECTRE(Defense):
    """Quantum entropy scores of robustly whitened features."""

    eps: Annotated[float, Field(ge=0, le=1 / 3)] = 0.05
    """Bound on the poisoned share of a class, below a third."""
    factor: NonNegative = 1.5
    """Samples removed, as a multiple of the bound."""
    alpha: NonNegative = 4.0
    """How strongly quantum entropy weighs the directions of largest excess variance."""
    choose: str = "index"
    """Which classes are cut: index (those that stand out) | largest (criterion) | all."""
    theta: NonNegative = math.e**2
    """Anomaly index of the criterion above which a class stands out."""

    title = "SPECTRE"
    paper = "Hayase et al., ICML 2021"
    kind = "detection"
    sees = frozenset({"model", "train"})
    presets = {"backdoor-toolbox": {"choose": "largest"}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        if self.choose not in ("index", "largest", "all"):
            raise SweepError(f"choose: {self.choose!r} is not one of index, largest, all")

    def defend(self, case: Case) -> Outcome:
        """Score each class; cut those that are chosen."""
        data = case.train
        features = features_of(case.fresh_model(), data.images)
        scores, flagged = torch.zeros(len(data)), torch.zeros(len(data), dtype=torch.bool)
        criteria: dict[int, float] = {}
        for label, index in members(data.labels, len(data.classes), LEAST):
            case.log(step=label + 1, steps=len(data.classes))
            class_scores, criteria[label] = self.examine(
                features[index].double(), case.rng(f"class {label}")
            )
            scores[index] = class_scores.float().cpu()
            flagged[index] = removed(class_scores, self.count(len(index))).cpu()
        cut = torch.zeros(len(data.classes), dtype=torch.bool)
        cut[self.cut_classes(criteria)] = True
        return Outcome(
            scores=scores,
            flagged=flagged & cut[data.labels],
            notes={
                "criterion": {str(label): value for label, value in criteria.items()},
                "classes": cut.nonzero().flatten(),
            },
        )

    def count(self, samples: int) -> int:
        """How many of the samples of a class are removed."""
        return int(self.factor * self.eps * samples + 1e-9)

    def cut_classes(self, criteria: dict[int, float]) -> list[int]:
        """The classes that are cut."""
        if not criteria or self.choose == "all":
            return list(criteria)
        if self.choose == "largest" or len(criteria) < STANDS:
            return [max(criteria, key=lambda label: criteria[label])]
        outlying = outliers(torch.tensor(list(criteria.values())), self.theta)
        return [label for label, high in zip(criteria, outlying.tolist(), strict=True) if high]

    def examine(self, features: Tensor, rng: Generator) -> tuple[Tensor, float]:
        """Score the features [N, D] of one class with the best number of directions.

        Returns:
            (scores float64 [N], the criterion: mean variance that whitening by the rest leaves).
        """
        basis, _ = principal(features, min(DIMS[-1], len(features) // 2))
        points = (features - features.mean(0)) @ basis
        best = torch.zeros(len(features), dtype=features.dtype, device=features.device), 0.0
        for dims in sorted({min(dims, points.shape[1]) for dims in DIMS} - {0}):
            part = points[:, :dims]
            white = whitened(part, robust(part, self.eps, rng))
            weights = que(white.T @ white / len(white), self.alpha)
            scores = (white @ weights * white).sum(1)
            rewhitened = whitened(part, ~removed(scores, self.count(len(part))))
            criterion = ((rewhitened @ weights) * rewhitened).sum().item() / len(rewhitened)
            if criterion > best[1]:
                best = scores, criterion
        return best
