"""Pruning by number: neurons go in the order of their masks, and accuracy says how many may go.

A mask per neuron cannot memorise a few hundred images, so they are learned and judged on all of the
clean budget. Accuracy dips and comes back as neurons go: the choice is the largest number within
the tolerance, not the last before the first dip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from defenses.base import Case
from defenses.parts.accept import Rule
from defenses.parts.neurons import layers, prune
from sweeper.models.base import Net

POINTS = 100
"""Numbers tried, evenly spaced up to all neurons."""


def smallest(masks: Tensor, count: int) -> Tensor:
    """Which neurons the `count` smallest masks are, the earlier one of equals; bool [n]."""
    dead = torch.zeros_like(masks, dtype=torch.bool)
    dead[masks.argsort(stable=True)[:count]] = True
    return dead


def pruned(case: Case, masks: Tensor) -> Iterator[tuple[int, Net]]:
    """Yield the victim with none, then ever more of its smallest masks pruned, and how many.

    It is one model, pruned in place.

    Args:
        case: Whose model is the victim.
        masks: float [n], one per neuron.
    """
    model = case.fresh_model()
    for count in range(0, len(masks) + 1, max(1, len(masks) // POINTS)):
        prune(model, smallest(masks, count))
        yield count, model


def most(case: Case, masks: Tensor, tau: float) -> tuple[int, dict[str, Any]]:
    """The largest number of neurons whose pruning costs at most `tau` of accuracy on clean images.

    Args:
        case: Whose clean budget judges.
        masks: float [n], one per neuron.
        tau: What accuracy may be lost, absolute; at least two images.

    Returns:
        The number, and for the notes the accuracies and the whole curve of (number, accuracy), up
        to where accuracy has halved.
    """
    rule = Rule(case, case.clean, tau, lambda model: [layer for _, layer in layers(model)])
    kept, after, curve = 0, rule.before, []
    for count, model in pruned(case, masks):
        accuracy = rule.accuracy(model)
        curve.append((count, accuracy))
        if accuracy >= rule.least:
            kept, after = count, accuracy
        if accuracy < rule.before / 2:
            break
    return kept, {"clean_before": rule.before, "clean_after": after, "curve": curve}
