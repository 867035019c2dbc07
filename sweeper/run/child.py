"""What runs in the child process of a method that does not ship: its case, and nothing else.

It is given tensors and returns tensors: no store, no data folder, no victim's key, no target. What
the defense made stays here and answers about images, which come shuffled and without labels.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

import sweeper.tasks
from defenses.base import Case, Defense
from sweeper import models
from sweeper.core import catalog, options
from sweeper.core.types import Samples, samples
from sweeper.engine import portable
from sweeper.engine import task as tasks
from sweeper.engine.isolation import bound_memory, isolated
from sweeper.engine.recipes import Recipe
from sweeper.models.base import Net
from sweeper.run import faults, record
from sweeper.run.made import Made, made
from sweeper.run.watch import HIDDEN, Watch
from sweeper.run.wire import Wire


@dataclass(frozen=True)
class Order:
    """What a child is told, beside tensors; all of it is JSON."""

    defense: dict[str, Any]
    """The defense as a sweep file names it."""
    stage: bool
    """Whether to run its stage, in place of itself."""
    sees: list[str]
    """What it, or its stage, declares."""
    key: str
    """What its random draws derive from."""
    recipe: dict[str, Any]
    """How models are trained on this data set."""
    model: dict[str, Any]
    """What `models.build` takes, beside the generator."""
    task: str
    """What the samples are."""
    layout: list[str]
    """Their tensors, in order: the wire keeps none."""
    names: list[str]
    """Of the classes."""
    device: str
    """cpu | cuda."""
    gpus: float
    """Its share of one."""
    threads: int
    """CPU threads."""
    portable: bool
    """Whether it computes what every processor does."""
    code: str | None
    """Folder of its module, beside what Python finds."""
    families: list[str]
    """Folders of model families."""
    tasks: list[str]
    """Folders of tasks."""
    ours: list[str]
    """Folders of the sweeper's own code."""
    theirs: list[str]
    """Folders, or the file, of the method's."""


def run(wire: Wire) -> None:
    """Run a defense or its stage, then answer about what it made until the other end hangs up."""
    began = wire.receive()
    order, given = Order(**began.values), began.tensors
    if order.portable:
        portable.require()
    _forget()
    if order.code:
        catalog.look_in(order.code)
    models.__path__[:], sweeper.tasks.__path__[:] = order.families, order.tasks
    device = torch.device(order.device)
    bound_memory(device, order.gpus)
    start = order.model["options"].get("weights")  # read whenever a model is built
    watch = Watch([*order.ours, *([start] if start else [])], order.theirs)
    with isolated(order.key, order.threads):
        try:
            entry = dict(order.defense)
            defense: Defense = catalog.make("defense", entry.pop("defense"), entry)
            case = _case(wire, order, given, device)
            if order.stage:
                stage = defense.stage()
                assert stage is not None
                wire.send("done", stage.run(case), seen=watch.seen)
                return
            started = time.monotonic()
            outcome = defense.defend(case)
            if device.type == "cuda":
                torch.cuda.synchronize()
            result = made(
                outcome, tasks.task(order.task), case.recipe, device, time.monotonic() - started
            )
            _tell(wire, result, watch)
            _answer(wire, result, watch)
        except EOFError:  # the cell is gone, nobody wants to know
            return
        except BaseException as error:
            status, text = faults.blame(error)
            wire.send("failed", status=status, text=text)


def _forget() -> None:
    """Let an import of what is none of a method's business be an import again, to be seen."""
    for name in [name for name in os.environ if name.startswith("SWEEPER_")]:
        del os.environ[name]
    kept = {Wire.__module__, Made.__module__, faults.__name__, record.__name__, __name__}
    kept |= {Watch.__module__, "sweeper.run"}
    for name in [name for name in sys.modules if name.startswith(HIDDEN) and name not in kept]:
        module = sys.modules.pop(name)
        above, _, last = module.__name__.rpartition(".")
        if above in sys.modules and hasattr(sys.modules[above], last):
            delattr(sys.modules[above], last)


def _case(wire: Wire, order: Order, given: Mapping[str, Tensor], device: torch.device) -> Case:
    """The case, made from what arrived; queries and the oracle are questions to the other end."""

    def build(rng: Generator, **changes: Any) -> Net:
        given = {**order.model, "shape": tuple(order.model["shape"])}
        return models.build(**given, generator=rng, changes=changes)

    def queries(images: Tensor) -> Tensor:
        wire.send("queries", {"images": images})
        return wire.receive().tensors["answer"]

    def oracle(model: nn.Module) -> tuple[float, float]:
        wire.send("oracle")
        inputs = wire.receive().tensors["images"]
        answer = tasks.task(order.task).answers(model, inputs, recipe, device)
        wire.send("answer", {"answer": answer})
        acc, asr = wire.receive().values["rates"]
        return acc, asr

    def part(name: str) -> dict[str, Tensor]:
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}

    def held_samples(name: str) -> Samples:
        found = part(name)
        tensors = {key: found[key] for key in order.layout if key in found}
        return samples(order.task, tensors, tuple(order.names))

    recipe = options.construct(Recipe, order.recipe, "recipe")
    held: dict[str, Any] = {"queries": queries, "oracle": oracle}
    if "model" in order.sees:
        held["model"] = build(torch.Generator(), weights="")  # its own follow
        held["model"].load_state_dict(part("model"))
        held["model"].to(device).eval()
    held |= {name: held_samples(name) for name in ("clean", "train") if name in order.sees}
    return Case(
        sees=frozenset(order.sees),
        key=order.key,
        device=device,
        recipe=recipe,
        given={name: value for name, value in held.items() if name in order.sees},
        build=build,
        state=part("state"),
        log=lambda **progress: wire.send("log", **progress),
    )


def _tell(wire: Wire, result: Made, watch: Watch) -> None:
    """Say what was made: numbers whole, and what can be asked."""
    named = {"scores": result.scores, "flagged": result.flagged}
    tensors = {name: value for name, value in named.items() if value is not None}
    asked = {"predict": result.predict is not None, "score": result.score is not None}
    values = {
        name: getattr(result, name) for name in ("threshold", "notes", "seconds", "peak_memory_mb")
    }
    wire.send("done", tensors, **asked, **values, seen=watch.seen)


def _answer(wire: Wire, result: Made, watch: Watch) -> None:
    """Answer about images until the other end hangs up; what the method reaches for is told too."""
    while True:
        message = wire.receive()
        ask = result.predict if message.kind == "predict" else result.score
        assert ask is not None
        answer = ask(message.tensors["images"])
        wire.send("answer", {"answer": answer}, seen=watch.seen)
