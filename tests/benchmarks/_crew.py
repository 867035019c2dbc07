"""Worker processes that stay, as cells have theirs: one works alone, or several at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from threading import BrokenBarrierError
from typing import Any

from sweeper.engine.isolation import isolated

_gates: dict[int, Any] = {}
_together = 1


class Crew:
    """Keeps processes, so that a measurement does not wait for imports."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def alone(self, work: Callable[..., Any], *given: Any, threads: int = 2) -> list[Any]:
        """What `work` returns in one of the processes."""
        return [self._pool.submit(_run, work, given, threads, 1).result()]

    def together(self, count: int, work: Callable[..., Any], *given: Any) -> list[Any]:
        """What `work` returns in `count` of them, at one thread each, at the same time."""
        running = [self._pool.submit(_run, work, given, 1, count) for _ in range(count)]
        return [one.result() for one in running]


@contextmanager
def crew(most: int) -> Iterator[Crew]:
    """Start processes; they end with the block."""
    context = multiprocessing.get_context("spawn")
    gates = {count: context.Barrier(count) for count in range(2, most + 1)}
    with ProcessPoolExecutor(most, context, _begin, (gates,)) as pool:
        yield Crew(pool)


def line_up() -> None:
    """Called between warm-up and measurement: wait for the others that work at the same time."""
    if _together > 1:
        _gates[_together].wait(120)


def _begin(gates: dict[int, Any]) -> None:
    _gates.update(gates)


def _run(work: Callable[..., Any], given: tuple[Any, ...], threads: int, together: int) -> Any:
    global _together
    _together = together
    try:
        line_up()  # so that two pieces of work never go to one process
        with isolated("benchmark", threads):
            return work(*given)
    except BrokenBarrierError:
        raise RuntimeError("another process failed") from None
    except BaseException:
        if together > 1:
            _gates[together].abort()  # nobody waits for this one
        raise
