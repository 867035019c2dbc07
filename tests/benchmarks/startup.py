"""Seconds from `sweeper run` to the first batch of the first victim, inline and through Ray.

Imports, reading and checking the sweep, the data set from its cache, the plan, Ray, poisoning.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator

from attacks.badnets import BadNets
from sweeper.core.types import ImageSet, State
from sweeper.engine.training import Batch, Hooks

REPEATS = 3
SWEEP: dict[str, Any] = {
    "name": "startup",
    "datasets": [{"dataset": "digits", "train_size": 500, "test_size": 100}],
    "models": ["tiny"],
    "defenses": ["none"],
    "recipe": {"epochs": 1},
}


class Note(Hooks):
    """Writes when the first batch was drawn."""

    def __init__(self, path: str) -> None:
        self.path = path

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        if not batch.step:
            Path(self.path).write_text(repr(time.time()), encoding="utf-8")
        return batch


@dataclass(frozen=True, kw_only=True)
class Timed(BadNets):
    """BadNets that says when training begins."""

    note: str = ""

    title = "Timed BadNets"

    def hooks(self, train: ImageSet, state: State, rng: Generator) -> Hooks:
        return Note(self.note)


def seconds(executor: str) -> float:
    """From the start of the command to the first batch, in a store of its own."""
    with tempfile.TemporaryDirectory() as place:
        note, path = Path(place, "note"), Path(place, "startup.yaml")
        attack = {"attack": "tests.benchmarks.startup:Timed", "note": str(note), "as": "timed"}
        path.write_text(json.dumps({**SWEEP, "attacks": [attack]}), encoding="utf-8")
        words = ["run", str(path), "--store", str(Path(place, "store")), "--executor", executor]
        started = time.time()
        subprocess.run([sys.executable, "-m", "sweeper", *words], check=True, capture_output=True)
        return float(note.read_text(encoding="utf-8")) - started


def rows() -> list[dict[str, Any]]:
    """The median of some runs."""
    found = []
    for executor in ("inline", "ray"):
        times = [seconds(executor) for _ in range(REPEATS)]
        spread = f"{min(times):.1f}-{max(times):.1f}"
        row = {
            "executor": executor,
            "seconds to the first batch": round(statistics.median(times), 1),
        }
        found.append({**row, "spread": spread})
    return found
