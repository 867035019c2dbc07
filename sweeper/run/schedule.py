"""Ray Tune runs the walk: one Tuner, one resource shape, reused actors.

A trial is a cell, or several short ones. Tune asks our searcher for the next; while parents run the
answer is "none yet", so nothing waits at a barrier. Resume is not Tune's: the store says what is
finished.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from sweeper.core import catalog, switches
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell
from sweeper.engine import portable
from sweeper.engine.isolation import GRACE
from sweeper.run import bundle
from sweeper.run.bundle import Bundles
from sweeper.run.driver import Ending, Job, Watcher, gentle_interrupt
from sweeper.run.material import Context, Log
from sweeper.run.meter import Meter
from sweeper.run.nodes import require_alike
from sweeper.run.rays import FIFOScheduler, Searcher, ray, room, setproctitle, tune
from sweeper.run.relay import Listener, Teller
from sweeper.run.walk import Walk

CHAIN = 5000
"""Trials of one Tuner: its bookkeeping grows with every trial, so longer sweeps chain several."""
AHEAD = 8
"""Cells that wait with a joined cluster beyond what it has room for, so that it may grow."""
RETRIES = 2
"""How often a trial whose process or node was lost is started again."""


def walk_with_tune(
    job: Job, walk: Walk, ending: Ending, watcher: Watcher, ahead: int = 0, live: bool = False
) -> None:
    """Run the cells of a walk on the connected Ray.

    Ctrl-C stops after the cells already handed to Ray; a second one at once.

    Args:
        job: The sweep.
        walk: Its cells.
        ending: Is told how they end.
        watcher: Looks on.
        ahead: Cells handed to Ray beyond what it has room for, so that a cluster grows.
        live: Whether the watcher shows how far the running cells are.

    Raises:
        SweepError: Several nodes and a store only this machine can see, or nodes that would
            compute in different precisions.
    """
    nodes, shape = [node for node in ray.nodes() if node["Alive"]], job.plan.sweep.resources
    elsewhere = len(nodes) > 1 or not room(shape.cpus, shape.gpus)
    if elsewhere and job.store.local and not os.environ.get("SWEEPER_SHARED_STORE"):
        raise SweepError(
            f"store: {job.context.store} is a folder and Ray's cells run on several nodes: give "
            "--store a place all of them see (s3://..., or a shared folder with "
            "SWEEPER_SHARED_STORE=1)"
        )
    if elsewhere:
        require_alike(job)
    watcher = ending.watcher = Meter(job, watcher)
    bundles = Bundles(walk)
    with gentle_interrupt() as stopped, Listener(job.context.run, live).listening() as listener:
        while not (walk.finished or stopped()):
            before = len(walk.status)
            graph = _Graph(job, walk, bundles, ending, watcher, listener, stopped, ahead)
            _one_tuner(job, ending, graph)
            if len(walk.status) == before:
                return


def _one_tuner(job: Job, ending: Ending, graph: _Graph) -> None:
    """Run up to `CHAIN` trials with one Tuner."""
    shape = job.plan.sweep.resources
    gpus = {"gpu": shape.gpus} if shape.gpus else {}
    scratch = tempfile.mkdtemp(prefix="sweeper-tune-")
    try:
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, context=job.context), {"cpu": shape.cpus, **gpus}
            ),
            tune_config=tune.TuneConfig(
                search_alg=graph,
                scheduler=_Patient(),
                num_samples=-1,
                max_concurrent_trials=CHAIN,  # the graph knows how many may run
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name="cells",
                storage_path=scratch,
                verbose=0,
                callbacks=[_Overdue(ending)],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_trial(config: dict[str, Any], context: Context) -> None:
    """What a worker runs: its cells; their results are the trial's only report."""
    if switches.LEFT:  # a cell left something behind: another process takes this one
        os._exit(71)
    if context.portable:
        portable.enter()  # a worker runs cells of this sweep only; too late, and each has a child
    if context.code:
        catalog.look_in(context.code)
    again, last_try = config.get("again", False), config["last_try"]
    with Teller(config["place"]).telling() as teller:

        def starting(cell: Cell) -> Log:
            setproctitle(f"ray::{title(cell)}")  # in `top`, and in the dashboard's list
            return teller.starting(cell)

        reports = bundle.run(config["cells"], context, starting, last_try=last_try, again=again)
    tune.report({"results": json.dumps(reports), "again": again})


