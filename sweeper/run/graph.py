"""Tune's view of a walk: the next trial, none yet, or finished; and where each may run.

A trial is a cell, or several short ones. It is handed to Ray when a node has room for it; a cell
that gets a device for itself waits until others do so too, as all but it must leave that device.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sweeper.core.types import Cell
from sweeper.engine.isolation import GRACE
from sweeper.plan.matrix import shape_of
from sweeper.plan.sweep import SHAPES
from sweeper.run import bundle, rays
from sweeper.run.bundle import Bundles
from sweeper.run.ending import Ending, Watcher
from sweeper.run.job import Job
from sweeper.run.progress import title
from sweeper.run.rays import FIFOScheduler, Searcher, tune
from sweeper.run.relay import Listener
from sweeper.run.tries import WHOLE, Loss
from sweeper.run.walk import Walk

LOOK = 2.0
"""Seconds after which the cluster is asked again what it has."""
TOGETHER = 900.0
"""Seconds a cell that needs a device for itself waits at most for others that do."""
FORGET = 500
"""Trials after which Tune forgets those that ended."""


@dataclass(frozen=True)
class Need:
    """What a trial asks for: of one node."""

    cpus: float
    """CPUs."""
    gpus: float
    """GPUs; below 1, a share of one."""
    whole: bool = False
    """Whether it is a device for itself, which others must leave first."""


class Cluster:
    """What the nodes have room for, and what of it is given away."""

    def __init__(self, nodes: Callable[[], list[rays.Node]], out: set[str]) -> None:
        """Look at a cluster.

        Args:
            nodes: Gives those that are alive.
            out: Ids of those that get no cell; it may grow.
        """
        self._ask = nodes
        self._out = out
        self._nodes: list[rays.Node] = []
        self._without = 0
        self._looked = float("-inf")
        self._slots: dict[Need, int] = {}
        self.given: Counter[Need] = Counter()
        """What is asked for -> by how many trials."""

    @property
    def nodes(self) -> list[rays.Node]:
        """Those that may get cells, as they were a moment ago."""
        if time.monotonic() - self._looked > LOOK or len(self._out) != self._without:
            self._looked, self._without = time.monotonic(), len(self._out)
            nodes = [node for node in self._ask() if node.id not in self._out]
            if nodes != self._nodes:
                self._nodes, self._slots = nodes, {}
        return self._nodes

    def slots(self, need: Need) -> int:
        """How many trials of a sort it has room for when it is empty."""
        nodes = self.nodes
        if need not in self._slots:
            self._slots[need] = sum(node.holds(need.cpus, need.gpus) for node in nodes)
        return self._slots[need]

    def fits(self, need: Need) -> bool:
        """Whether there is room for one more."""
        if self.given[need] >= self.slots(need):
            return False
        others = [(other, count) for other, count in self.given.items() if count and other != need]
        if not others:
            return True
        count = self.given[need] + 1
        cpus = count * need.cpus + sum(other.cpus * many for other, many in others)
        gpus = count * need.gpus + sum(other.gpus * many for other, many in others)
        enough = cpus <= sum(node.cpus for node in self._nodes) + 1e-6
        return enough and gpus <= sum(node.gpus for node in self._nodes) + 1e-6

    def device(self, cpus: float, gpus: float) -> Need:
        """A device for a cell of this shape alone: its whole GPUs, or the largest node's CPUs."""
        if gpus:
            return Need(cpus, max(1.0, gpus), whole=gpus < 1)
        most = max((node.cpus for node in self.nodes), default=cpus)
        return Need(max(cpus, most), 0.0, whole=most > cpus)


