"""Fair rule H (`Case.split`): the strongest setting that costs little accuracy on clean images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from torch import nn

from defenses.base import Case
from defenses.parts.staged import Changing, Staged
from sweeper.core.errors import DivergedError
from sweeper.core.types import Samples

State = TypeVar("State")
Setting = TypeVar("Setting")


class Rule:
    """Accepts a model whose accuracy on given images is within `tau` of the victim's."""

    def __init__(
        self, case: Case, holdout: Samples, tau: float, changing: Changing | None = None
    ) -> None:
        """Measure the victim.

        Args:
            case: Whose model is the victim.
            holdout: The images to judge by.
            tau: What accuracy may be lost, absolute; at least two images.
            changing: The layers in which the models judged differ, where all others stay.
        """
        self.case = case
        self.holdout = holdout
        self.staged = Staged(changing or (lambda _: ()))
        self.before = self._measured(case.fresh_model())
        self.least = self.before - max(tau, 2 / len(holdout)) - 1e-9

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy on the images; 0 of a model whose outputs are not finite."""
        try:
            return self._measured(model)
        except DivergedError:
            return 0.0

    def _measured(self, model: nn.Module) -> float:
        with self.staged.resumed(model):
            return self.case.accuracy(model, self.holdout)

    def first(
        self, settings: Iterable[Setting], model: Callable[[Setting], nn.Module]
    ) -> tuple[Setting | None, list[tuple[Setting, float]]]:
        """The first accepted of some settings, strongest first; None where none is.

        Args:
            settings: Tried until one is accepted.
            model: What a setting makes of the victim; that it diverges counts as accuracy 0.

        Returns:
            The setting, and accuracy by setting as far as they were tried.
        """
        curve = []
        for setting, accuracy in self._tried(settings, model):
            curve.append((setting, accuracy))
            if accuracy >= self.least:
                return setting, curve
        return None, curve

    def until_rejected(
        self, settings: Iterable[Setting], model: Callable[[Setting], nn.Module]
    ) -> tuple[Setting | None, list[tuple[Setting | None, float]]]:
        """The setting before the first rejected one, weakest first; None where that is the first.

        Args and returns are those of `first`; the curve begins with (None, the victim's accuracy).
        """
        accepted: Setting | None = None
        curve: list[tuple[Setting | None, float]] = [(None, self.before)]
        for setting, accuracy in self._tried(settings, model):
            curve.append((setting, accuracy))
            if accuracy < self.least:
                break
            accepted = setting
        return accepted, curve

    def _tried(
        self, settings: Iterable[Setting], model: Callable[[Setting], nn.Module]
    ) -> Iterator[tuple[Setting, float]]:
        for setting in settings:
            try:
                made = model(setting)
            except DivergedError:
                yield setting, 0.0
            else:
                yield setting, self.accuracy(made)


def last_within(
    case: Case,
    tau: float | None,
    learn: Callable[[Samples], tuple[State, Iterable[float]]],
    model: Callable[[Any], nn.Module] = lambda state: state,
) -> tuple[State, dict[str, Any]]:
    """Choose how many rounds to learn on a hold-out, then learn as many on the whole clean budget.

    All rounds are run on the fit part; chosen is the last after which hold-out accuracy is within
    tau of the victim's. A round may dip below and a later one come back; where all are below, none
    is run and the state is the victim's.

    Args:
        case: Whose clean budget.
        tau: Accuracy a round may cost, absolute, at least two images; None: all rounds, and
            nothing is held out.
        learn: Of these images: a new state, the victim's, and the rounds that change it in place,
            each of which gives its loss when it is had. A round must not depend on how many come.
        model: The model a state stands for; default: it is one.

    Returns:
        The state, and for the notes: losses of the rounds run on the whole budget, their number,
        and accuracy on the hold-out before and after each round on the fit part.
    """
    if tau is None:
        state, rounds = learn(case.clean)
        losses = list(rounds)
        return state, {"losses": losses, "kept": len(losses)}
    fitted, holdout = case.split()
    rule = Rule(case, holdout, tau)
    state, rounds = learn(fitted)
    curve, kept = [rule.before], 0
    for number, _ in enumerate(rounds, 1):
        curve.append(rule.accuracy(model(state)))
        if curve[-1] >= rule.least:
            kept = number
    state, rounds = learn(case.clean)
    return state, {"losses": list(islice(rounds, kept)), "kept": kept, "holdout": curve}
