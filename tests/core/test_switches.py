"""Every switch of the table is flipped, and is put back; so is a function that was replaced."""

from __future__ import annotations

import functools
import gc
import io
import locale
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from defenses.base import Case
from sweeper.core import switches
from sweeper.engine import metrics

Flip = Callable[[], object]

FLIPS: dict[str, Flip] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "denormal numbers": lambda: torch.set_flush_denormal(True),
    "floating-point errors": lambda: np.seterr(all="raise"),
    "callback of floating-point errors": lambda: np.seterrcall(print),
    "gradients": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, False),
    "autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast on cuda": lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
    "autocast cache": lambda: torch.set_autocast_cache_enabled(False),
    "flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "mem_efficient attention": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "math attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "cudnn attention": lambda: torch.backends.cuda.enable_cudnn_sdp(False),
    "fast path of attention": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "NNPACK": lambda: torch.backends.nnpack.set_flags(not torch._C._get_nnpack_enabled()),
    "garbage collection": gc.disable,
    "thresholds of garbage collection": lambda: gc.set_threshold(7, 7, 7),
    "debugging of garbage collection": lambda: gc.set_debug(gc.DEBUG_UNCOLLECTABLE),
    "filters of warnings": lambda: warnings.simplefilter("error"),
    "search path of modules": lambda: setattr(sys, "path", ["/nowhere", *sys.path]),
    "finders of modules": lambda: sys.meta_path.insert(0, sys.meta_path[0]),
    "handlers of logging": lambda: logging.getLogger().addHandler(logging.NullHandler()),
    "hooks of every Module (_global_forward_hooks)": lambda: (
        torch.nn.modules.module.register_module_forward_hook(print)
    ),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7),
    "switch interval": lambda: sys.setswitchinterval(0.5),
    "tracing": lambda: sys.settrace(lambda *_: None),
    "profiling": lambda: sys.setprofile(lambda *_: None),
    "working directory": lambda: os.chdir("/"),
    "environment": lambda: os.environ.update(PATH="/nowhere", FLIPPED="1"),
    "mask of new files": lambda: os.umask(0o137),
    "limits": lambda: resource.setrlimit(
        resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    ),
    "signal handlers": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "level of logging": lambda: logging.getLogger().setLevel(3),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"),
}


def flips(switch: switches.Switch) -> Iterator[Flip]:
    """What flips a switch: its entry above, or what its value asks for."""
    if switch.name in FLIPS:
        yield FLIPS[switch.name]
        return
    value = switch.get()
    if isinstance(switch.get, functools.partial):  # an attribute
        owner, name = switch.get.args
        others = {bool: lambda: not value, int: lambda: value + 1, str: lambda: "greedy"}
        yield lambda: setattr(owner, name, others.get(type(value), io.StringIO)())
        return
    assert isinstance(value, list | dict), f"{switch.name}: say in FLIPS how it is flipped"
    more = [*value, value] if isinstance(value, list) else {**value, 7: lambda *_: None}
    yield lambda: switch.put(more)
    if value:
        yield lambda: switch.put(type(value)())


@pytest.mark.parametrize("name", [switch.name for switch in switches.table()])
def test_a_flipped_switch_is_put_back(name: str) -> None:
    (switch,) = (item for item in switches.table() if item.name == name)
    for flip in flips(switch):
        before = switch.get()
        with switches.kept() as left:
            flip()
            flipped = switch.get() != before
        assert flipped, f"the flip of {name} flips nothing"
        assert switch.get() == before and left == []
    assert not (FLIPS.keys() - {item.name for item in switches.table()})


def test_a_warning_is_heard_again_after_filters_were_changed() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with switches.kept():
            warnings.simplefilter("ignore")
            warnings.warn("one", stacklevel=1)
        warnings.warn("two", stacklevel=1)
    assert [str(item.message) for item in heard] == ["two"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (functional, "cross_entropy"),
        (torch, "randperm"),
        (torch.Tensor, "backward"),
        (torch.nn.BatchNorm2d, "forward"),
        (torch.nn.BatchNorm2d, "_check_input_dim"),
        (np, "quantile"),
        (random, "random"),
        (metrics, "share"),
        (metrics, "EVALUATION_BATCH"),
        (Case, "split"),
    ],
)
def test_what_was_replaced_is_bound_again(owner: Any, name: str) -> None:
    before, inherited = getattr(owner, name), name not in vars(owner)
    with switches.kept() as left:
        setattr(owner, name, "something else")
    assert getattr(owner, name) is before and left == []
    assert (name not in vars(owner)) == inherited


def test_a_module_that_was_replaced_is_the_module_again() -> None:
    with switches.kept():
        sys.modules["json"] = sys  # type: ignore[assignment]
    import json

    assert json.dumps([1]) == "[1]"


def test_what_cannot_be_put_back_is_named() -> None:
    switches.LEFT.clear()
    over = threading.Event()
    with switches.kept() as left:
        threading.Thread(target=over.wait, name="busy").start()
        threading.Thread(target=over.wait, name="daemon", daemon=True).start()
        child = subprocess.Popen(["sleep", "60"])
    over.set()
    child.kill()
    child.wait()
    assert left == [f"process {child.pid}", "thread busy"] == switches.LEFT
    switches.LEFT.clear()


def test_an_import_may_add_to_the_paths_and_flips_nothing_else() -> None:
    before = list(sys.path)
    with switches.kept(but=switches.PATHS):
        sys.path.append("/somewhere")
        torch.set_default_dtype(torch.float64)
    assert sys.path == [*before, "/somewhere"]
    assert torch.get_default_dtype() is torch.float32
    sys.path[:] = before
