"""CBD, causality-inspired backdoor defense (Zhang et al., CVPR 2023).

The defender sees the poisoned training set with its labels, and nothing else. A first model, the
confounder, is trained so briefly that it learns little but the trigger. A second one is trained in
full, each sample weighted by how hard it is for the confounder compared with the model itself:
`w = L_B / (L_B + L_C)`, of mean 1 in a batch. What the trigger explains weighs next to nothing.

Both ends of the first training fail: a backdoor that is not learned within it (a low poison rate)
is not weighted down, and clean classes that are learned within it are.

Deviations, each with its reason:

- The paper also pushes the features of the two models apart by a critic; that term is off by
  default in the released code, and left out here.
- The confounder's learning rate is constant; the release sets a schedule on the other optimiser.
- The steps of the learning rate are shares of the epochs (of 100: 20 and 70).
- Images are augmented as the victim's recipe has it, as mirroring moves a corner trigger.
- Scores, which the method does not define, are the confounder's losses, negated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense
from defenses.parts.losses import losses_of
from sweeper.core.options import LearningRate, NonNegative, Several, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


def weights(confounder_losses: Tensor, model_losses: Tensor) -> Tensor:
    """Weights of a batch, of mean 1, from the confounder's and the model's losses; float [B]."""
    share = confounder_losses / (confounder_losses + model_losses + 1e-8)
    return share / share.mean().clamp(min=1e-8)


class Weighted(Hooks):
    """Cross-entropy with the weights of each batch."""

    def __init__(self, confounder: nn.Module) -> None:
        """Take the confounder, in eval mode."""
        self.confounder = confounder

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The weighted loss; no gradient goes through the weights."""
        with torch.no_grad():
            logits = self.confounder(batch.inputs).float()
            confounder_losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        losses = functional.cross_entropy(
            model(batch.inputs).float(), batch.labels, reduction="none"
        )
        return (weights(confounder_losses, losses.detach()) * losses).mean()


@dataclass(frozen=True, kw_only=True)
class CBD(Defense):
    """A model trained on what a briefly trained one finds hard."""

    confounder_epochs: Whole = 5
    """Passes that train the confounder."""
    epochs: Whole = 100
    """Passes that train the model."""
    lr: LearningRate = 0.1
    """Learning rate of both; the model's falls to a tenth after 20 % and again after 70 %."""
    batch: Several = 64
    """Images of a step."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty."""

    title = "Causality-inspired Backdoor Defense (CBD)"
    paper = "Zhang et al., CVPR 2023"
    kind = "secure training"
    sees = frozenset({"train"})
    presets = {"small": {"epochs": 20, "lr": 0.05}}

    def defend(self, case: Case) -> Outcome:
        """Train the confounder, then the model."""
        data, model = case.train, case.new_model()
        confounder = self.confounder(case, data)
        epoch_losses = case.fit(
            model,
            data,
            hooks=Weighted(confounder),
            epochs=self.epochs,
            schedule="step",
            milestones=(round(self.epochs / 5), round(self.epochs * 7 / 10)),
            gamma=0.1,
            **self.common(data),
        )
        losses = losses_of(case, confounder, data)
        notes = {"loss": epoch_losses, "confounder_loss": losses.mean().item()}
        return Outcome(model=model, scores=-losses, notes=notes)

    def confounder(self, case: Case, data: Samples) -> Net:
        """The briefly trained model, in eval mode."""
        model = case.new_model("confounder")
        case.fit(
            model,
            data,
            name="confounder",
            epochs=self.confounder_epochs,
            schedule="constant",
            **self.common(data),
        )
        return model

    def common(self, data: Samples) -> dict[str, Any]:
        """What both trainings have of a recipe."""
        return {
            "lr": self.lr,
            "batch": min(self.batch, len(data)),
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": self.weight_decay,
            "warmup": 0.0,
            "label_smoothing": 0.0,
        }
