"""Several nodes: one is lost in mid-run; a cluster grows from a head that runs no cell."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from sweeper.run import driver
from sweeper.run.tries import Health
from tests.support import one_machine, sweeps

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


shared = pytest.fixture(autouse=True)(one_machine.shared)


class Striking(sweeps.Silent):
    """Does something once, when so many cells have ended."""

    def __init__(self, after: int, strike: Any) -> None:
        super().__init__()
        self.after = after
        self.strike = strike

    def finished(self, cell: Any, result: Any) -> None:
        super().finished(cell, result)
        if len(self.cells) == self.after:
            self.strike()


def sweep(folder: Path) -> Path:
    """3 x 4 cells, of which those of `counted` leave a mark at every attempt."""
    counted = {"defense": "tests.support.faulty:Faulty", "as": "counted", "marks": str(folder)}
    slow = {"defense": "fine-tuning", "epochs": 30, "as": "slow"}
    defenses = ["none", counted, slow]
    return sweeps.write(folder, attacks=["badnets"], defenses=defenses, poison_rates=[0.1], seeds=4)


def test_a_node_that_is_killed_costs_only_the_cells_it_ran(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    from sweeper.run import rays, schedule, start

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        lost, _ = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
        start.connect(nodes.address)
        assert rays.room(1, 0) == 3
        store = tmp_path / "store"
        done: dict[Path, int] = {}

        def strike() -> None:
            for kind in ("train", "defend"):
                for made in (store / "artifacts" / kind).glob("*/manifest.json"):
                    done[made] = made.stat().st_mtime_ns
            os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)

        watcher = Striking(5, strike)
        path = sweep(tmp_path)
        job = sweeps.prepared(path, store, cache=os.environ.get("SWEEPER_CACHE"))
        counts = driver.execute(
            job, partial(schedule.walk_with_tune, ahead=schedule.AHEAD), watcher
        )
        assert counts == {"ok": 16}
        assert lost.all_processes["raylet"][0].process.wait(30) == -signal.SIGKILL
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert len(done) >= 5 and {path: path.stat().st_mtime_ns for path in done} == done
    attempts = len(list(tmp_path.glob("Faulty-*")))
    assert 4 <= attempts <= 5, "4 cells, of which the lost node ran at most one"
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(sweeps.frame(store), sweeps.frame(tmp_path / "undisturbed"))


@contextlib.contextmanager
def growing(folder: Path) -> Iterator[str]:
    """A head without CPUs and Ray's autoscaler with pretended machines of one CPU, two at most.

    Ray's own `AutoscalingCluster` stops every Ray of the machine; this one only its own.
    """
    lists = (
        "cluster_synced_files rsync_exclude rsync_filter initialization_commands setup_commands "
        "head_setup_commands worker_setup_commands head_start_ray_commands "
        "worker_start_ray_commands"
    )
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 1,
        "provider": {
            "type": "fake_multinode",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 200_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts_sync_continuously": False,
        "file_mounts": {},
        **dict.fromkeys(lists.split(), []),
    }
    path = folder / "cluster.json"
    path.write_text(json.dumps(config))
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    words += ["--num-cpus=0", "--port=6379", "--include-dashboard=false", "--disable-usage-stats"]
    words += [f"--autoscaling-config={path}", "--object-store-memory=200000000"]
    temporary = tempfile.mkdtemp(prefix="ray-")  # a socket's path must be short
    log = folder / "ray.log"
    with log.open("wb") as out:
        head = subprocess.Popen(
            [*words, f"--temp-dir={temporary}"],
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"},
        )
    try:
        deadline = time.monotonic() + 120
        while "--address='" not in log.read_text():
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield log.read_text().partition("--address='")[2].partition("'")[0]
    finally:
        ray.shutdown()  # before its head goes, which would end this process
        head.terminate()
        head.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_cluster_grows_with_the_sweep(tmp_path: Path) -> None:
    from sweeper.run import rays, schedule, start

    with growing(tmp_path) as address:
        start.connect(address)
        assert rays.room(1, 0) == 0, "the head runs no cell"
        seen: list[int] = []
        watcher = Striking(6, lambda: seen.append(rays.room(1, 0)))
        path = sweep(tmp_path)
        job = sweeps.prepared(path, tmp_path / "store", cache=os.environ.get("SWEEPER_CACHE"))
        counts = driver.execute(
            job, partial(schedule.walk_with_tune, ahead=schedule.AHEAD), watcher
        )
    assert counts == {"ok": 16} and seen == [2], "machines came because cells waited"
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(sweeps.frame(tmp_path / "store"), sweeps.frame(tmp_path / "undisturbed"))


def test_nodes_that_would_compute_differently_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    from sweeper.core.errors import SweepError
    from sweeper.run import nodes, rays, start

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        start.connect(cluster.address)
        job = sweeps.prepared(sweep(tmp_path), tmp_path / "store")
        with job.store.probed(job.context.run):
            found = nodes.ask(job)
        assert len(found) == 2 and not any(map(nodes.problems, found.values()))
        there = {node.id: node.name for node in rays.nodes()}
        told: list[str] = []
        nodes.look(job, Health(lambda: there), told.append)
        assert told[0].startswith("2 nodes, all with data ok, device cpu, precision ")
        one, other = found
        answers = {one: {**found[one], "precision": "bf16"}, other: found[other]}
        answers[other] = {**found[other], "precision": "fp32"}
        monkeypatch.setattr(nodes, "ask", lambda job: answers)
        with pytest.raises(SweepError, match=r"auto is bf16 on .* and fp32 on .*precision=fp32"):
            nodes.look(job, Health(lambda: there), told.append)
        said = {**sweeps.SMALL, "recipe": {"epochs": 1, "precision": "fp32"}}
        fixed = sweeps.prepared(sweeps.write(tmp_path, **said), tmp_path / "store")
        nodes.look(fixed, Health(lambda: there), told.append)
    finally:
        ray.shutdown()
        cluster.shutdown()
