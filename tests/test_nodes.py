"""Several nodes, of which one is lost in mid-run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeper import run
from tests import sweeps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("nodes"),
]
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All nodes are this machine, so a folder is a shared store; no Ray is left behind."""
    monkeypatch.setenv("SWEEPER_SHARED_STORE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    yield
    ray.shutdown()


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
    counted = {"defense": "tests.faulty:Faulty", "as": "counted", "marks": str(folder)}
    slow = {"defense": "fine-tuning", "epochs": 30, "as": "slow"}
    defenses = ["none", counted, slow]
    return sweeps.write(folder, attacks=["badnets"], defenses=defenses, poison_rates=[0.1], seeds=4)


def test_a_node_that_is_killed_costs_only_the_cells_it_ran(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    from sweeper import schedule

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        lost, _ = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
        schedule.connect(nodes.address, 1)
        assert schedule.room(1, 0) == 3
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
        counts = run.execute(job, partial(schedule.walk_with_tune, ahead=schedule.AHEAD), watcher)
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
