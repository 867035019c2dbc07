"""SS: spectral signatures (Tran, Li and Madry, NeurIPS 2018, arXiv 1811.00636).

The defender sees the model, the poisoned training set with the labels given, and bounds the share
of poisoned samples of a class. Of each class's centred penultimate features the direction v of
largest variance is taken; samples far out along it are suspicious, `((h - mean h) v)^2`: 1.5 times
the bound are removed.

Deviations, each with its reason:

- Features are centred for the direction and for the score, as in the paper. The released code and
  BackdoorBench project uncentred features (`released`, `backdoorbench`). Where half a class is
  poison, as at 10 % of ten classes into one, its mean lies midway and centred scores are chance,
  while uncentred ones still differ if the poisoned are farther from the origin.
- All classes are cut, since the target is not known; the released code is told it.
- The bound is an option, never the true rate; of n samples the share of it is rounded down, where
  the releases' percentile may cut one more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.base import Case, Defense
from defenses.parts.features import features_of, members, principal
from sweeper.core.options import NonNegative, Share
from sweeper.core.types import Outcome


def signature(features: Tensor, centred: bool = True) -> Tensor:
    """Squared projection on the direction of largest variance; float64 [N].

    Args:
        features: float64 [N, D], of one class.
        centred: Whether the mean is taken off what is projected, as from what varies.
    """
    top, _ = principal(features, 1)
    projected = (features - features.mean(0) if centred else features) @ top
    return projected.square().sum(1)


def removed(scores: Tensor, count: int) -> Tensor:
    """The `count` samples with the highest scores; bool [N]."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    mask[scores.topk(min(count, len(scores))).indices] = True
    return mask


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Defense):
    """Outliers along the first principal direction of each class."""

    eps: Share = 0.05
    """Bound on the poisoned share of a class."""
    factor: NonNegative = 1.5
    """Samples removed, as a multiple of the bound."""
    centred: bool = True
    """Whether centred features are projected."""

    title = "Spectral Signatures (SS)"
    paper = "Tran, Li and Madry, NeurIPS 2018"
    kind = "detection"
    sees = frozenset({"model", "train"})
    presets = {
        "released": {"eps": 0.1, "centred": False},
        "backdoorbench": {"eps": 0.1, "centred": False},
    }

    def defend(self, case: Case) -> Outcome:
        """Score and cut each class of the training set."""
        data = case.train
        features = features_of(case.fresh_model(), data.images)
        scores, flagged = torch.zeros(len(data)), torch.zeros(len(data), dtype=torch.bool)
        for _, index in members(data.labels, len(data.classes), least=2):
            class_scores = signature(features[index].double(), self.centred)
            count = int(self.factor * self.eps * len(index) + 1e-9)
            scores[index] = class_scores.float().cpu()
            flagged[index] = removed(class_scores, count).cpu()
        return Outcome(scores=scores, flagged=flagged, notes={"removed": int(flagged.sum())})
