"""Images/s of poisoned training on two cores, beside the toolbox way in the same run.

The loops take turns, `ROUNDS` times; medians, and the median of each round's ratio to the toolbox
way. `SWEEPER_MODELS` says which (`pipeline` and all four models). Batch 128 of 32x32, 10 % BadNets.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

from tests.benchmarks import _loops
from tests.benchmarks._crew import Crew, crew
from tests.benchmarks._loops import Rates

STEPS = {"tiny": 15, "resnet18": 2, "preact-resnet18": 2, "mobilenet-v2": 3}
ROUNDS = 3
TOOLBOX = "toolbox way, fp32, 2 threads"

Loop = Callable[[], list[Rates]]


def loops(two: Crew, model: str) -> dict[str, Loop]:
    """Every way to train one model."""
    steps, warm = STEPS[model], 3 if model == "tiny" else 1
    return {
        TOOLBOX: lambda: two.alone(_loops.toolbox, model, steps, warm),
        "2 cells x 1 thread": lambda: two.together(2, _loops.engine, model, "auto", steps, warm),
        "1 cell x 2 threads": lambda: two.alone(_loops.engine, model, "auto", steps, warm),
        "2 cells x 1 thread, fp32": lambda: two.together(
            2, _loops.engine, model, "fp32", steps, warm
        ),
    }


def pipelines(two: Crew) -> dict[str, Loop]:
    """Every way to batches."""
    return {
        TOOLBOX: lambda: two.alone(_loops.toolbox_pipeline, 40),
        "2 cells x 1 thread": lambda: two.together(2, _loops.engine_pipeline, 200),
        "1 cell x 2 threads": lambda: two.alone(_loops.engine_pipeline, 200),
    }


def compared(ways: dict[str, Loop], first: str = TOOLBOX) -> list[dict[str, Any]]:
    """Let the ways take turns: one row for each and what it measures, the ratio to the first."""
    rounds = []
    for _ in range(ROUNDS):
        turn = {}
        for name, loop in ways.items():
            cells = loop()
            turn[name] = {what: sum(cell[what] for cell in cells) for what in cells[0]}
        rounds.append(turn)
    found = []
    for what in rounds[0][first]:
        for name in ways:
            rates = [turn[name][what] for turn in rounds]
            ratios = [turn[name][what] / turn[first][what] for turn in rounds]
            row = {"measured": what, "loop": name, "images/s": round(statistics.median(rates))}
            spread = f"{min(rates):.0f}-{max(rates):.0f}"
            found.append({**row, "spread": spread, "ratio": round(statistics.median(ratios), 2)})
    return found


def rows() -> list[dict[str, Any]]:
    """Pipeline alone, step alone, and both."""
    asked = os.environ.get("SWEEPER_MODELS")
    with crew(2) as two:
        found = []
        for name in asked.split(",") if asked else ("pipeline", *STEPS):
            ways = pipelines(two) if name == "pipeline" else loops(two, name)
            found += [{"model": name, **row} for row in compared(ways)]
    return found
