"""What a defense made, as it is measured: it answers about images, wherever it runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sweeper.core.errors import DivergedError
from sweeper.core.types import Outcome
from sweeper.engine import metrics
from sweeper.engine.metrics import Score
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Answers, Task
from sweeper.run import record


@dataclass(frozen=True)
class Made:
    """An `Outcome` that can be asked, in this process or in a child."""

    predict: Answers | None
    """What its model answers; None where it has none."""
    score: Score | None
    """Its filter's scores; None where it has none."""
    scores: Tensor | None
    """float [N] on the CPU, see `Outcome`."""
    flagged: Tensor | None
    """bool [N] on the CPU, see `Outcome`."""
    threshold: float | None
    """The filter's."""
    notes: Mapping[str, Any]
    """JSON values."""
    seconds: float
    """What the defense took."""
    peak_memory_mb: float
    """Of its process, or its share of the GPU."""
    seen: list[str] = field(default_factory=list)
    """What it was seen to reach beyond its case; it grows while the defense is asked."""


def made(
    outcome: Outcome, task: Task, recipe: Recipe, device: torch.device, seconds: float
) -> Made:
    """Take what a defense returned in this process.

    Raises:
        TypeError: It returned something else.
        DivergedError: A weight of the returned model is NaN or infinite.
    """
    if not isinstance(outcome, Outcome):
        raise TypeError(f"defend() returned {type(outcome).__name__}: it must return an Outcome")
    predict = score = None
    if outcome.model is not None:
        for name, value in outcome.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise DivergedError(f"the returned model's {name} is NaN or infinite")
        predict = task.answering(outcome.model, recipe, device)
    if outcome.filter is not None:
        score = functools.partial(metrics.scores, outcome.filter)
    return Made(
        predict=predict,
        score=score,
        scores=None if outcome.scores is None else outcome.scores.cpu(),
        flagged=None if outcome.flagged is None else outcome.flagged.cpu(),
        threshold=None if outcome.threshold is None else float(outcome.threshold),
        notes=record.plain(outcome.notes),
        seconds=seconds,
        peak_memory_mb=record.peak_memory(device),
    )
