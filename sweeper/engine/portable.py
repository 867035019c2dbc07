"""Single precision whose bits no processor changes: `precision: portable`, on a CPU.

torch, MKL, oneDNN and NNPACK choose kernels by the instructions and caches of the processor, and
kernels round differently. A portable process uses one kernel of each: torch's plain ones, MKL's
"compatible" branch (the one its documentation gives for all Intel and AMD processors, at a fixed
number of threads), and neither oneDNN nor NNPACK. torch and MKL choose once, at their first
operation, so a process is portable from its start or never.

The promise: with the same versions of torch, MKL and the C library, the same bits on every x86-64
processor that has FMA and AVX2 (Intel since 2013, AMD since 2015). Older ones get other bits from
the C library's `exp`, `log` and `sin` of double precision. Other architectures compute, without the
promise.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from sweeper.core.errors import SweepError

ENVIRONMENT = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
"""What torch and MKL read at their first operation."""
_entered = False


def asked(recipe: str | Mapping[str, Any], device: str) -> bool:
    """Whether a sweep's cells must run in portable processes; no recipe by name is portable.

    Args:
        recipe: As the sweep file has it.
        device: cpu | cuda; a GPU computes portable recipes as fp32.
    """
    return device == "cpu" and isinstance(recipe, Mapping) and recipe.get("precision") == "portable"


def entered() -> bool:
    """Whether this process is portable."""
    return _entered


def enter() -> bool:
    """Make this process portable, for good; whether it is.

    It changes nothing where torch has already computed something in it.
    """
    global _entered  # of the process, as what it stands for
    if _entered:
        return True
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if x86 and torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        return False
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    _entered = True
    return True


def require() -> None:
    """Make this process portable.

    Raises:
        SweepError: It is too late.
    """
    if not enter():
        raise SweepError(
            "recipe.precision: portable needs processes in which torch has computed nothing, and "
            "something that Python loads at its start (sitecustomize, a .pth file) has computed in "
            "this one: take that out, or write --set recipe.precision=fp32"
        )
