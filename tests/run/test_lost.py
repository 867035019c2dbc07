"""Processes and nodes that are lost at any moment, and nodes that are not right: on a real Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeper.run import driver, nodes, start
from tests.support import one_machine, pictures, sweeps

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


shared = pytest.fixture(autouse=True)(one_machine.shared)


def run(path: Path, store: Path, watcher: Any = None) -> tuple[dict[str, int], sweeps.Silent]:
    """Run a sweep on the Ray that is connected."""
    from sweeper.run import schedule

    looks = watcher or sweeps.Silent()
    job = sweeps.prepared(path, store)
    walker = partial(schedule.walk_with_tune, ahead=schedule.AHEAD)
    return dict(driver.execute(job, walker, looks)), looks


def workers() -> dict[int, str]:
    """Processes of Ray's on this machine -> their titles."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith("ray::"):
            found[int(folder.name)] = title
    return found


class Killer(threading.Thread):
    """Kills processes of Ray's with this title, so many of them, as soon as it sees them.

    It begins with the block of its `with` and ends with it.
    """

    def __init__(self, begin: str, times: int, number: signal.Signals = signal.SIGKILL) -> None:
        super().__init__(daemon=True)
        self.begin, self.left, self.number = begin, times, number
        self.killed: list[str] = []

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left = 0

    def run(self) -> None:
        before = set(workers())
        while self.left:
            for pid, title in workers().items():
                if pid not in before and title.startswith(self.begin) and self.left:
                    os.kill(pid, self.number)
                    before.add(pid)
                    self.killed.append(title)
                    self.left -= 1
            time.sleep(0.001)


SMALL = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}


@pytest.mark.parametrize("moment", ["ray::Worker.__init__", "ray::IDLE", "ray::Worker"])
def test_a_worker_that_is_killed_while_it_starts_is_tried_again(
    moment: str, tmp_path: Path
) -> None:
    start.connect(None)
    path = sweeps.write(tmp_path, **SMALL)
    with Killer(moment, 2) as killer:
        for number in range(5):  # the moment may be too short to be seen
            counts, _ = run(path, tmp_path / f"store{number}")
            assert counts == {"ok": 3}
            if killer.killed:
                return
    raise AssertionError("nothing was killed: the test says nothing")


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGKILL"])
def test_a_process_that_dies_three_times_is_a_row_that_says_how(how: str, tmp_path: Path) -> None:
    start.connect(None)
    waits = {"defense": "tests.support.faulty:Hangs", "as": "hangs", "marks": str(tmp_path)}
    path = sweeps.write(tmp_path, **SMALL, defenses=[waits], timeout=120)
    with Killer("ray::defend", 3, signal.Signals[how]) as killer:
        counts, _ = run(path, tmp_path / "store")
    assert counts == {"ok": 1, "failed": 1} and len(killer.killed) == 3
    (row,) = sweeps.frame(tmp_path / "store").to_dict("records")
    assert row["error"].startswith("its process was lost 3 times: ended ")
    code = 128 + signal.Signals[how]
    assert how in row["error"] and f"exit code {code}" in row["error"]


def test_three_nodes_one_without_the_data_and_one_that_is_killed_give_the_undisturbed_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    for name in ("SWEEPER_DATA", "SWEEPER_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for split, many in (("train", 120), ("test", 40)):
        images = [pictures.picture(i, (16, 16)) for i in range(many)]
        place = tmp_path / "SWEEPER_DATA/pixels" / f"{split}.parquet"
        pictures.write_parquet(place, images, [i % 3 for i in range(many)])
    small = {**SMALL, "seeds": 4, "datasets": ["pixels"]}
    slow = {"defense": "fine-tuning", "epochs": 20, "as": "slow"}
    path = sweeps.write(tmp_path, **small, defenses=["none", {"defense": "clp"}, slow])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        lost = cluster.add_node(num_cpus=1)
        nowhere = {"SWEEPER_DATA": str(tmp_path / "no"), "SWEEPER_CACHE": str(tmp_path / "none")}
        blind = cluster.add_node(num_cpus=1, env_vars=nowhere)
        monkeypatch.setattr(nodes, "PATIENCE", 120.0)
        start.connect(cluster.address)
        done: list[int] = []

        class Strikes(sweeps.Silent):
            def finished(self, cell: Any, result: Any) -> None:
                super().finished(cell, result)
                done.append(1)
                if len(done) == 4:
                    os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)

        counts, watcher = run(path, tmp_path / "store", Strikes())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert counts == {"ok": 16}
    assert any("is left out of this run: data" in said for said in watcher.said), watcher.said
    assert blind.node_id[:8] in "\n".join(watcher.said)
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(sweeps.frame(tmp_path / "store"), sweeps.frame(tmp_path / "undisturbed"))
