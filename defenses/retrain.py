"""Retraining on what a detector leaves: the cleansed set makes a model from scratch.

The second half of every paper on detecting poisoned samples. The defender sees the poisoned
training set and what the detector sees; the samples it flags are left out, and a fresh model is
trained by the victim's recipe. `{detect: scan, then: retrain}` in a sweep file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from defenses.base import Case
from defenses.parts.chain import Chained
from sweeper.core.options import Count
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Retrain(Chained):
    """Training from scratch without the flagged samples."""

    epochs: Count | None = None
    """Passes over the rest; default: the recipe's."""

    title = "Retraining on the cleansed set"
    paper = "common practice; Tran, Li and Madry, NeurIPS 2018"
    kind = "secure training"
    sees = frozenset({"model", "train"})

    def defend(self, case: Case) -> Outcome:
        """Train a fresh model on the samples that were not flagged."""
        keep, drop = self.parts(case)
        model = case.new_model()
        changes: dict[str, Any] = {} if self.epochs is None else {"epochs": self.epochs}
        case.fit(model, keep, **changes)
        return Outcome(
            model=model.eval(),
            scores=case.state.get("scores"),
            flagged=case.state["flagged"],
            notes={"removed": len(drop)},
        )
