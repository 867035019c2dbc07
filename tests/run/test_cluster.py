"""What goes to a cluster elsewhere: the job's command, and a RayJob that fits KubeRay's fields."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sweeper.core.errors import SweepError
from sweeper.plan import spec
from sweeper.run import cluster
from tests.support.commands import call
from tests.support.places import ROOT

STORE = "s3://bucket/sweeps?region=eu-central-1"


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    about = {"type": "object", "properties": properties, "additionalProperties": False}
    return about | {"required": required.split()}


def each(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
"""A map of strings: the API server refuses a number in it."""
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
META = fields("name", name=NAME, labels=TEXTS, annotations=TEXTS, namespace=TEXT)
CONTAINER = fields(
    "name image",
    name=NAME,
    image=TEXT,
    env=each(fields("name", name=TEXT, value=TEXT, valueFrom={"type": "object"})),
    envFrom=each(fields(secretRef=fields("name", name=TEXT))),
    resources=fields(limits=TEXTS, requests=TEXTS),
    volumeMounts=each(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = fields(
    "spec",
    metadata=META,
    spec=fields(
        "containers",
        containers=each(CONTAINER) | {"minItems": 1},
        volumes=each(fields("name", name=NAME, configMap=fields("name", name=NAME))),
    ),
)
HEAD = fields(
    "rayStartParams template",
    rayStartParams=TEXTS,
    template=POD,
    serviceType=TEXT,
    enableIngress=FLAG,
    headService={"type": "object"},
)
WORKERS = fields(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=NAME,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    idleTimeoutSeconds=WHOLE,
    numOfHosts=WHOLE,
    suspend=FLAG,
    scaleStrategy={"type": "object"},
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    suspend=FLAG,
    managedBy=TEXT,
    headServiceAnnotations=TEXTS,
    gcsFaultToleranceOptions={"type": "object"},
    enableInTreeAutoscaling=FLAG,
    authOptions=fields(mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    autoscalerOptions=fields(
        idleTimeoutSeconds=WHOLE,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        image=TEXT,
        resources={"type": "object"},
    ),
    headGroupSpec=HEAD,
    workerGroupSpecs=each(WORKERS),
)
RAYJOB = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=META,
    spec=fields(
        "entrypoint rayClusterSpec",
        activeDeadlineSeconds=WHOLE,
        backoffLimit=WHOLE,
        rayClusterSpec=CLUSTER,
        submitterPodTemplate=POD,
        metadata=TEXTS,
        clusterSelector=TEXTS,
        submitterConfig=fields(backoffLimit=WHOLE),
        managedBy=TEXT,
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        entrypointResources=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        ttlSecondsAfterFinished=WHOLE,
        shutdownAfterJobFinishes=FLAG,
        suspend=FLAG,
    ),
)
"""The fields of a RayJob v1 and what is in it, as KubeRay's API reference has them."""


def manifest(name: str = "quickstart", **pods: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    words = cluster.words(STORE, None, ["seeds=2"])
    text = cluster.rayjob(name, words, cluster.Pods(image="registry/sweeper:1", **pods))
    config, job = yaml.safe_load_all(text)
    return config, job


@pytest.mark.parametrize("pods", [{}, {"workers": 9, "gpus": 2, "secret": "s3-keys"}])
def test_the_rayjob_has_the_fields_of_its_kind(pods: dict[str, Any]) -> None:
    config, job = manifest(**pods)
    jsonschema.validate(job, RAYJOB)
    assert config["kind"] == "ConfigMap" and config["metadata"]["name"] == "sweep-quickstart"
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["maxReplicas"] == pods.get("workers", 4)
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"].get("nvidia.com/gpu") == ("2" if pods else None)
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_the_strict_parser_is_strict() -> None:
    _, job = manifest()
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, RAYJOB)
    _, job = manifest()
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(job, RAYJOB)


def test_the_job_runs_the_sweep_file_that_lies_beside_it(tmp_path: Path) -> None:
    config, job = manifest()
    path = tmp_path / "sweep.yaml"
    path.write_text(config["data"]["sweep.yaml"])
    assert spec.load(str(path)) == spec.load("quickstart")
    assert shlex.split(job["spec"]["entrypoint"]) == [
        *("sweeper", "run", "/sweep/sweep.yaml", "--address", "auto"),
        *("--store", STORE, "--set", "seeds=2"),
    ]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    assert head["containers"][0]["volumeMounts"][0]["mountPath"] == "/sweep"


def test_a_name_kubernetes_would_refuse_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": f"My_Sweep.{'x' * 60}-"}))
    config, job = manifest(str(path))
    jsonschema.validate(job, RAYJOB)
    assert config["metadata"]["name"].startswith("sweep-my-sweep-xxx")


def test_a_store_of_this_machine_is_refused() -> None:
    with pytest.raises(SweepError, match="--store sweeps-store is a folder of this machine: name"):
        cluster.words("sweeps-store", None, [])
    with pytest.raises(SweepError, match="--data data is a folder .*, such as the absolute path"):
        cluster.words("s3://bucket/sweeps", "data", [])
    shared = cluster.words("/shared/sweeps", "/shared/data", [])
    assert shared[-2:] == ["--data", "/shared/data"]
    with pytest.raises(SweepError, match="--store /shared/sweeps is a folder: pods share none"):
        cluster.rayjob("quickstart", shared, cluster.Pods(image="x"))


def test_a_cluster_that_takes_no_job_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        asked = 0

        def submit_job(self, **job: Any) -> str:
            self.asked += 1
            if self.asked < 3 or job["entrypoint"] == "no":
                raise RuntimeError(f"500: {job['says']}")
            return "job-1"

    monkeypatch.setattr(cluster, "AGENT", 0.5)
    early = {"entrypoint": "run", "says": "No available agent to submit job"}
    client = Client()
    assert cluster.submitted(client, **early) == "job-1" and client.asked == 3
    with pytest.raises(RuntimeError, match="No available"):
        cluster.submitted(Client(), **{**early, "entrypoint": "no"})
    client = Client()
    with pytest.raises(RuntimeError, match="refused"):
        cluster.submitted(client, entrypoint="run", says="refused")
    assert client.asked == 1, "what is no matter of time is told at once"


def test_a_cluster_that_is_not_there() -> None:
    """Ray asks for its token first, which a machine that never started one has not."""
    sentence = r"--address http://127\.0\.0\.1:1 (takes no job: .*; give|refuses the token: put)"
    with pytest.raises(SweepError, match=sentence):
        cluster.submit("quickstart", "http://127.0.0.1:1", [])


def test_the_dashboard_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    printed = call(capsys, "cluster", "grafana").out
    assert printed == (ROOT / "sweeper/run/grafana.json").read_text(encoding="utf-8")
    assert json.loads(printed)["uid"] == "sweeper"
