"""STRIP (Gao et al., ACSAC 2019): inputs a model is sure of whatever is laid over them.

The defender sees the model and clean images. A trigger decides the prediction even under another
image, so that the entropy over many overlays is low. The score is the negative mean entropy,
`-mean_k H(f(x + x_k))`.

Weak by design against triggers that depend on the image or its class, or are faint; images of the
target class have low entropies too. What is done otherwise than published: `parts/strip.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case
from defenses.parts.strip import Blended
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class STRIP(Blended):
    """Refuse inputs whose blends have a low entropy."""

    title = "STRIP"
    paper = "Gao et al., ACSAC 2019"
    kind = "input filter"
    sees = frozenset({"model", "clean"})
    presets = {
        "released": {"fit": "normal", "rate": 0.01},
        "backdoor-toolbox": {"clip": True, "rate": 0.1},
    }

    def defend(self, case: Case) -> Outcome:
        """Draw the overlays; set the threshold on the rest of the clean budget."""
        score, threshold = self.scorer(case)
        return Outcome(filter=score, threshold=threshold, notes={"threshold": threshold})
