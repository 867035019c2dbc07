"""SCAn: statistical contamination analyser (Tang et al., USENIX Security 2021, arXiv 1908.00686).

The defender sees the model, the poisoned training set with the labels given and clean images of all
classes. Features are modelled as an identity, one for each class, plus a variation that is the same
in all classes, `h = mu_y + e`; both covariances are learned from the clean images. Each class is
split in two, in the metric of the variation; a class that two identities explain far better than
one, compared with other classes, is contaminated, and the part with the smaller share of the clean
images is taken for poisoned.

Deviations, each with its reason:

- Features are reduced to at most `dims` principal directions, and to one for two clean images: with
  more the variation's covariance is singular, and its pseudo-inverse means nothing.
- Expectation-maximisation takes the posterior covariance of the identities into account; the
  released code takes their means alone, which makes both covariances too small.
- The mean of a class in its evidence is the posterior one, `Su (Su + Se / n)^-1 mean`. The released
  code leaves out the factor `Su Se^-1`; its index then puts a clean class first, and the poisoned
  one may have the least.
- The split is the best of `restarts` starts instead of one.
- Only classes above the median are flagged; the released index has two sides, so that a class with
  little evidence is flagged as well. The threshold is the authors' e^2; backdoor-toolbox takes e.
- The score of a sample, which the paper does not define, is how much better the part taken for
  poisoned explains it than the other part does: a difference of squared distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from defenses.base import Case, Defense, Needs
from defenses.parts.features import features_of, members, principal, two_means
from defenses.parts.mad import anomaly, outliers
from sweeper.core.options import Count, NonNegative
from sweeper.core.types import Outcome


def covariances(
    features: Tensor, labels: Tensor, *, tolerance: float = 1e-2, rounds: int = 100
) -> tuple[Tensor, Tensor]:
    """Learn the covariances of identity and variation by expectation-maximisation.

    Args:
        features: float64 [N, d], centred.
        labels: int64 [N].
        tolerance: Change of the two (Frobenius norm) at which it ends.
        rounds: Rounds, at most.

    Returns:
        (identity, variation), float64 [d, d] each.
    """
    one_hot = functional.one_hot(labels).to(features.dtype)
    one_hot = one_hot[:, one_hot.sum(0) > 0]
    counts = one_hot.sum(0)[:, None, None]
    means = one_hot.T @ features / counts[:, 0]
    residuals = features - one_hot @ means
    identity = means.T @ means / len(means)
    within = variation = residuals.T @ residuals / len(features)
    for _ in range(rounds):
        gain = _gain(identity, variation, counts)
        posterior = (gain @ means[:, :, None]).squeeze(2)
        uncertainty = identity - gain @ identity  # of the identities, given the samples
        errors = means - posterior
        weights = counts / len(features)
        estimates = (
            posterior.T @ posterior / len(means) + uncertainty.mean(0),
            within + (weights * (errors[:, :, None] * errors[:, None, :] + uncertainty)).sum(0),
        )
        change = (estimates[0] - identity).norm() + (estimates[1] - variation).norm()
        identity, variation = ((part + part.T) / 2 for part in estimates)
        if change < tolerance:
            break
    return identity, variation


def _gain(identity: Tensor, variation: Tensor, counts: Tensor) -> Tensor:
    """What turns means of `counts` samples [K, 1, 1] into posterior identities; [K, d, d]."""
    gain: Tensor = identity @ torch.linalg.pinv(identity + variation / counts, hermitian=True)
    return gain


def metric(variation: Tensor) -> Tensor:
    """A matrix L with L L^T the pseudo-inverse of the variation's covariance; float64 [d, d]."""
    values, vectors = torch.linalg.eigh(variation)
    kept = values > 1e-10 * values[-1]
    whitening: Tensor = vectors * torch.where(kept, values.clamp(min=1e-300).rsqrt(), 0.0)
    return whitening


def evidence(white: Tensor, split: Tensor, mean: Tensor) -> float:
    """Mean gain of two means over one, in squared distances; at least 0 but for rounding.

    Args:
        white: float64 [N, d], whitened by the variation.
        split: bool [N], which samples form one of the two parts.
        mean: float64 [d], the posterior mean of the class as a whole, whitened.
    """
    parts = [white[mask] for mask in (split, ~split) if bool(mask.any())]
    within = sum((part - part.mean(0)).square().sum() for part in parts)
    return ((white - mean).square().sum() - within).item() / len(white)


@dataclass(frozen=True, kw_only=True)
class SCAn(Defense):
    """Classes that are better explained by two identities than by one."""

    theta: NonNegative = math.e**2
    """Anomaly index above which a class is contaminated."""
    tolerance: NonNegative = 1e-2
    """Change of the covariances at which their estimation ends."""
    dims: Count = 64
    """Principal directions, at most."""
    restarts: Count = 10
    """Random starts of each split."""

    title = "SCAn"
    paper = "Tang et al., USENIX Security 2021"
    kind = "detection"
    sees = frozenset({"model", "clean", "train"})

    def applies(self, needs: Needs) -> str | None:
        """Refuse few classes, among which none can stand out."""
        if needs.classes < 6:
            return "SCAn compares classes with their median: it needs six"
        return None

    def least_clean(self, needs: Needs) -> int:
        """Two of each class."""
        return 2 * needs.classes

    def defend(self, case: Case) -> Outcome:
        """Learn the covariances on the clean images, split each class, compare the classes."""
        data, clean, model = case.train, case.clean, case.fresh_model()
        train_features = features_of(model, data.images).double()
        clean_features = features_of(model, clean.images).double()
        dims = max(1, min(self.dims, (len(clean) - len(clean.classes)) // 2))
        basis, _ = principal(torch.cat([train_features, clean_features]), dims)
        train_features, clean_features = (
            (part - clean_features.mean(0)) @ basis for part in (train_features, clean_features)
        )
        labels = clean.labels.to(clean_features.device)
        identity, variation = covariances(clean_features, labels, tolerance=self.tolerance)
        whitening = metric(variation)
        scores, poisoned = torch.zeros(len(data)), torch.zeros(len(data), dtype=torch.bool)
        gains, judged = torch.zeros(len(clean.classes), dtype=torch.float64), []
        for label, index in members(data.labels, len(data.classes)):
            case.log(step=label + 1, steps=len(data.classes))
            class_clean = clean_features[labels == label]
            pooled = torch.cat([class_clean, train_features[index]])
            gain = _gain(identity, variation, pooled.new_full((1, 1, 1), len(pooled)))[0]
            split, centres = two_means(
                pooled @ whitening, case.rng(f"class {label}"), self.restarts
            )
            gains[label] = evidence(pooled @ whitening, split, gain @ pooled.mean(0) @ whitening)
            if 2 * int(split[: len(class_clean)].sum()) > len(class_clean):
                split, centres = ~split, centres.flip(0)
            squares = torch.cdist(pooled[len(class_clean) :] @ whitening, centres).square()
            scores[index] = (squares[:, 0] - squares[:, 1]).float().cpu()
            poisoned[index] = split[len(class_clean) :].cpu()
            judged.append(label)
        judged_labels = torch.tensor(judged)
        contaminated = torch.zeros(len(clean.classes), dtype=torch.bool)
        contaminated[judged_labels] = outliers(gains[judged_labels], self.theta)
        return Outcome(
            scores=scores,
            flagged=poisoned & contaminated[data.labels],
            notes={
                "evidence": gains,
                "anomaly": anomaly(gains[judged_labels]),
                "classes": contaminated.nonzero().flatten(),
            },
        )
