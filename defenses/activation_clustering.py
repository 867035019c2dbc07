"""AC: activation clustering (Chen et al., SafeAI 2019, arXiv 1811.03728).

The defender sees the model and the poisoned training set with the labels given. The penultimate
features of each class are reduced to ten independent components and split in two; the smaller
cluster is taken for poisoned where it is small enough and the two are well apart.

Presets: `backdoor-toolbox`, and `backdoorbench-detection`, the benchmark's detector
(detection_pretrain/ac.py; it looks at the features before pooling where the network is a
ResNet-18). The benchmark's defense of the same name (defense/ac.py) has no preset: it clusters
augmented images batch by batch, and of the two cluster numbers the rarer over all batches is
poisoned, though numbers of different batches have nothing in common.

Deviations, each with its reason:

- Both rules must hold: the smaller cluster has less than `share` of the class, and the mean
  silhouette exceeds `silhouette`. By size alone clean classes with two sub-groups lose images
  (both presets).
- The exclusionary reclassification of the paper, a training without the cluster, is left out.
- The score of a sample, which the paper does not define, is how much nearer it lies to the centre
  of the smaller cluster, in units of the centres' distance, times the class's silhouette.
- The size rule supposes that poison is a minority of its class. At 10 % of ten equal classes, all
  into one, it is half of it: nothing can be flagged, while the score still tells the two apart.
- Classes with fewer samples than `least` are not judged: their scores are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from defenses.base import Case, Defense
from defenses.parts.features import features_of, members, principal, two_means
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, Several, Share
from sweeper.core.types import Outcome

CHUNK = 2000
"""Rows of a distance matrix held at once."""
ROUNDS, CLOSE = 200, 1e-6
"""FastICA: rounds at most, and how little the directions turn at the end."""


def independent(features: Tensor, dims: int, rng: Generator) -> Tensor:
    """Independent components of unit variance by FastICA, symmetric, with tanh.

    Args:
        features: float64 [N, D].
        dims: Components, at most.
        rng: A CPU generator, for the first directions.

    Returns:
        float64 [N, d]; where the rounds do not settle, the components of the last one.
    """
    basis, variances = principal(features, dims)
    white = (features - features.mean(0)) @ basis / variances.sqrt()
    initial = torch.randn(white.shape[1], white.shape[1], generator=rng, dtype=white.dtype)
    unmixing = _orthogonal(initial.to(white.device))
    for _ in range(ROUNDS):
        activations = (white @ unmixing.T).tanh()
        derivatives = (1 - activations.square()).mean(0)
        updated = _orthogonal(activations.T @ white / len(white) - derivatives[:, None] * unmixing)
        change = ((updated * unmixing).sum(1).abs() - 1).abs()
        unmixing = updated
        if not len(change) or bool(change.max() < CLOSE):
            break
    return white @ unmixing.T


def _orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a square one."""
    u, _, vt = torch.linalg.svd(matrix)
    orthogonal: Tensor = u @ vt
    return orthogonal


def silhouette(points: Tensor, small: Tensor) -> float:
    """Mean silhouette of a split in two, a cluster of one sample counted as 0.

    Args:
        points: float64 [N, D].
        small: bool [N], the one cluster.
    """
    membership = torch.stack([~small, small], 1).to(points.dtype)
    counts = membership.sum(0)
    if counts.min() < 1:
        return 0.0
    sums = torch.cat([torch.cdist(rows, points) @ membership for rows in points.split(CHUNK)])
    own_cluster, other_cluster = membership.bool(), ~membership.bool()
    inside = sums[own_cluster] / (counts.expand_as(sums)[own_cluster] - 1).clamp(min=1)
    outside = sums[other_cluster] / counts.expand_as(sums)[other_cluster]
    value = (outside - inside) / torch.maximum(inside, outside).clamp(min=1e-12)
    return value.where(counts.expand_as(sums)[own_cluster] > 1, 0.0).mean().item()


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(Defense):
    """Two clusters of the features of each class, and two rules on the smaller one."""

    dims: Count = 10
    """Components the features are reduced to."""
    reduce: str = "ica"
    """ica (the paper) | pca (projection alone)."""
    share: Share = 0.35
    """The smaller cluster is suspicious below this share of its class."""
    silhouette: Annotated[float, Field(ge=-1, le=1)] = 0.15
    """Mean silhouette above which the two clusters count as two; -1: whatever it is."""
    restarts: Count = 10
    """Random starts of the clustering."""
    least: Several = 10
    """Samples a class must have to be judged."""

    title = "Activation Clustering (AC)"
    paper = "Chen et al., SafeAI 2019"
    kind = "detection"
    sees = frozenset({"model", "train"})
    presets = {
        "backdoorbench-detection": {"silhouette": -1.0, "least": 2},
        "backdoor-toolbox": {"reduce": "pca", "silhouette": -1.0, "least": 2},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        if self.reduce not in ("ica", "pca"):
            raise SweepError(f"reduce: {self.reduce!r} is not one of ica, pca")

    def defend(self, case: Case) -> Outcome:
        """Cluster each class of the training set."""
        data = case.train
        features = features_of(case.fresh_model(), data.images)
        scores, flagged = torch.zeros(len(data)), torch.zeros(len(data), dtype=torch.bool)
        notes: dict[str, Any] = {}
        for label, index in members(data.labels, len(data.classes), self.least):
            case.log(step=label + 1, steps=len(data.classes))
            scores[index], flagged[index], notes[str(label)] = self.judge(
                features[index].double(), case.rng(f"class {label}")
            )
        return Outcome(scores=scores, flagged=flagged, notes={"clusters": notes})

    def judge(self, features: Tensor, rng: Generator) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Split the features [N, D] of one class.

        Returns:
            (scores float [N], flagged bool [N], share and silhouette of the smaller cluster).
        """
        if self.reduce == "ica":
            points = independent(features, self.dims, rng)
        else:
            points = (features - features.mean(0)) @ principal(features, self.dims)[0]
        small, centres = two_means(points, rng, self.restarts)
        mean_silhouette, share = silhouette(points, small), small.double().mean().item()
        to_larger, to_smaller = torch.cdist(points, centres).T
        margin = (to_larger - to_smaller) / (centres[1] - centres[0]).norm().clamp(min=1e-12)
        suspicious = 0 < share < self.share and mean_silhouette > self.silhouette
        return (
            (mean_silhouette * margin).float().cpu(),
            small.cpu() if suspicious else torch.zeros(len(small), dtype=torch.bool),
            {"share": share, "silhouette": mean_silhouette, "flagged": suspicious},
        )
