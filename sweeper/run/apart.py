"""Methods that do not ship, and portable cells, run in a child process: their cell's side of it.

A fork of a warm server that has imported everything and done nothing (`multiprocessing`'s fork
server), so a child costs tens of milliseconds, starts clean, and may use a GPU. It has a memory
peak and an exit code of its own, and it ends when its time is up, whatever it does.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from torch import Tensor

import sweeper.tasks
from sweeper import models
from sweeper.core import catalog, search, switches
from sweeper.engine.isolation import CellTimeout
from sweeper.run import child, faults
from sweeper.run.faults import ChildFailed
from sweeper.run.made import Made
from sweeper.run.material import Log, Material
from sweeper.run.watch import begins, has_packages
from sweeper.run.wire import Message, Wire

_FORKS = multiprocessing.get_context("forkserver")
_STARTING = threading.Lock()
_PIPE = 64 * 1024
"""Bytes a pipe holds, so read in one go."""


class Child:
    """A process of its own for a method, and the wire to it."""

    def __init__(self, run: Callable[[Wire], None], seconds: float | None) -> None:
        """Start one.

        Args:
            run: What it runs: a function of a module, or a partial of one.
            seconds: When its time is up.
        """
        ours, theirs = _FORKS.Pipe()
        life, self._life = _FORKS.Pipe(duplex=False)
        said, says = _FORKS.Pipe(duplex=False)
        with _STARTING, _no_main(), search.shared() as before:
            self._process = _FORKS.Process(target=_begin, args=(theirs, life, says, run, before))
            _FORKS.set_forkserver_preload(["sweeper.run.warm"])
            self._process.start()
        for end in (theirs, life, says):
            end.close()
        self.wire = Wire(ours)
        self._said = [said]
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._until = None if seconds is None else time.monotonic() + seconds

    def send(self, kind: str, tensors: Mapping[str, Tensor] | None = None, **values: Any) -> None:
        """Send it a message; whether it is still there `receive` finds out, with the cause."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wire.send(kind, tensors, **values)

    def receive(self, log: Log | None = None) -> Message:
        """Wait for a message; progress on the way goes to `log`, what it prints to our stderr.

        Raises:
            CellTimeout: Its time is up.
            ChildFailed: The method failed, or its process ended.
        """
        while True:
            left = None if self._until is None else max(0.0, self._until - time.monotonic())
            ready = wait([self.wire.fileno(), *self._said], left)
            self._print()
            if self.wire.fileno() not in ready:
                if left == 0 or not ready:
                    raise CellTimeout
                continue
            try:
                message = self.wire.receive()
            except (EOFError, ConnectionResetError):
                self._process.join(10)
                self._print()
                raise ChildFailed(*faults.ended(self._process.exitcode)) from None
            if message.kind == "failed":
                raise ChildFailed(message.values["status"], message.values["text"])
            if message.kind != "log":
                return message
            if log:
                log(**message.values)

    def _print(self) -> None:
        """Print what it has: all there was before its last message, as a pipe holds no more."""
        for said in [said for said in self._said if said.poll()]:
            content = os.read(said.fileno(), _PIPE)
            sys.stderr.write(self._decode(content, not content))
            if not content:
                said.close()
                self._said.clear()

    def end(self) -> None:
        """End it, with all it has started."""
        pid = self._process.pid
        assert pid
        for kill in (os.killpg, os.kill):  # it may have no group of its own yet
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
                break
        self._process.join()
        self._process.close()
        self._print()
        for end in (self._life, *self._said):
            end.close()
        self.wire.close()


@contextlib.contextmanager
def started(run: Callable[[Wire], None], seconds: float | None) -> Iterator[Child]:
    """A child for as long as it is needed."""
    process = Child(run, seconds)
    try:
        yield process
    finally:
        process.end()


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep a child from importing the script that runs the sweep, as `multiprocessing` would."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def _begin(
    connection: Connection,
    life: Connection,
    says: Connection,
    run: Callable[[Wire], None],
    environment: search.Environment,
) -> None:
    """The child's first function: a group of its own, which ends with whoever started it."""
    search.put(environment)
    os.setpgid(0, 0)
    for number in (1, 2):
        os.dup2(says.fileno(), number)
    says.close()
    sys.stdout, sys.stderr = _stream(1), _stream(2)

    def follow() -> None:
        with contextlib.suppress(EOFError, OSError):
            life.recv_bytes()  # nothing ever comes, but its end
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    run(Wire(connection))


def _stream(number: int) -> io.TextIOWrapper:
    """A stream that keeps nothing back: a child is killed when its time is up."""
    raw = open(number, "wb", buffering=0, closefd=False)
    return io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", write_through=True)


# A whole cell


