"""Ray as the sweeper has it: its switches, its nodes, and all that is not public of it.

Who imports Ray imports this first: Ray reads its environment at its import. What Ray may change
without notice is here and nowhere else; `tests/run/test_rays.py` tries it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # loggers cost more than a cell
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "600")  # we never restore from Tune's state
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is run.gentle_interrupt's
os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # else a cell's thread cannot keep freed memory
if "ray" not in sys.modules:  # ray reads it at its import; later, server and client disagree
    os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Ray's start waits for workers it starts ahead, for ever where one is lost; ours are none of them.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # how a cell ended is ours to say

import ray
from ray import tune
from ray._common.utils import get_default_system_temp_dir
from ray._private import state
from ray._raylet import setproctitle  # type: ignore[attr-defined]
from ray.experimental.internal_kv import internal_kv_get_gcs_client as head
from ray.job_config import JobConfig
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.trainable import wrap_function
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeper.run.tries import Loss

__all__ = [
    "FIFOScheduler",
    "Searcher",
    "get_default_system_temp_dir",
    "head",
    "ray",
    "setproctitle",
    "tune",
]

PATIENCE = 20.0
"""Seconds to wait for a node that is asked how a process of it ended."""


class NoFolder(JobConfig):  # type: ignore[misc]
    """Keeps Ray from putting the folder we are in before all others that workers search."""

    def _runtime_env_has_working_dir(self) -> bool:
        """Ray adds it unless this is so."""
        return True


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    id: str
    """Ray's."""
    name: str
    """For people: the host, and the first digits of the id."""
    cpus: float
    """That Ray gives to cells."""
    gpus: float
    """Likewise."""

    def holds(self, cpus: float, gpus: float) -> int:
        """How many cells of a shape it has room for when it is empty."""
        by_cpu = int(self.cpus / cpus + 1e-6)
        return min(by_cpu, int(self.gpus / gpus + 1e-6)) if gpus else by_cpu


