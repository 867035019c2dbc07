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
from sweeper.core.errors import SweepError
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Unlearn(Chained):
    """Ascent on the flagged samples, descent on the others."""

    epochs: int = 20
    """Rounds of one pass over the flagged samples and one over the others."""
    lr: float = 1e-4
    """Learning rate, constant in both phases."""
    batch: int = 128
    """Images of a step."""
    bound: float | None = 4.0
    """Ascent leaves samples alone whose loss exceeds this; null: none."""

    title = "Unlearning of flagged samples"
    paper = "Chen, Wu and Wang, NeurIPS 2022 (their second half)"
    kind = "repair"
    sees = frozenset({"model", "train"})
    acts = frozenset({"model", "train"})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: A number is out of range, or see `Chained`.
        """
        super().__post_init__()
        if self.epochs < 0 or self.batch < 1 or self.lr < 0:
            raise SweepError("epochs and lr >= 0; batch >= 1")
        if self.bound is not None and self.bound <= 0:
            raise SweepError(f"bound: {self.bound:g} is not above 0; leave it out for none")
        if own := self.own:
            object.__setattr__(self, "sees", own.sees)
            object.__setattr__(self, "version", own.version)

    @property
    def own(self) -> Defense | None:
        """The detector, where it unlearns by itself what it finds."""
        made = detector(self.detect)[1]
        return made if made.unlearns else None

    def accept(self, name: str, defense: Defense) -> None:
        """Refuse what flags nothing and unlearns nothing."""
        if not self.own:
            super().accept(name, defense)

    def stage(self) -> Stage | None:
        """The detector's run; none where it unlearns by itself."""
        return None if self.own else super().stage()

    def defend(self, case: Case) -> Outcome:
        """Unlearn on a copy of the victim; nothing flagged, nothing changed."""
        if self.own:
            return self.own.defend(case)
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
