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
    raised = torch.eye(width, dtype=features.dtype, device=features.device)
    parts = []
    for part in raised.split(max(1, CHUNK // (count * width))):
        after = head((features + part[:, None]).flatten(0, 1)).view(len(part), count, -1)
        parts.append((after - before).abs().mean(1))
    return torch.cat(parts)


def attribution(head: nn.Module, features: Tensor) -> Tensor:
    """`intervened`, at no cost for a linear head: there it is |W| for any features; [n, K]."""
    if isinstance(head, nn.Linear):
        return head.weight.detach().abs().T
    return intervened(head, features)


def dissimilarity(tables: Tensor, own: Tensor | None = None) -> Tensor:
    """One less the mean correlation of a class's column with the mean of the other columns.

    Args:
        tables: float [C, n, K], attributions measured on C groups of samples.
        own: int64 [C], the class of each group, which does not count for itself; None where the
            attributions depend on no samples.

    Returns:
        float64 [K], rounded to what the correlation can resolve.
    """
    tables = tables.double()
    classes = tables.shape[2]
    rest = (tables.sum(2, keepdim=True) - tables) / (classes - 1)
    one, other = tables - tables.mean(1, keepdim=True), rest - rest.mean(1, keepdim=True)
    rho = functional.cosine_similarity(one, other, dim=1)
    counts = torch.ones_like(rho)
    if own is not None:
        counts[torch.arange(len(own)), own] = 0
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
    others = (means[:, target].isfinite()).nonzero().flatten()
    others = others[others != target]
    if not len(others):
        return None
    lean, back = means[others, target], means[target, others]
    flagged = outliers(lean, theta)
    if int(flagged.sum()) > 1 and bool(back.isfinite().all()):
        return int(others[back.masked_fill(~flagged, torch.inf).argmin()])
    return int(others[lean.argmax()])