def call(
    function: Callable[..., Any], arguments: Sequence[Any], seconds: float | None, log: Log | None
) -> Any:
    """Return what a function returns (JSON) that runs in a child.

    Args:
        function: Of a module; takes `arguments` and a log.
        arguments: What can be pickled.
        seconds: When its time is up.
        log: Takes its progress.

    Raises:
        CellTimeout: Its time is up.
        ChildFailed: It raised, or its process ended.
    """
    with started(functools.partial(_call, function, tuple(arguments)), seconds) as process:
        return process.receive(log).values["result"]


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], wire: Wire) -> None:
    def log(**progress: Any) -> None:
        wire.send("log", **progress)

    try:
        wire.send("done", result=function(*arguments, log))
    except BaseException as error:
        status, text = faults.blame(error)
        wire.send("failed", status=status, text=text)


# A defense, or its stage


@contextlib.contextmanager
def defended(work: Material, state: Mapping[str, Tensor], seconds: float | None) -> Iterator[Made]:
    """Run a defense in a child, which answers about what it made until this ends."""
    with _at_work(work, work.defense.sees, state, seconds, stage=False) as (ask, done):
        values, seen = done.values, list(_reached(done.values["seen"], work))

        def answer(kind: str, images: Tensor) -> Tensor:
            message = ask(kind, images)
            seen[:] = _reached(message.values["seen"], work)
            return message.tensors["answer"]

        yield Made(
            predict=functools.partial(answer, "predict") if values["predict"] else None,
            score=functools.partial(answer, "score") if values["score"] else None,
            scores=done.tensors.get("scores"),
            flagged=done.tensors.get("flagged"),
            threshold=values["threshold"],
            notes=values["notes"],
            seconds=values["seconds"],
            peak_memory_mb=values["peak_memory_mb"],
            seen=seen,
        )


def staged(work: Material, seconds: float | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Run a defense's stage in a child: its tensors, and what it was seen to reach."""
    stage = work.defense.stage()
    assert stage is not None
    with _at_work(work, stage.sees, {}, seconds, stage=True) as (_, done):
        return dict(done.tensors), _reached(done.values["seen"], work)


Ask = Callable[[str, Tensor], Message]
"""What is asked about inputs [N, ...] (predict | score) -> `answer`, a tensor [N]."""


@contextlib.contextmanager
def _at_work(
    work: Material,
    sees: frozenset[str],
    state: Mapping[str, Tensor],
    seconds: float | None,
    *,
    stage: bool,
) -> Iterator[tuple[Ask, Message]]:
    """A child that has done its work: what asks it, and what it said of it."""
    given = work.given(sees)
    tensors = {f"state.{name}": value for name, value in state.items()}
    if "model" in given:
        tensors |= {f"model.{k}": v.clone() for k, v in given["model"].state_dict().items()}
    for name in {"clean", "train"} & set(given):
        tensors |= {f"{name}.{key}": value for key, value in given[name].tensors.items()}
    with started(child.run, seconds) as process:

        def hear() -> Message:
            """Wait for what the child has to say; what it asks meanwhile is answered."""
            while True:
                message = process.receive(work.log)
                if message.kind == "queries":
                    answer = given["queries"](message.tensors["images"])
                    process.send("answer", {"answer": answer})
                elif message.kind == "oracle":
                    rates = work.rates(lambda images: ask("predict", images).tensors["answer"])
                    process.send("rates", rates=list(rates))
                else:
                    return message

        def ask(kind: str, images: Tensor) -> Message:
            process.send(kind, {"images": images})
            return hear()

        process.send("order", tensors, **vars(_order(work, sees, stage)))
        yield ask, hear()


def _order(work: Material, sees: frozenset[str], stage: bool) -> child.Order:
    packages = [sys.modules[name] for name in switches.OURS]
    return child.Order(
        defense=dict(work.cell.local["defense"]),
        stage=stage,
        sees=sorted(sees),
        key=work.cell.seed,
        recipe=work.training,
        model=work.architecture,
        task=work.dataset.train.task,
        layout=list(work.dataset.train.tensors),
        names=list(work.dataset.train.classes),
        device=work.device.type,
        gpus=work.context.gpus,
        threads=work.context.threads,
        portable=work.context.portable,
        code=work.context.code,
        families=list(models.__path__),
        tasks=list(sweeper.tasks.__path__),
        ours=[folder for package in packages for folder in package.__path__],
        theirs=_places(work),
    )


def _places(work: Material) -> list[str]:
    """Where the code of a cell's defense lies that does not ship: folders, or a file."""
    found = []
    for cls in catalog.classes(work.defense):
        top = sys.modules[cls.__module__.partition(".")[0]]
        file = top.__file__ or ""
        alone = file if has_packages(str(Path(file).parent)) else str(Path(file).parent)
        found += list(getattr(top, "__path__", [])) or [alone]
    return found


def _reached(seen: Sequence[str], work: Material) -> tuple[str, ...]:
    """What was seen, less files of the method's own folder that are none of ours."""
    theirs = begins(_places(work))
    context = work.context
    places = [context.store, context.data, context.cache, os.environ.get("SWEEPER_DATA")]
    ours = begins(place for place in places if place)

    def own(text: str) -> bool:
        path = text.removeprefix("open ")
        return path != text and path.startswith(theirs) and not path.startswith(ours)

    return tuple(text for text in seen if not own(text))
