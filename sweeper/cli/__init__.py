"""The command line: thin, every command calls one room."""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """Run the command that was typed; what it needs is imported then, torch only where used."""
    from sweeper.core import lazily

    lazily.wait_for("numpy")
    lazily.wait_for("torch")
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
