"""The graph in virtual time: what Tune and a cluster would do with it, without either."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sweeper.core.types import Cell
from sweeper.plan.sweep import Resources
from sweeper.run import rays
from sweeper.run.ending import Ending
from sweeper.run.graph import Graph
from sweeper.run.tries import Health, Tries
from sweeper.run.walk import Walk
from tests.support import sweeps

Outcome = Callable[[Cell, dict[str, Any], str], dict[str, Any]]
"""What comes of a cell, given its trial's configuration and the id of its node."""


def well(cell: Cell, config: dict[str, Any], node: str) -> dict[str, Any]:
    """All is well."""
    return {"status": "ok", "error": "", "seconds": 1.0}


class Kept:
    """A store that forgets."""

    def fail(self, *_: Any) -> None:
        pass

    def write_row(self, row: Any) -> None:
        pass

    def write_rows(self, sweep: str, rows: Any) -> None:
        pass


@dataclass
class Cluster:
    """Nodes, and what runs on each."""

    nodes: Sequence[rays.Node]
    used: dict[str, list[float]] = field(default_factory=dict)
    freed: str = ""
    """Where a trial has just ended."""

    def place(self, config: dict[str, Any]) -> str:
        """The id of a node with room; empty where there is none now."""
        avoid = config["avoid"].split(",")
        last = [node for node in self.nodes if node.id == self.freed]
        for node in [*last, *self.nodes]:
            cpus, gpus = self.used.setdefault(node.id, [0.0, 0.0])
            fits = cpus + config["cpus"] <= node.cpus and gpus + config["gpus"] <= node.gpus + 1e-9
            if fits and node.id not in avoid:
                self.take(node.id, config, 1)
                return node.id
        return ""

    def take(self, node: str, config: dict[str, Any], sign: int) -> None:
        """Give or take back what a trial has."""
        self.freed = node if sign < 0 else ""
        self.used[node][0] += sign * config["cpus"]
        self.used[node][1] += sign * config["gpus"]


@dataclass
class Ran:
    """What a simulated run did."""

    seconds: float = 0.0
    """When the last cell ended."""
    busy: float = 0.0
    """Seconds of all cells."""
    trials: int = 0
    spans: list[tuple[str, str, float, float]] = field(default_factory=list)
    """Key, node, start and end of every try."""
    status: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def run(
    cells: dict[str, Cell],
    nodes: Sequence[rays.Node],
    seconds: Callable[[Cell], float],
    outcome: Outcome = well,
    resources: Resources | None = None,
    chain: int = 0,
) -> Ran:
    """Run a graph.

    Args:
        cells: The graph.
        nodes: Of the cluster.
        seconds: What a cell takes.
        outcome: What comes of it.
        resources: Of the sweep.
        chain: After so many trials nothing starts until all have ended; 0: never.
    """
    watcher, found, cluster = sweeps.Silent(), Ran(), Cluster(nodes)
    sweep = SimpleNamespace(name="simulated", resources=resources or Resources())
    job: Any = SimpleNamespace(
        plan=SimpleNamespace(sweep=sweep, cells=cells),
        store=Kept(),
        context=SimpleNamespace(timeout=None, run="x"),
    )
    walk = Walk(cells, cells)
    ending = Ending(job, walk, watcher)
    ending._row = lambda *_: {}  # type: ignore[assignment,method-assign,return-value]
    ending.tries = Tries(Health(lambda: {n.id: n.name for n in nodes}, watcher.told))
    listener: Any = SimpleNamespace(
        began=lambda _: None, started=lambda *_: None, ended=lambda *_: None, place=lambda *_: ""
    )
    graph = Graph(job, walk, ending, watcher, listener, bool, nodes=lambda: list(nodes))
    now, running, waiting, left = 0.0, [], [], chain
    while True:
        going = True
        while going:
            going = False
            while (left or not chain) and len(waiting) < 8:
                config = graph.suggest(str(found.trials))
                if not isinstance(config, dict):
                    break
                waiting.append((str(found.trials), config))
                found.trials, left = found.trials + 1, left - 1
            for trial, config in list(waiting):
                if node := cluster.place(config):
                    going = True
                    waiting.remove((trial, config))
                    graph.began(trial)
                    keys = json.loads(config["cells"])["run"]
                    ran = [(key, seconds(cells[key])) for key in keys]
                    end = now + sum(took for _, took in ran)
                    heapq.heappush(running, (end, int(trial), node, config, ran))
        if not running:
            if chain and not waiting and not left and not walk.finished:
                left = chain
                continue
            break
        now, number, node, config, ran = heapq.heappop(running)
        cluster.take(node, config, -1)
        start = now - sum(took for _, took in ran)
        reports = []
        for key, took in ran:
            found.spans.append((key, node, start, start + took))
            found.busy, start = found.busy + took, start + took
            reports.append((key, outcome(cells[key], config, node), took))
        graph.on_trial_complete(str(number), {"results": json.dumps(reports), "node": node})
        if chain and not left and not running and not waiting:
            left = chain
    found.seconds, found.status, found.told = now, walk.status, watcher.said
    return found
