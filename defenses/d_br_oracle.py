"""D-BR with its epoch chosen on test data, as the authors' code reports it: an upper bound.

After every epoch, and before the first, TEST accuracy and ASR are measured; the model with the
largest difference of the two is kept. No defender could make this choice; tables mark it.
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
    sees = frozenset({"model", "train", "oracle"})

    def choose(self, case: Case, rounds: Iterator[tuple[Net, float]]) -> tuple[Net, dict[str, Any]]:
        """Keep the model of the largest test ACC - ASR."""
        best, chosen, curve = float("-inf"), 0, []
        kept: Net | None = None
        for epoch, (model, _) in enumerate(rounds):
            acc, asr = case.oracle(model)
            curve.append((acc, asr))
            if acc - asr > best:
                best, chosen, kept = acc - asr, epoch, copy.deepcopy(model)
        assert kept is not None
        return kept, {"epoch": chosen, "curve": curve}
