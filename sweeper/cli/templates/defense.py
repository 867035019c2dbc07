"""Template (authors, year): a short fine-tuning on the clean budget.

Say here what the defender sees, the equation of what it minimises, how each threshold is
chosen without test data, and every deviation from the paper with its reason; what you
measure of it belongs on a page of figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case, Defense
from sweeper.core.options import Count, LearningRate
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Template(Defense):
    """Trains on, on clean images."""

    epochs: Count = 20
    """Passes over the clean images."""
    lr: LearningRate = 0.05
    """Learning rate at its highest; the schedule is that of the victim's recipe."""

    title = "Template"
    paper = "authors, venue and year"
    kind = "repair"
    sees = frozenset({"model", "clean"})

    def defend(self, case: Case) -> Outcome:
        """Fine-tune a copy of the victim; `case` is all a defense gets."""
        model = case.fresh_model()
        losses = case.fit(model, case.clean, epochs=self.epochs, lr=self.lr, batch=16)
        return Outcome(model=model, notes={"losses": losses})
