"""Hands a sweep to a cluster that lives elsewhere: Ray's job API, or a manifest for KubeRay."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweeper.core.errors import SweepError
from sweeper.core.uris import keyless
from sweeper.plan.source import name_of, read
from sweeper.run import travel
from sweeper.run.driver import new_run

FILE = "sweep.yaml"
AGENT = 60.0
"""Seconds to wait for a cluster that cannot take a job yet."""


def words(store: str, data: str | None, overrides: Sequence[str]) -> list[str]:
    """The command that runs `FILE` on a machine of the cluster.

    Raises:
        SweepError: The store, or the folder of the data, is relative to a folder of this machine,
            or a URI that holds keys.
    """
    for flag, place in (("--store", store), ("--data", data or "/")):
        keyless(flag, place)
        if "://" not in place and not Path(place).is_absolute():
            other = "s3://bucket/sweeps or " if flag == "--store" else ""
            raise SweepError(
                f"{flag} {place} is a folder of this machine: name a place the cluster's nodes "
                f"see, such as {other}the absolute path of a folder they share"
            )
    arguments = ["--address", "auto", "--store", store, *(["--data", data] if data else [])]
    return arguments + [word for override in overrides for word in ("--set", override)]


def submit(
    spec: str, address: str, words: Sequence[str], methods: Mapping[str, Path] | None = None
) -> str:
    """Start `sweeper run` on a cluster as a Ray job; the token is Ray's (RAY_AUTH_TOKEN, or file).

    Args:
        spec: The sweep file, sent along, or the name of a shipped sweep.
        address: URL of the cluster's dashboard.
        words: What follows `sweeper run FILE`.
        methods: Modules that go along: what `travel.modules` returned.

    Returns:
        The id of the job.

    Raises:
        SweepError: The cluster cannot be reached, or refuses.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # ray reads it at its import
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    name = name_of(spec)
    with tempfile.TemporaryDirectory() as folder, travel.environment(methods or {}) as environment:
        Path(folder, FILE).write_text(text(spec), encoding="utf-8")
        try:
            job = submitted(
                JobSubmissionClient(address),
                entrypoint=shlex.join(["python", "-m", "sweeper", "run", FILE, *words]),
                submission_id=f"{name}-{new_run()}",
                runtime_env={"working_dir": folder, **environment},
                metadata={"sweep": name},
            )
        except AuthenticationError as error:
            raise SweepError(
                f"--address {address} refuses the token: put the cluster's into RAY_AUTH_TOKEN, or "
                f"into ~/.ray/auth_token ({str(error).strip().splitlines()[0]})"
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise SweepError(
                f"--address {address} takes no job: {why}; give the URL of a Ray dashboard, such "
                "as http://127.0.0.1:8265 through `ray dashboard cluster.yaml`"
            ) from None
    return job


def submitted(client: Any, **job: Any) -> str:
    """Submit a job; a cluster that has just started has no agent to take one for some seconds."""
    deadline = time.monotonic() + AGENT
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(AGENT / 60)


def text(spec: str) -> str:
    """A sweep file as it was given, or as it ships."""
    return yaml.safe_dump(read(spec).values, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, kw_only=True)
class Pods:
    """What the pods of a cluster are made of."""

    image: str
    """Image with this package and Ray."""
    workers: int = 4
    """At most so many; the autoscaler starts them as cells wait."""
    cpus: int = 4
    """Of each worker."""
    gpus: int = 0
    """Of each worker."""
    memory: str = "16Gi"
    """Of each pod."""
    secret: str | None = None
    """A secret whose keys become environment variables, such as the store's credentials."""


def rayjob(spec: str, words: Sequence[str], pods: Pods) -> str:
    """Return the YAML of a RayJob (KubeRay 1.5.1 or newer) with its sweep file in a ConfigMap.

    The head runs the driver and no cell; workers come and go with the sweep. KubeRay makes the
    token of the cluster itself.

    Raises:
        SweepError: The store is a folder.
    """
    store = words[words.index("--store") + 1]
    if "://" not in store:
        raise SweepError(f"--store {store} is a folder: pods share none; name a URI such as s3://")
    name = re.sub(r"[^a-z0-9]+", "-", name_of(spec).lower()).strip("-")[:40].strip("-")
    labels = {"app.kubernetes.io/part-of": "sweeper"}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"sweep-{name}", "labels": labels},
        "data": {FILE: text(spec)},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"sweep-{name}", "labels": labels},
        "spec": {
            "entrypoint": shlex.join(["sweeper", "run", f"/sweep/{FILE}", *words]),
            "backoffLimit": 2,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": importlib.metadata.version("ray"),
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"idleTimeoutSeconds": 300},
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod(pods, "head", {"cpu": 2}, f"sweep-{name}"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 0,
                        "minReplicas": 0,
                        "maxReplicas": pods.workers,
                        "rayStartParams": {},
                        "template": _pod(
                            pods,
                            "worker",
                            {
                                "cpu": pods.cpus,
                                **({"nvidia.com/gpu": pods.gpus} if pods.gpus else {}),
                            },
                        ),
                    }
                ],
            },
        },
    }
    return yaml.safe_dump_all([config, job], sort_keys=False)


def _pod(pods: Pods, name: str, size: dict[str, int], config: str | None = None) -> dict[str, Any]:
    """The template of a pod; the head's holds the sweep file."""
    amount = {key: str(count) for key, count in size.items()} | {"memory": pods.memory}
    container: dict[str, Any] = {
        "name": f"ray-{name}",
        "image": pods.image,
        "resources": {"limits": dict(amount), "requests": dict(amount)},
    }
    spec: dict[str, Any] = {"containers": [container]}
    if pods.secret:
        container["envFrom"] = [{"secretRef": {"name": pods.secret}}]
    if config:
        container["volumeMounts"] = [{"name": "sweep", "mountPath": "/sweep", "readOnly": True}]
        spec["volumes"] = [{"name": "sweep", "configMap": {"name": config}}]
    return {"spec": spec}
