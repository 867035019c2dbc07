"""Ray Tune runs the walk: one Tuner, one resource shape, reused actors. The only file with ray.

A trial is a cell. Tune asks our searcher for the next one; while parents run the answer is "none
yet", so nothing waits at a barrier. Resume is not Tune's: the store says what is finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # loggers cost more than a cell
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "600")  # we never restore from Tune's state
if "ray" not in sys.modules:  # ray reads it at its import; later, server and client disagree
    os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.tune.search import Searcher

from sweeper import cells
from sweeper.cells import Result
from sweeper.errors import SweepError
from sweeper.material import Context
from sweeper.run import Ending, Job, Watcher, payload, unpack
from sweeper.walk import Walk

CHAIN = 5000
"""Cells of one Tuner: its bookkeeping grows with every trial, so longer sweeps chain several."""
RETRIES = 2
"""How often a cell whose process or node was lost is started again."""


def connect(address: str | None, cpus: int) -> str | None:
    """Start Ray on this machine, or join the cluster at `address`.

    Returns:
        The dashboard's URL, where there is one.

    Raises:
        SweepError: The cluster cannot be reached or has no room for one cell.
    """
    url = None
    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address:
            options["address"] = address
        else:
            options |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        try:
            url = ray.init(**options).dashboard_url
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SweepError(f"cannot reach Ray at {address or 'this machine'}: {error}") from None
        _guard_token()
    have = ray.cluster_resources().get("CPU", 0)
    if have < cpus:
        raise SweepError(
            f"resources: a cell asks for {cpus} CPUs, Ray has {have:g}: lower resources.cpus"
        )
    return f"http://{url}" if url else None


def _guard_token() -> None:
    """Ray writes a new token readable by all: leave it to its owner."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        token.chmod(0o600)


def walk_with_tune(job: Job, walk: Walk, ending: Ending, watcher: Watcher) -> None:
    """Run the cells of a walk on the connected Ray.

    Raises:
        SweepError: Several nodes and a store only this machine can see.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and job.store.local and not os.environ.get("SWEEPER_SHARED_STORE"):
        raise SweepError(
            f"store: {job.context.store} is a folder and Ray has {len(nodes)} nodes: give --store "
            "a place all of them see (s3://..., or a shared folder with SWEEPER_SHARED_STORE=1)"
        )
    while not walk.finished:
        before = len(walk.status)
        _one_tuner(job, walk, ending, watcher)
        if len(walk.status) == before:
            return


def _one_tuner(job: Job, walk: Walk, ending: Ending, watcher: Watcher) -> None:
    """Run up to `CHAIN` cells with one Tuner."""
    shape = job.plan.sweep.resources
    gpus = {"gpu": shape.gpus} if shape.gpus else {}
    searcher = _Graph(walk, ending, watcher)
    scratch = tempfile.mkdtemp(prefix="sweeper-tune-")
    try:
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, context=job.context), {"cpu": shape.cpus, **gpus}
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=slots(shape.cpus, shape.gpus),
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name="cells",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def slots(cpus: int, gpus: float) -> int:
    """How many cells the cluster can run at once; a few more wait, so that it may grow."""
    have = ray.cluster_resources()
    by_cpu = int(have.get("CPU", 1) // cpus)
    by_gpu = int(have.get("GPU", 0) / gpus + 1e-6) if gpus else by_cpu
    slots = max(1, min(by_cpu, by_gpu))
    return slots if len(ray.nodes()) == 1 else slots + 8


def run_trial(config: dict[str, Any], context: Context) -> None:
    """What a worker runs: one cell; its result is the trial's only report."""
    *ancestors, cell = (unpack(values) for values in json.loads(config["cell"]))
    result = cells.run(cell, ancestors, context, last_try=config["last_try"])
    tune.report({"key": cell.key, **result})


def _name(trial: Any) -> str:
    return str(trial.config["name"])


def _folder(trial: Any) -> str:
    return str(trial.config["key"])


class _Graph(Searcher):  # type: ignore[misc]
    """Tune's view of a walk: the next cell, none yet, or finished."""

    def __init__(self, walk: Walk, ending: Ending, watcher: Watcher) -> None:
        super().__init__()
        self._walk = walk
        self._ending = ending
        self._watcher = watcher
        self._keys: dict[str, str] = {}
        self._left = CHAIN

    def set_search_properties(self, *args: Any, **spec: Any) -> bool:
        """Nothing to set: the walk knows its own order."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next cell as a flat configuration."""
        item = self._walk.next() if self._left else None
        if item is None:
            done = self._walk.finished or (not self._left and not self._walk.running)
            return Searcher.FINISHED if done else None
        cell, last = item
        self._left -= 1
        self._keys[trial_id] = cell.key
        self._watcher.started(cell)
        words = "-".join(str(value) for value in cell.axes.values())
        return {
            **cell.axes,
            "name": f"{cell.kind}-{words}",
            "key": cell.key,
            "last_try": last,
            "cell": payload(cell, self._walk.ancestors(cell.key)),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A cell reported, or its process was lost for good."""
        key = self._keys.pop(trial_id)
        if error or not result or "status" not in result:
            why = f"its process or node was lost {RETRIES + 1} times (killed, or out of memory)"
            self._ending.lost(key, why)
        else:
            names = ("status", "error", "seconds", "acc", "asr", "reused")
            found: Result = {name: result.get(name) for name in names}
            self._ending(key, found)

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
