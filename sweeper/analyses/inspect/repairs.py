"""What a repair would cost: ACC before and after, seconds, and what it leaves of the found trigger.

A repair that needs no more than the model and clean images is run as a sweep would, at its
defaults. No trigger of the attacker is known: in its place stands the one that was inverted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from defenses.base import Defense
from defenses.neural_cleanse import Triggers
from sweeper.analyses.inspect.evidence import accuracy, soda, success
from sweeper.analyses.inspect.suspect import SEES, Suspect
from sweeper.core import catalog
from sweeper.core.errors import DivergedError, SweepError
from sweeper.models.base import Net
from sweeper.plan.matrix import misfit
from sweeper.run.material import Log

USUAL = ("clp", "bnp", "fine-tuning")
"""Repairs that are tried where none is named: seconds each for a small model."""


def chosen(names: Sequence[str]) -> dict[str, Defense]:
    """The repairs of these names.

    Raises:
        SweepError: One is no defense, or needs more than a model and clean images.
    """
    found: dict[str, Defense] = {}
    for name in names:
        try:
            defense: Defense = catalog.make("defense", name, {})
        except SweepError as error:
            raise SweepError(f"--repairs: {error}") from None
        if defense.kind != "repair" or not defense.sees <= SEES or defense.stage():
            needs = ", ".join(sorted(defense.sees - SEES)) or "a repair"
            raise SweepError(
                f"--repairs: {name} needs more than a model and clean images ({needs}): name a "
                f"repair such as {', '.join(USUAL)}"
            )
        found[name] = defense
    return found


def tried(
    suspect: Suspect,
    name: str,
    defense: Defense,
    triggers: Triggers | None,
    watched: int,
    log: Log,
) -> dict[str, Any]:
    """Run a repair.

    Args:
        suspect: The model to repair.
        name: The repair's name.
        defense: The repair.
        triggers: The inverted triggers; None where there are none.
        watched: Place among them of the one whose success is compared.
        log: Takes progress.

    Returns:
        What it costs and what it leaves of the evidence, or `why` it could not be run.
    """
    said: dict[str, Any] = {"repair": name, "title": type(defense).title}
    if why := misfit(defense, suspect.needs, suspect.name):
        return {**said, "why": why.replace("`clean_budgets`", "--budget")}
    started = time.monotonic()
    try:
        model = defense.defend(suspect.case(log)).model
        seconds = time.monotonic() - started
        if not isinstance(model, Net):
            return {**said, "why": "it leaves no model"}
        repaired = replace(suspect, model=model)
        said["acc"] = accuracy(repaired)["acc"]
    except DivergedError as error:
        return {**said, "why": f"it diverged: {error}"}
    said |= {"seconds": round(seconds, 1), "soda": soda(repaired, log).number}
    if triggers is not None and bool(triggers.norms.isfinite()[watched]):
        said["success"] = success(repaired, triggers, watched)
    return said
