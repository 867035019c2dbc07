"""FST, feature-shift tuning (Min et al., NeurIPS 2023).

The defender sees the model and a few clean images. The head is drawn anew and all weights are
fine-tuned, while the head is pushed away from where it was: the loss is `CE + alpha <W, W_0>`, W
and W_0 the new and the old head's weights, and after every step W is scaled to the norm of W_0.
Features must then shift to fit.

A fixed budget; nothing is selected. The release names alpha 0.1 for CIFAR-10, its command line 0.2
(`released`), and recommends less, or more images, for many classes. The head is found as the
model's classifier, not by a layer's name, and the projection belongs to this method alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense
from sweeper.core.options import Count, LearningRate, NonNegative
from sweeper.core.types import Outcome
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class FST(Defense):
    """Fine-tuning with a fresh head that is driven away from the old one."""

    alpha: NonNegative = 0.1
    """Weight of the inner product of new and old head."""
    lr: LearningRate = 0.01
    """Peak learning rate (SGD, momentum 0.9, cosine)."""
    epochs: Count = 10
    """Passes over the clean budget, at least one."""
    batch: Count = 128
    """Images of a step."""

    title = "Feature-Shift Tuning (FST)"
    paper = "Min et al., NeurIPS 2023"
    kind = "repair"
    tasks = frozenset({"image", "clips", "points"})
    sees = frozenset({"model", "clean"})
    presets = {"released": {"alpha": 0.2}}

    def defend(self, case: Case) -> Outcome:
        """Tune a copy of the victim."""
        model = case.fresh_model()
        hooks = Shifted(self.alpha, case.rng("head"))
        losses = case.fit(
            model,
            case.clean,
            hooks=hooks,
            epochs=self.epochs,
            lr=self.lr,
            batch=min(self.batch, len(case.clean)),
            momentum=0.9,
            nesterov=False,
            weight_decay=0.0,
            schedule="cosine",
            period=0,
            warmup=0.0,
            label_smoothing=0.0,
        )
        weight = model.classifier.get_parameter("weight").detach()
        cosine = functional.cosine_similarity(weight.flatten(), hooks.w0.flatten(), 0)
        return Outcome(model=model, notes={"losses": losses, "head_cosine": cosine.item()})


class Shifted(Hooks):
    """Draws the head anew, pushes it from the old one and keeps its norm."""

    def __init__(self, alpha: float, rng: Generator) -> None:
        self.alpha = alpha
        self.rng = rng
        self.w0 = torch.zeros(0)
        """The old head's weights."""

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Keep the old head and draw the new one."""
        assert isinstance(model, Net)
        weight = model.classifier.get_parameter("weight")
        self.w0, bound = weight.detach().clone(), weight.shape[1] ** -0.5
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                drawn = torch.rand(parameter.shape, generator=self.rng) * 2 - 1
                parameter.copy_(bound * drawn)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """Cross-entropy and the weighted inner product."""
        assert isinstance(model, Net)
        inner = (model.classifier.get_parameter("weight") * self.w0).sum()
        return super().loss(model, batch, recipe) + self.alpha * inner

    @torch.no_grad()
    def stepped(self, model: nn.Module, step: int) -> None:
        """Scale the head back to the old norm."""
        assert isinstance(model, Net)
        weight = model.classifier.get_parameter("weight")
        weight.mul_(self.w0.norm() / weight.norm())
