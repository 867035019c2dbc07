"""Which training samples an attack poisons: the pools of the label rules and the draw from them.

| rule | may be poisoned |
|---|---|
| all2one | base non-target: every class but the target; base all: every class |
| all2all | every class |
| clean | the target class alone |
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sweeper.core.errors import SweepError


def candidates(labels: Tensor, rule: str, base: str, target: int) -> Tensor:
    """Bool [N]: the samples of these labels [N] that the rule and the rate's base allow."""
    if rule == "clean":
        return labels == target
    if rule == "all2all" or base == "all":
        return labels >= 0
    return labels != target


def draw(pool: Tensor, count: int, rng: Generator) -> Tensor:
    """Draw `count` samples of the pool (bool [N]) without replacement; int64, ascending.

    Raises:
        SweepError: The pool is smaller than `count`.
    """
    members = torch.nonzero(pool).flatten()
    if count > len(members):
        raise SweepError(
            f"cannot poison {count} images: only {len(members)} are allowed: lower the poison rate"
        )
    drawn = members[torch.randperm(len(members), generator=rng)[:count]]
    return drawn.sort().values
