"""What a cell does to global state is undone, what it draws comes from its key, time runs out."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from sweeper.engine.isolation import CellTimeout, bound_memory, isolated, lacking, limit
from tests.support.places import ROOT


def state() -> tuple[Any, ...]:
    """Everything global a method might touch."""
    backend = torch.backends.cudnn
    generator, keys, place, *rest = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        (generator, keys.tolist(), place, *rest),
        random.getstate(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        (backend.deterministic, backend.benchmark),
    )


def draws() -> tuple[float, ...]:
    dropout = torch.nn.functional.dropout(torch.ones(64)).sum()
    return float(torch.rand(1)), float(dropout), float(np.random.rand()), random.random()


def test_all_global_state_is_put_back() -> None:
    before = state()
    with isolated("a" * 20, 1):
        draws()
        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        torch.backends.cudnn.benchmark = True
    assert state() == before


def test_all_global_state_is_put_back_after_an_exception() -> None:
    before = state()
    with pytest.raises(CellTimeout), isolated("a" * 20, 2):
        draws()
        raise CellTimeout
    assert state() == before


def test_draws_depend_on_the_key_alone() -> None:
    found = []
    for key in ("a" * 20, "b" * 20, "a" * 20):
        draws()
        with isolated(key, 1):
            found.append(draws())
    assert found[0] == found[2], "cell A, then B, then A: A is the same in every bit"
    assert all(one != other for one, other in zip(found[0], found[1], strict=True))


def test_a_cell_starts_with_gradients_its_threads_and_determinism() -> None:
    with torch.no_grad(), isolated("a" * 20, 2):
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("share", "bound"), [(0.25, 0.275), (0.95, 1.0), (1.0, 1.0), (4.0, 1.0), (0.0, 1.0)]
)
def test_a_cell_takes_its_share_of_a_gpu_and_a_tenth_of_that(
    monkeypatch: pytest.MonkeyPatch, share: float, bound: float
) -> None:
    told: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    bound_memory(torch.device("cpu"), share)
    assert not told
    bound_memory(torch.device("cuda"), share)
    assert told == [pytest.approx(bound)]


def test_what_a_process_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacking("cpu") == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees none on " in lacking("cuda") and "CUDA_VISIBLE_DEVICES=''" in lacking("cuda")
    assert "resources={cpus: 1}" in lacking("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lacking("cuda") == ""


def test_a_rebuilt_parent_leaves_its_child_as_it_was() -> None:
    with isolated("a" * 20, 1):
        first = draws()
        second = draws()
    with isolated("a" * 20, 1):
        assert draws() == first
        with isolated("b" * 20, 1):
            draws()
        assert draws() == second


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_a_cell_uses_its_freed_memory_again() -> None:
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    with isolated("a" * 20, 1):
        for turn in range(20):
            if turn == 10:  # the first leave holes that small objects fill
                before = faults()
            torch.ones(12_000_000)  # 48 MB: by default mapped, and its 11,719 pages cleared, anew
        assert faults() - before < 5 * 11_719


def unheard() -> None:
    raise AssertionError("only a watchdog records")


def test_time_runs_out_in_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGALRM)
    started = time.perf_counter()
    with pytest.raises(CellTimeout), limit(0.05, unheard):
        try:
            time.sleep(30)
        except Exception:  # what a method may catch
            pytest.fail("no `except Exception` of a method catches it")
    assert time.perf_counter() - started < 5
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_limit_that_was_kept_is_cancelled() -> None:
    with limit(0.05, unheard):
        pass
    time.sleep(0.1)
    with pytest.raises(KeyError), limit(0.05, unheard):
        raise KeyError
    time.sleep(0.1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_limit() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with limit(None, unheard):
        assert signal.getsignal(signal.SIGALRM) is before


def test_a_limit_that_was_kept_in_another_thread_is_cancelled() -> None:
    def work() -> None:
        with limit(0.05, unheard):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    time.sleep(0.1)


WATCHED = """
import ctypes, sys, threading, time
from sweeper.engine import isolation

isolation.GRACE = 0.2
sleep = time.sleep if sys.argv[1] == "lets go" else ctypes.PyDLL(None).sleep

def work():
    with isolation.limit(0.05, lambda: print("recorded", flush=True)):
        sleep(30)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("code", "said", "returned"), [("lets go", "recorded\n", 70), ("holds the interpreter", "", 1)]
)
def test_time_runs_out_in_another_thread(code: str, said: str, returned: int) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == said, "what happened is written before the process ends, where it can be"
    assert done.returncode == returned and time.monotonic() - started < 28
    assert ("Timeout" in done.stderr) == (not said), "the stack says where it hung"
