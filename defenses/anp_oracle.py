"""ANP with its threshold chosen on test data, as BackdoorBench reports it: an upper bound.

Among the thresholds that change TEST accuracy by less than `acc_ratio` (relative) the one with the
lowest TEST ASR is kept. No defender could make this choice; tables mark it. Masks are learned on
the part of the clean budget that `anp` learns on, so that the two differ in the choice alone;
BackdoorBench learns on all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from defenses.anp import ANP, THRESHOLDS
from defenses.base import Case
from defenses.parts.neurons import prune
from sweeper.core.types import ImageSet


@dataclass(frozen=True, kw_only=True)
class ANPOracle(ANP):
    """ANP whose threshold has seen the test set."""

    acc_ratio: float = 0.1
    """Largest relative change of test accuracy."""

    title = "ANP, threshold chosen on test data"
    sees = frozenset({"model", "clean", "oracle"})

    def choose(self, case: Case, masks: Tensor, holdout: ImageSet) -> tuple[float, dict[str, Any]]:
        """The threshold of lowest test ASR at a bounded change of test accuracy."""
        acc_before, asr_before = case.oracle(case.fresh_model())
        best_threshold, best_asr, curve = 0.0, asr_before, [(0.0, acc_before, asr_before)]
        for threshold in THRESHOLDS:
            model = case.fresh_model()
            prune(model, masks < threshold)
            acc, asr = case.oracle(model)
            curve.append((threshold, acc, asr))
            if abs(acc - acc_before) / acc_before < self.acc_ratio and asr < best_asr:
                best_threshold, best_asr = threshold, asr
        return best_threshold, {"curve": curve}
