"""How far features move under a transformation, clean against poisoned (D-BR / D-ST, FCT figure).

The scores are those of the SD stage; truth is drawn beside them, which no defender has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defenses.parts.sd import CLEAN as HELD_CLEAN
from defenses.parts.sd import POISONED, SD
from sweeper.analyses.base import CLEAN, POISON, Analysis, Subject
from sweeper.core.options import Count, Whole
from sweeper.core.types import Role

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Fct(Analysis):
    """Histogram of the sensitivity scores of the training set."""

    train_epochs: Whole = 2
    """Epochs of cross-entropy without augmentation."""
    intra_epochs: Whole = 10
    """Epochs of the intra-class loss."""
    bins: Count = 200
    """Bars of the histogram."""

    title = "Feature consistency towards transformations (FCT)"
    source = "Chen, Wu and Wang, NeurIPS 2022 (D-BR / D-ST)"

    def compute(self, subject: Subject) -> pd.DataFrame:
        """One row a training sample: score, whether poisoned, the part SD puts it in."""
        import pandas as pd

        sd = SD(train_epochs=self.train_epochs, intra_epochs=self.intra_epochs)
        tensors = sd.run(subject.case)
        poisoned = subject.work.poisoned().role == int(Role.POISON)
        columns = {"score": tensors["scores"], "poisoned": poisoned, "part": tensors["part"]}
        return pd.DataFrame({name: value.numpy() for name, value in columns.items()})

    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """Both histograms on one axis, with the two thresholds."""
        import numpy as np

        axes = figure.subplots()
        poisoned = frame["poisoned"]
        edges = np.linspace(frame["score"].min(), frame["score"].quantile(0.999), self.bins + 1)
        axes.hist(frame["score"][~poisoned], edges, color=CLEAN, alpha=0.75, label="clean")
        if poisoned.any():
            axes.hist(frame["score"][poisoned], edges, color=POISON, alpha=0.75, label="poisoned")
        held, dropped = (frame[frame["part"] == part] for part in (HELD_CLEAN, POISONED))
        for value in (held["score"].max(), dropped["score"].min()):
            axes.axvline(value, color="black", linewidth=0.8, linestyle="--")
        axes.set_yscale("symlog")
        axes.set_xlabel(
            f"FCT; dashed: {1 - held['poisoned'].mean():.1%} of those to the left are clean, "
            f"{dropped['poisoned'].mean():.1%} to the right poisoned"
        )
        axes.set_ylabel("training samples")
        axes.legend(frameon=False)
