"""ANP with the number of pruned neurons chosen on test data, as BackdoorBench does: an upper bound.

Of the numbers that change TEST accuracy by less than `acc_ratio` (relative) the one with the lowest
TEST ASR is kept. No defender could make this choice; tables mark it. The masks are `anp`'s, so that
the two differ in the choice alone.

Deviation: BackdoorBench chooses among 19 thresholds from 0.05 to 0.95; here among `anp`'s numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from defenses.anp import ANP
from defenses.base import Case
from defenses.parts.bynumber import pruned
from sweeper.core.options import PositiveShare


@dataclass(frozen=True, kw_only=True)
class ANPOracle(ANP):
    """ANP whose number of pruned neurons has seen the test set."""

    acc_ratio: PositiveShare = 0.1
    """Largest relative change of test accuracy."""

    title = "ANP, chosen on test data"
    sees = frozenset({"model", "clean", "oracle"})
    idle = frozenset({"threshold", "prune_count", "tau"})
    presets = {name: ANP.presets[name] for name in ("released", "backdoorbench")}

    def choose(self, case: Case, masks: Tensor) -> tuple[int, dict[str, Any]]:
        """The number of lowest test ASR at a bounded change of test accuracy."""
        best, best_asr, curve = 0, math.inf, []
        for count, model in pruned(case, masks):
            acc, asr = case.oracle(model)
            curve.append((count, acc, asr))
            acc_before = curve[0][1]
            if abs(acc - acc_before) < self.acc_ratio * acc_before and asr < best_asr:
                best, best_asr = count, asr
            if acc < acc_before / 2:
                break
        return best, {"curve": curve}