class Graph(Searcher):  # type: ignore[misc]
    """A walk as Tune asks for it."""

    def __init__(
        self,
        job: Job,
        walk: Walk,
        ending: Ending,
        watcher: Watcher,
        listener: Listener,
        stopped: Callable[[], bool],
        ahead: int = 0,
        nodes: Callable[[], list[rays.Node]] = rays.nodes,
    ) -> None:
        """Prepare to hand out a walk.

        Args:
            job: The sweep.
            walk: Its cells.
            ending: Is told what came of each.
            watcher: Is told that it starts.
            listener: Hears how far it is.
            stopped: Says whether nothing more is to start.
            ahead: Trials that wait with Ray beyond what it has room for, so that it may grow.
            nodes: Gives the nodes of the cluster.
        """
        super().__init__()
        self._job = job
        resources = job.plan.sweep.resources
        named = {name: resources.of(name) for name in SHAPES}
        self._needs = {name: Need(shape.cpus, shape.gpus) for name, shape in named.items()}
        self._walk = walk
        self._bundles = Bundles(walk)
        self._ending = ending
        self._tries = ending.tries
        self._watcher = watcher
        self._listener = listener
        self._stopped = stopped
        self._ahead = ahead
        self.cluster = Cluster(nodes, ending.tries.health.out)
        self._taken: dict[str, tuple[list[Cell], Need]] = {}
        self._began: dict[str, float] = {}
        self._lost: dict[str, Loss] = {}
        self._clearing: set[str] = set()
        """Trials whose devices are being cleared: all that starts now would be in the way."""
        self._whole_since: float | None = None

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        """Nothing to set: the walk knows its own order."""
        return True

    # What starts, and where

    def suggest(self, trial_id: str) -> Any:
        """The next trial as a flat configuration."""
        over = self._stopped()
        taken = [] if over else self._next()
        if not taken:
            done = self._walk.finished or (over and not self._walk.running)
            return Searcher.FINISHED if done else None
        first, need = taken[0], self._need(taken[0])
        self._taken[trial_id] = taken, need
        self.cluster.given[need] += 1
        if need.whole:
            self._clearing.add(trial_id)
        self._watcher.started(first, self._listener.started(trial_id, taken))
        more = len(taken) - 1
        return {
            **first.axes,
            "name": title(first) + (f" and {more} more" if more else ""),
            "key": first.key,
            "place": self._listener.place(trial_id),
            "shape": shape_of(first),
            "last_try": self._tries.of(first.key).whole,
            "cpus": need.cpus,
            "gpus": need.gpus,
            "avoid": ",".join(self._avoid(first)),
            "cells": bundle.pack(taken, self._walk),
        }

    def _next(self) -> list[Cell]:
        """Cells for a trial; none while nothing may start."""
        slots = sum(map(self.cluster.slots, set(self._needs.values())))
        return self._bundles.take(max(1, slots), self._fits, self._alike)

    def _need(self, cell: Cell) -> Need:
        need = self._needs[shape_of(cell)]
        if self._tries.of(cell.key).whole:
            return self.cluster.device(need.cpus, need.gpus)
        return need

    def _alike(self, one: Cell, other: Cell) -> bool:
        same = shape_of(one) == shape_of(other) and self._need(one) == self._need(other)
        return same and self._tries.due(other) and self._avoid(one) == self._avoid(other)

    def _fits(self, cell: Cell) -> bool:
        """Whether a cell may be handed to Ray now."""
        if not self._tries.due(cell):
            return False
        need = self._need(cell)
        if need.whole:
            free = self.cluster.given[need] < self.cluster.slots(need)
            return free and (bool(self._clearing) or self._worth_clearing(need))
        if self._clearing:
            return False
        waiting = len(self._taken) - len(self._began)
        return self.cluster.fits(need) or not self._taken or waiting < self._ahead

    def _avoid(self, cell: Cell) -> list[str]:
        """Nodes a cell is kept from, unless there are no others."""
        avoid, need = self._tries.of(cell.key).avoid | self._tries.health.out, self._need(cell)
        able = {node.id for node in self.cluster.nodes if node.holds(need.cpus, need.gpus)}
        return sorted(avoid) if able - avoid else []

    # Devices for one cell

    def _worth_clearing(self, need: Need) -> bool:
        """Whether cells that need a device for themselves go now, all that wait together."""
        now, waiting = time.monotonic(), self._walk.waiting(WHOLE)
        self._whole_since = self._whole_since or now
        enough = waiting >= self.cluster.slots(need) or waiting == self._walk.ready
        if enough or now - self._whole_since > TOGETHER:
            self._whole_since = None
            return True
        return False

    # What came of it

    def began(self, trial_id: str) -> None:
        """A trial's process has begun."""
        self._began[trial_id] = time.monotonic()
        self._listener.began(trial_id)
        self._clearing.discard(trial_id)

    def lost(self, trial_id: str, loss: Loss) -> None:
        """How the process of a trial was lost, which `on_trial_complete` will end."""
        self._lost[trial_id] = loss

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial reported, or its process was lost."""
        self._listener.ended(trial_id)
        cells, need = self._taken.pop(trial_id)
        self.cluster.given[need] -= 1
        self._clearing.discard(trial_id)
        began = self._began.pop(trial_id, None)
        loss = self._lost.pop(trial_id, Loss("process", "it reported nothing"))
        taken = {cell.key: cell for cell in cells}
        first = cells[0].key
        if error or not result or "results" not in result:
            if len(cells) > 1:  # each of them will be run by itself
                self._bundles.put_back(taken, lost=True)
                for cell in cells:
                    self._watcher.put_back(cell)
            elif not self._overdue(first, began):
                self._ending.lost(first, loss)
            return
        for key, cell_result, seconds in json.loads(result["results"]):
            cell = taken.pop(key)
            if key != first:
                self._watcher.started(cell)
            self._bundles.learn(cell, seconds)
            self._ending(key, cell_result, result.get("node", ""))
        self._bundles.put_back(taken, lost=False)

    def _overdue(self, key: str, began: float | None) -> bool:
        """End a cell whose process ended too late to record its timeout itself."""
        timeout, since = self._job.context.timeout, time.monotonic() - (began or float("inf"))
        if not timeout or since <= timeout + GRACE:
            return False
        why = f"gave up after {since:.0f} s: code that cannot be interrupted"
        self._ending.give_up(key, {"status": "timeout", "error": why, "seconds": None})
        return True

    # What Tune keeps

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of its parts for a restore we never do: leave the walk out of it."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        """Tune copies its searcher before use: there is one walk, so there is one searcher."""
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed by running it again."""


