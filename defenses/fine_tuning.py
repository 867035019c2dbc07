"""Fine-tuning: train all weights (or the head alone) on the clean budget.

The learning rate is the whole method: report it. Defaults follow BackdoorBench: SGD 0.01, momentum
0.9, weight decay 5e-4, batch 256, 100 epochs, with the cosine's period equal to the epochs. A fixed
budget and the last epoch; nothing is selected. With `steps` it is the control of methods that count
updates (MCR): as many, on batches drawn with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from defenses.base import Case, Defense
from defenses.parts.steps import descend
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, ProperShare, Whole
from sweeper.core.types import Outcome
from sweeper.engine import task as tasks
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import ANY
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


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

    lr: LearningRate = 0.01
    """Peak learning rate."""
    epochs: Whole = 100
    """Passes over the clean budget."""
    steps: Count | None = None
    """Updates in place of the epochs, on batches drawn with replacement."""
    batch: Count = 256
    """Images of a step."""
    schedule: str = "cosine"
    """cosine | constant | linear."""
    momentum: ProperShare | None = None
    """SGD momentum; default: the recipe's."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty."""
    layers: str = "all"
    """all | head: which weights are trained; with head the rest, BatchNorm included, is frozen."""

    title = "Fine-tuning (FT)"
    paper = "baseline; defaults of BackdoorBench (Wu et al., NeurIPS 2022)"
    kind = "repair"
    tasks = frozenset({ANY})
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
        model = case.fresh_model()
        frozen = [] if self.layers == "all" else [model.trunk]
        for module in frozen:
            module.requires_grad_(False)
        changes: dict[str, Any] = {
            "lr": self.lr,
            "batch": min(self.batch, len(case.clean)),
            "schedule": self.schedule,
            "weight_decay": self.weight_decay,
            "momentum": case.recipe.momentum if self.momentum is None else self.momentum,
        }
        if self.steps is None:
            changes |= {"epochs": self.epochs, "period": 0, "warmup": 0.0}
            losses = case.fit(model, case.clean, hooks=FrozenInEval(frozen), **changes)
        else:
            losses = self.stepped(case, model, frozen, replace(case.recipe, **changes), self.steps)
        model.requires_grad_(True)
        return Outcome(model=model, notes={"loss_first": losses[0], "loss_last": losses[-1]})

    def stepped(
        self, case: Case, model: Net, frozen: Sequence[nn.Module], recipe: Recipe, steps: int
    ) -> list[float]:
        """A number of updates; the losses of the first and the last tenth of them."""
        task = tasks.of(case.clean)

        def loss(batch: Batch) -> Tensor:
            with case.autocast():
                output = task.forward(model, batch)
            return task.loss(output, batch, smoothing=recipe.label_smoothing)

        model.train()
        for module in frozen:
            module.eval()
        losses = descend(case, model, case.clean, recipe, steps, loss=loss)
        model.eval()
        return losses
