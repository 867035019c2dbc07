"""Switches of a process that any code may flip: one table that reads them and puts them back.

What a method leaves flipped would change the numbers of the next cell of a reused process. `kept`
puts back every switch of the table and every function that was replaced, and names what nothing can
put back: a thread, a process.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import inspect
import locale
import logging
import math
import os
import random
import resource
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SIGNALS = tuple(sorted(map(int, signal.valid_signals())))
LEFT: list[str] = []
"""What could not be put back in this process so far: it should run no other cell."""
OURS = ("sweeper", "attacks", "defenses")
"""Packages in which nothing may be bound anew."""


@dataclass(frozen=True)
class Switch:
    """Something of the process that code can change for all that runs after it."""

    name: str
    """What people call it."""
    get: Callable[[], Any]
    """Read it; two readings are equal where nothing has changed."""
    put: Callable[[Any], object]
    """Put back what `get` returned."""


PATHS = (
    "search path of modules",
    "finders of modules",
    "hooks of the search path",
    "environment",
)
"""Switches a module may set for itself when it is imported."""


@contextlib.contextmanager
def kept(but: Collection[str] = ()) -> Iterator[list[str]]:
    """Put back at the end what the code within changed of the process.

    Args:
        but: Names of switches that may stay changed.

    Yields:
        What could not be put back, filled at the end; `LEFT` has it too.
    """
    left: list[str] = []
    before = [(switch, _read(switch)) for switch in table() if switch.name not in but]
    bound, modules, running = _bound(), dict(sys.modules), _running()
    try:
        yield left
    finally:
        for switch, value in before:
            if _read(switch) != value and not _put_back(switch, value):
                left.append(switch.name)
        sys.modules.update(modules)
        left += _rebind(bound)
        left += sorted(name for key, name in _running().items() if key not in running)
        LEFT.extend(name for name in left if name not in LEFT)


def _put_back(switch: Switch, value: Any) -> bool:
    """Put a switch back that was flipped; whether that worked."""
    with contextlib.suppress(Exception):
        switch.put(value)
    return bool(_read(switch) == value)


def _read(switch: Switch) -> Any:
    """A switch's value; nothing where it cannot even be read, as a deleted working directory."""
    try:
        return switch.get()
    except Exception:
        return None


@functools.cache
def table() -> tuple[Switch, ...]:
    """Every switch that can be put back."""
    return (*_arithmetic(), *_autograd(), *_backends(), *_python(), *_system(), *_words())


def attribute(owner: Any, name: str) -> list[Switch]:
    """A switch that is an attribute; none where this version does not have it."""
    get, put = functools.partial(getattr, owner, name), functools.partial(setattr, owner, name)
    try:
        put(get())
    except (AttributeError, RuntimeError):
        return []
    called = getattr(owner, "__name__", type(owner).__name__)
    return [Switch(f"{called}.{name}", get, put)]


def contents(name: str, owner: Any, attribute_name: str) -> Switch:
    """A list or dict by what is in it, whichever object it is by then."""

    def get() -> Any:
        return getattr(owner, attribute_name).copy()

    def put(before: Any) -> None:
        held = getattr(owner, attribute_name)
        held.clear()
        (held.extend if isinstance(held, list) else held.update)(before)

    return Switch(name, get, put)


# Torch and NumPy


