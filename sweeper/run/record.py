"""What a row says beside the metrics: options, labels, versions, device, as columns."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import platform
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attacks.base import Attack
from defenses.base import Defense
from sweeper.core import catalog, code, machine
from sweeper.core.rows import AXES
from sweeper.core.types import Cell
from sweeper.engine import task as tasks
from sweeper.engine import training
from sweeper.engine.recipes import Recipe


def describe(cell: Cell, victim: Cell) -> dict[str, Any]:
    """The columns of a row that the cells themselves say, before anything has run."""
    attack, defense = victim.params["attack"], cell.params["defense"]
    attacker, defender = attack_of(victim), defense_of(cell)
    return {
        "victim": victim.key,
        "task": (task := victim.local.get("task", "image")),
        "score": tasks.task(task).score,
        "attack_name": attack["name"],
        "attack_options": _options(attack),
        "rule": attacker.rule,
        "rate_base": attacker.base,
        "dataset_options": json.dumps(victim.local["dataset"], sort_keys=True),
        "model_options": _options(victim.params["model"]),
        "recipe": json.dumps(victim.params["recipe"], sort_keys=True),
        "defense_name": defense["name"],
        "defense_options": _options(defense),
        "kind": defender.kind,
        "sees": ",".join(sorted(defender.sees)),
        "oracle": "oracle" in defender.sees,
        "n_clean": cell.params["n_clean"],
    }


def attack_of(victim: Cell) -> Attack:
    """The attack of a victim's cell, with its options."""
    options = dict(victim.local["attack"])
    attack: Attack = catalog.make("attack", options.pop("attack"), options)
    return attack


def defense_of(cell: Cell) -> Defense:
    """The defense of a cell, with its options."""
    options = dict(cell.local["defense"])
    defense: Defense = catalog.make("defense", options.pop("defense"), options)
    return defense


def labels(cell: Cell) -> dict[str, Any]:
    """The axes of a defense cell: what the sweep file calls its parts."""
    return {name: cell.axes[name] for name in AXES}


def blank_row(cell: Cell, victim: Cell, sweep: str, status: str, error: str) -> dict[str, Any]:
    """The row of a defense cell that did not run."""
    row = {"sweep": sweep, "key": cell.key, "status": status, "error": error}
    about = describe(cell, victim) | labels(cell)
    return row | about | {"versions": versions(), "started_at": timestamp()}


def _options(params: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in params.items() if key not in ("name", "version")}
    return json.dumps(kept, sort_keys=True)


@functools.lru_cache(maxsize=1)
def versions() -> str:
    """Versions of the code, torch and, where it is installed, ray, as JSON."""
    installed = {"sweeper": "source"}
    for name, package in (("torch", "torch"), ("ray", "ray"), ("sweeper", "backdoor-sweeper")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(package)
    return json.dumps(installed, sort_keys=True)


def trained_by(attack: Attack, family: type) -> dict[str, str]:
    """The hashes of the code that prepares and trains, as a victim's manifest has them."""
    return {"attack": code.of(*catalog.classes(attack)), "engine": code.engine(family)}


def ran(defense: Defense, family: type, trained: Mapping[str, Any]) -> str:
    """The column `code`: the hashes of what a row comes from.

    Args:
        defense: The defense.
        family: Of the victim's model.
        trained: What `trained_by` said where the victim was trained; empty for one of older code.
    """
    stage = defense.stage()
    classes = (*catalog.classes(defense), *([type(stage)] if stage else []))
    found = {
        "attack": trained.get("attack"),
        "defense": code.of(*classes),
        "engine": code.engine(family),
        "victim_engine": trained.get("engine"),
    }
    return json.dumps(found)


def conditions(recipe: Recipe | None, device: torch.device, threads: int) -> dict[str, Any]:
    """Under what a cell runs, as columns; none of it is in its key, any of it may change a number.

    Args:
        recipe: Whose precision the forward passes have; None where there are none.
        device: Where it runs.
        threads: Its CPU threads.
    """
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    number = "".join(map(str, torch.cuda.get_device_capability())) if on_gpu else ""
    return {
        "dtype": training.precision(recipe, device) if recipe else None,
        "threads": threads,
        "device_kind": device.type,
        "capability": f"sm_{number}" if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
    }


def device_name(kind: str) -> str:
    """What a row calls a device of a kind, cuda or cpu; the processor where torch sees no GPU."""
    if kind == "cuda" and machine.cuda():
        return str(torch.cuda.get_device_name())
    return _processor()


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="ignore").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU {names[0]}" if names else "CPU"


def peak_memory(device: torch.device) -> float:
    """MB: on a GPU the cell's own peak, on a CPU the process's so far."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def timestamp() -> str:
    """Now, in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def plain(value: Any) -> Any:
    """JSON values of what a defense notes: tensors become lists, NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
