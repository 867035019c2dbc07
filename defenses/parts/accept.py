"""Fair rule H: the strongest setting that costs little accuracy on a hold-out of clean images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case
from sweeper.core.errors import DivergedError
from sweeper.core.types import ImageSet


class Rule:
    """Accepts a model whose accuracy on the hold-out is within `tau` of the victim's."""

    def __init__(self, case: Case, holdout: ImageSet, tau: float) -> None:
        """Measure the victim.

        Args:
            case: Whose model is the victim.
            holdout: Images the method was not fitted on.
            tau: What accuracy may be lost, absolute; at least two images.
        """
        self.case = case
        self.holdout = holdout
        self.before = case.accuracy(case.fresh_model(), holdout)
        self.least = self.before - max(tau, 2 / len(holdout)) - 1e-9

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy on the hold-out; 0 of a model whose outputs are not finite."""
        try:
            return self.case.accuracy(model, self.holdout)
        except DivergedError:
            return 0.0

    def last(
        self, rounds: Iterable[object], tensors: Sequence[Tensor], model: Callable[[], nn.Module]
    ) -> dict[str, Any]:
        """Run all rounds and leave `tensors` as they were after the last accepted one.

        Args:
            rounds: Each item is a round, which has changed `tensors` when it is had.
            tensors: What the rounds change; before the first they are the victim's.
            model: The model these tensors make.

        Returns:
            Notes: accuracy before and after each round, and the round kept (0: none).
        """
        accepted = [tensor.detach().clone() for tensor in tensors]
        round_kept, curve = 0, [self.before]
        for number, _ in enumerate(rounds, 1):
            curve.append(self.accuracy(model()))
            if curve[-1] >= self.least:
                round_kept, accepted = number, [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            for tensor, value in zip(tensors, accepted, strict=True):
                tensor.copy_(value)
        return {"holdout": curve, "round_kept": round_kept}
