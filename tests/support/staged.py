"""Two toy detectors that share one stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defenses.base import Case, Defense, Stage
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Brightness(Stage):
    """Brightness of the corner pixel of every training image."""

    name = "brightness"
    sees = frozenset({"train"})

    def run(self, case: Case) -> dict[str, Tensor]:
        return {"corner": case.train.images[:, 0, -1, -1].float() / 255}


@dataclass(frozen=True, kw_only=True)
class First(Defense):
    title = "corner detector"
    paper = "test"
    kind = "detection"
    sees = frozenset({"train"})

    def stage(self) -> Stage:
        return Brightness()

    def defend(self, case: Case) -> Outcome:
        corner = case.state["corner"]
        assert len(corner) == len(case.train)
        notes = {"mean": float(corner.mean())}
        return Outcome(scores=corner, flagged=corner > torch.tensor(0.9), notes=notes)


@dataclass(frozen=True, kw_only=True)
class Second(First):
    threshold: float = 0.5
    """Flag corners brighter than this."""