class Begins(tune.Callback):  # type: ignore[misc]
    """Tells the graph when a process begins."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its process is there."""
        rays.name(trial, trial.config["name"])
        self._graph.began(trial.trial_id)

    def __getstate__(self) -> dict[str, Any]:
        """See `Graph`."""
        return {}


class Patient(FIFOScheduler):  # type: ignore[misc]
    """First come, first served, and each trial waits for the actor it asked for.

    Tune's own would give an actor that is free to a trial whose actor is starting, and end that
    one: where cells are shorter than an import, one actor would work and others start for ever.
    """

    def __init__(self, graph: Graph | None = None) -> None:
        super().__init__()
        self._graph = graph
        self._asking: set[str] = set()
        self._ended = 0

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first trial that has asked for no actor."""
        for trial in tune_controller.get_live_trials():
            if trial.status == trial.PENDING and trial.trial_id not in self._asking:
                self._asking.add(trial.trial_id)
                return trial
        return None

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """A trial has reported."""
        self._forget(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The process of a trial was lost: the graph will be told that it ended, not how."""
        if self._graph:
            self._graph.lost(trial.trial_id, rays.loss(trial))
        self._forget(tune_controller, trial)

    def _forget(self, controller: Any, trial: Any) -> None:
        self._asking.discard(trial.trial_id)
        self._ended += 1
        if self._ended % FORGET == 0:
            rays.forget(controller)
