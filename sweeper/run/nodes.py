"""Looks at the nodes of a cluster before anything runs: whether they can, and would compute alike.

A node that cannot run a cell fails each in seconds, and would so be the first to ask for the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tabulate import tabulate

from sweeper.core import switches
from sweeper.core.errors import SweepError
from sweeper.engine import training
from sweeper.engine.isolation import lacking
from sweeper.engine.recipes import Recipe
from sweeper.run import faults, material, rays
from sweeper.run.job import Job
from sweeper.run.material import Context
from sweeper.run.rays import ray
from sweeper.run.tries import Health
from sweeper.store.artifacts import Store

PATIENCE = 60.0
"""Seconds to wait for the nodes' answers; who has not answered by then is not asked again."""
_NAMES = 3
"""Nodes that are named in a line of the table; of more their number is told."""

Answer = Mapping[str, str]
"""What a node says of itself: data, device, precision, code, versions, store; what is wrong begins
with an exclamation mark."""


def look(job: Job, health: Health, tell: Callable[[str], None]) -> None:
    """Ask every node whether it can run the cells of a sweep; take out those that cannot.

    Args:
        job: The sweep.
        health: Of the nodes.
        tell: Is given what they said, as one table.

    Raises:
        SweepError: No node can, or some would compute in bf16 and others in fp32 under one key.
    """
    store = Store(job.context.store)
    with store.probed(job.context.run):
        answers = ask(job)
    if not answers:
        return
    told = table(answers, health.there())
    wrong = {node: said for node, said in answers.items() if problems(said)}
    if len(wrong) == len(answers) and not health.there(wrong):
        raise SweepError(f"no node can run this sweep; mend what they lack:\n{told}")
    tell(told)
    for node, said in wrong.items():
        health.take_out(node, "; ".join(problems(said)))
    recipes = [cell.params.get("recipe") for cell in job.plan.cells.values()]
    if any(recipe and recipe["precision"] == "auto" for recipe in recipes):
        names, device = health.there(), job.context.device
        there = {names[node]: said for node, said in answers.items() if node in names}
        refuse({n: said["precision"] for n, said in there.items() if said["device"] == device})


def problems(said: Answer) -> list[str]:
    """What is wrong with a node."""
    return [f"{what}: {text[1:].strip()}" for what, text in said.items() if text.startswith("!")]


def table(answers: Mapping[str, Answer], names: Mapping[str, str]) -> str:
    """What nodes said: those that said the same in one line, and what all said above the table."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for node, said in answers.items():
        alike[tuple(said.items())].append(names.get(node, node[:8]))
    groups = [(dict(items), nodes) for items, nodes in alike.items()]
    first = groups[0][0]
    shared = {what for what in first if all(said.get(what) == first[what] for said, _ in groups)}
    agreed = ", ".join(f"{what} {text}" for what, text in first.items() if what in shared and text)
    lines = []
    for said, nodes in groups if len(groups) > 1 else ():
        more = [f"{len(nodes) - _NAMES} more"] if len(nodes) > _NAMES else []
        other = {what: text for what, text in said.items() if what not in shared}
        lines.append({"node": ", ".join([*nodes[:_NAMES], *more]), **other})
    told = f"{len(answers)} nodes, all with {agreed}" if agreed else f"{len(answers)} nodes"
    widths = [28] * max(map(len, lines), default=0)
    return "\n".join([told, *([tabulate(lines, "keys", maxcolwidths=widths)] if lines else [])])


def refuse(precisions: Mapping[str, str]) -> None:
    """Do nothing where `precision: auto` comes to the same on all nodes.

    Args:
        precisions: Node -> what `auto` comes to there; empty where it does not say.

    Raises:
        SweepError: Some would compute in bf16 and others in fp32 under one key.
    """
    by_precision = {kind: node for node, kind in precisions.items() if kind}
    if len(by_precision) > 1:
        said = " and ".join(f"{kind} on {node}" for kind, node in sorted(by_precision.items()))
        raise SweepError(
            f"recipe.precision: auto is {said}, so one cell would have two results: write "
            "--set recipe.precision=fp32, which every node computes, or bf16, or portable, which "
            "has the same bits on all"
        )


def ask(job: Job) -> dict[str, Answer]:
    """Id of a node -> what it says of itself, of the nodes that answer and may run cells."""
    victims = [cell for cell in job.plan.cells.values() if cell.kind in ("train", "prepare")]
    entries = {json.dumps(v.local["dataset"]): v.params["data"] for v in victims}
    asked: dict[Any, str] = {}
    for node in rays.nodes():
        fitting = [shape for shape in job.shapes if node.holds(shape.cpus, shape.gpus)]
        if fitting:
            most = max(fitting, key=lambda shape: shape.gpus)
            context = dataclasses.replace(job.context, device=most.device)
            where = NodeAffinitySchedulingStrategy(node.id, soft=False)
            options = {"num_cpus": 0, "num_gpus": 0.001 if most.gpus else 0, "max_retries": 0}
            task = ray.remote(answer).options(scheduling_strategy=where, **options)
            asked[task.remote(context, entries, code())] = node.id
    found: dict[str, Answer] = {}
    ready = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)[0] if asked else []
    for said in ready:
        try:
            found[asked[said]] = ray.get(said)
        except ray.exceptions.RayTaskError as error:  # it has no such package, or none of ours
            last = str(error).strip().rpartition("\n")[2]
            found[asked[said]] = {"code": f"! {last}"[:200], "device": "", "precision": ""}
        except Exception:  # noqa: S112 - a node that is lost meanwhile says nothing
            continue
    return found


def answer(context: Context, entries: Mapping[str, str], wanted: str) -> Answer:
    """What this node says of itself.

    Args:
        context: Where cells run.
        entries: Data sets as cells name them -> the digests the sweep was planned with.
        wanted: `code()` of the driver.
    """

    def tried(action: Callable[[], str]) -> str:
        try:
            with faults.of_the_machine():
                return action()
        except Exception as error:
            return f"! {error}"

    def data() -> str:
        for entry, digest in entries.items():
            material.opened(entry, digest, context)
        return "ok"

    def device() -> str:
        if lack := lacking(context.device):
            raise SweepError(lack)
        torch.zeros(1, device=context.device)
        return context.device

    def store() -> str:
        Store(context.store).probe(context.run)
        return "ok"

    found = {"data": tried(data), "device": tried(device), "precision": ""}
    if not found["device"].startswith("!"):
        found["precision"] = training.precision(Recipe(), torch.device(context.device))
    same = code() == wanted
    found["code"] = "ok" if same else "! other than the driver's: install the same sweeper there"
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray"))
    found["versions"] = f"{packages}, Python {platform.python_version()}"
    found["store"] = tried(store)
    return found


@functools.cache
def code() -> str:
    """A hash of all code of the sweeper that is installed here."""
    digest = hashlib.sha256()
    for name in switches.OURS:
        root = Path(sys.modules[name].__path__[0])
        for file in sorted(root.rglob("*.py")):
            with contextlib.suppress(FileNotFoundError):
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
