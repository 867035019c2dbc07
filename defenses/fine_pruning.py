"""Fine-pruning (Liu et al., RAID 2018): prune units dormant on clean images, then fine-tune.

Units are the penultimate features, that is the channels of the last feature map: removing column c
of the head equals removing channel c of the map when ReLU and pooling lie between. Units go in the
order of their mean |activation| on clean images (no augmentation).

Fair stop (rule H): units go, at most `cap` of them, while accuracy on the clean images stays within
`tau` of the incoming model's; the last accepted mask is kept. Nothing is held out, as a ranking of
units memorises no image. BackdoorBench decides on test accuracy and fine-tunes the first rejected
mask; neither is done here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense
from defenses.parts.accept import Rule
from sweeper.core.options import Count, LearningRate, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine.training import Hooks
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class FinePruning(Defense):
    """Pruning by dormancy, then fine-tuning with the pruned units kept at zero."""

    tau: Share = 0.03
    """Accuracy on the clean budget the pruning may cost, absolute, at least two images."""
    cap: Share = 0.95
    """Largest share of units pruned."""
    epochs: Whole = 100
    """Passes of the fine-tuning; 0: pruning alone."""
    lr: LearningRate = 0.01
    """Peak learning rate of the fine-tuning."""
    batch: Count = 256
    """Images of a step."""

    title = "Fine-Pruning (FP)"
    paper = "Liu et al., RAID 2018"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 2

    def defend(self, case: Case) -> Outcome:
        """Prune on a copy of the victim, then fine-tune it."""
        order = dormancy(case, case.fresh_model(), case.clean).argsort(stable=True)
        step, model = max(1, len(order) // 100), case.fresh_model()

        def without(count: int) -> Net:
            prune(model, order[:count])  # of one model, ever more
            return model

        counts = range(step, int(self.cap * len(order)) + 1, step)
        rule = Rule(case, case.clean, self.tau, lambda model: [model.classifier])
        accepted, curve = rule.until_rejected(counts, without)
        model, pruned = case.fresh_model(), order[: accepted or 0]
        prune(model, pruned)
        notes = {"units": len(order), "pruned": len(pruned), "curve": curve}
        if self.epochs:
            case.fit(
                model,
                case.clean,
                hooks=KeepPruned(pruned),
                epochs=self.epochs,
                lr=self.lr,
                batch=min(self.batch, len(case.clean)),
                schedule="cosine",
                period=0,
                warmup=0.0,
            )
        return Outcome(model=model, notes=notes)


class KeepPruned(Hooks):
    """Puts the pruned head columns back to zero after every update."""

    def __init__(self, units: Tensor) -> None:
        self.units = units

    def stepped(self, model: nn.Module, step: int) -> None:
        """After an update."""
        assert isinstance(model, Net)
        prune(model, self.units)


@torch.no_grad()
def prune(model: Net, units: Tensor) -> None:
    """Zero the head's columns of these units (int64 [n])."""
    weight = model.classifier.get_parameter("weight")
    weight.index_fill_(1, units.to(weight.device), 0.0)


@torch.inference_mode()
def dormancy(case: Case, model: Net, clean: Samples) -> Tensor:
    """Mean |activation| of every penultimate feature over the clean images; float [D]."""
    total: Tensor | None = None
    with case.autocast():
        for part in clean.images.split(500):
            features = model.features(part.to(case.device).float().div_(255)).float().abs().sum(0)
            total = features if total is None else total + features
    assert total is not None
    return (total / len(clean)).cpu()
