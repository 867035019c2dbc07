"""One driver a sweep: a claim in the store, kept alive by a heartbeat. No torch.

A store has no locks that hold on a laptop, NFS and S3 alike, so a claim is a file that its driver
keeps rewriting. Who finds one watches it: a claim that changes is alive, one that does not for
`SILENT` seconds is taken over. No two clocks are ever compared. Two drivers that start in the same
instant both write; the one that finds the other's claim at its next beat stops as after Ctrl-C.
Until then they share the work: a cell asks the store before it runs.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper.core import advice
from sweeper.core.errors import StoreError, SweepError
from sweeper.store.ledger import Ledger

BEAT = 5.0
"""Seconds between two signs of life."""
SILENT = 30.0
"""Seconds without one after which a driver counts as dead."""


@contextlib.contextmanager
def claimed(
    ledger: Ledger, sweep: str, run: str, at_work: Callable[[], Mapping[str, str]] = dict
) -> Iterator[None]:
    """Be the only driver of a sweep.

    Args:
        ledger: The store.
        sweep: Name of the sweep.
        run: Name of this call, which no other has.
        at_work: Says what its driver has begun: key of a cell -> the cell in words.

    Raises:
        SweepError: Another driver runs the sweep, or took it over from this one, or the store
            cannot be written: the claim is the first write of a run.
    """
    mine = {"run": run, "who": _who(), "pid": os.getpid(), "place": _place(), "since": _now()}
    try:
        if claim := ledger.claim(sweep):
            _outlive(ledger, sweep, claim)
        ledger.save_claim(sweep, {**mine, "beat": 0})
    except StoreError as error:
        cause = error.__cause__
        raise SweepError(
            f"store: cannot write to {ledger.root}: {getattr(cause, 'strerror', '') or cause}; "
            "name another place with --store"
        ) from None
    over = threading.Event()
    taken_by: list[dict[str, Any]] = []

    def beat() -> None:
        number = 0
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):  # the store is away for a moment: try again
                current = ledger.claim(sweep)
                if current and current["run"] != run:
                    taken_by.append(current)
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                number += 1
                ledger.save_claim(sweep, {**mine, "beat": number, "at_work": dict(at_work())})

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        if not taken_by:
            ledger.drop_claim(sweep)
    if taken_by:
        raise SweepError(
            f"sweep {sweep} was taken over by {describe(taken_by[0])} while this one was silent: "
            "leave it to that one; what was done here is kept"
        )


def describe(claim: dict[str, Any]) -> str:
    """A driver in words."""
    return f"{claim['who']} (process {claim['pid']}, since {claim['since']})"


def seen(claim: dict[str, Any]) -> bool | None:
    """Whether a driver lives; None where its process cannot be seen from here."""
    return _alive(claim["pid"]) if claim.get("place") == _place() else None


def _outlive(ledger: Ledger, sweep: str, claim: dict[str, Any]) -> None:
    """Return once the driver that made a claim is known to be dead or gone.

    Raises:
        SweepError: It shows that it is alive.
    """
    if seen(claim) is False:
        return
    deadline = time.monotonic() + SILENT
    while time.monotonic() < deadline:
        time.sleep(BEAT / 10)
        current = ledger.claim(sweep)
        if current is None:
            return
        if current != claim:
            watch = advice.command("watch")
            shows = f" ({watch} shows how far it is)" if watch else ""
            raise SweepError(
                f"sweep {sweep} is being run by {describe(current)}: wait for it{shows}, or stop "
                f"it and type this again; a dead driver is replaced after {SILENT:g} s of silence"
            )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _place() -> str:
    """This machine or container since it started: where a process number means something.

    A name alone is not enough: two machines may have the same.
    """
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        words.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(words)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
