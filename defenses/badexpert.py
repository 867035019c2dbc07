"""BaDExpert (Xie et al., ICLR 2024, arXiv 2308.12439): a model that knows nothing but the backdoor.

The defender sees the model and clean images. One copy, the expert, is fine-tuned for a moment on
wrong labels: it forgets the task, but not the backdoor. Another, repaired by plain fine-tuning,
forgets the backdoor, but not the task. With x and y their confidences in the class the model
predicts, triggered inputs have a high x and a low y; the score, never above 0, is
`-min(2 y / x, (1 - x) / (0.5 - y))`, the second quotient where y < 0.5 only.

Deviations, each with its reason:

- Both copies are fine-tuned on one part of the clean budget and the threshold is a quantile on the
  other. The release takes threshold and early stopping from test images classified correctly.
- Where y >= 0.5 and x is 1 to the last digit, the release's clamped second quotient is 0, the most
  suspicious score there is; here it does not count, as at any other x. Confidences are in double
  precision, so that few of them are 1.
- The factor 2, the bound 0.5 and the expert's learning rate are those of ResNet-18 on CIFAR-10;
  presets have those of other networks and of GTSRB.
- The expert's one pass is 16 updates of the release's 2,000 images; a smaller budget makes fewer
  and needs more passes at a higher rate (`small`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.base import Case, Defense, Needs
from defenses.parts.passes import Lasting
from defenses.parts.threshold import cut
from sweeper.core.options import (
    LearningRate,
    NonNegative,
    OpenShare,
    Positive,
    PositiveShare,
    Several,
    Whole,
)
from sweeper.core.types import Outcome, Samples
from sweeper.models.base import Net

BATCH = 1000
TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class BaDExpert(Defense):
    """Refuse inputs on which a backdoor expert agrees and a repaired model does not."""

    expert_epochs: Whole = 1
    """Passes of the expert over wrong labels."""
    expert_lr: LearningRate = 1e-4
    """The expert's learning rate (Adam, constant)."""
    expert_batch: Several = 128
    """Images of the expert's step."""
    epochs: Whole = 10
    """Passes of the repair; its learning rate falls after 2, 4, 6 and 8 of 10, in proportion."""
    lr: LearningRate = 0.1
    """The repair's learning rate at first."""
    gamma: NonNegative = 0.1
    """Factor of each fall."""
    batch: Several = 64
    """Images of the repair's step."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty of the repair."""
    factor: Positive = 2.0
    """Weight of the quotient y / x."""
    bound: PositiveShare = 0.5
    """Confidence of the repaired model from which on the other quotient does not count."""
    rate: OpenShare = 0.05
    """Clean images that may be refused, as a share."""

    title = "BaDExpert"
    paper = "Xie et al., ICLR 2024"
    kind = "input filter"
    sees = frozenset({"model", "clean"})
    presets = {
        "released": {"rate": 0.01},
        "released-vgg": {"rate": 0.01, "expert_lr": 8e-5, "factor": 2.5, "bound": 0.4},
        "released-mobilenet": {"rate": 0.01, "expert_lr": 5e-5, "factor": 5.0, "bound": 0.2},
        "released-gtsrb": {"rate": 0.001, "expert_lr": 2.5e-5, "lr": 0.05, "gamma": 0.2},
        "small": {"expert_epochs": 10, "expert_lr": 1e-3},
    }

    def least_clean(self, needs: Needs) -> int:
        """One for the threshold more than a training takes."""
        return needs.batch + 1

    def defend(self, case: Case) -> Outcome:
        """Fine-tune both copies; set the threshold on the hold-out."""
        fitted, holdout = case.split()
        model, expert, repaired = case.fresh_model(), case.fresh_model(), case.fresh_model()
        self.forget(case, expert, fitted)
        self.repair(case, repaired, fitted)

        @torch.no_grad()
        def score(images: Tensor) -> Tensor:
            scores = []
            for batch in images.split(BATCH):
                pixels = batch.to(case.device).float().div_(255)
                with case.autocast():
                    label = model(pixels).argmax(1, keepdim=True)
                    x, y = (
                        net(pixels).double().softmax(1).gather(1, label)[:, 0]
                        for net in (expert, repaired)
                    )
                scores.append(suspicion(x, y, self.factor, self.bound).cpu())
            return torch.cat(scores)

        threshold = cut(score(holdout.images), self.rate)
        notes = {
            "threshold": threshold,
            "expert_accuracy": case.accuracy(expert, holdout),
            "repaired_accuracy": case.accuracy(repaired, holdout),
        }
        return Outcome(filter=score, threshold=threshold, notes=notes)

    def forget(self, case: Case, model: Net, data: Samples) -> None:
        """Train the expert in place: every image with the class after its own."""
        if self.expert_epochs:
            case.fit(
                model,
                data.changed(labels=(data.labels + 1) % len(data.classes)),
                name="expert",
                hooks=Lasting(adam=True),
                epochs=self.expert_epochs,
                lr=self.expert_lr,
                batch=min(self.expert_batch, len(data)),
                schedule="constant",
                warmup=0.0,
                label_smoothing=0.0,
            )

    def repair(self, case: Case, model: Net, data: Samples) -> None:
        """Fine-tune the repaired copy in place."""
        if self.epochs:
            case.fit(
                model,
                data,
                name="repair",
                epochs=self.epochs,
                lr=self.lr,
                momentum=0.9,
                nesterov=True,
                weight_decay=self.weight_decay,
                batch=min(self.batch, len(data)),
                schedule="step",
                milestones=tuple(round(tenths * self.epochs / 10) for tenths in (2, 4, 6, 8)),
                gamma=self.gamma,
                warmup=0.0,
                label_smoothing=0.0,
            )


def suspicion(x: Tensor, y: Tensor, factor: float = 2.0, bound: float = 0.5) -> Tensor:
    """The score from confidences in the class predicted; float [B], at most 0.

    Args:
        x: The expert's, [B] in [0, 1].
        y: The repaired model's, [B] in [0, 1].
        factor: Weight of y / x.
        bound: From which y on the other quotient does not count.
    """
    agreed = factor * y / x.clamp(min=TINY)
    doubted = (1 - x) / (bound - y).clamp(min=TINY)
    return -torch.where(y < bound, torch.minimum(agreed, doubted), agreed)
