"""Unlearning what a detector flags: ascent on it and descent on the rest, in turns.

D-BR's second half (`parts/alternate.py`) behind any detector of poisoned training samples: the
defender sees the model, the poisoned training set and what the detector sees. `{detect: scan, then:
unlearn}` in a sweep file. A defense that finds a trigger instead of samples and unlearns that one
(Neural Cleanse) is run as it is.

Deviation: D-BR relearns on the samples it takes for surely clean; here all that are not flagged.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.base import Case, Defense, Stage
from defenses.parts.alternate import alternate
from defenses.parts.chain import Chained, detector
from sweeper.core.options import Count, LearningRate, Positive, Whole
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Unlearn(Chained):
    """Ascent on the flagged samples, descent on the others."""

    epochs: Whole = 20
    """Rounds of one pass over the flagged samples and one over the others."""
    lr: LearningRate = 1e-4
    """Learning rate, constant in both phases."""
    batch: Count = 128
    """Images of a step."""
    bound: Positive | None = 4.0
    """Ascent leaves samples alone whose loss exceeds this; null: none."""

    title = "Unlearning of flagged samples"
    paper = "Chen, Wu and Wang, NeurIPS 2022 (their second half)"
    kind = "repair"
    sees = frozenset({"model", "train"})
    acts = frozenset({"model", "train"})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: See `Chained`.
        """
        super().__post_init__()
        if unlearner := self.unlearner:
            object.__setattr__(self, "sees", unlearner.sees)
            object.__setattr__(self, "version", unlearner.version)

    @property
    def unlearner(self) -> Defense | None:
        """The detector, where it unlearns by itself what it finds."""
        defense = detector(self.detect)[1]
        return defense if defense.unlearns else None

    def accept(self, name: str, defense: Defense) -> None:
        """Refuse what flags nothing and unlearns nothing."""
        if not self.unlearner:
            super().accept(name, defense)

    def stage(self) -> Stage | None:
        """The detector's run; none where it unlearns by itself."""
        return None if self.unlearner else super().stage()

    def defend(self, case: Case) -> Outcome:
        """Unlearn on a copy of the victim; nothing flagged, nothing changed."""
        if self.unlearner:
            return self.unlearner.defend(case)
        keep, drop = self.parts(case)
        model = case.fresh_model()
        losses = []
        if len(drop):
            rounds = alternate(
                case,
                model,
                keep,
                drop,
                epochs=self.epochs,
                lr=self.lr,
                batch=self.batch,
                bound=self.bound,
            )
            losses = [loss for _, loss in rounds][1:]
        return Outcome(
            model=model.eval(),
            scores=case.state.get("scores"),
            flagged=case.state["flagged"],
            notes={"unlearned": len(drop), "unlearned_loss": losses},
        )
