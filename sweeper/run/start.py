"""Starts Ray on this machine, or joins a cluster: for its owner alone, with the cores it has."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.core import search
from sweeper.core.errors import SweepError
from sweeper.core.machine import cores
from sweeper.plan.sweep import Shape
from sweeper.run import travel
from sweeper.run.rays import NoFolder, get_default_system_temp_dir, grows, nodes, ray

_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path below its folder that Ray opens a socket at."""


def connect(
    address: str | None,
    shapes: Sequence[Shape] = (Shape(),),
    methods: Mapping[str, Path] | None = None,
) -> str | None:
    """Start Ray on this machine, or join the cluster at `address`.

    Args:
        address: Of a running cluster.
        shapes: What cells ask for.
        methods: Modules that go along to it: what `travel.modules` returned.

    Returns:
        The dashboard's URL, where there is one.

    Raises:
        SweepError: The cluster cannot be reached, this process is connected to it without the
            modules, or no node has room for a cell and none will come.
    """
    url = None
    with travel.environment(methods or {}) as environment:
        if not ray.is_initialized():
            options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
            options |= {"job_config": NoFolder(), "runtime_env": environment}
            if not address:  # a new Ray, not one that somebody left running or dead here
                options |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
                options |= {"num_cpus": cores(), "_temp_dir": str(_own_folder() / "ray")}
            _guard_token(make=not address)
            url = _started(address, options)
        elif environment:
            _require_sent(environment)
    for shape in shapes:
        cpus, gpus, there = shape.cpus, shape.gpus, nodes()
        fits = any(node.holds(cpus, gpus) for node in there)
        only_heads = not any(node.cpus for node in there)  # whose workers come with the cells
        if fits or only_heads or (address and grows()):
            continue
        most = max(there, key=lambda node: (node.gpus, node.cpus) if gpus else (node.cpus, 0))
        raise SweepError(
            f"resources: a cell asks for {cpus:g} CPUs and {gpus:g} GPUs of one node, and none has "
            f"as many ({most.name} has {most.cpus:g} and {most.gpus:g}): lower resources.cpus or "
            "resources.gpus"
        )
    return f"http://{url}" if url else None


def _require_sent(environment: dict[str, Any]) -> None:
    """See that what a cluster was joined with has the methods of this sweep, as they are now."""
    present = ray.get_runtime_context().runtime_env.get("env_vars") or {}
    if present.get(search.SENT) != environment["env_vars"][search.SENT]:
        raise SweepError(
            "--address: this process is connected to Ray without the code of this sweep's methods: "
            "call ray.shutdown(), and run again"
        )


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
            with search.shared():
                found = ray.init(address=address or "local", **options)
            url: str | None = found.dashboard_url
            return url
        except Exception as error:  # Ray raises this very class where a node does not start
            ray.shutdown()
            if last:
                raise SweepError(f"{where}: cannot reach Ray ({error}): {how}") from None
    return None


def token_command() -> str:
    """What prints the token that the dashboard asks for; empty where it asks for none.

    It is the `ray` of this environment: another one may keep its token elsewhere, or have no such
    command.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    own, found = Path(sys.executable).with_name("ray"), shutil.which("ray")
    if found and Path(found) == own:
        return "ray get-auth-token"
    words = [str(own)] if own.exists() else [sys.executable, "-m", "ray.scripts.scripts"]
    return shlex.join([*words, "get-auth-token"])


def _guard_token(make: bool) -> None:
    """Leave the token of clusters to its owner from its first moment on: Ray's is readable by all.

    Args:
        make: Whether to make one where there is none; who joins a cluster has its own.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # a folder that cannot be written: Ray says so
        if make and os.environ.get("RAY_AUTH_MODE") == "token" and not token.exists():
            token.parent.mkdir(mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=token.parent) as file:  # mode 0600
                file.write(secrets.token_hex(32))
                file.flush()
                with contextlib.suppress(FileExistsError):  # another may be faster
                    os.link(file.name, token)  # whole or not at all
        token.chmod(0o600)


def _own_folder() -> Path:
    """A folder for Ray's sessions that nobody else gets into: Ray opens those in it to all.

    Raises:
        SweepError: It cannot be made, or another user made it.
    """
    name = f"sweeper-{os.getuid()}"
    folder = Path(get_default_system_temp_dir(), name)
    if len(f"{folder}/ray/{_SOCKET}") > 107:  # what the path of a socket may have
        folder = Path("/tmp", name)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            raise FileExistsError("somebody else made it")
        folder.chmod(0o700)
    except OSError as error:
        raise SweepError(
            f"{folder} is not a folder of yours for Ray's sessions ({error}): set RAY_TMPDIR to "
            "one, with a short path"
        ) from None
    return folder
