"""D-BR: backdoor removal by unlearning and relearning (Chen, Wu and Wang, NeurIPS 2022).

The defender sees the model and the poisoned training set with its labels, and no clean image. The
SD stage (`parts/sd.py`) names a few samples clean (D_c) and fewer poisoned (D_p). Each epoch
ascends the loss on D_p with the labels given, then descends it on D_c, with one optimiser and a
small, constant learning rate; train mode and the data set's augmentation in both.

Deviations: the released code keeps the epoch with the largest difference of test ACC and ASR; here
the last epoch is taken, and that choice is `d-br-oracle`. Those of SD are in `parts/sd.py`; the
preset `released` undoes them, and `released-cifar100` has that data set's augmentation, which only
crops while its victims are mirrored and rotated as well. `bound` is not in the paper: ascent has no
end of its own, and what it unlearns is the target class too: look at ACC on all classes.

The default `lr` is made for the paper's 1,980 steps. Ascent has no gradient where the victim's
loss on D_p is 0 in float32, and a few poisoned samples in D_c bring the backdoor back
(docs/methods/d-br.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from defenses.base import Case
from defenses.parts.alternate import Mode, alternate
from defenses.parts.sd import CLEAN, POISONED, Separated
from sweeper.core.options import Count, LearningRate, Positive, Whole
from sweeper.core.types import Outcome
from sweeper.models.base import Net

RELEASED = {"separation": "threshold", "two_passes": True}


@dataclass(frozen=True, kw_only=True)
class DBR(Separated):
    """SD, then ascent on D_p and descent on D_c in turns."""

    epochs: Whole = 20
    """Rounds of one pass over D_p and one over D_c."""
    lr: LearningRate = 1e-4
    """Learning rate, constant in both phases."""
    batch: Count = 128
    """Images of a step."""
    bound: Positive | None = None
    """Ascent leaves samples alone whose loss exceeds this; default: none is, as published."""
    bound_mode: Mode = field(default="train", metadata={"added": True})
    """In which mode that loss is taken: train, as ascent is, or eval, as the model is delivered. A
    batch of D_p alone has BatchNorm statistics of its own: under these the loss can be at the bound
    while under the model's own the trigger still works."""
    crop_only: bool = field(default=False, metadata={"added": True})
    """Whether both phases only crop where the recipe mirrors and rotates as well."""

    title = "D-BR"
    paper = "Chen, Wu and Wang, NeurIPS 2022"
    kind = "repair"
    sees = frozenset({"model", "train"})
    presets = {
        "released": RELEASED,
        "released-cifar100": {**RELEASED, "crop_only": True},
    }

    def defend(self, case: Case) -> Outcome:
        """Unlearn and relearn on a copy of the victim."""
        scores, part = case.state["scores"], case.state["part"]
        clean, poisoned = (part == CLEAN), (part == POISONED)
        model, notes = self.choose(case, self.rounds(case, clean, poisoned))
        notes |= {"clean": int(clean.sum()), "poisoned": int(poisoned.sum())}
        return Outcome(model=model.eval(), scores=scores, flagged=poisoned, notes=notes)

    def rounds(self, case: Case, clean: Tensor, poisoned: Tensor) -> Iterator[tuple[Net, float]]:
        """Yield the one model being repaired with its loss on D_p, before and after each epoch."""
        keep, drop = case.train[clean], case.train[poisoned]
        return alternate(
            case,
            case.fresh_model(),
            keep,
            drop,
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            bound=self.bound,
            mode=self.bound_mode,
            **({"flip": False, "rotation": 0.0, "erase": 0.0} if self.crop_only else {}),
        )

    def choose(self, case: Case, rounds: Iterator[tuple[Net, float]]) -> tuple[Net, dict[str, Any]]:
        """Run all rounds and keep the last model."""
        model, _ = next(rounds)
        return model, {"unlearned_loss": [loss for _, loss in rounds]}
