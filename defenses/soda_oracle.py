"""SODA told which class is the source and which the target: an upper bound for its removal.

The released scripts take the pair typed in by hand, with settings chosen for each model by test
results. No defender knows the pair, whoever types it; tables mark the row. Detection is left out,
so that two classes are enough. Presets are the release's for CIFAR-10 and ResNet-18; what else is
done otherwise than released: `soda.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from defenses.base import Case, Needs
from defenses.soda import SODA
from sweeper.core.errors import SweepError
from sweeper.core.options import Whole

RELEASED: dict[str, Any] = {"source": 1, "label": 0, "bar": 0.0, "drop": 1.0}
"""What the release does for both of its CIFAR-10 models."""


@dataclass(frozen=True, kw_only=True)
class SODAOracle(SODA):
    """SODA's removal of a given pair."""

    source: Whole = 1
    """Class whose members the backdoor takes for the target."""
    target: Whole = 0
    """That target."""

    title = "SODA, source and target given"
    sees = frozenset({"model", "clean", "oracle"})
    idle = frozenset({"theta1", "theta2"})
    presets = {
        "green-cars": {**RELEASED, "target": 6, "lr": 0.007, "epochs": 3, "stop": 0.8},
        "striped-background": {
            **RELEASED,
            "target": 9,
            "epochs": 1,
            "q": 0.4,
            "steps": 500,
            "stop": 1.0,
        },
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: The pair is one class.
        """
        if self.source == self.target:
            raise SweepError(f"source and target: both are {self.target}: name two classes")

    def applies(self, needs: Needs) -> str | None:
        """Refuse a pair or a `label` that are no classes."""
        given = {"source": self.source, "target": self.target, "label": self.label or 0}
        for name, label in given.items():
            if not 0 <= label < needs.classes:
                return f"{name} {label} is none of the {needs.classes} classes"
        return None

    def detect(self, case: Case) -> tuple[int | None, int | None, dict[str, Any]]:
        """The given pair."""
        return self.target, self.source, {"target": self.target, "source": self.source}
