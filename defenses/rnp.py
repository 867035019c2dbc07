"""RNP, Reconstructive Neuron Pruning (Li et al., ICML 2023).

The defender sees the model and a few clean images. A copy w' unlearns them, `max_w CE(f(x; w), y)`;
then masks m on its norms, and nothing else, learn them again, `min_m a CE(f(x; m w'), y)`. A neuron
this recovery does without serves the backdoor: in the ORIGINAL model every channel of small mask
gets scale zero, its shift stays. Networks without BatchNorm are masked at their other norms
(`parts/neurons.py`).

Deviations, each with its reason:

- Neurons go by number, as ANP's: in the order of their masks, as many as accuracy on the clean
  images allows (`parts/bynumber.py`); toolboxes take the lowest test ASR. With a `threshold`, a
  neuron is pruned where its mask is below it (release: or equal, after rounding to 4 decimals).
- Unlearning ends at a training accuracy of 0.20, which is twice chance at 10 classes; generally
  `max(0.20, min(2 / K, 0.5))`. Where it never ends the release loads a file that is not there, or
  another model's. Here the last state goes on, and notes say `unlearned: false`.
- Gradients of the ascent are clipped to a norm of 20. The release clips before the backward pass,
  which does nothing; `clip: 0`, or `preset: released`, is that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Defense
from defenses.parts.bynumber import most, smallest
from defenses.parts.hooks import Clipped
from defenses.parts.neurons import Neurons, prune, swapped
from sweeper.core.options import Count, LearningRate, NonNegative, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class RNP(Defense):
    """Unlearn, recover with masks, prune the neurons the recovery leaves out."""

    unlearn_epochs: Whole = 21
    """Most passes of the ascent (x0.1 from epoch 10 and from epoch 20)."""
    unlearn_lr: LearningRate = 0.01
    """Learning rate of the ascent (SGD, momentum 0.9)."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty of the ascent."""
    clip: NonNegative = 20.0
    """Largest norm of the ascent's gradient; 0: no bound."""
    limit: Share | None = None
    """Running accuracy at which the ascent ends; default: max(0.20, min(2 / classes, 0.5))."""
    recover_epochs: Whole = 20
    """Passes of the recovery."""
    recover_lr: LearningRate = 0.2
    """Learning rate of the masks (SGD, momentum 0.9)."""
    alpha: NonNegative = 0.2
    """Factor of the recovery's loss; it scales the masks' learning rate and nothing else."""
    batch: Count = 128
    """Images of a step."""
    threshold: Share | None = None
    """Prune masks below this; default: by number, as `tau` allows."""
    tau: Share = 0.04
    """Accuracy on the clean images the choice may cost, absolute, at least two images."""

    title = "Reconstructive Neuron Pruning (RNP)"
    paper = "Li et al., ICML 2023"
    kind = "repair"
    tasks = frozenset({"image", "clips", "points"})
    sees = frozenset({"model", "clean"})
    version = 2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"released": {"clip": 0.0, "limit": 0.2}}

    def defend(self, case: Case) -> Outcome:
        """Learn the masks on the clean images, choose how many neurons go, prune the victim."""
        unlearned, notes = self.unlearn(case, case.clean)
        masks = self.recover(case, unlearned, case.clean)
        if self.threshold is not None:
            notes["threshold"] = self.threshold
            dead = masks < self.threshold
        else:
            count, choice = most(case, masks, self.tau)
            notes |= choice
            dead = smallest(masks, count)
        model = case.fresh_model()
        prune(model, dead)
        histogram = torch.histc(masks, bins=20, min=0, max=1).int().tolist()
        notes |= {"pruned": int(dead.sum()), "masks": len(dead), "histogram": histogram}
        return Outcome(model=model, notes=notes)

    def unlearn(self, case: Case, data: Samples) -> tuple[Net, dict[str, Any]]:
        """Stage 1: a copy that has unlearned `data`, as far as it went."""
        model, classes = case.fresh_model(), len(data.classes)
        limit = max(0.2, min(2 / classes, 0.5)) if self.limit is None else self.limit
        hooks = _Ascent(limit, self.clip)
        if self.unlearn_epochs:
            try:
                case.fit(
                    model,
                    data,
                    name="unlearn",
                    hooks=hooks,
                    epochs=self.unlearn_epochs,
                    lr=self.unlearn_lr,
                    momentum=0.9,
                    nesterov=False,
                    weight_decay=self.weight_decay,
                    label_smoothing=0.0,
                    batch=min(self.batch, len(data)),
                    schedule="step",
                    milestones=(10, 20),
                    gamma=0.1,
                    warmup=0.0,
                )
            except _Unlearned:
                model.eval()
        reached = bool(hooks.curve) and hooks.curve[-1] <= limit
        return model, {"unlearned": reached, "limit": limit, "unlearning": hooks.curve}

    def recover(self, case: Case, model: Net, data: Samples) -> Tensor:
        """Stage 2: masks that make `model` classify `data` again; float [n] on the CPU."""
        model.requires_grad_(False)
        neurons = Neurons(model)
        if self.recover_epochs:
            with swapped(model, neurons):
                case.fit(
                    model,
                    data,
                    name="recover",
                    hooks=_Recovery(neurons, self.alpha),
                    epochs=self.recover_epochs,
                    lr=self.recover_lr,
                    batch=min(self.batch, len(data)),
                    schedule="constant",
                    warmup=0.0,
                )
        return neurons.mask.detach().cpu()


class _Unlearned(Exception):
    """Raised within the loop to end it."""


class _Ascent(Clipped):
    """Turns the loss around, and ends the loop when little accuracy is left."""

    def __init__(self, limit: float, clip: float) -> None:
        super().__init__(clip)
        self.limit = limit
        self.correct: list[Tensor] = []
        self.curve: list[float] = []
        """Running accuracy of each epoch, of its batches in train mode."""

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The negative of the cross-entropy."""
        logits = model(batch.inputs).float()
        self.correct.append(logits.argmax(1) == batch.labels)
        return -functional.cross_entropy(logits, batch.labels)

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """After an epoch."""
        self.curve.append(torch.cat(self.correct).float().mean().item())
        self.correct.clear()
        if self.curve[-1] <= self.limit:
            raise _Unlearned


class _Recovery(Hooks):
    """Trains masks in place of weights."""

    def __init__(self, neurons: Neurons, alpha: float) -> None:
        self.neurons = neurons
        self.alpha = alpha

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        """SGD over the masks."""
        return torch.optim.SGD([self.neurons.mask], lr=recipe.lr, momentum=0.9)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The scaled cross-entropy."""
        logits = model(batch.inputs).float()
        return self.alpha * functional.cross_entropy(logits, batch.labels)

    def stepped(self, model: nn.Module, step: int) -> None:
        """Keep the masks in [0, 1]."""
        with torch.no_grad():
            self.neurons.mask.clamp_(0, 1)
