"""The command line: thin, every command calls one room."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys

SELDOM = 100_000
"""New objects after which a command looks for garbage. What a plan makes stays: a fifth of the time
of a large one was to look through it again."""


def main() -> None:
    """Run the command that was typed; what it needs is imported then, torch only where used."""
    from sweeper.core import lazily

    usual = gc.get_threshold()
    gc.set_threshold(SELDOM)
    lazily.wait_for("numpy")
    lazily.wait_for("torch", functools.partial(gc.set_threshold, *usual))  # tensors are large
    from sweeper.cli import app

    try:
        app.main()
    except SystemExit as end:
        if _alone():
            with contextlib.suppress(BrokenPipeError):  # who read it has enough
                sys.stdout.flush()
                sys.stderr.flush()
            code = end.code or 0
            os._exit(code if isinstance(code, int) else 1)
        raise


def _alone() -> bool:
    """Whether nothing that this process started waits for its orderly end.

    Then it leaves at once: pools of threads, of torch and pyarrow, abort it where they are torn
    down while a thread of theirs still starts, and a thread that a method left would keep it.
    """
    switches = sys.modules.get("sweeper.core.switches")
    if switches and switches.LEFT:
        return True
    ray, processes = sys.modules.get("ray"), sys.modules.get("multiprocessing")
    started = ray is not None and ray.is_initialized()
    return not (started or (processes and processes.active_children()))
