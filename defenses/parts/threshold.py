"""Where detectors and filters cut: by the scores of clean images that did not fit the score."""

from __future__ import annotations

import torch
from torch import Tensor

from defenses.base import Case
from sweeper.core.types import Samples


def cut(scores: Tensor, rate: float) -> float:
    """The smallest clean score that at most a share `rate` of the clean scores exceeds (rule F).

    Args:
        scores: float [N], high = suspicious, at least one.
        rate: False positives to allow.
    """
    ranked = scores.double().sort().values
    return ranked[len(ranked) - 1 - int(rate * len(ranked) + 1e-9)].item()


def drawn(case: Case, count: int) -> tuple[Samples, Samples]:
    """Draw `count` images of the clean budget, at most half of them, to score with.

    Returns:
        (those drawn, the rest, which is for the threshold), the same at every call.
    """
    clean = case.clean
    order = torch.randperm(len(clean), generator=case.rng("drawn"))
    count = min(count, len(clean) // 2)
    return clean[order[:count]], clean[order[count:]]
