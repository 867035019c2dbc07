"""ASD, adaptive splitting of the poisoned set (Gao et al., CVPR 2023).

The defender sees the poisoned training set and a few clean images of each class. A model is trained
from scratch by MixMatch; the clean images keep their labels throughout, and beside them training
samples chosen anew before every epoch, in three phases:

1. of each class the n of lowest loss; n is 0 at first, and grows every few epochs;
2. the half of lowest loss, of whatever class;
3. the half whose loss falls least when a virtual copy of the model learns the training set for an
   epoch, with the second half of its trunk and the classifier: what is poisoned is learned at once,
   what is hard but clean is not.

Deviations, each with its reason; `parts/mixmatch.py` has those it shares with DBD:

- The release draws its clean images out of the training set, knowing which are not poisoned. Here
  they come from the clean budget, and lie beside the training set.
- In phase 1 no class gives more than `labelled` of its samples, as on a small data set n would take
  them all.
- The layers of the virtual copy are found by their place, not by name: the second half of the
  trunk's layers is layer3 and layer4 of a ResNet-18.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defenses.base import Case, Needs
from defenses.parts.features import members
from defenses.parts.losses import lowest
from defenses.parts.mixmatch import MixMatch
from defenses.parts.passes import Lasting
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, Whole
from sweeper.core.types import ImageSet, Outcome, Samples
from sweeper.models.base import Net


def freeze_first_half(model: Net) -> None:
    """Freeze the first half, rounded down, of the trunk's layers that have weights."""
    layers = [layer for layer in model.trunk.modules() if [*layer.parameters(recurse=False)]]
    for layer in layers[: len(layers) // 2]:
        for value in layer.parameters(recurse=False):
            value.requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class ASD(MixMatch):
    """MixMatch over three ways of finding clean samples, one after the other."""

    trusted: Count = 10
    """Clean images of each class that keep their labels; fewer where the clean budget has fewer."""
    class_epochs: Whole = 60
    """Phase 1: epochs with the lowest losses of each class."""
    grow: Whole = 10
    """Phase 1: by how many samples of each class the labelled grow."""
    every: Count = 5
    """Phase 1: after how many epochs they do."""
    whole_epochs: Whole = 30
    """Phase 2: epochs with the lowest losses of all."""
    meta_epochs: Whole = 30
    """Phase 3: epochs with the losses that fall least."""
    virtual_lr: LearningRate = 0.015
    """Phase 3: learning rate of the virtual copy (Adam)."""
    virtual_batch: Count = 128
    """Phase 3: images of a step of the virtual copy."""

    title = "Adaptive splitting (ASD)"
    paper = "Gao et al., CVPR 2023"
    kind = "secure training"
    sees = frozenset({"train", "clean"})
    presets = {
        "released": {"one_mix": True, "augmented_scores": True},
        "small": {
            "class_epochs": 20,
            "every": 2,
            "whole_epochs": 10,
            "meta_epochs": 10,
            "iterations": 256,
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: No phase has an epoch.
        """
        if not self.total():
            raise SweepError("class_epochs, whole_epochs, meta_epochs: all are 0: give one of them")

    def total(self) -> int:
        """Epochs of all phases."""
        return self.class_epochs + self.whole_epochs + self.meta_epochs

    def least_clean(self, needs: Needs) -> int:
        """One of each class."""
        return needs.classes

    def defend(self, case: Case) -> Outcome:
        """Train a fresh model over the three phases."""
        train, seeds, model = case.train, self.seeds(case), case.new_model()
        lowest(torch.zeros(len(train)), self.labelled, "labelled")  # before hours of work
        everything = ImageSet(
            torch.cat([seeds.images, train.images]),
            torch.cat([seeds.labels, train.labels]),
            train.classes,
        )
        always = torch.ones(len(seeds), dtype=torch.bool)
        scores = labelled = torch.empty(0)

        def choose(epoch: int) -> Tensor:
            nonlocal scores, labelled
            scores = self.scores(case, model, train, epoch)
            labelled = self.select(scores, train, epoch)
            return torch.cat([always, labelled])

        losses = self.mixmatch(case, model, everything, self.total(), choose)
        counts = torch.bincount(train.labels[labelled], minlength=len(train.classes))
        notes = {"seeds": len(seeds), "mixmatch_loss": losses, "labelled": counts.tolist()}
        return Outcome(model=model, scores=scores, notes=notes)

    def seeds(self, case: Case) -> Samples:
        """The clean images that keep their labels.

        Raises:
            SweepError: The clean budget has none of some class.
        """
        clean = case.clean
        trusted = [index[: self.trusted] for _, index in members(clean.labels, len(clean.classes))]
        missing = len(clean.classes) - len(trusted)
        if missing:
            raise SweepError(
                f"asd needs a clean image of each class, but {missing} of "
                f"{len(clean.classes)} have none: raise clean_budgets"
            )
        return clean[torch.cat(trusted)]

    def scores(self, case: Case, model: Net, train: Samples, epoch: int) -> Tensor:
        """What the training samples are ranked by before an epoch, float [N], low = clean."""
        before = self.losses(case, model, train, f"epoch {epoch}")
        if epoch < self.class_epochs + self.whole_epochs:
            return before
        virtual = self.virtual(case, model, train, epoch)
        return before - self.losses(case, virtual, train, f"virtual {epoch}")

    def select(self, scores: Tensor, train: Samples, epoch: int) -> Tensor:
        """Which training samples keep their labels in an epoch, bool [N]."""
        if epoch >= self.class_epochs:
            return lowest(scores, self.labelled, "labelled")
        labelled = torch.zeros(len(train), dtype=torch.bool)
        for _, index in members(train.labels, len(train.classes)):
            count = min(self.grow * (epoch // self.every), int(self.labelled * len(index)))
            labelled[index[scores[index].argsort(stable=True)[:count]]] = True
        return labelled

    def virtual(self, case: Case, model: Net, train: Samples, epoch: int) -> Net:
        """A copy of the model after an epoch of cross-entropy on all training samples."""
        virtual = copy.deepcopy(model)
        freeze_first_half(virtual)
        settings: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "label_smoothing": 0.0}
        case.fit(
            virtual,
            train,
            name=f"virtual {epoch}",
            hooks=Lasting(adam=True),
            epochs=1,
            batch=self.virtual_batch,
            lr=self.virtual_lr,
            **settings,
        )
        return virtual
