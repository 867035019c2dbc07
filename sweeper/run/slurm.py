"""A batch script for SLURM: a Ray of its own over the job's nodes, and one sweep on it."""

from __future__ import annotations

import importlib.resources
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.core.errors import SweepError
from sweeper.plan.source import name_of

_WORD = re.compile(r"[A-Za-z0-9_.@,+:][A-Za-z0-9_.@,+:-]*")
"""What a partition or account may be called: nothing SLURM or a shell reads as more."""
_MEMORY = re.compile(r"[0-9]+[KMGT]?")
_TIME = re.compile(r"[0-9]+|[0-9]+(:[0-9]{1,2}){1,2}|[0-9]+-[0-9]{1,2}(:[0-9]{1,2}){0,2}")


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """What a job asks SLURM for."""

    nodes: int = 1
    """How many."""
    cpus: int = 4
    """Of each node."""
    gpus: int = 0
    """Of each node."""
    time: str | None = None
    """Limit, as SLURM writes it: minutes, or 2-12:30:00."""
    partition: str | None = None
    """Where it waits; several with commas."""
    account: str | None = None
    """Who pays."""
    memory: str | None = None
    """Of each node: 64G."""


def script(spec: str, words: Sequence[str], allotment: Allotment) -> str:
    """Return a script for `sbatch`.

    Args:
        spec: The sweep file, which the first node must see too, or the name of a shipped sweep.
        words: What follows `sweeper run FILE`.
        allotment: What the job asks for.

    Raises:
        SweepError: A value of the allotment is not what SLURM takes there.
    """
    name, path = name_of(spec), Path(spec)
    given = str(path.absolute()) if path.is_file() else spec
    shared = "://" not in words[words.index("--store") + 1]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{option}={value}" for option, value in _options(name, allotment)),
        "#SBATCH --no-kill",
        f"# Runs the sweep {name} on a Ray of its own over the nodes of this job. Submitted again",
        "# after a time limit it runs what is missing. A lost node but the first ends nothing.",
        "set -euo pipefail",
        f"gpus={allotment.gpus}",
        f"words=({shlex.join([given, *words])})",
    ]
    if shared:
        lines += [
            "# The store is a folder: every node must see the same one under this path.",
            "export SWEEPER_SHARED_STORE=1",
        ]
    body = importlib.resources.files("sweeper.run") / "slurm.sh"
    return "\n".join([*lines, ""]) + body.read_text(encoding="utf-8")


def _options(name: str, allotment: Allotment) -> list[tuple[str, object]]:
    """The options of `sbatch`, in its words; values that could be read as more are refused."""
    word = "letters, digits and . _ @ , + : - alone"
    asked = [
        ("time", "time", _TIME, "minutes or days-hours:minutes:seconds, such as 2-12:00:00"),
        ("partition", "partition", _WORD, word),
        ("account", "account", _WORD, word),
        ("memory", "mem", _MEMORY, "a number with K, M, G or T, such as 64G"),
    ]
    options: list[tuple[str, object]] = [
        ("job-name", f"sweep-{name}"),
        ("nodes", allotment.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", allotment.cpus),
    ]
    if allotment.gpus:
        options.append(("gpus-per-node", allotment.gpus))
    for field, option, form, such in asked:
        value = getattr(allotment, field)
        if value is None:
            continue
        if not form.fullmatch(value):
            raise SweepError(f"--{field} {value!r}: SLURM would not take it as one: write {such}")
        options.append((option, value))
    return options
