"""Penultimate features of a set of images, class by class, and what detectors ask of them.

Arithmetic on features is in double precision: the eigenvalues of a class span many orders.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from sweeper.engine.task import floats
from sweeper.models.base import Net

BATCH = 500
ROUNDS = 100
"""Rounds of Lloyd's algorithm, at most."""
SMALLEST = 1e-10
"""An eigenvalue below this share of the largest is taken for 0."""


@torch.no_grad()
def features_of(model: Net, images: Tensor) -> Tensor:
    """Penultimate features of inputs; float [N, D] in single precision, where the model is.

    uint8 inputs [N, C, H, W] are pixels; others are shown to the model as they are.

    The forward passes run in the precision of the caller's context.
    """
    device = next(model.parameters()).device
    features = [model.features(floats(batch.to(device))) for batch in images.split(BATCH)]
    return torch.cat([batch.float() for batch in features])


def members(labels: Tensor, classes: int, least: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yield (class, positions of its samples, int64) for classes of at least `least` samples."""
    for label in range(classes):
        index = (labels == label).nonzero().flatten()
        if len(index) >= least:
            yield label, index


def principal(features: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Principal directions of float64 [N, D], without those along which nothing varies.

    Args:
        features: The samples; their mean is taken off.
        dims: Directions, at most.

    Returns:
        (float64 [D, d] orthonormal columns, float64 [d] variances along them, descending).
    """
    centred = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(features)))
    values, vectors = values.flip(0)[:dims], vectors.flip(1)[:, :dims]
    varying = values > SMALLEST * values[0].clamp(min=torch.finfo(values.dtype).tiny)
    return vectors[:, varying], values[varying]


def two_means(points: Tensor, rng: Generator, restarts: int = 10) -> tuple[Tensor, Tensor]:
    """Split points in two clusters; the best of several starts, all of them at once.

    A start is a random point and another, drawn by its squared distance from the first.

    Args:
        points: float64 [N, D].
        rng: A CPU generator.
        restarts: Starts.

    Returns:
        (bool [N]: in the smaller cluster, float64 [2, D]: centres of the larger and the smaller).
    """
    first = torch.randint(len(points), (restarts,), generator=rng).to(points.device)
    distance = torch.cdist(points[first], points).square().cpu()
    second = torch.multinomial(distance + 1e-12, 1, generator=rng).flatten().to(points.device)
    centres = torch.stack([points[first], points[second]])
    assigned = torch.zeros(len(points), restarts, dtype=torch.bool, device=points.device)
    for _ in range(ROUNDS):
        middle = centres.square().sum(2)
        updated = points @ (centres[1] - centres[0]).T > (middle[1] - middle[0]) / 2
        if torch.equal(updated, assigned):
            break
        assigned, weight = updated, updated.to(points.dtype)
        count = torch.stack([len(points) - weight.sum(0), weight.sum(0)])[..., None]
        upper = weight.T @ points
        sums = torch.stack([points.sum(0) - upper, upper])
        centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
    inertia = [
        (points[:, None] - centre).square().sum(2).where(member, 0.0).sum(0)
        for centre, member in zip(centres, (~assigned, assigned), strict=True)
    ]
    best = (inertia[0] + inertia[1]).argmin()
    small, pair = assigned[:, best], centres[:, best]
    return (small, pair) if 2 * small.sum() <= len(points) else (~small, pair.flip(0))
