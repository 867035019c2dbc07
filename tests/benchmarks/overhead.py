"""What a cell costs beside its own work: no-op cells under Ray, and a Tune trial a cell beside it.

`SWEEPER_CELLS` says how many cells (2,000); the trials, the peers' way with Tune's default loggers
and an actor a trial, are a hundredth as many and at least 20.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defenses.base import Case, Defense
from sweeper.types import Outcome

CELLS = int(os.environ.get("SWEEPER_CELLS", "2000"))
SWEEP = {
    "name": "overhead",
    "datasets": [{"dataset": "digits", "train_size": 200, "test_size": 50}],
    "models": ["tiny"],
    "attacks": ["none"],
    "recipe": {"epochs": 1},
}
PEER = """
import sys, time
from ray import tune
count = int(sys.argv[1])
space = {"cell": tune.grid_search(list(range(count)))}
def work(config):
    tune.report({"cell": config["cell"]})
start = time.perf_counter()
tune.Tuner(work, param_space=space, run_config=tune.RunConfig(storage_path=sys.argv[2])).fit()
print("seconds", time.perf_counter() - start)
"""


@dataclass(frozen=True, kw_only=True)
class NoOp(Defense):
    """Does nothing; its number makes it another cell."""

    number: int = 0

    title = "No-op"
    paper = "benchmark"
    kind = "detection"
    sees = frozenset[str]()

    def defend(self, case: Case) -> Outcome:
        return Outcome()


def sweep(folder: Path, cells: int) -> Path:
    """A sweep of one victim and this many no-op cells."""
    noop = "tests.benchmarks.overhead:NoOp"
    defenses = [{"defense": noop, "number": i, "as": f"noop-{i}"} for i in range(cells)]
    path = folder / "overhead.yaml"
    path.write_text(json.dumps({**SWEEP, "defenses": defenses}), encoding="utf-8")
    return path


def run(folder: Path, cells: int) -> float:
    """Seconds of `sweeper run` from start to table; what the store has is not run again."""
    words = ["run", str(sweep(folder, cells)), "--store", str(folder / "store")]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sweeper.cli", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def peer(trials: int) -> float:
    """Seconds of a Tuner over this many trials, Ray being started."""
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-c", PEER, str(trials), place]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(said.rpartition("seconds")[2])


def rows() -> list[dict[str, Any]]:
    """ms a cell and ms a Tune trial, with and without what a run costs once."""
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), 1)  # trains the victim
        once, whole = run(Path(place), 2), run(Path(place), 2 + CELLS)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    trials = max(20, CELLS // 100)
    few, many = peer(2), peer(2 + trials)
    found = [
        ("cells, all of a run", CELLS, whole),
        ("cells, each more", CELLS, whole - once),
        ("Tune trials, each more", trials, many - few),
    ]
    return [
        *({"what": w, "number": n, "ms each": round(1000 * t / n, 1)} for w, n, t in found),
        {"what": "MB of the largest process", "number": round(memory)},
    ]
