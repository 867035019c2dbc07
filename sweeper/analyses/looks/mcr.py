"""ACC and ASR along MCR's curve from the victim to its fine-tuned self (MCR, path figures).

Measured on the test set: the curve shows what each point would have given, none is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defenses.mcr import MCR
from sweeper.analyses.base import CLEAN, POISON, Analysis, Subject, line
from sweeper.core.options import Several, Whole

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class McrPath(Analysis):
    """The learned curve."""

    steps: Whole = 2000
    """Steps that train the curve."""
    tune_steps: Whole = 2000
    """Steps that fine-tune the second end."""
    points: Several = 11
    """Points measured, both ends among them."""

    title = "MCR: along the curve"
    source = "Zhao et al., ICLR 2020"

    def compute(self, subject: Subject) -> pd.DataFrame:
        """Rows (t, metric, value)."""
        import pandas as pd

        case = subject.case
        defense = MCR(steps=self.steps, tune_steps=self.tune_steps)
        second = defense.tuned(case, case.clean)
        curve = defense.connect(case, case.fresh_model(), second, case.clean)
        rows = []
        for place in range(self.points):
            t = place / (self.points - 1)
            acc, asr = subject.work.oracle(curve.at(t, case.clean.images))
            rows += [(t, "acc", acc), (t, "asr", asr)]
        return pd.DataFrame(rows, columns=["t", "metric", "value"])

    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """Two curves over t."""
        axes = figure.subplots()
        for metric, colour in (("acc", CLEAN), ("asr", POISON)):
            part = frame[frame["metric"] == metric]
            line(axes, part["t"], part["value"], colour, metric.upper())
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("t: 0 the victim, 1 its fine-tuned self")
        axes.legend(frameon=False)
