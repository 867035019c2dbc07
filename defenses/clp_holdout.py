"""CLP with its coefficient chosen on a hold-out of the clean budget (fair rule H).

As `clp.py`, which sees no image at all; here u is the smallest of a list, in steps of 0.5 up to 5,
whose pruning costs at most `tau` of accuracy on the clean budget. Nothing is fitted, so all of the
budget is the hold-out. Where no u is accepted nothing is pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case, Needs
from defenses.clp import CLP
from defenses.parts.accept import Rule
from sweeper.core.options import Positive, Share
from sweeper.core.types import Outcome
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class CLPHoldout(CLP):
    """The strongest pruning the hold-out allows."""

    u: Positive = 1.0
    """Smallest coefficient tried."""
    most: Positive = 5.0
    """Largest coefficient tried."""
    tau: Share = 0.03
    """Accuracy on the clean budget the choice may cost, absolute, at least two images."""

    title = "CLP + hold-out"
    sees = frozenset({"model", "clean"})
    presets = {"released": CLP.presets["released"]}

    def least_clean(self, needs: Needs) -> int:
        """One: nothing is trained."""
        return 1

    def defend(self, case: Case) -> Outcome:
        """Try the candidates from the smallest, which prunes most."""
        rule = Rule(case, case.clean, self.tau)
        steps = range(int((self.most - self.u) / 0.5 + 1e-9) + 1)

        def pruned(u: float) -> Net:
            model = case.fresh_model()
            self.prune(model, u)
            return model

        u, curve = rule.first([self.u + 0.5 * step for step in steps], pruned)
        model = case.fresh_model()
        notes = {"pruned": 0} if u is None else self.prune(model, u)
        notes |= {"u": u, "curve": curve, "holdout_before": rule.before}
        return Outcome(model=model, notes=notes)
