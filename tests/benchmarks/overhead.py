"""What a cell costs beside its own work: cells of CLP under Ray, and a Tune trial a cell beside it.

CLP takes some milliseconds here. It runs as it ships, in bundles in the workers, and as a method
from outside, each cell in a child process.

`SWEEPER_CELLS` says how many cells, separated by commas (2000); the trials, the peers' way, with
Tune's default loggers and an actor a trial, are 20.
Memory is the peak of resident MB as Linux counts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defenses.clp import CLP

CELLS = [int(count) for count in os.environ.get("SWEEPER_CELLS", "2000").split(",")]
OUTSIDE = 200
TRIALS = 20
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


class Outside(CLP):
    """CLP as somebody else's method."""


def sweep(folder: Path, cells: int, defense: str) -> Path:
    """A sweep of one victim and this many cells of CLP."""
    defenses = [{"defense": defense, "u": 3 + i / 1000, "as": f"clp-{i}"} for i in range(cells)]
    path = folder / "overhead.yaml"
    path.write_text(json.dumps({**SWEEP, "defenses": defenses}), encoding="utf-8")
    return path


@dataclass
class Run:
    """What a run cost."""

    seconds: float
    driver: float
    """MB of the process that was started."""
    other: float
    """MB of the largest process below it."""


def peaks(root: int) -> dict[int, float]:
    """Process -> MB at its peak so far, of a process and all below it."""
    parents, found = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    for pid in tree:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    found[pid] = int(line.split()[1]) / 1024
    return found


def run(folder: Path, cells: int, defense: str) -> Run:
    """`sweeper run` from start to table; what the store has is not run again."""
    words = ["run", str(sweep(folder, cells, defense)), "--store", str(folder / "store")]
    most: dict[int, float] = {}
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeper", *words], stdout=log, stderr=log
        )
        while process.poll() is None:
            most |= peaks(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    return Run(seconds, most.pop(process.pid), max(most.values()))


def peer(trials: int) -> float:
    """Seconds of a Tuner over this many trials, Ray being started."""
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-c", PEER, str(trials), place]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(said.rpartition("seconds")[2])


def rows() -> list[dict[str, Any]]:
    """ms a cell and ms a Tune trial, with and without what a run costs once, and memory."""
    found: list[dict[str, Any]] = []

    def add(what: str, number: int, seconds: float) -> None:
        found.append({"what": what, "number": number, "ms each": round(1000 * seconds / number, 1)})

    for what, defense, counts in (
        ("shipped", "clp", CELLS),
        ("from outside", "tests.benchmarks.overhead:Outside", [OUTSIDE]),
    ):
        for count in counts:
            with tempfile.TemporaryDirectory() as place:
                run(Path(place), 1, defense)  # trains the victim
                once, whole = (run(Path(place), cells, defense) for cells in (2, 2 + count))
            add(f"cells, {what}, all of a run", count, whole.seconds)
            add(f"cells, {what}, each more", count, whole.seconds - once.seconds)
            found[-2] |= {"MB driver": round(whole.driver), "MB largest other": round(whole.other)}
    few, many = peer(2), peer(2 + TRIALS)
    add("Tune trials, each more", TRIALS, many - few)
    return found
