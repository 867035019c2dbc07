"""What of this machine is this process's own to use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sweeper.core import lazily

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the groups that bound what a process gets."""
OWN = Path("/proc/self/cgroup")
"""The groups of this process, a line each."""


DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))
"""What Linux has where a driver gives torch a GPU: NVIDIA's, Windows' own in WSL, AMD's."""


def cuda() -> bool:
    """Whether torch sees a GPU; it is not imported to say so where the system has no driver."""
    if lazily.waits("torch") and not any(driver.exists() for driver in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def cores() -> int:
    """How many CPU cores this process may use; at least 1.

    The smallest of its CPU affinity, the quota of its cgroups (version 1 or 2, rounded down), and
    what SLURM allotted, which a site need not enforce. Ray and `os.cpu_count` do not see all three.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    here = len(affinity(0)) if affinity else os.cpu_count() or 1
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    slurm = [int(allotted)] if allotted.isdecimal() else []
    return max(1, int(min([here, *slurm, *_quotas()])))


def _quotas() -> Iterator[float]:
    """The cores each of this process's cgroups, and each above it, may keep busy."""
    lines = []
    with contextlib.suppress(OSError):
        lines = OWN.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = CGROUPS / "cpu" if controllers else CGROUPS
        group = base / path.lstrip("/")
        while group.is_relative_to(base):  # in a container the first ones may not be shown
            yield from _quota(group)
            group = group.parent


def _quota(group: Path) -> Iterator[float]:
    """The cores one cgroup may keep busy; nothing where it sets no bound."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # `max` is no bound
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (
            (group / f"cpu.cfs_{name}_us").read_text(encoding="ascii")
            for name in ("quota", "period")
        )
        if int(quota) > 0:
            yield int(quota) / int(period)
