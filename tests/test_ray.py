"""The main job through Ray Tune: the same bits as inline, faults survived, the driver killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper import run
from tests import sweeps

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, in its threads and at shutdown
    pytest.mark.xdist_group("ray"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, with two CPUs whatever it has."""
    import ray

    from sweeper import schedule  # before ray: it sets the token mode ray reads at its import

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    schedule.connect(None, 1)
    yield
    ray.shutdown()


def with_ray(path: Path, store: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Run a sweep through Tune: states of this call, and (kind, state) of each cell."""
    from sweeper import schedule

    watcher = sweeps.Silent()
    job = sweeps.prepared(path, store, cache=os.environ.get("SWEEPER_CACHE"))
    counts = run.execute(job, schedule.walk_with_tune, watcher)
    return dict(counts), watcher.cells


def test_ray_gives_the_bits_of_inline(cluster: None, tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, seeds=1)
    sweeps.inline(path, tmp_path / "inline")
    counts, ran = with_ray(path, tmp_path / "ray")
    assert counts == {"ok": 12} and ran.count(("train", "ok")) == 4
    sweeps.assert_same(sweeps.frame(tmp_path / "ray"), sweeps.frame(tmp_path / "inline"))
    assert with_ray(path, tmp_path / "ray") == ({}, []), "nothing is left to run"


def test_faults_become_rows_and_a_lost_process_is_retried(cluster: None, tmp_path: Path) -> None:
    faulty = ["Raises", "Diverges", "OutOfMemory", "Hangs", "Dies"]
    entries = [
        {"defense": f"tests.faulty:{name}", "as": name, "marks": str(tmp_path)} for name in faulty
    ]
    path = sweeps.write(
        tmp_path,
        attacks=["badnets", {"attack": "tests.faulty:FailsToPoison", "as": "unbuilt"}],
        poison_rates=[0.1],
        seeds=1,
        defenses=["none", *entries],
        timeout=30,
    )
    counts, _ = with_ray(path, tmp_path / "store")
    found = sweeps.frame(tmp_path / "store").set_index(["attack", "defense"])
    assert found.loc["badnets"]["status"].to_dict() == {
        "none": "ok",
        "Raises": "failed",
        "Diverges": "diverged",
        "OutOfMemory": "failed",
        "Hangs": "timeout",
        "Dies": "ok",
    }
    assert set(found.loc["unbuilt"]["status"]) == {"blocked"}
    assert counts == {"ok": 3, "failed": 3, "diverged": 1, "timeout": 1, "blocked": 6}
    assert len(list(tmp_path.glob("OutOfMemory-*"))) == 2, "tried once more, alone"
    assert len(list(tmp_path.glob("Hangs-*"))) == 1, "a timeout is not tried again in this run"
    assert len(list(tmp_path.glob("Dies-*"))) == 2, "a lost process is a fault of the machine"


def test_driver_killed_in_mid_sweep_loses_and_repeats_nothing(tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, seeds=2, recipe={"epochs": 3})
    store = tmp_path / "store"
    command = [sys.executable, "-m", "sweeper.cli", "run", str(path), "--store", str(store)]
    results = store / "sweeps/small/results"
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.time() + 120
    while len(list(results.glob("*.ok.parquet"))) < 4:
        assert driver.poll() is None and time.time() < deadline, driver.stdout and (
            driver.stdout.read1().decode()  # type: ignore[attr-defined]
        )
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # a worker may still finish the cell it is at
    rows = {p.name: p.stat().st_mtime_ns for p in results.glob("*.ok.parquet")}
    victims = {p: p.stat().st_mtime_ns for p in (store / "artifacts/train").glob("*/manifest.json")}
    assert 4 <= len(rows) < 16, "the driver must die in mid-sweep for this test to say anything"
    before = sweeps.frame(store)

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(rows) + len(victims)} done" in again.stderr
    after = sweeps.frame(store)
    assert len(after) == 16 and not after.index.duplicated().any()
    assert (after.loc[before.index, "started_at"] == before["started_at"]).all()
    assert {p: p.stat().st_mtime_ns for p in victims} == victims, "no victim trained twice"
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(after, sweeps.frame(tmp_path / "undisturbed"))
    assert not list(store.rglob("*.part")), "nothing half-written is left"