def _arithmetic() -> list[Switch]:
    def device() -> torch.device | None:
        context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
        return None if context is None else torch.get_default_device()

    def denormal() -> bool:
        return bool(torch.tensor([1e-310], dtype=torch.float64).mul_(2.0).item())

    return [
        Switch("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Switch("default device", device, torch.set_default_device),
        Switch(
            "deterministic algorithms",
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
        ),
        Switch(
            "precision of float32 products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        Switch("threads", torch.get_num_threads, torch.set_num_threads),
        Switch("denormal numbers", denormal, lambda on: torch.set_flush_denormal(not on)),
        Switch("floating-point errors", np.geterr, lambda kinds: np.seterr(**kinds)),
        Switch("callback of floating-point errors", np.geterrcall, np.seterrcall),
    ]


def _autograd() -> list[Switch]:
    def cast(kind: str) -> Switch:
        def put(value: tuple[bool, torch.dtype]) -> None:
            torch.set_autocast_enabled(kind, value[0])
            torch.set_autocast_dtype(kind, value[1])

        return Switch(
            f"autocast on {kind}",
            lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
            put,
        )

    def anomaly() -> tuple[bool, bool]:
        return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()

    found = [
        Switch("gradients", torch.is_grad_enabled, torch._C._set_grad_enabled),
        Switch("anomaly mode", anomaly, lambda pair: torch.autograd.set_detect_anomaly(*pair)),
        cast("cpu"),
        cast("cuda"),
        Switch("autocast cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    ]
    for cls in (torch.nn.Module, torch.optim.Optimizer):
        module = sys.modules[cls.__module__]
        for name, held in vars(module).items():
            if name.startswith("_global_") and isinstance(held, dict):
                found.append(contents(f"hooks of every {cls.__name__} ({name})", module, name))
    return found


def _backends() -> list[Switch]:
    backends, cuda = torch.backends, torch.backends.cuda
    found = []
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        get, put = getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp")
        found.append(Switch(f"{kind} attention", get, put))
    get, put = backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled
    found.append(Switch("fast path of attention", get, put))
    found.append(Switch("NNPACK", torch._C._get_nnpack_enabled, backends.nnpack.set_flags))
    for owner, names in (
        (cuda.matmul, "allow_tf32 allow_fp16_accumulation"),
        (cuda.matmul, "allow_fp16_reduced_precision_reduction"),
        (cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        (backends.cudnn, "enabled deterministic benchmark benchmark_limit allow_tf32"),
        (backends.mkldnn, "enabled deterministic allow_tf32"),
        (backends.opt_einsum, "enabled strategy"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        for name in names.split():
            found += attribute(owner, name)
    return found


# Python and the system


def _python() -> list[Switch]:
    def filters(before: list[Any]) -> None:
        warnings.filters[:] = before  # type: ignore[index]  # a list, whatever its stub says
        warnings._filters_mutated()  # type: ignore[attr-defined]

    found = [
        contents("search path of modules", sys, "path"),
        contents("finders of modules", sys, "meta_path"),
        contents("hooks of the search path", sys, "path_hooks"),
        Switch(
            "garbage collection",
            gc.isenabled,
            lambda on: gc.enable() if on else gc.disable(),
        ),
        Switch(
            "thresholds of garbage collection",
            gc.get_threshold,
            lambda numbers: gc.set_threshold(*numbers),
        ),
        Switch("debugging of garbage collection", gc.get_debug, gc.set_debug),
        contents("callbacks of garbage collection", gc, "callbacks"),
        Switch("filters of warnings", lambda: list(warnings.filters), filters),
        Switch("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        Switch("switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Switch("tracing", sys.gettrace, sys.settrace),
        Switch("profiling", sys.getprofile, sys.setprofile),
    ]
    for name in "stdin stdout stderr excepthook unraisablehook displayhook".split():
        found += attribute(sys, name)
    return [*found, *attribute(threading, "excepthook")]


def _system() -> list[Switch]:
    def environment(before: dict[str, str]) -> None:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)

    def mask() -> int:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
        return 0o022

    def limits() -> dict[int, tuple[int, int]]:
        numbers = [number for name, number in vars(resource).items() if name.startswith("RLIMIT_")]
        return {number: resource.getrlimit(number) for number in numbers}

    def limit(before: dict[int, tuple[int, int]]) -> None:
        for number, pair in before.items():
            if resource.getrlimit(number) != pair:
                resource.setrlimit(number, pair)

    return [
        Switch("working directory", os.getcwd, os.chdir),
        Switch("environment", os.environ.copy, environment),
        Switch("mask of new files", mask, os.umask),
        Switch("limits", limits, limit),
        Switch("signal handlers", _handlers, _handle),
    ]


def _handlers() -> dict[int, Any]:
    """Signal handlers Python knows; only the main thread may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _handle(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _words() -> list[Switch]:
    root = logging.getLogger()
    return [
        Switch("logging", lambda: root.manager.disable, logging.disable),
        Switch("level of logging", lambda: root.level, root.setLevel),
        contents("handlers of logging", root, "handlers"),
        Switch(
            "locale",
            lambda: locale.setlocale(locale.LC_ALL),
            lambda before: locale.setlocale(locale.LC_ALL, before),
        ),
    ]


# Functions that were replaced, and what runs on


Bindings = list[tuple[Any, dict[str, Any]]]
"""Modules and classes, each with what its names are bound to."""


def _bound() -> Bindings:
    """What the names of watched modules, and of the classes in them, are bound to now."""
    return [(owner, vars(owner).copy()) for owner in _owners(len(sys.modules))]


def _watched() -> tuple[types.ModuleType, ...]:
    """Modules of others in which nothing may be bound anew."""
    plain = (builtins, math, random, time, os, np, np.random, np.linalg)
    networks = (torch.nn, torch.nn.functional, torch.optim, torch.autograd)
    return (*plain, torch, *networks, torch.linalg, torch.random)


@functools.lru_cache(maxsize=1)
def _owners(_loaded: int) -> tuple[Any, ...]:
    """The modules and classes whose names are watched; looked for again where more is loaded."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in OURS]
    named = (torch.nn, torch.optim, *ours)
    classes = [item for module in named for item in vars(module).values() if inspect.isclass(item)]
    owners = (*_watched(), *ours, *classes, torch.Tensor)
    return tuple({id(owner): owner for owner in owners if not _is_plain(owner)}.values())


def _is_plain(owner: Any) -> bool:
    """Whether it is a class of Python's, whose names nobody can bind."""
    return isinstance(owner, type) and not owner.__flags__ & (1 << 9)  # Py_TPFLAGS_HEAPTYPE


def _rebind(bound: Bindings) -> list[str]:
    """Bind names to what they were bound to; what that fails for, in words."""
    left = []
    for owner, names in bound:
        now = vars(owner)
        try:
            if now == names:  # most owners; fast, as what is the same object is equal
                continue
        except Exception:  # an array has no truth
            pass
        for name, value in names.items():
            if now.get(name) is not value and (callable(value) or _is_ours(owner)):
                try:
                    setattr(owner, name, value)
                except (AttributeError, TypeError):
                    left.append(f"{owner.__name__}.{name}")
        if isinstance(owner, type):  # what is new and hides what was inherited replaces that
            new = [name for name in vars(owner) if name not in names]
            for name in [name for name in new if hasattr(super(owner, owner), name)]:
                delattr(owner, name)
    return left


def _is_ours(owner: Any) -> bool:
    named = owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__
    return str(named).partition(".")[0] in OURS


def _running() -> dict[Any, str]:
    """Threads that would keep the process alive, and its child processes."""
    found: dict[Any, str] = {
        thread: f"thread {thread.name}" for thread in threading.enumerate() if not thread.daemon
    }
    own = (
        getattr(forkserver._forkserver, "_forkserver_pid", None),
        getattr(resource_tracker._resource_tracker, "_pid", None),
    )
    for task in Path("/proc/self/task").glob("*/children") if _has_children() else ():
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for pid in map(int, task.read_text(encoding="ascii").split()):
                state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
                if pid not in own and state.split()[0] != "Z":
                    found[pid] = f"process {pid}"
    return found


def _has_children() -> bool:
    """Whether this process has child processes; a worker has many threads to look through else."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