def nodes() -> list[Node]:
    """The nodes of the cluster as it is now."""
    return [
        Node(
            id=node["NodeID"],
            name=f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def room(cpus: float, gpus: float) -> int:
    """How many cells of a shape fit on the cluster as it is now, each on one node."""
    return sum(node.holds(cpus, gpus) for node in nodes())


def grows() -> bool:
    """Whether an autoscaler may add nodes to the cluster, as far as Ray says."""
    with contextlib.suppress(Exception):  # the head is away
        if head().internal_kv_get(b"__autoscaler_v2_enabled", None, timeout=2) == b"1":
            return True
        said = head().internal_kv_get(b"__autoscaling_status", None, timeout=2)
        if said:  # a cluster that cannot grow calls each node's type after the node
            types = json.loads(said).get("autoscaler_report", {}).get("active_nodes") or {}
            return not types or not all(re.fullmatch(r"node_[0-9a-f]+", kind) for kind in types)
    return True


def request(cpus: float, gpus: float, avoid: Sequence[str]) -> Any:
    """What a trial asks Ray for.

    Args:
        cpus: CPUs of one node.
        gpus: GPUs of the same.
        avoid: Ids of nodes it must not run on.
    """
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    if not avoid:
        return tune.PlacementGroupFactory([bundle])
    elsewhere = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[elsewhere])


def trainable(function: Any, sweep: str) -> type:
    """A class of processes that run a function's trials, as Ray's list of actors shows them.

    Ray asks for an actor's name once, when it is made, and ours run one trial after the other: so
    it says which was the first.

    Args:
        function: Takes a trial's configuration, in which `name` names it.
        sweep: Whose cells they are.
    """

    class Worker(wrap_function(function)):  # type: ignore[misc]
        def __repr__(self) -> str:
            return f"cells of {sweep}, the first {self.config['name']}"

    Worker.__qualname__ = Worker.__name__  # what Ray lists as the class
    return Worker


def name(trial: Any, words: str) -> None:
    """Have Ray's list of tasks call what a trial runs by these words, also in a reused actor."""
    with contextlib.suppress(Exception):  # then it says `train`
        actor = trial.temporary_state.ray_actor
        actor.train = _Named(weakref.ref(actor), type(actor).__getattr__, words)


@dataclass(frozen=True)
class _Named:
    """The method `train` of an actor, which it keeps not alive, listed under a name."""

    actor: Any
    found: Callable[[Any, str], Any]
    words: str

    def remote(self, *given: Any) -> Any:
        return self.found(self.actor(), "train").options(name=self.words).remote(*given)


def loss(trial: Any) -> Loss:
    """How the process of a trial that has just failed was lost, from what Ray says of it."""
    said = ""
    with contextlib.suppress(OSError, TypeError):
        said = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    words = " ".join(said.rpartition("Failure #")[2].split())
    kind = next((kind for kind, sign in _SIGNS if re.search(sign, words)), "machine")
    node, pid = _place(words)
    detail = _detail(words)
    if kind == "process" and node and pid:
        detail = f"{last_words(node, pid)} ({detail})"
    return Loss(kind, detail, node)


_SIGNS = (
    ("memory", r"running low on memory|OutOfMemory|NODE_OUT_OF_MEMORY"),
    ("node", r"node (has )?died|its node|preempted|NODE_DIED|unavailable|placement group.*removed"),
    ("process", r"worker process has died|[Ww]orker exit|actor died"),
)
"""What Ray's text of a failure has in it, by how the process was lost; what has none of these was
raised by a process that lives: it could not even begin."""


def _detail(words: str) -> str:
    """What matters of Ray's text."""
    for begin, end in (("Worker exit detail: ", " Some common causes"), ("The actor ", "")):
        if begin in words:
            rest = words.partition(begin)[2]
            return f"{begin.strip()} {rest.partition(end)[0] if end else rest}"[:300]
    return words[:300] or "Ray does not say how"


def _place(words: str) -> tuple[str, int]:
    """The id of the node where an actor was, and its process; empty, 0 where it is not known."""
    with contextlib.suppress(Exception):
        (actor,) = re.findall(r"actor_id: ([0-9a-f]+)", words)
        known = state.actors(actor)
        return str(known["Address"]["NodeID"]), int(known["Pid"])
    return "", 0


def last_words(node: str, pid: int) -> str:
    """By which signal a process of Ray's ended, as its node's log has it: Ray itself does not say.

    Args:
        node: Its id.
        pid: The process.
    """
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    found: str | None = None
    with contextlib.suppress(Exception):  # the node is lost too, or busy
        task = ray.remote(_signal).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
        found = ray.get(task.remote(pid), timeout=PATIENCE)
    if found is None:
        return "ended, and its node does not say how"
    if found:
        return f"ended by {found} (exit code {128 + signal.Signals[found]})"
    return (
        "ended without a word, as SIGKILL ends one (exit code 137): by hand, or by the kernel "
        "where memory is short"
    )


def _signal(pid: int) -> str:
    """What a process of this node left in its log when a signal ended it."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for file in logs.glob(f"worker-*-{pid}.err"):
        if signs := re.findall(r"\*\*\* (SIG[A-Z]+) received", file.read_text(errors="replace")):
            return str(signs[-1])
    return ""


def forget(controller: Any) -> None:
    """Let Tune forget the trials that ended, but for the last: its end asks for one.

    Without it a trial of a long sweep costs more than one of a short.
    """
    ended = [trial for trial in controller._trials if trial.is_finished()][:-1]
    gone = set(ended)
    controller._trials[:] = [trial for trial in controller._trials if trial not in gone]
    for trials in (controller._stopped_trials, controller._failed_trials, controller._live_trials):
        trials.difference_update(gone)
    for trial in ended:
        controller._trial_metadata.pop(trial.trial_id, None)
        controller._trials_to_cache.discard(trial)
