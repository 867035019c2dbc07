"""MCR, Mode Connectivity Repair (Zhao et al., ICLR 2020, arXiv 2005.00060), from two models.

As the paper has it: the second is trained on the poisoned training set too, so that both ends of
the curve carry the backdoor, and its middle, learned on a few clean images, is meant to lose it.
The defender sees the model, a few clean images and the poisoned training set with the labels given,
and trains the second end on that set by the sweep's recipe from weights of its own. Of an attack
that controls training, the second end learns what the data alone teach.

Deviations, beyond those of `mcr`: t is the most central of 0.1, ..., 0.9 whose accuracy on a
hold-out of the clean budget is within `tau` of the best of them. The release's second model is
trained at other rates; that is its preset `released`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from defenses.base import Case
from defenses.parts.curve import CurveDefense, most_central
from sweeper.core.options import NonNegative, Whole
from sweeper.core.types import Outcome
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class MCRPair(CurveDefense):
    """A point of the curve between two models of the same poisoned data."""

    epochs: Whole = 1000
    """Passes that train the second end, at most; the recipe's where those are fewer."""
    lr_factor: NonNegative = 1.0
    """Learning rate of the second end, relative to the recipe's."""
    momentum_factor: NonNegative = 1.0
    """Its momentum, likewise."""
    weight_decay_factor: NonNegative = 1.0
    """Its weight decay, likewise."""

    title = "Mode Connectivity Repair (MCR)"
    paper = "Zhao et al., ICLR 2020"
    kind = "repair"
    sees = frozenset({"model", "clean", "train"})
    version = 2
    presets = {
        "released": {"lr_factor": 0.7, "momentum_factor": 0.8, "weight_decay_factor": 1.1},
    }

    @property
    def times(self) -> Sequence[float]:
        """The inside of the curve."""
        return tuple(step / 10 for step in range(1, 10))

    def choose(self, accuracies: Sequence[float]) -> float:
        """The point farthest from both ends."""
        return most_central(self.times, accuracies, self.tau)

    def defend(self, case: Case) -> Outcome:
        """Train the second end, learn the curve, choose a point."""
        second = self.second(case)
        return self.repaired(case, lambda data: second)

    def second(self, case: Case) -> Net:
        """The second end: a new model trained on the poisoned set."""
        model, recipe = case.new_model("second end"), case.recipe
        case.fit(
            model,
            case.train,
            name="second end",
            epochs=min(self.epochs, recipe.epochs),
            lr=recipe.lr * self.lr_factor,
            momentum=recipe.momentum * self.momentum_factor,
            weight_decay=recipe.weight_decay * self.weight_decay_factor,
        )
        return model
