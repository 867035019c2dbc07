"""Ray as the sweeper has it: its switches, its start, and all that is not public of it.

Who imports Ray imports this first: Ray reads its environment at its import. What Ray may change
without notice is here and nowhere else; `tests/run/test_rays.py` tries it.
"""

from __future__ import annotations

import contextlib
import os
import sys
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

import ray
from ray import tune
from ray._raylet import setproctitle  # type: ignore[attr-defined]
from ray.experimental.internal_kv import internal_kv_get_gcs_client as head
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeper.core.errors import SweepError

__all__ = ["FIFOScheduler", "Searcher", "connect", "head", "ray", "room", "setproctitle", "tune"]


def connect(address: str | None, cpus: int, gpus: float = 0) -> str | None:
    """Start Ray on this machine, or join the cluster at `address`.

    Args:
        address: Of a running cluster.
        cpus: What a cell asks for.
        gpus: Likewise; a fraction shares one.

    Returns:
        The dashboard's URL, where there is one.

    Raises:
        SweepError: The cluster cannot be reached, or this machine has no room for one cell.
    """
    url = None
    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if not address:  # a new Ray, not one that somebody left running, or dead, on this machine
            options |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        url = _started(address, options)
        _guard_token()
    if not (address or room(cpus, gpus)):
        resources = ray.cluster_resources()
        raise SweepError(
            f"resources: a cell asks for {cpus} CPUs and {gpus:g} GPUs, Ray has "
            f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: lower resources.cpus or "
            "resources.gpus"
        )
    return f"http://{url}" if url else None


def _started(address: str | None, options: dict[str, Any]) -> str | None:
    """Start or join Ray; the dashboard's URL.

    A start that fails is tried once more: Ray gives its processes 30 s, which a busy machine, or
    the very first start after an installation, may exceed.
    """
    where, how = "this machine", "use --executor inline, or stop what keeps it busy"
    if address:
        where, how = f"--address {address}", "check that Ray runs there (`ray status`)"
    for last in (True,) if address else (False, True):
        try:
            url: str | None = ray.init(address=address or "local", **options).dashboard_url
            return url
        except Exception as error:  # Ray raises this very class where a node does not start
            ray.shutdown()
            if last:
                raise SweepError(f"{where}: cannot reach Ray ({error}): {how}") from None
    return None


def _guard_token() -> None:
    """Ray writes a new token readable by all: leave it to its owner."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        token.chmod(0o600)


def room(cpus: int, gpus: float) -> int:
    """How many cells fit on the cluster as it is now."""
    resources = ray.cluster_resources()
    by_cpu = int(resources.get("CPU", 0) // cpus)
    return min(by_cpu, int(resources.get("GPU", 0) / gpus + 1e-6)) if gpus else by_cpu
