"""Fine-tuning: train all weights (or the head alone) on the clean budget.

The learning rate is the whole method: report it. Defaults follow BackdoorBench: SGD 0.01, momentum
0.9, weight decay 5e-4, batch 256, 100 epochs, with the cosine's period equal to the epochs. A fixed
budget and the last epoch; nothing is selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from defenses.base import Case, Defense
from sweeper.errors import SweepError
from sweeper.recipes import Recipe
from sweeper.training import Batch, Hooks
from sweeper.types import Outcome


class FrozenInEval(Hooks):
    """Keeps modules in eval mode while the rest trains, so that their running statistics stay."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loop's loss, with the frozen modules in eval mode."""
        for module in self.modules:
            module.eval()
        return super().loss(model, batch, recipe)


@dataclass(frozen=True, kw_only=True)
class FineTuning(Defense):
    """Cross-entropy on clean images."""

    lr: float = 0.01
    """Peak learning rate."""
    epochs: int = 100
    """Passes over the clean budget."""
    batch: int = 256
    """Images of a step."""
    schedule: str = "cosine"
    """cosine | constant | linear."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    layers: str = "all"
    """all | head: which weights are trained; with head the rest, BatchNorm included, is frozen."""

    title = "Fine-tuning (FT)"
    paper = "baseline; defaults of BackdoorBench (Wu et al., NeurIPS 2022)"
    kind = "repair"
    sees = frozenset({"model", "clean"})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: `layers` is unknown.
        """
        if self.layers not in ("all", "head"):
            raise SweepError(f"layers: {self.layers!r} is not one of all, head")

    def defend(self, case: Case) -> Outcome:
        """Train a copy of the victim."""
        model = case.model
        frozen = [] if self.layers == "all" else [model.trunk]
        for module in frozen:
            module.requires_grad_(False)
        losses = case.fit(
            model,
            case.clean,
            hooks=FrozenInEval(frozen),
            epochs=self.epochs,
            lr=self.lr,
            batch=min(self.batch, len(case.clean)),
            schedule=self.schedule,
            period=0,
            warmup=0.0,
            weight_decay=self.weight_decay,
        )
        model.requires_grad_(True)
        return Outcome(model=model, notes={"loss_first": losses[0], "loss_last": losses[-1]})
