"""STRIP as a cleanser: training samples a model is too sure of, whatever covers them.

The score of Gao et al. (ACSAC 2019) asked of the poisoned training set instead of inputs, as both
toolboxes do. The defender sees the model, clean images and the training set; labels are not looked
at. What is done otherwise than published: `parts/strip.py`. One forward pass a sample and overlay.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case
from defenses.parts.strip import Blended
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class STRIPCleanser(Blended):
    """Flag training samples whose blends have a low entropy."""

    title = "STRIP (cleanser)"
    paper = "Gao et al., ACSAC 2019"
    kind = "detection"
    sees = frozenset({"model", "clean", "train"})
    presets = {"backdoor-toolbox": {"normalised": True, "rate": 0.1}}

    def defend(self, case: Case) -> Outcome:
        """Score the training set; cut where clean images end."""
        score, threshold = self.scorer(case)
        scores = score(case.train.images)
        return Outcome(scores=scores, flagged=scores > threshold, notes={"threshold": threshold})
