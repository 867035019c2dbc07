"""MCR, Mode Connectivity Repair (Zhao et al., ICLR 2020, arXiv 2005.00060), from one model.

The defender sees the model and a few clean images. Two networks w1, w2 are joined by a curve in
weight space along which the loss on the clean images is small,
`min_w E_t CE(f(x; (1 - t)^2 w1 + 2 t (1 - t) w + t^2 w2))`; inside, accuracy is to stay and the
backdoor to fade. The method needs two tampered networks; here the second is made from the first by
fine-tuning it on the clean images (mode a). `mcr-pair` trains a second one (mode b).

Deviations, each with its reason:

- The release shows test accuracy and ASR at every t and the reader chooses; BackdoorBench takes
  t = 0.1. Here t is the largest of 0.5, ..., 1 whose accuracy on a hold-out of the clean budget is
  within `tau` of the best of them; at t = 1 that is plain fine-tuning.
- The second end is fine-tuned at 0.05 for the first half, so that the ends lie apart.
- Running statistics are estimated on the defender's images; the release uses all training images.
- A fixed number of steps. The release repeats its images to 79 steps an epoch, which is the same.
- Clean images come from the training split; the release takes half the test set.

Preset `released`: the second end is the release's own fine-tuning baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from defenses.base import Case, Needs
from defenses.parts.curve import CurveDefense, farthest
from sweeper.core.types import Outcome
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class MCR(CurveDefense):
    """A point of the curve between the model and its fine-tuned self."""

    tune_steps: int = 2000
    """Steps that fine-tune the second end."""
    tune_lr: float = 0.05
    """Their peak learning rate."""
    tune_decay: float = 5e-4
    """Their L2 penalty."""

    title = "Mode Connectivity Repair (MCR), one model"
    paper = "Zhao et al., ICLR 2020"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    presets = {
        "released": {"tune_steps": 7900, "tune_lr": 0.015, "tune_decay": 1e-4},
        "backdoorbench": {
            "steps": 2000,
            "lr": 3e-5,
            "l2": 0.0,
            "decay": 5e-4,
            "schedule": "cosine",
            "augment": True,
            "tune_lr": 0.01,
            "t": 0.1,
        },
    }

    def applies(self, needs: Needs) -> str | None:
        """Refuse fewer than four clean images: half must do for BatchNorm's statistics."""
        return "needs at least 4 clean images" if needs.clean < 4 else None

    @property
    def times(self) -> Sequence[float]:
        """From the middle to the fine-tuned end."""
        return (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def choose(self, accuracies: Sequence[float]) -> float:
        """The point farthest from the given model."""
        return farthest(self.times, accuracies, self.tau)

    def defend(self, case: Case) -> Outcome:
        """Make the second end, learn the curve, choose a point."""
        return self.deliver(case, self.connect(case, case.fresh_model(), self.tuned(case)))

    def tuned(self, case: Case) -> Net:
        """The second end: a copy of the victim, fine-tuned."""
        model = case.fresh_model().train()
        fitted, _ = self.data(case)

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(model(images).float(), labels)

        changes = {"steps": self.tune_steps, "lr": self.tune_lr, "decay": self.tune_decay}
        self.descend(case, "second end", model, fitted, loss, **changes)
        return model.eval()
