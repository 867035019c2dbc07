"""Two worker processes, as two cells run on two cores: one works alone, or both at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from threading import BrokenBarrierError
from typing import Any

from sweeper.engine.isolation import isolated

_gate: Any = None
_together = False


class Pair:
    """Keeps two processes, so that a measurement does not wait for imports."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def alone(self, work: Callable[..., Any], *given: Any, threads: int = 2) -> list[Any]:
        """What `work` returns in one of the processes."""
        return [self._pool.submit(_run, work, given, threads, False).result()]

    def both(self, work: Callable[..., Any], *given: Any) -> list[Any]:
        """What `work` returns in each of them, at one thread each, at the same time."""
        running = [self._pool.submit(_run, work, given, 1, True) for _ in range(2)]
        return [one.result() for one in running]


@contextmanager
def pair() -> Iterator[Pair]:
    """Start the two processes; they end with the block."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, _begin, (context.Barrier(2),)) as pool:
        yield Pair(pool)


def line_up() -> None:
    """Called between warm-up and measurement: wait for the other process, if both work."""
    if _together:
        _gate.wait(120)


def _begin(gate: Any) -> None:
    global _gate
    _gate = gate


def _run(work: Callable[..., Any], given: tuple[Any, ...], threads: int, together: bool) -> Any:
    global _together
    _together = together
    line_up()  # so that two pieces of work never go to one process
    with isolated("benchmark", threads):
        try:
            return work(*given)
        except BrokenBarrierError:
            raise RuntimeError("the other process failed") from None
