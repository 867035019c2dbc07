"""What every method makes of a toy cell, kept in outcomes.json: other numbers need another version.

    python -m tests.house.outcomes             keeps those of all methods anew
    python -m tests.house.outcomes anp blend   keeps those of these methods

The contract suites run the cells and call `check`. On a machine of the kind the outcomes were kept
on they must agree bit for bit. Elsewhere the last bits differ: there a sketch of eight numbers must
agree within `TOLERANCE`, or what `LOOSE` says of a method that trains long enough, or chooses, to
make more of them. Measured with ATEN_CPU_CAPABILITY=default and avx2 against avx512.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sweeper.core import catalog
from tests.support import beyond

FILE = Path(__file__).with_name("outcomes.json")
SUITES = {
    "attack": (
        "test_contract_attacks.py::test_poisons_toy_images_as_declared[{name}--10]",
        "test_contract_attacks.py::test_hooks_and_recipe_train_a_finite_model[{name}-]",
    ),
    "defense": ("test_contract_defenses.py::test_defends_a_toy_victim_as_declared[{name}-]",),
}
"""Kind -> the tests that run its cells."""
BEYOND = "test_contract_tasks.py::test_an_attack_poisons_and_triggers_beyond_images[{name}-{task}]"
"""The test that runs the cell of an attack on another task: `clips attack badnets`."""
SKETCH = 8
TOLERANCE = 5e-4
LOOSE: dict[str, float] = {
    "attack dynamic": 3,
    "attack input-aware": 1,
    "attack ssba": 0.02,
    "clips attack video-clean": 3,
    "defense abl": 0.5,
    "defense asd": 0.5,
    "defense cbd": 0.2,
    "defense confusion-training": 3,
    "defense d-br": 0.005,
    "defense d-br-oracle": 0.005,
    "defense d-st": 0.02,
    "defense dbd": 1,
    "defense frequency": 0.02,
    "defense mcr-pair": 0.2,
    "defense none-training": 0.1,
    "defense retrain": 2,
    "training by blind": 0.3,
    "training by bpp": 1,
    "training by fip-sam": 1,
    "training by fip-spectral": 0.02,
    "training by input-aware": 3,
    "training by lira": 0.05,
    "training by sra": 3,
    "training by wanet": 0.2,
    "training by wb": 0.01,
}
"""Cell -> its tolerance, about three times the largest difference seen; 3 says that all differs."""

kept: dict[str, dict[str, Any]] | None = None
"""What this process keeps; None where it compares."""


@functools.cache
def here() -> dict[str, str]:
    """What decides the last bits."""
    libraries = ("torch", "numpy", "scipy", "scikit-learn")
    return {
        **{name: importlib.metadata.version(name) for name in libraries},
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "libc": " ".join(platform.libc_ver()),
        "processor": _processor(),
    }


def _processor() -> str:
    """Its name, and a hash of what it can do: one name stands for several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    kind = [told.get(key, "") for key in ("cpu family", "model", "cache size", "flags")]
    digest = hashlib.sha256(" ".join(kind).encode()).hexdigest()
    return f"{told.get('model name', platform.machine())} {digest[:8]}"


@functools.cache
def known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def exact(tensors: Mapping[str, Tensor]) -> str:
    """The hash of named tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sketch(tensors: Mapping[str, Tensor]) -> list[float]:
    """Random projections of named tensors, each of length 1, and of the logarithms of lengths."""
    sums = np.zeros(SKETCH)
    for name, value in sorted(tensors.items()):
        flat = value.detach().cpu().double().numpy().ravel()
        length = float(np.linalg.norm(flat))
        signs = np.random.RandomState(zlib.crc32(name.encode())).randint(
            0, 1 << SKETCH, len(flat) + 1, dtype=np.uint16
        )
        if length > 1e-6 * math.sqrt(max(1, len(flat))):
            flat = np.append(flat / length, math.log(length))
            for place in range(SKETCH):
                sums[place] += flat @ (1.0 - 2.0 * ((signs >> place) & 1))
    return [round(float(found), 7) for found in sums / math.sqrt(max(1, len(tensors)))]


def check(cell: str, version: int, tensors: Mapping[str, Tensor]) -> None:
    """Compare what a method made of its toy cell with what is kept of it; or keep it.

    Args:
        cell: What is made of what: `defense anp`.
        version: The method's.
        tensors: All it made.
    """
    found = {"version": version, "hash": exact(tensors), "sketch": sketch(tensors)}
    entry = known()["outcomes"].get(cell) if kept is None else None
    if kept is not None:
        kept[cell] = found
    elif entry is not None:  # a method of one's own is kept by nobody
        compare(cell, found, entry)


def compare(cell: str, found: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Fail where an outcome is not the one that is kept."""
    again = f"`python -m tests.house.outcomes {cell.split()[-1]}`"
    assert found["version"] == entry["version"], (
        f"{cell} is of version {found['version']}, its kept outcome of {entry['version']}: "
        f"regenerate with {again}"
    )
    if known()["made"] == here():
        same = found["hash"] == entry["hash"]
    else:
        pairs = zip(found["sketch"], entry["sketch"], strict=True)
        same = max(abs(a - b) for a, b in pairs) <= LOOSE.get(cell, TOLERANCE)
    assert same, (
        f"{cell} makes other numbers than it did under version {entry['version']}: raise version, "
        f"or regenerate with {again} if they were never to be shown; where most methods fail the "
        "engine changed: raise training.VERSION and regenerate all"
    )


def main(names: list[str]) -> int:
    """Run the toy cells and keep what comes out."""
    from tests.house import outcomes

    old = known() if FILE.exists() else {"made": None, "outcomes": {}}
    if names and old["made"] != here():
        sys.stderr.write(
            "the others were kept on another kind of machine: name no method, keep all\n"
        )
        return 2
    outcomes.kept = {}
    folder = Path(__file__).parent
    tests = [
        test.format(name=name)
        for kind, pattern in SUITES.items()
        for name in catalog.names(kind)
        if beyond.made_for(kind, name, "image") and (not names or name in names)
        for test in pattern
    ]
    pairs = beyond.pairs("attack")
    tests += [BEYOND.format(name=n, task=t) for n, t in pairs if not names or n in names]
    if not tests:
        sys.stderr.write(f"no outcomes are kept of {', '.join(names)}: give names of methods\n")
        return 2
    failed = pytest.main([*(f"{folder}/{test}" for test in tests), "-n0", "-m", "", "-q"])
    merged = {**(old["outcomes"] if names else {}), **outcomes.kept}
    text = json.dumps({"made": here(), "outcomes": dict(sorted(merged.items()))}, indent=1)
    FILE.write_text(text + "\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
