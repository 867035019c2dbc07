"""One cell's numbers depend on its key alone: global state is seeded, limited and put back."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import os
import platform
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from sweeper.core import seeds, switches

GRACE = 10.0
"""Seconds after its time is up in which a cell's watchdog may record it."""

AGAIN = 1.0
"""Seconds between two alarms of one cell whose time is up."""

SLACK = 1.1
"""How much of its share of a GPU's memory a cell may take."""

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Of glibc's malloc.h."""


class CellTimeout(BaseException):
    """The cell's time is up; no `except Exception` of a method may catch it."""


@contextlib.contextmanager
def isolated(key: str, threads: int) -> Iterator[list[str]]:
    """Seed every global generator from the key, fix threads and determinism, restore all after.

    Methods draw from generators of their own; this covers what a library draws behind their back
    (dropout), so that a reused process gives the same bits as a fresh one. What else a method
    changed of the process is put back too (`core.switches`).

    Yields:
        What could not be put back, filled at the end.
    """
    _keep_freed()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    backend = torch.backends.cudnn
    devices = list(range(torch.cuda.device_count()))
    try:
        with (
            switches.kept() as left,
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
        ):
            torch.default_generator.manual_seed(seeds.seed(key, "torch"))
            if devices:
                torch.cuda.manual_seed_all(seeds.seed(key, "cuda"))
            np.random.set_state(np.random.RandomState(seeds.seed(key, "numpy") % 2**32).get_state())
            random.seed(seeds.seed(key, "python"))
            torch.set_num_threads(threads)
            backend.deterministic, backend.benchmark = True, False
            yield left
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if devices:
            gc.collect()
            torch.cuda.empty_cache()
        else:
            gc.collect(1)  # a full collection takes 0.2 s, longer than many a cell
        _give_back()


def lacking(device: str) -> str:
    """Return why this process cannot run what asks for a device, or nothing."""
    if device != "cuda" or torch.cuda.is_available():
        return ""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if shown is None else f", CUDA_VISIBLE_DEVICES={shown!r}"
    return (
        f"resources.gpus: the cell asks for a GPU and torch sees none on {platform.node()} (torch "
        f"{torch.__version__}, {built}{seen}): mend that, or let it run on the CPU with "
        "--set 'resources={cpus: 1}'"
    )


def bound_memory(device: torch.device, share: float) -> None:
    """Let this process take no more of the GPU's memory than its share, and a tenth of that.

    Args:
        device: Where the cell runs; nothing is bounded on another device than a GPU.
        share: Of one GPU; 1 or more is all of it, and so is 0, which asks for none in particular.
    """
    if device.type == "cuda":
        fraction = min(1.0, share * SLACK) if share else 1.0
        torch.cuda.set_per_process_memory_fraction(fraction)


@functools.cache
def _keep_freed() -> None:
    """Let a running cell use its freed memory again instead of returning it at once.

    By default glibc maps every tensor above 32 MB anew and the system clears each of its pages: a
    third of MobileNetV2's step in fp32 (on one core 46 -> 69 images/s). What a cell no longer needs
    goes back after it, by `_give_back`.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or another C library
        if _libc().mallopt(MMAP_THRESHOLD, 2**30):
            _libc().mallopt(TRIM_THRESHOLD, -1)


def _give_back() -> None:
    """Return freed memory to the system.

    glibc keeps a pool for every thread that ever allocated, and every cell of a reused worker runs
    in a new one: after 25 cells on CIFAR-10 a worker held 2.9 GB, most of it free.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or another C library
        _libc().malloc_trim(0)


@functools.lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextlib.contextmanager
def limit(seconds: float | None, record: Callable[[], None]) -> Iterator[None]:
    """Give a cell up after `seconds`.

    In the main thread an alarm raises `CellTimeout`, and again every `AGAIN` seconds, since a bare
    `except:` may have swallowed it; after `GRACE` seconds `record` is called and the process ended.
    In any other thread (a Ray worker runs cells in one) nothing can interrupt the code, so a
    watchdog does that at once; the scheduler starts another. C code that never lets go of the
    interpreter stops the watchdog too: `GRACE` seconds later the process is ended without a record,
    by a thread that needs none.
    """

    def end() -> None:
        try:
            record()
        finally:
            os._exit(70)

    if not seconds:
        yield
    elif threading.current_thread() is threading.main_thread():
        over = time.monotonic() + seconds + GRACE

        def ring(*_: Any) -> None:
            if time.monotonic() > over:
                end()
            raise CellTimeout

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:
        watchdog = threading.Timer(seconds, end)
        watchdog.daemon = True
        watchdog.start()
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=2)
        try:
            yield
        finally:
            watchdog.cancel()
            faulthandler.cancel_dump_traceback_later()
