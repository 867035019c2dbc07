"""Methods that go wrong on purpose, named in sweep files as `tests.support.faulty:Class`."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from attacks.badnets import BadNets
from defenses.base import Case, Defense
from sweeper.core.errors import DivergedError
from sweeper.core.types import Outcome


def lose_process() -> None:
    """Lose the process of the cell, as a machine's fault would, and with it this child of it."""
    server = os.getppid()
    worker = Path(f"/proc/{server}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]
    os.kill(int(worker), signal.SIGKILL)
    time.sleep(3600)


@dataclass(frozen=True, kw_only=True)
class Faulty(Defense):
    """What the faulty defenses share."""

    marks: str = ""
    """Folder in which every attempt leaves a file."""

    title = "faulty"
    paper = "test"
    kind = "repair"
    sees = frozenset({"model"})

    def mark(self) -> None:
        if self.marks:
            Path(self.marks, f"{type(self).__name__}-{time.time_ns()}").touch()

    def defend(self, case: Case) -> Outcome:
        self.mark()
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Raises(Faulty):
    def defend(self, case: Case) -> Outcome:
        self.mark()
        raise ValueError("broken on purpose")


@dataclass(frozen=True, kw_only=True)
class Speaks(Faulty):
    """It says what it can in every way, and ends as it is told to."""

    ending: str = ""

    def defend(self, case: Case) -> Outcome:
        sys.stdout.write("an ordinary word\n")
        sys.stderr.write("a warning\n")
        case.log(epoch=1, epochs=2, loss=0.51234)
        sys.stdout.write("10 %\r20 %\r")
        os.write(1, b"from compiled code\n")
        sys.stdout.write(f"in {Path.home()}/study, \x1b[31mred\x1b[0m\n")
        if self.ending == "raises":
            raise ValueError("broken on purpose")
        if self.ending == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Shouts(Faulty):
    """What it says is long, not UTF-8, and would move the cursor."""

    def defend(self, case: Case) -> Outcome:
        raise ValueError("said \udcff\x1b[2J " + "x" * 30_000_000 + " on purpose")


@dataclass(frozen=True, kw_only=True)
class Diverges(Faulty):
    def defend(self, case: Case) -> Outcome:
        model = case.fresh_model()
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
        return Outcome(model=model)


@dataclass(frozen=True, kw_only=True)
class OutOfMemory(Faulty):
    def defend(self, case: Case) -> Outcome:
        self.mark()
        raise torch.OutOfMemoryError("no room on purpose")


@dataclass(frozen=True, kw_only=True)
class Hangs(Faulty):
    def defend(self, case: Case) -> Outcome:
        self.mark()
        time.sleep(3600)
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Waits(Faulty):
    """Says how far it is and waits for somebody to hear it."""

    def defend(self, case: Case) -> Outcome:
        case.log(epoch=3, epochs=7)
        deadline = time.monotonic() + 60
        while not Path(self.marks, "heard").exists():
            assert time.monotonic() < deadline, "nobody heard"
            time.sleep(0.05)
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Holds(Faulty):
    """Hangs in C code that never lets go of the interpreter."""

    def defend(self, case: Case) -> Outcome:
        import ctypes

        self.mark()
        ctypes.PyDLL(None).sleep(3600)
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Dies(Faulty):
    """Loses its process at the first attempt, as a machine's fault would."""

    def defend(self, case: Case) -> Outcome:
        first = not list(Path(self.marks).glob("Dies-*"))
        self.mark()
        if first:
            lose_process()
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Numbered(Faulty):
    """One of many short ones; it may lose its process at the first attempt."""

    number: int = 0
    dies: bool = False

    def defend(self, case: Case) -> Outcome:
        first = not list(Path(self.marks).glob(f"Numbered-{self.number}-*"))
        Path(self.marks, f"Numbered-{self.number}-{time.time_ns()}").touch()
        if self.dies and first:
            lose_process()
        return Outcome(model=case.fresh_model())


@dataclass(frozen=True, kw_only=True)
class Peeks(Faulty):
    def defend(self, case: Case) -> Outcome:
        return Outcome(model=case.fresh_model(), notes={"clean": len(case.clean)})


@dataclass(frozen=True, kw_only=True)
class Murmurs(Faulty):
    """Its notes are not UTF-8."""

    def defend(self, case: Case) -> Outcome:
        return Outcome(model=case.fresh_model(), notes={"heard \udcff": "\ud800"})


@dataclass(frozen=True, kw_only=True)
class FailsToPoison(BadNets):
    """An attack whose victim cannot be built."""

    title = "faulty"
    paper = "test"
    presets = {}

    def poison(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        raise RuntimeError("no poison on purpose")


@dataclass(frozen=True, kw_only=True)
class ShoutsAtVictims(FailsToPoison):
    """An attack whose error is long, or none."""

    message: str = "said \udcff" + "x" * 1_000_000 + " on purpose"
    diverges: bool = False

    def poison(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        raise DivergedError("") if self.diverges else RuntimeError(self.message)
