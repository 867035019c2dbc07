"""Ray Tune runs the walk: one Tuner over the whole graph, reused actors.

Tune asks our searcher (`run.graph`) for the next trial; while parents run the answer is "none yet",
so nothing waits at a barrier. What goes wrong is judged by `run.tries`, and tried again as a new
trial. Resume is not Tune's: the store says what is finished.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from typing import Any

from sweeper.core import catalog, search, switches
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell
from sweeper.engine import portable
from sweeper.plan.matrix import shape_of
from sweeper.run import bundle, nodes, rays
from sweeper.run.driver import gentle_interrupt
from sweeper.run.ending import Ending, Watcher
from sweeper.run.graph import Begins, Graph, Patient
from sweeper.run.job import Job
from sweeper.run.material import Context, Log
from sweeper.run.meter import Meter
from sweeper.run.progress import title
from sweeper.run.rays import ray, setproctitle, tune
from sweeper.run.relay import Listener, Teller
from sweeper.run.tries import Health, Tries
from sweeper.run.walk import Walk

AHEAD = 8
"""Cells that wait with a joined cluster beyond what it has room for, so that it may grow."""
TRIALS = 100_000
"""Trials that Tune may hold at once: the graph knows how many may run."""


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
        SweepError: Several nodes and a store only this machine can see, nodes that would compute in
            different precisions, or none that could run a cell.
    """
    rooms = [rays.room(shape.cpus, shape.gpus) for shape in job.shapes]
    elsewhere = len(rays.nodes()) > 1 or not all(rooms)
    if elsewhere and job.store.local and not os.environ.get("SWEEPER_SHARED_STORE"):
        raise SweepError(
            f"store: {job.context.store} is a folder and Ray's cells run on several nodes: give "
            "--store a place all of them see (s3://..., or a shared folder with "
            "SWEEPER_SHARED_STORE=1)"
        )
    watcher = ending.watcher = Meter(job, watcher)
    health = Health(lambda: _able(job), watcher.told)
    ending.tries = Tries(health)
    if elsewhere:
        nodes.look(job, health, watcher.told)
    with gentle_interrupt() as stopped, Listener(job.context.run, live).listening() as listener:
        if not walk.finished:
            _tune(job, Graph(job, walk, ending, watcher, listener, stopped, ahead))


def _able(job: Job) -> dict[str, str]:
    """Id -> name of the nodes with room for a cell; a head that runs none is not among them."""
    shapes = job.plan.sweep.resources.shapes
    return {
        node.id: node.name
        for node in rays.nodes()
        if any(node.holds(shape.cpus, shape.gpus) for shape in shapes)
    }


def _tune(job: Job, graph: Graph) -> None:
    """Run the trials of a graph with one Tuner."""
    scratch = tempfile.mkdtemp(prefix="sweeper-tune-")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # how cells end is ours to say
    try:
        run = tune.with_parameters(run_trial, contexts=_contexts(job))
        tune.Tuner(
            rays.trainable(tune.with_resources(run, _resources), job.plan.sweep.name),
            tune_config=tune.TuneConfig(
                search_alg=graph,
                scheduler=Patient(graph),
                num_samples=-1,
                max_concurrent_trials=TRIALS,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name="cells",
                storage_path=scratch,
                verbose=0,
                progress_reporter=Unseen(),
                callbacks=[Begins(graph)],
                failure_config=tune.FailureConfig(max_failures=0),  # `run.tries` knows better
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Unseen(tune.ProgressReporter):  # type: ignore[misc]
    """Says nothing: Tune's own, in a notebook, clears what is shown there."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        """Never."""
        return False


def _resources(config: dict[str, Any]) -> Any:
    """What a trial asks Ray for."""
    avoid = [node for node in config["avoid"].split(",") if node]
    return rays.request(config["cpus"], config["gpus"], avoid)


def _contexts(job: Job) -> dict[str, Context]:
    """Shape -> under what its cells run."""
    contexts: dict[str, Context] = {}
    for cell in job.plan.cells.values():
        if (name := shape_of(cell)) not in contexts:
            contexts[name] = job.context_of(cell)
    return contexts


def run_trial(config: dict[str, Any], contexts: dict[str, Context]) -> None:
    """What a worker runs: its cells; their results are the trial's only report."""
    context = contexts[config["shape"]]
    if switches.LEFT:  # a cell left something behind: another process takes this one
        os._exit(71)
    if context.portable:
        portable.enter()  # a worker runs cells of this sweep only; too late, and each has a child
    if folder := search.sent() or context.code:
        context = dataclasses.replace(context, code=folder)
        catalog.look_in(folder)
    with Teller(config["place"]).telling() as teller:

        def starting(cell: Cell) -> Log:
            setproctitle(f"ray::{title(cell)}")  # in `top`, and in the dashboard's list
            return teller.starting(cell)

        reports = bundle.run(config["cells"], context, starting, last_try=config["last_try"])
        for key, result, _ in reports:
            result["epochs"] = teller.epochs(key)
    here = ray.get_runtime_context().get_node_id()
    tune.report({"results": json.dumps(reports), "node": here})


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _folder(trial: Any) -> str:
    return str(trial.config["key"])
