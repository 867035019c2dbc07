"""The verdict: which classes look attacked, by a rule that was fixed before it was tried.

A class looks attacked where evidence that votes names it: Neural Cleanse, whose index is above 2
for a mask below the median; the same norms as ratios, above 3.5; or SODA, whose index is above 3.
One is enough. Where none does, nothing stands out. What has no published threshold changes no
verdict; it is said whether it fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeper.analyses.inspect.evidence import Evidence
from sweeper.analyses.inspect.suspect import Suspect

NEVER_CLEAN = (
    "No detector proves a model clean: triggers that are spread out, warped, or as large as the "
    "image, and backdoors made to evade these detectors, leave them silent."
)
HITS, BACKDOORED, ALARMS, CLEAN = 10, 21, 6, 20
"""What docs/inspect.md measured of this rule, by `python -m tests.benchmarks.inspected`."""
HOW_OFTEN = (
    f"Tried on {BACKDOORED + CLEAN} small models, this rule named a target class of {HITS} of "
    f"{BACKDOORED} backdoored ones, and raised an alarm in {ALARMS} of {CLEAN} clean ones."
)


@dataclass(frozen=True)
class Verdict:
    """What is said of a model."""

    attacked: tuple[int, ...]
    """The classes that look attacked."""
    headline: str
    """That in a sentence."""
    reasons: tuple[str, ...]
    """The evidence for it, and what disagrees, a sentence each."""

    @property
    def suspicious(self) -> bool:
        """Whether any class looks attacked."""
        return bool(self.attacked)


def judge(suspect: Suspect, found: Mapping[str, Evidence], high: float) -> Verdict:
    """Combine the evidence.

    Args:
        suspect: Of which model.
        found: The evidence by its short name.
        high: Upper end of the interval of ACC.
    """
    voters = [evidence for evidence in found.values() if evidence.votes]
    attacked = tuple(sorted({label for evidence in voters for label in evidence.named}))
    reasons = [*_too_weak(suspect, high), *_reasons(found, attacked)]
    if attacked:
        *others, last = map(suspect.called, attacked)
        them = f"{', '.join(others)} and {last}" if others else last
        headline = f"{them[0].upper()}{them[1:]} look{'' if len(attacked) > 1 else 's'} attacked."
    elif voters:
        headline = "Nothing stands out."
    else:
        headline = "Nothing can be said: no detector that could raise an alarm applies."
    return Verdict(attacked, headline, tuple(reasons))


def _too_weak(suspect: Suspect, high: float) -> list[str]:
    """A warning where the model does not know the data: what is found then means little."""
    if high >= 2 / len(suspect.classes):
        return []
    return [
        f"The model is hardly better than guessing on {suspect.dataset.name}, so all below means "
        "little: check --model, --option, --mean and --std, and that the labels are in this order."
    ]


def _reasons(found: Mapping[str, Evidence], attacked: Sequence[int]) -> list[str]:
    """Every evidence's sentence, with what it is to the verdict."""
    reasons = []
    for evidence in found.values():
        says = evidence.says
        if not evidence.applies:
            stance = ""
        elif evidence.votes:
            stance = _of_voter(evidence, attacked)
        else:
            stance = _of_hint(evidence, attacked)
        reasons.append(f"{evidence.title}: {says}.{f' {stance}' if stance else ''}")
    return reasons


def _of_voter(evidence: Evidence, attacked: Sequence[int]) -> str:
    if not attacked or set(evidence.named) == {*attacked}:
        return ""
    return "It disagrees with the verdict." if not evidence.named else "It names not all of them."


def _of_hint(evidence: Evidence, attacked: Sequence[int]) -> str:
    if not evidence.named:
        return ""
    (label,) = evidence.named
    if label in attacked:
        return "That fits the verdict."
    if attacked:
        return "That does not fit the verdict."
    return "This alone is no alarm: clean models do so too."
