"""How a cell that did not end well ended: its status, and the true cause in words."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from sweeper.core import text
from sweeper.core.errors import DivergedError, MachineError, StoreError, SweepError


class Interrupted(KeyboardInterrupt):
    """Somebody wants the run to stop now; no method raises this."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise `Interrupted` where it would raise what a method may raise too."""
    ordinary = signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not ordinary:
        yield
        return

    def stop(*_: Any) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ordinary)


@contextlib.contextmanager
def of_the_machine() -> Iterator[None]:
    """Blame the machine for what is raised before a method's own code runs.

    Raises:
        MachineError: In place of it; memory that is short keeps its own.
    """
    try:
        yield
    except (MachineError, StoreError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = str(error) if isinstance(error, SweepError) else f"{type(error).__name__}: {error}"
        raise MachineError(text.error(said)) from error


class ChildFailed(Exception):
    """A method in a child did not end well; the text is the cause, with its traceback."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        """failed | diverged | oom."""


def blame(error: BaseException) -> tuple[str, str]:
    """Return the status (failed | diverged | oom) an exception of a cell stands for, and its text.

    The last line of the text, which is fit for files, is the cause.
    """
    if isinstance(error, ChildFailed):
        return error.status, str(error)
    if isinstance(error, DivergedError):
        return "diverged", text.error(str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "oom", text.error(str(error))
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return "oom", text.error(str(error))
    trace = text.error("".join(traceback.format_exception(error)))
    if isinstance(error, SystemExit):
        trace += f"called sys.exit({error.code!r})"
    return "failed", trace


def ended(code: int | None) -> tuple[str, str]:
    """Return what the end of a process stands for, as `blame`, from its exit code.

    Args:
        code: Below 0: minus the signal; None: not known.
    """
    if code is None or code >= 0:
        return "failed", f"ended its process with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":  # nobody but the system kills so, where memory is short
        return "oom", "ended by SIGKILL: killed by hand, or out of memory"
    return "failed", f"ended by {name}"
