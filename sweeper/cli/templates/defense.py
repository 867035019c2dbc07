"""Template (authors, year): a short fine-tuning on the clean budget.

Say here what the defender sees, the equation of what it minimises, how each threshold is chosen
without test data, and every deviation from the paper with its reason; what you measure of it
belongs on a page of figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case, Defense
from sweeper.core.errors import SweepError
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Template(Defense):
    """Trains on, on clean images."""

    epochs: int = 20
    """Passes over the clean images."""
    lr: float = 0.05
    """Learning rate at its highest; the schedule is that of the victim's recipe."""

    title = "Template"
    paper = "authors, venue and year"
    kind = "repair"
    sees = frozenset({"model", "clean"})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: No epoch, or a learning rate that is not above 0.
        """
        if self.epochs < 1 or self.lr <= 0:
            raise SweepError(f"epochs: at least 1, lr: above 0, not {self.epochs} and {self.lr}")

    def defend(self, case: Case) -> Outcome:
        """Fine-tune a copy of the victim; `case` is all a defense gets."""
        model = case.fresh_model()
        losses = case.fit(model, case.clean, epochs=self.epochs, lr=self.lr, batch=16)
        return Outcome(model=model, notes={"losses": losses})
