"""DBD, the decoupling-based defense (Huang et al., ICLR 2022).

The defender sees the poisoned training set with its labels, and nothing else. A trigger is bound to
its target by the label: so the trunk is first trained without labels (SimCLR); then the classifier
alone, by symmetric cross-entropy, `0.1 CE(p, y) + CE(y, p)`, on the frozen trunk; at last all of
the model, semi-supervised: before each epoch the samples of lowest loss keep their labels, the
others lend their images only.

Deviations, each with its reason; `parts/mixmatch.py` has those of the last stage:

- The contrast is SimCLR's, in which every view searches; in the release only first views do
  (`first_views_only`).
- The frozen trunk is in eval mode. In the release its BatchNorm statistics move while the
  classifier trains (`moving_statistics`).
- The paper and the release name 1,000 epochs of contrast; the released configuration goes on
  from the 100th (`released`).
- Mirroring is left out where the victim's recipe has none (digits, signs, a corner trigger).

`backdoorbench` is the budget of its port, `small` one for a small machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case
from defenses.parts.losses import lowest
from defenses.parts.mixmatch import MixMatch, symmetric
from defenses.parts.passes import PLAIN, Lasting
from defenses.parts.simclr import SimCLR
from sweeper.core.options import Count, LearningRate, Positive, Several
from sweeper.core.types import Outcome, Samples
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class DBD(MixMatch):
    """A trunk without labels, a classifier on it, then both with the labels believed."""

    contrast_epochs: Count = 1000
    """Epochs of the contrast."""
    contrast_lr: LearningRate = 0.4
    """Learning rate of the contrast (SGD, momentum 0.9, cosine)."""
    contrast_batch: Several = 512
    """Images of a step of the contrast; below 256 it learns less."""
    contrast_temperature: Positive = 0.5
    """Divides the similarities of the contrast."""
    first_views_only: bool = False
    """Whether only the first view of an image searches for the other, as released."""
    head_epochs: Count = 10
    """Epochs of the classifier alone."""
    head_batch: Count = 128
    """Images of a step of the classifier alone."""
    moving_statistics: bool = False
    """Whether BatchNorm statistics of the frozen trunk move meanwhile, as released."""
    epochs: Count = 190
    """Epochs of MixMatch."""

    title = "Decoupling-Based Defense (DBD)"
    paper = "Huang et al., ICLR 2022"
    kind = "secure training"
    sees = frozenset({"train"})
    presets = {
        "released": {
            "contrast_epochs": 100,
            "first_views_only": True,
            "moving_statistics": True,
            "one_mix": True,
            "augmented_scores": True,
        },
        "backdoorbench": {"contrast_epochs": 100, "epochs": 100, "batch": 256},
        "small": {"contrast_epochs": 100, "epochs": 30, "iterations": 256},
    }

    def defend(self, case: Case) -> Outcome:
        """Train a fresh model in three stages."""
        data, model = case.train, case.new_model()
        lowest(torch.zeros(len(data)), self.labelled, "labelled")  # before hours of work
        notes: dict[str, Any] = {
            "contrast_loss": self.contrast(case, model, data),
            "head_loss": self.head(case, model, data),
        }
        losses = labelled = torch.empty(0)

        def choose(epoch: int) -> Tensor:
            nonlocal losses, labelled
            losses = self.losses(case, model, data, f"epoch {epoch}")
            labelled = lowest(losses, self.labelled, "labelled")
            return labelled

        notes["mixmatch_loss"] = self.mixmatch(case, model, data, self.epochs, choose)
        notes["labelled"] = torch.bincount(
            data.labels[labelled], minlength=len(data.classes)
        ).tolist()
        return Outcome(model=model, scores=losses, notes=notes)

    def contrast(self, case: Case, model: nn.Module, data: Samples) -> list[float]:
        """Train the trunk in place, without labels; the loss of each epoch."""
        hooks = SimCLR(
            case.recipe.flip,
            case.rng("projection"),
            temperature=self.contrast_temperature,
            first_only=self.first_views_only,
        )
        return case.fit(
            model,
            data,
            name="contrast",
            hooks=hooks,
            epochs=self.contrast_epochs,
            batch=self.contrast_batch,
            lr=self.contrast_lr,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            schedule="cosine",
            period=0,
            warmup=0.0,
            **PLAIN,
        )

    def head(self, case: Case, model: nn.Module, data: Samples) -> list[float]:
        """Train the classifier alone in place; the loss of each epoch."""
        losses = case.fit(
            model,
            data,
            name="head",
            hooks=_Head(self.moving_statistics),
            epochs=self.head_epochs,
            batch=self.head_batch,
            lr=self.lr,
            schedule="constant",
            warmup=0.0,
        )
        model.requires_grad_(True)
        return losses


class _Head(Lasting):
    """Trains the classifier on the frozen trunk, by symmetric cross-entropy and Adam."""

    def __init__(self, moving: bool) -> None:
        super().__init__(adam=True)
        self.moving = moving

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Freeze the trunk."""
        assert isinstance(model, Net)
        model.trunk.requires_grad_(False)

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        """The loss of the batch."""
        assert isinstance(model, Net)
        model.trunk.train(self.moving)
        return symmetric(model(batch.inputs).float(), batch.labels).mean()
