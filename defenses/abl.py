"""ABL, anti-backdoor learning (Li et al., NeurIPS 2021).

The defender sees the poisoned training set with its labels, and nothing else. A model is trained
from scratch with a loss that does not fall below gamma, `|CE - gamma| + gamma` (or
`sign(CE - gamma) CE`), under which poisoned samples, learned faster, end lowest: the lowest share
is isolated. Training goes on without those, as usual; at last the loss of the isolated samples is
ascended. On a clean training set that unlearns easy clean images, and at a poison rate below
`isolate` most of what is isolated is clean.

Deviations, each with its reason:

- The loss that traps is of the batch's mean, as in the release; the paper defines local gradient
  ascent per sample (`per_sample`).
- The longer training augments as the victim's recipe does (release: crop, mirror and Cutout), for
  mirroring moves a corner trigger; its learning rate falls after two thirds of the epochs.
- Ascent has no end of its own: it stops after the pass that raised the mean loss of the samples
  not isolated above `cap` times what it was, or above 0.1, as a fitted loss near 0 doubles at any
  step. Of the release's five epochs the first only tests (`released`: 4, no cap).
- Scores are the negative losses after isolation, for every training sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense
from defenses.parts.losses import losses_of, lowest
from defenses.parts.passes import PLAIN, Lasting, passes
from sweeper.core.errors import SweepError
from sweeper.core.options import Factor, LearningRate, NonNegative, OpenShare, Several, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks

TRAPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "flooding": lambda value, gamma: (value - gamma).abs() + gamma,
    "lga": lambda value, gamma: (value - gamma).sign() * value,
}
"""Losses that push back what falls below gamma, of a mean or of each sample."""
FITTED = 0.1
"""Mean loss up to which ascent goes on whatever it was before."""


def trapped(losses: Tensor, trap: str, gamma: float, per_sample: bool) -> Tensor:
    """The loss of a batch from those of its samples, float [B]."""
    return TRAPS[trap](losses if per_sample else losses.mean(), gamma).mean()


@dataclass(frozen=True, kw_only=True)
class ABL(Defense):
    """Isolation of what is learned first, training on the rest, unlearning of the isolated."""

    isolation_epochs: Whole = 10
    """Passes of the isolation, without augmentation."""
    isolation_lr: LearningRate = 0.1
    """Learning rate of the isolation (constant)."""
    trap: str = "flooding"
    """flooding | lga: the loss of the isolation."""
    gamma: NonNegative = 0.5
    """Loss below which it pushes back."""
    per_sample: bool = False
    """Whether that is of each sample, not of the batch's mean."""
    isolate: OpenShare = 0.01
    """Share of the training set that is isolated."""
    epochs: Whole = 60
    """Passes over the other samples."""
    lr: LearningRate = 0.1
    """Learning rate of these, a tenth of it in their last third."""
    unlearning_epochs: Whole = 5
    """Passes of ascent over the isolated samples, at most."""
    unlearning_lr: LearningRate = 5e-4
    """Learning rate of the ascent (constant)."""
    cap: Factor | None = 2.0
    """The ascent stops when it multiplies the loss of the other samples by this; null: never."""
    batch: Several = 128
    """Images of a step."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty."""

    title = "Anti-Backdoor Learning (ABL)"
    paper = "Li et al., NeurIPS 2021"
    kind = "secure training"
    sees = frozenset({"train"})
    presets = {
        "released": {"unlearning_epochs": 4, "cap": None},
        "backdoorbench": {
            "isolation_epochs": 20,
            "isolation_lr": 0.01,
            "lr": 0.01,
            "unlearning_epochs": 20,
            "unlearning_lr": 1e-4,
            "batch": 256,
            "cap": None,
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A word is unknown.
        """
        if self.trap not in TRAPS:
            raise SweepError(f"trap: {self.trap!r} is not one of {', '.join(TRAPS)}")

    def defend(self, case: Case) -> Outcome:
        """Train a fresh model in three stages."""
        model, data = case.new_model(), case.train
        common: dict[str, Any] = {
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": self.weight_decay,
            "warmup": 0.0,
            "label_smoothing": 0.0,
        }
        common["batch"] = min(self.batch, len(data))
        case.fit(
            model,
            data,
            name="isolation",
            hooks=Trap(self),
            epochs=self.isolation_epochs,
            lr=self.isolation_lr,
            schedule="constant",
            **common,
            **PLAIN,
        )
        losses = losses_of(case, model, data)
        isolated = lowest(losses, self.isolate)
        case.fit(
            model,
            data[~isolated],
            epochs=self.epochs,
            lr=self.lr,
            schedule="step",
            milestones=(round(self.epochs * 2 / 3),),
            gamma=0.1,
            **common,
        )
        notes = self.unlearn(case, model, data, isolated, common)
        notes |= {"isolated": int(isolated.sum()), "threshold": losses[isolated].max().item()}
        return Outcome(model=model, scores=-losses, flagged=isolated, notes=notes)

    def unlearn(
        self, case: Case, model: nn.Module, data: Samples, isolated: Tensor, common: dict[str, Any]
    ) -> dict[str, Any]:
        """Ascend the loss of the isolated samples in place; losses of both parts, for the notes."""
        drop, keep = data[isolated], data[~isolated]
        model.eval()
        isolated_losses, other_losses = (
            [losses_of(case, model, samples).mean().item()] for samples in (drop, keep)
        )
        settings = {**common, **PLAIN, "lr": self.unlearning_lr}
        for _ in passes(
            case, model, drop, self.unlearning_epochs, Ascent(), name="unlearn", **settings
        ):
            isolated_losses.append(losses_of(case, model, drop).mean().item())
            other_losses.append(losses_of(case, model, keep).mean().item())
            if self.cap is not None and other_losses[-1] > max(self.cap * other_losses[0], FITTED):
                break
        return {"isolated_loss": isolated_losses, "other_loss": other_losses}


class Trap(Hooks):
    """Training with a loss that pushes back."""

    def __init__(self, options: ABL) -> None:
        self.options = options

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The trap of the batch's cross-entropies."""
        logits = model(batch.inputs).float()
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        options = self.options
        return trapped(losses, options.trap, options.gamma, options.per_sample)


class Ascent(Lasting):
    """Gradient ascent on cross-entropy."""

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss, negated."""
        return -super().loss(model, batch, recipe)
