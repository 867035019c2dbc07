"""Seconds of work on a device that goes on after it was asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def pace(work: Callable[[], Any], device: torch.device, seconds: float, calls: int = 20) -> float:
    """Seconds of a call, many after one another: the best of several such runs."""
    for _ in range(3):
        work()
    wait(device)
    began, best = time.perf_counter(), float("inf")
    while time.perf_counter() - began < seconds:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        best = min(best, (time.perf_counter() - started) / calls)
    return best
