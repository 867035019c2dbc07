"""Super-FT, super-fine-tuning (Sha et al., 2022, arXiv 2212.09067).

The defender sees the model and clean images. The learning rate of every update runs through a
triangle of 2h updates, `base + (peak - base) (1 - |(t mod 2h) / h - 1|)`: first with a very large
peak, under which the backdoor is forgotten and much else, then with a small one, which brings the
accuracy back. A fixed budget and the last model.

The paper's own table was not to be had; the defaults are backdoor-toolbox's for CIFAR-10: SGD
without momentum or weight decay (with momentum 0.9 these peaks would be ten times as large). Where
the loss is no longer finite the cell fails in words: networks without norms may do so at 2.5.
`peak: null` takes the largest of a list whose accuracy on a hold-out is at the END within `tau` of
the victim's (fair rule H), where none is the most accurate, and trains with it on all clean images.

Deviations from that toolbox, each with its reason:

- The learning rate is that of the update it is meant for; there it is set after the update.
- The triangle starts anew with the second phase; there the change falls into the middle of one.
- Clean images are the clean budget; there they are cut from the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from defenses.base import Case, Defense, Needs
from defenses.parts.accept import Rule
from defenses.parts.hooks import EveryStep
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, ProperShare, Share, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.engine import training
from sweeper.engine.task import ANY
from sweeper.models.base import Net

PEAKS = (2.5, 1.0, 0.5, 0.25, 0.1)
"""Candidates of `peak: null`, strongest first."""


@dataclass(frozen=True, kw_only=True)
class SuperFT(Defense):
    """Fine-tuning with a large, then a small cyclic learning rate."""

    base: LearningRate = 3e-2
    """Lowest learning rate of both phases."""
    peak: LearningRate | None = 2.5
    """Highest learning rate of the first phase; null: chosen on a hold-out of the clean budget."""
    second_peak: LearningRate = 0.05
    """Highest learning rate of the second phase."""
    half: Count = 10
    """Updates from the lowest to the highest learning rate (h)."""
    epochs: Whole = 100
    """Passes over the clean budget, both phases together."""
    first: Share = 0.4
    """Share of the epochs that is the first phase."""
    batch: Count = 128
    """Images of a step."""
    momentum: ProperShare = 0.0
    """SGD momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty."""
    tau: Share = 0.03
    """Hold-out accuracy the choice of the peak may cost, absolute, at least two images."""

    title = "Super-Fine-Tuning (Super-FT)"
    paper = "Sha et al., 2022 (arXiv 2212.09067)"
    kind = "repair"
    tasks = frozenset({ANY})
    sees = frozenset({"model", "clean"})
    version = 2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "backdoor-toolbox-gtsrb": {"base": 3e-3, "peak": 0.25, "second_peak": 0.005},
        "automatic": {"peak": None},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A peak lies below the base.
        """
        if min(self.second_peak, PEAKS[-1] if self.peak is None else self.peak) < self.base:
            raise SweepError(f"peak and second_peak: not below base, which is {self.base}")

    def least_clean(self, needs: Needs) -> int:
        """One more than a training takes where a hold-out is set aside."""
        return needs.batch + (self.peak is None)

    def defend(self, case: Case) -> Outcome:
        """Choose the peak where none is given; train a copy of the victim."""
        peak, choice = self.peak, dict[str, Any]()
        if peak is None:
            fitted, holdout = case.split()
            rule = Rule(case, holdout, self.tau)
            accepted, curve = rule.first(PEAKS, lambda peak: self.tune(case, fitted, peak)[0])
            choice = {
                "curve": curve,
                "holdout_before": rule.before,
                "within_tau": accepted is not None,
            }
            peak, accuracy = max(curve, key=lambda tried: tried[1])
            if accepted is not None:
                peak = accepted
            elif not accuracy:
                return Outcome(model=case.fresh_model(), notes={**choice, "peak": None})
        model, notes = self.tune(case, case.clean, peak)
        return Outcome(model=model, notes={**choice, **notes})

    def tune(self, case: Case, data: Samples, peak: float) -> tuple[Net, dict[str, Any]]:
        """Both phases of one training; returns the model and the notes."""
        model, size = case.fresh_model(), min(self.batch, len(data))
        if not self.epochs:
            return model, {"peak": peak}
        steps = len(training.order(len(data), size, case.rng("count")))
        switch = round(self.first * self.epochs) * steps
        losses = case.fit(
            model,
            data,
            hooks=EveryStep(lambda step: self.rate(step, switch, peak)),
            epochs=self.epochs,
            lr=self.base,
            momentum=self.momentum,
            nesterov=False,
            weight_decay=self.weight_decay,
            batch=size,
            schedule="constant",
            warmup=0.0,
        )
        return model, {"peak": peak, "loss_first": losses[0], "loss_last": losses[-1]}

    def rate(self, step: int, switch: int, peak: float) -> float:
        """Learning rate of an update (from 0), the second phase beginning with `change`."""
        top, position = (peak, step) if step < switch else (self.second_peak, step - switch)
        height = 1 - abs(position % (2 * self.half) / self.half - 1)
        return self.base + (top - self.base) * height
