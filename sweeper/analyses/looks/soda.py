"""SODA's view of a model: which class's causal attribution stands out, and by which neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from defenses.parts.attribution import attribution
from defenses.soda import SODA
from sweeper.analyses.base import CLEAN, OTHER, POISON, Analysis, Subject, features
from sweeper.core.options import NonNegative

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class SodaAttribution(Analysis):
    """Anomaly index of every class, and the attribution of the most anomalous one."""

    theta1: NonNegative = 3.0
    """Anomaly index above which a class is a target."""

    title = "SODA: causal attribution"
    source = "Sun, Sun, Koh and Shi, USENIX Security 2024"

    def compute(self, subject: Subject) -> pd.DataFrame:
        """Rows (panel, x, value): anomaly by class; own and others' attribution by neuron."""
        import pandas as pd

        case = subject.case
        _, _, notes = SODA(theta1=self.theta1).detect(case)
        index = torch.as_tensor(notes["anomaly"]).double()
        raised = torch.as_tensor(notes["s"]) >= torch.as_tensor(notes["s"]).median()
        top = int(torch.where(raised, index, -1.0).argmax())
        images = case.clean.images
        head = subject.model.classifier
        table = attribution(head, features(subject, images).to(subject.work.device)).cpu()
        anomalous = table[:, top]
        others = table[:, torch.arange(table.shape[1]) != top].mean(1)
        rows = [("anomaly", float(c), float(v)) for c, v in enumerate(index)]
        for place, neuron in enumerate(anomalous.argsort(descending=True).tolist()):
            rows += [
                ("own", place, float(anomalous[neuron])),
                ("others", place, float(others[neuron])),
            ]
        rows += [("flagged", float(c), 1.0) for c in torch.as_tensor(notes["flagged"]).tolist()]
        return pd.DataFrame(rows, columns=["panel", "x", "value"])

    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """Bars of the anomaly index, and the neurons of the most anomalous class."""
        left, right = figure.subplots(1, 2)
        bars = frame[frame["panel"] == "anomaly"]
        flagged = set(frame[frame["panel"] == "flagged"]["x"])
        colours = [POISON if x in flagged else OTHER for x in bars["x"]]
        left.bar(bars["x"], bars["value"], color=colours)
        left.axhline(self.theta1, color="black", linewidth=0.8, linestyle="--")
        left.set_xlabel("class (coloured: flagged as target)")
        left.set_ylabel("anomaly index")
        for panel, colour, word in (
            ("others", CLEAN, "others"),
            ("own", POISON, "most anomalous class"),
        ):
            part = frame[frame["panel"] == panel]
            right.plot(part["x"], part["value"], color=colour, linewidth=1, label=word)
        right.set_xlabel("neurons, by attribution to that class")
        right.set_ylabel("causal attribution")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
