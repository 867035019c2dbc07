"""How many cores are ours: affinity, cgroups of both versions, SLURM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sweeper.core import machine


@pytest.fixture(autouse=True)
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores that all are ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (None, {}, 64),
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "350000 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "what is this"}, 64),
        ("0::/job/step", {"job/step/cpu.max": "800000 100000"}, 8),
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "400000 100000"}, 4),
        ("0::/docker/a1", {"cpu.max": "200000 100000"}, 2),
        ("0::/../../step", {"cpu.max": "200000 100000"}, 2),
        (
            "4:memory:/m\n2:cpu,cpuacct:/job\n0::/x:y",
            {"cpu/job/cpu.cfs_quota_us": "600000", "cpu/job/cpu.cfs_period_us": "100000"},
            6,
        ),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("2:cpuset:/", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, 64),
    ],
)
def test_a_quota_of_any_cgroup_above_bounds_the_cores(
    own: str | None, files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    if own is not None:
        (tmp_path / "own").write_text(own + "\n")
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert machine.cores() == cores


def test_slurm_and_affinity_bound_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "12")
    assert machine.cores() == 12
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert machine.cores() == 2
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "12(x2)")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == 128, "where the platform has no affinity"
