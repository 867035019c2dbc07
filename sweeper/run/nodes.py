"""Asks the nodes of a cluster, before anything runs, whether they would compute alike."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeper.core.errors import SweepError
from sweeper.engine import training
from sweeper.engine.recipes import Recipe
from sweeper.run.driver import Job
from sweeper.run.rays import ray

PATIENCE = 60.0
"""Seconds to wait for the nodes' answers; who has not answered by then is not asked again."""


def require_alike(job: Job) -> None:
    """Do nothing where `precision: auto` comes to the same on all nodes, or nothing asks for it.

    Raises:
        SweepError: Some would compute in bf16 and others in fp32 under one key.
    """
    recipes = [cell.params.get("recipe") for cell in job.plan.cells.values()]
    if any(recipe and recipe["precision"] == "auto" for recipe in recipes):
        refuse(ask(job.context.device))


def refuse(precisions: Mapping[str, str]) -> None:
    """See `require_alike`.

    Args:
        precisions: Node -> what `auto` comes to there.
    """
    by_precision = {kind: node for node, kind in precisions.items()}
    if len(by_precision) > 1:
        said = " and ".join(f"{kind} on {node}" for kind, node in sorted(by_precision.items()))
        raise SweepError(
            f"recipe.precision: auto is {said}, so one cell would have two results: write "
            "--set recipe.precision=fp32, which every node computes, or bf16, or portable, which "
            "has the same bits on all"
        )


def ask(device: str) -> dict[str, str]:
    """Node -> what `precision: auto` comes to there, of the nodes that answer."""
    gpus = 0.001 if device == "cuda" else 0
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers: dict[Any, str] = {}
    for node in nodes if len(nodes) > 1 else ():
        resources = node["Resources"]
        if resources.get("GPU" if gpus else "CPU"):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_precision).options(
                num_cpus=0, num_gpus=gpus, scheduling_strategy=where
            )
            answers[task.remote(device)] = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
    found = {}
    if answers:
        for answer in ray.wait(list(answers), num_returns=len(answers), timeout=PATIENCE)[0]:
            with contextlib.suppress(Exception):  # a node that is lost meanwhile
                found[answers[answer]] = ray.get(answer)
    return found


def _precision(device: str) -> str:
    return training.precision(Recipe(), torch.device(device))
