"""Chains: a detector of poisoned training samples, and a defense that acts on what it flags.

In a sweep file `{detect: scan, then: retrain}`. What the detector finds is a stage, a cell of its
own, so that two chains behind one detector share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from defenses.base import Case, Defense, Needs, Stage
from sweeper.core import catalog, options
from sweeper.core.errors import SweepError
from sweeper.core.options import Count
from sweeper.core.types import Samples


def detector(option: str | Mapping[str, Any]) -> tuple[str, Defense]:
    """Return the name and the defense of a `detect` option.

    Raises:
        SweepError: There is no such defense, or it does not take these options.
    """
    settings = {"defense": option} if isinstance(option, str) else dict(option)
    name = settings.pop("defense", None)
    if not isinstance(name, str):
        raise SweepError(f"detect: needs a name, or {{defense: NAME, ...}}, not {option!r}")
    defense: Defense = catalog.make("defense", name, settings)
    return name, defense


@dataclass(frozen=True, kw_only=True)
class Detection(Stage):
    """What a detector says of each training sample."""

    detect: str
    """The detector."""
    options: Mapping[str, Any]
    """All its options, after defaults."""
    detector_version: Count
    """Its version."""

    name = "detection"
    sees = frozenset({"train"})

    def __post_init__(self) -> None:
        """See what the detector sees."""
        object.__setattr__(self, "sees", self.defense.sees)

    @property
    def defense(self) -> Defense:
        """The detector."""
        return detector({"defense": self.detect, **self.options})[1]

    def run(self, case: Case) -> dict[str, Tensor]:
        """Run the detector.

        Returns:
            flagged: bool [N]; scores: float [N], where the detector has them.

        Raises:
            SweepError: It flags nothing by rule: it only scores.
        """
        outcome = self.defense.defend(case)
        if outcome.flagged is None:
            raise SweepError(
                f"detect: {self.detect} only scores samples, it flags none to act on: name another"
            )
        scores = {} if outcome.scores is None else {"scores": outcome.scores.cpu()}
        return {"flagged": outcome.flagged.cpu(), **scores}


@dataclass(frozen=True, kw_only=True)
class Chained(Defense):
    """A defense that starts from what a detector flags."""

    detect: str | dict[str, Any] = "spectral-signatures"
    """The detector: its name, or {defense: NAME, ...} with options of its own."""

    acts: ClassVar[frozenset[str]] = frozenset({"train"})
    """What the defense itself sees."""

    def __post_init__(self) -> None:
        """See and require what the detector does too; all its options become part of the key.

        Raises:
            SweepError: There is no such detector, or it detects no training samples.
        """
        name, defense = detector(self.detect)
        self.accept(name, defense)
        object.__setattr__(self, "detect", {"defense": name, **options.canonical(defense)})
        object.__setattr__(self, "sees", self.acts | defense.sees)
        object.__setattr__(self, "requires", defense.requires)

    def accept(self, name: str, defense: Defense) -> None:
        """Refuse what flags no training samples."""
        if defense.kind != "detection":
            raise SweepError(
                f"detect: {name} is of kind {defense.kind}, it flags no training samples; "
                "`sweeper list defenses` has those of kind detection"
            )

    def stage(self) -> Stage | None:
        """The detector's run, shared by all chains behind it."""
        name, defense = detector(self.detect)
        return Detection(
            detect=name, options=options.canonical(defense), detector_version=defense.version
        )

    def applies(self, needs: Needs) -> str | None:
        """Refuse where the detector does."""
        return detector(self.detect)[1].applies(needs)

    def least_clean(self, needs: Needs) -> int:
        """As many as the detector takes."""
        return detector(self.detect)[1].least_clean(needs)

    def parts(self, case: Case) -> tuple[Samples, Samples]:
        """Return the training samples that were not flagged, and those that were.

        Raises:
            SweepError: All are flagged.
        """
        flagged = case.state["flagged"]
        if bool(flagged.all()):
            raise SweepError(
                f"detect: all {len(flagged)} training samples are flagged, none is left to use: "
                "name another detector, or give it a stricter threshold"
            )
        return case.train[~flagged], case.train[flagged]
