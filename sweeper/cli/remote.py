"""Commands for a sweep that runs elsewhere: submit, status, watch, cluster."""

from __future__ import annotations

import importlib.resources
import json
import shlex
from typing import Annotated

import typer

from sweeper.api import STORE, place
from sweeper.cli.arguments import (
    DataOption,
    JsonOption,
    SetOption,
    Spec,
    StoreOption,
    WhereOption,
    selected,
)

clusters = typer.Typer(
    help="Print what starts or watches a cluster.", no_args_is_help=True, rich_markup_mode=None
)


def submit(
    spec: Spec,
    address: Annotated[str, typer.Option(help="URL of the cluster's Ray dashboard.")],
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
) -> None:
    """Start `sweeper run` on a cluster as a Ray job.

    It goes on when you leave. Methods of your own are sent along, data are not. The cluster's
    token is read from RAY_AUTH_TOKEN or ~/.ray/auth_token.

    Example: sweeper submit quickstart --address http://127.0.0.1:8265 --store s3://bucket/sweeps
    """
    from sweeper.plan import spec as specs
    from sweeper.run import cluster, travel

    declared = specs.load(spec, overrides or [])  # its mistakes are told here, not there
    travel.require_places(declared)
    words = cluster.words(store, data, overrides or [])
    job = cluster.submit(spec, address, words, travel.modules(declared))
    typer.echo(job)
    follow = shlex.join(["ray", "job", "logs", job, "--address", address, "--follow"])
    typer.echo(f"`{follow}` shows what it says", err=True)


def status(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    where: WhereOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far a sweep is, from its store alone.

    With --where it counts defense cells alone, not the trainings behind them.

    Example: sweeper status quickstart --json
    """
    from sweeper.store import ledger
    from sweeper.store import status as states

    found = selected(spec, store, data, overrides, where, quiet=True)
    known = None  # the listings of the store are quicker than its rows
    if where or found.changed:
        known = dict(zip(found.frame["key"], found.frame["status"], strict=True))
    progress = states.status(ledger.Ledger(place(store)), found.name, found.outline, known)
    typer.echo(json.dumps(progress) if as_json else states.text(progress))


def watch(
    spec: Spec,
    store: StoreOption = STORE,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show `sweeper status` live until all is done.

    Example: sweeper watch my-sweep.yaml --store s3://bucket/sweeps
    """
    import time

    from rich.live import Live

    from sweeper.plan import source
    from sweeper.store import ledger
    from sweeper.store import status as states

    kept, name = ledger.Ledger(place(store)), source.name_of(spec)
    with Live(auto_refresh=False) as live:
        while True:
            progress = states.status(kept, name)
            live.update(states.text(progress), refresh=True)
            if not (progress["left"] or progress["driver"]):
                return
            time.sleep(every)


@clusters.command()
def kuberay(
    spec: Spec,
    image: Annotated[str, typer.Option(help="Image with this package and Ray.")],
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker pods at most.")] = 4,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of a worker pod.")] = 4,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a worker pod.")] = 0,
    memory: Annotated[str, typer.Option(help="Memory of a pod.")] = "16Gi",
    secret: Annotated[
        str | None,
        typer.Option(help="Kubernetes secret with the store's keys."),
    ] = None,
) -> None:
    """Print a RayJob for `kubectl apply -f -`: a cluster that runs one sweep and goes away.

    Example: sweeper cluster kuberay quickstart --image IMAGE --store s3://bucket/sweeps
    """
    from sweeper.plan import spec as specs
    from sweeper.run import cluster, travel

    travel.require_places(specs.load(spec, overrides or []))
    pods = cluster.Pods(
        image=image, workers=workers, cpus=cpus, gpus=gpus, memory=memory, secret=secret
    )
    typer.echo(cluster.rayjob(spec, cluster.words(store, data, overrides or []), pods), nl=False)


@clusters.command()
def slurm(
    spec: Spec,
    store: StoreOption = STORE,
    data: DataOption = None,
    overrides: SetOption = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each.")] = 4,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each.")] = 0,
    memory: Annotated[str | None, typer.Option(help="Memory of each, such as 64G.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, such as 2-12:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition the job waits in.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None,
) -> None:
    """Print a batch script for `sbatch` that runs a sweep on the job's nodes.

    Example: sweeper cluster slurm quickstart --store /shared/sweeps --nodes 4
    """
    from sweeper.plan import spec as specs
    from sweeper.run import cluster
    from sweeper.run import slurm as batch

    specs.load(spec, overrides or [])
    asked = batch.Allotment(
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        memory=memory,
        time=time,
        partition=partition,
        account=account,
    )
    typer.echo(batch.script(spec, cluster.words(store, data, overrides or []), asked), nl=False)


@clusters.command()
def grafana() -> None:
    """Print the Grafana dashboard of running sweeps.

    Example: sweeper cluster grafana > grafana.json
    """
    file = importlib.resources.files("sweeper.run") / "grafana.json"
    typer.echo(file.read_text(encoding="utf-8"), nl=False)


COMMANDS = (submit, status, watch)
"""What `app` registers, beside the group `clusters`."""
