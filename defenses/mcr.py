"""MCR's curve from one model to its fine-tuned self (Zhao et al., ICLR 2020, arXiv 2005.00060).

The defender sees the model and a few clean images. Two networks w1, w2 are joined by a curve in
weight space along which the loss on the clean images is small,
`min_w E_t CE(f(x; (1 - t)^2 w1 + 2 t (1 - t) w + t^2 w2))`; inside, accuracy is to stay and the
backdoor to fade. The method, Mode Connectivity Repair, joins two tampered networks: that is
`mcr-pair`, which tables call MCR. Here the second end is made from the first by fine-tuning it on
the clean images, as a defender must who has one model and no training set.

Deviations, each with its reason:

- The release shows test accuracy and ASR at every t and the reader chooses. Here t is the largest
  of 0.5, ..., 0.9 whose accuracy on a hold-out of the clean budget is within `tau` of the best of
  them, of a curve learned on the rest; the curve delivered from is learned on all (fair rule H).
  The ends are no choice: they are the given model and plain fine-tuning.
- The second end is fine-tuned at 0.05 for the first half, so that the ends lie apart.
- Running statistics are estimated on the defender's images; the release uses all training images.
- A fixed number of steps. The release repeats its images to 79 steps an epoch, which is the same.
- Clean images come from the training split; the release takes half the test set.

The release has no form from one model. BackdoorBench's has no preset here: it never zeroes the
gradients of the network along the curve, without which its rate of 3e-5 moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from defenses.base import Case
from defenses.parts.curve import CurveDefense, farthest
from sweeper.core.options import LearningRate, NonNegative, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class MCR(CurveDefense):
    """A point of the curve between the model and its fine-tuned self."""

    tune_steps: Whole = 2000
    """Steps that fine-tune the second end."""
    tune_lr: LearningRate = 0.05
    """Their peak learning rate."""
    tune_decay: NonNegative = 5e-4
    """Their L2 penalty."""

    title = "Mode Connectivity Repair (MCR), one model and its fine-tuned self"
    paper = "Zhao et al., ICLR 2020"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 3

    @property
    def times(self) -> Sequence[float]:
        """From the middle towards the fine-tuned end, without it."""
        return (0.5, 0.6, 0.7, 0.8, 0.9)

    def choose(self, accuracies: Sequence[float]) -> float:
        """The point farthest from the given model."""
        return farthest(self.times, accuracies, self.tau)

    def defend(self, case: Case) -> Outcome:
        """Make the second end, learn the curve, choose a point."""
        return self.repaired(case, lambda data: self.tuned(case, data))

    def tuned(self, case: Case, data: Samples) -> Net:
        """The second end: a copy of the victim, fine-tuned on these images."""
        model = case.fresh_model().train()

        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(model(images).float(), labels)

        changes = {"steps": self.tune_steps, "lr": self.tune_lr, "decay": self.tune_decay}
        self.descend(case, "second end", model, data, loss, **changes)
        return model.eval()