def title(cell: Cell) -> str:
    """What people call a cell: kind, attack, data set, defense, then the other axes."""
    first = [axis for axis in ("attack", "dataset", "defense") if axis in cell.axes]
    axes = dict.fromkeys([*first, *cell.axes])
    return "-".join([cell.kind, *(str(cell.axes[axis]) for axis in axes)])


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _folder(trial: Any) -> str:
    return str(trial.config["key"])


class _Overdue(tune.Callback):  # type: ignore[misc]
    """Records the timeout of a cell whose process ended too late to do so itself."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._timeout = ending.job.context.timeout
        self._started: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its process has begun the cell."""
        self._started[trial.trial_id] = time.monotonic()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its process was lost and the cell will be tried again, unless its time was up."""
        trial.set_config({**trial.config, "again": True})
        if trial.config["more"]:
            return  # a bundle is not run again: each of its cells will be, by itself
        since = time.monotonic() - self._started[trial.trial_id]
        if self._timeout and since > self._timeout + GRACE:
            why = f"gave up after {since:.0f} s: code that cannot be interrupted"
            self._ending.record(trial.config["key"], "timeout", why)

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of its parts for a restore we never do."""
        return {}


class _Patient(FIFOScheduler):  # type: ignore[misc]
    """First come, first served, and each trial waits for the actor it asked for.

    Tune's own would give an actor that is free to a trial whose actor is starting, and end that
    one: where cells are shorter than an import, one actor would work and others start for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asking: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is new, or its process was lost."""
        self._asking.discard(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first trial that has asked for no actor."""
        for trial in tune_controller.get_live_trials():
            if trial.status == trial.PENDING and trial.trial_id not in self._asking:
                self._asking.add(trial.trial_id)
                return trial
        return None


class _Graph(Searcher):  # type: ignore[misc]
    """Tune's view of a walk: the next cell, none yet, or finished."""

    def __init__(
        self,
        job: Job,
        walk: Walk,
        bundles: Bundles,
        ending: Ending,
        watcher: Watcher,
        listener: Listener,
        stopped: Callable[[], bool],
        ahead: int,
    ) -> None:
        super().__init__()
        self._shape = job.plan.sweep.resources
        self._ahead = ahead
        self._slots, self._checked_at = 0, float("-inf")
        self._walk = walk
        self._bundles = bundles
        self._ending = ending
        self._watcher = watcher
        self._listener = listener
        self._stopped = stopped
        self._taken: dict[str, list[Cell]] = {}
        self._left = CHAIN

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        """Nothing to set: the walk knows its own order."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next cell as a flat configuration."""
        over, slots = self._stopped() or not self._left, self._room()
        taken: list[Cell] = []
        if not over and len(self._taken) < slots:
            taken, last = self._bundles.take(slots)
        if not taken:
            done = self._walk.finished or (over and not self._walk.running)
            return Searcher.FINISHED if done else None
        self._left -= 1
        self._taken[trial_id] = taken
        self._watcher.started(taken[0], self._listener.started(trial_id, taken))
        more = len(taken) - 1
        return {
            **taken[0].axes,
            "name": title(taken[0]) + (f"-and-{more}-more" if more else ""),
            "key": taken[0].key,
            "place": self._listener.place(trial_id),
            "more": more,
            "last_try": last,
            "cells": bundle.pack(taken, self._walk),
        }

    def _room(self) -> int:
        """How many cells Ray may have now; the cluster is asked again every other second."""
        if time.monotonic() - self._checked_at > 2:
            self._slots = room(self._shape.cpus, self._shape.gpus) + self._ahead
            self._checked_at = time.monotonic()
        return max(1, self._slots)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A cell reported, or its process was lost for good."""
        self._listener.ended(trial_id)
        taken = {cell.key: cell for cell in self._taken.pop(trial_id)}
        first, lost = next(iter(taken)), error or not result or "results" not in result
        if lost and len(taken) == 1:
            why = f"its process or node was lost {RETRIES + 1} times (killed, or out of memory)"
            self._ending.lost(first, why)
            return
        report: dict[str, Any] = {"results": "[]", "again": True}
        if result and not lost:
            report = result
        for key, cell_result, seconds in json.loads(report["results"]):
            cell = taken.pop(key)
            if key != first:
                self._watcher.started(cell)
            self._bundles.learn(cell, seconds)
            self._ending(key, cell_result)
        self._bundles.put_back(list(taken), lost=report["again"])

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of its parts for a restore we never do: leave the walk out of it."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Graph:
        """Tune copies its searcher before use: there is one walk, so there is one searcher."""
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed by running it again."""
