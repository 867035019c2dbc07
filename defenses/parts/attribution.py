"""Which neurons move which logits, and which class stands out: the statistics of SODA.

All are functions of tensors, for the defense and for whoever wants to look at a model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.parts.mad import outliers

CHUNK = 1 << 24
"""Values of features an intervention holds at once."""


@torch.no_grad()
def intervened(head: nn.Module, features: Tensor) -> Tensor:
    """Mean |change of each logit| when one neuron is raised by one; the definition.

    Args:
        head: Features [B, n] -> logits [B, K].
        features: float [N, n].

    Returns:
        float [n, K].
    """
    count, width = features.shape
    before = head(features)
    identity = torch.eye(width, dtype=features.dtype, device=features.device)
    changes = []
    for shift in identity.split(max(1, CHUNK // (count * width))):
        after = head((features + shift[:, None]).flatten(0, 1)).view(len(shift), count, -1)
        changes.append((after - before).abs().mean(1))
    return torch.cat(changes)


def attribution(head: nn.Module, features: Tensor) -> Tensor:
    """`intervened`, at no cost for a linear head: there it is |W| for any features; [n, K]."""
    if isinstance(head, nn.Linear):
        return head.weight.detach().abs().T
    return intervened(head, features)


def dissimilarity(attributions: Tensor, group_classes: Tensor | None = None) -> Tensor:
    """One less the mean correlation of a class's column with the mean of the other columns.

    Args:
        attributions: float [C, n, K], attributions measured on C groups of samples.
        group_classes: int64 [C], the class of each group, which does not count for itself; None
            where the attributions depend on no samples.

    Returns:
        float64 [K], rounded to what the correlation can resolve.
    """
    attributions = attributions.double()
    classes = attributions.shape[2]
    mean_others = (attributions.sum(2, keepdim=True) - attributions) / (classes - 1)
    centred = attributions - attributions.mean(1, keepdim=True)
    centred_others = mean_others - mean_others.mean(1, keepdim=True)
    rho = functional.cosine_similarity(centred, centred_others, dim=1)
    counts = torch.ones_like(rho)
    if group_classes is not None:
        counts[torch.arange(len(group_classes)), group_classes] = 0
    return (1 - (rho * counts).sum(0) / counts.sum(0).clamp(min=1)).round(decimals=9)


def class_means(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Row c: the mean logits of the images of class c, NaN where there is none; float [K, K]."""
    members = functional.one_hot(labels, classes).to(logits.dtype)
    return (members.T @ logits) / members.sum(0)[:, None]


def source(means: Tensor, target: int, theta: float) -> int | None:
    """The class whose images lean to the target, but not the other way round.

    Args:
        means: `class_means`.
        target: The flagged class.
        theta: Threshold of an outlying lean.

    Returns:
        A class other than the target; None where no other has images.
    """
    candidates = (means[:, target].isfinite()).nonzero().flatten()
    candidates = candidates[candidates != target]
    if not len(candidates):
        return None
    lean, back = means[candidates, target], means[target, candidates]
    flagged = outliers(lean, theta)
    if int(flagged.sum()) > 1 and bool(back.isfinite().all()):
        return int(candidates[back.masked_fill(~flagged, torch.inf).argmin()])
    return int(candidates[lean.argmax()])
