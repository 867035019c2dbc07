"""D-BR with its epoch chosen on test data, as the authors' code reports it: an upper bound.

After every epoch TEST accuracy and ASR are measured; the model with the largest difference of the
two is kept, never the victim itself. No defender could make this choice; tables mark it. Every
published figure of D-BR is chosen so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from defenses.base import Case
from defenses.d_br import DBR
from sweeper.models.base import Net


@dataclass(frozen=True, kw_only=True)
class DBROracle(DBR):
    """D-BR whose epoch has seen the test set."""

    title = "D-BR, epoch chosen on test data"
    version = 2
    sees = frozenset({"model", "train", "oracle"})

    def choose(self, case: Case, rounds: Iterator[tuple[Net, float]]) -> tuple[Net, dict[str, Any]]:
        """Keep the model of the largest test ACC - ASR."""
        best_model, _ = next(rounds)  # the victim, in case there is no epoch
        best_difference, best_epoch, curve = float("-inf"), 0, []
        for epoch, (model, _) in enumerate(rounds, 1):
            acc, asr = case.oracle(model)
            curve.append((acc, asr))
            if acc - asr > best_difference:
                best_difference, best_epoch, best_model = acc - asr, epoch, copy.deepcopy(model)
        return best_model, {"epoch": best_epoch, "curve": curve}
