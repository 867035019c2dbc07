"""No defense: the victim as it is; the row every other is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case, Defense
from sweeper.core.types import Outcome
from sweeper.engine.task import ANY


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """Returns the victim untouched."""

    title = "No defense"
    paper = "control"
    kind = "repair"
    tasks = frozenset({ANY})
    sees = frozenset({"model"})
    light = True

    def defend(self, case: Case) -> Outcome:
        """Return the victim."""
        return Outcome(model=case.fresh_model())
