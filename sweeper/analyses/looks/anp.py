"""ANP's masks, and ACC and ASR as they are pruned by threshold and by share (ANP, figures 3 and 4).

The curves are measured on the test set: they show what a choice would have given, none is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from defenses.anp import ANP, RELEASED
from defenses.parts.neurons import prune
from sweeper.analyses.base import CLEAN, POISON, Analysis, Subject, line
from sweeper.core.options import LearningRate, Whole

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Mask thresholds, as the release prints them."""
SHARES = (0.0, 0.0125, 0.025, 0.0375, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Shares of neurons pruned, as in the paper's figure."""


@dataclass(frozen=True, kw_only=True)
class AnpCurves(Analysis):
    """Mask histogram, threshold curve and pruning curve."""

    steps: Whole = 2000
    """Batches the masks are learned on."""
    lr: LearningRate = 0.2
    """Learning rate of the masks."""

    title = "ANP: masks and pruning curves"
    source = "Wu and Wang, NeurIPS 2021"
    tasks = frozenset({"image", "clips", "points"})

    def compute(self, subject: Subject) -> pd.DataFrame:
        """Rows (panel, x, metric, value): masks | threshold | share."""
        import pandas as pd

        case = subject.case
        masks, _ = ANP(steps=self.steps, lr=self.lr, **RELEASED).learn(case, case.clean)
        counts, edges = masks.histogram(bins=20, range=(0.0, 1.0))
        rows = [
            ("masks", float(x), "neurons", float(n))
            for x, n in zip(edges[:-1], counts, strict=True)
        ]
        for threshold in (0.0, *THRESHOLDS):
            rows += self._measured(subject, "threshold", threshold, masks < threshold)
        rank = masks.argsort(stable=True).argsort()
        for share in SHARES:
            rows += self._measured(subject, "share", share, rank < round(share * len(masks)))
        return pd.DataFrame(rows, columns=["panel", "x", "metric", "value"])

    def _measured(
        self, subject: Subject, panel: str, x: float, dead: Tensor
    ) -> list[tuple[str, float, str, float]]:
        model = subject.case.fresh_model()
        prune(model, dead)
        acc, asr = subject.work.oracle(model)
        return [(panel, x, "acc", acc), (panel, x, "asr", asr)]

    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """Three panels."""
        panels = figure.subplots(1, 3)
        masks = frame[frame["panel"] == "masks"]
        panels[0].bar(masks["x"], masks["value"], width=0.05, align="edge", color=CLEAN)
        panels[0].set_xlabel("mask")
        panels[0].set_ylabel("neurons")
        panels[0].set_yscale("symlog")
        words = ("threshold", "mask below which neurons go"), ("share", "share of neurons pruned")
        for axes, (panel, text) in zip(panels[1:], words, strict=True):
            for metric, colour in (("acc", CLEAN), ("asr", POISON)):
                part = frame[(frame["panel"] == panel) & (frame["metric"] == metric)]
                line(axes, part["x"], part["value"], colour, metric.upper())
            axes.set_xlabel(text)
            axes.set_ylim(-0.02, 1.02)
        panels[1].legend(frameon=False)
