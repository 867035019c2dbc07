"""What a CUDA card does for this project, laid out for 140 s: `python -m tests.benchmarks gpu`.

The card's own rates; poisoned training (pipeline, step, both) in several ways, beside the toolbox
way of `_loops`; one, three and five cells at once; a step of each seed's defense; an evaluation;
and what all that says of the aims. Images and labels are random. A part that fails says why and the
next one runs; a part the time no longer allows is left out. Every table is printed when it is done.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from attacks.badnets import BadNets
from defenses.base import Case
from sweeper.core import catalog
from sweeper.core.machine import cores
from sweeper.engine import graphed, training
from sweeper.engine.isolation import bound_memory, isolated
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from tests.benchmarks import _loops, ceiling, together
from tests.benchmarks._clocks import pace, wait
from tests.benchmarks._crew import crew, line_up
from tests.benchmarks._loops import BATCH, CLASSES, SIDE, network, random_set
from tests.support import toys

Rows = list[dict[str, Any]]
SEEDS = ("anp", "d-br", "d-st", "fip", "sibp", "soda")
"""The defenses of the five papers."""
VICTIM = 30 * 50_000
"""Images a full-strength victim is trained on: recipe `fast` on CIFAR-10."""


@dataclass(frozen=True)
class Way:
    """One way to run this project's loop."""

    name: str
    precision: str
    graphs: bool = False
    free: bool = False
    """cuDNN may choose kernels by trying them, and such as do not repeat their bits."""


WAYS = (
    Way("fp32", "fp32"),
    Way("bf16", "bf16"),
    Way("bf16, graphs", "bf16", graphs=True),
    Way("bf16, graphs, cuDNN free", "bf16", graphs=True, free=True),
)
TOOLBOX = Way("torchvision loop", "fp32", free=True)
"""As toolboxes set cuDNN."""


@dataclass
class Bench:
    """How much is measured, and what was found so far."""

    device: torch.device
    models: tuple[str, ...] = ("resnet18", "preact-resnet18")
    cells: tuple[int, ...] = (1, 3, 5)
    """How many at once."""
    steps: int = 40
    """Of an epoch."""
    seconds: float = 1.0
    """Of each measurement."""
    rounds: int = 2
    side: int = 8192
    """Of the matrices."""
    images: int = 10_000
    """Test images; nine tenths of them are triggered too."""
    limit: float = 130.0
    """Seconds from the first part to the start of the last."""
    found: dict[str, float] = field(default_factory=dict)
    """Name -> what `aims` needs."""

    @property
    def main(self) -> str:
        """The model the aims are about."""
        return self.models[0]


def lacking() -> str:
    """Why there is nothing to measure here, or nothing."""
    if torch.cuda.is_available():
        return ""
    return "gpu: torch sees no CUDA device here; run this benchmark on a machine that has one."


def tables(bench: Bench | None = None) -> Iterator[tuple[str, Rows]]:
    """Title and rows of each part."""
    bench = bench or Bench(torch.device("cuda"))
    began = time.perf_counter()
    for title, expected, part in PARTS:
        started = time.perf_counter()
        if started - began + expected > bench.limit:
            yield title, [{"left out": f"{started - began:.0f} s are over, it takes {expected}"}]
            continue
        try:
            with isolated(f"benchmark {title}", torch.get_num_threads()):
                rows = part(bench)
        except Exception as error:  # what a rare machine can still show counts more
            rows = [{"error": f"{type(error).__name__}: {error}"}]
        yield f"{title} ({time.perf_counter() - started:.0f} s)", rows


@contextmanager
def running(way: Way) -> Iterator[None]:
    """Run the loop this way."""
    backend, before = torch.backends.cudnn, os.environ.get(graphed.SWITCH)
    flags = backend.deterministic, backend.benchmark
    os.environ[graphed.SWITCH] = "1" if way.graphs else "0"
    if way.free:
        backend.deterministic, backend.benchmark = False, True
    try:
        yield
    finally:
        backend.deterministic, backend.benchmark = flags
        os.environ.pop(graphed.SWITCH)
        if before is not None:
            os.environ[graphed.SWITCH] = before


# Parts


def card(bench: Bench) -> Rows:
    """The rate of matrix products, and of the convolutions of a training step."""
    found, sides, device = [], (bench.side, bench.side), bench.device
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        one, other = (torch.randn(sides, device=device).to(dtype) for _ in range(2))
        took = pace(functools.partial(torch.mm, one, other), device, bench.seconds / 2, calls=5)
        bench.found[f"matmul {name}"] = rate = 2 * bench.side**3 / took
        found.append({"what": f"matrix product {bench.side}, {name}", "TFLOP/s": rate / 1e12})
    shapes, seconds = ceiling.shapes(bench.main), 0.0
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    clock = functools.partial(pace, device=device, seconds=bench.seconds / 20)
    for shape, times in shapes.items():
        layout = torch.channels_last
        seconds += times * ceiling.one(shape, torch.bfloat16, layout, device, clock)
    work = sum(times * ceiling.operations(shape) for shape, times in shapes.items())
    bench.found["operations"], bench.found["convolutions"] = work, BATCH / seconds
    name = f"convolutions of {bench.main} alone, bf16, best kernels"
    found.append({"what": name, "TFLOP/s": work * BATCH / seconds / 1e12})
    found[-1]["images/s"] = BATCH / seconds
    return found


class _Enough(Exception):
    """The time of a measurement is over."""


def training_rate(bench: Bench, model: str, way: Way) -> float:
    """Images/s of `training.fit` on a poisoned set, from its second epoch on."""
    train = random_set(BATCH * bench.steps)
    poisoned = BadNets(target=_loops.TARGET).poison(
        train, _loops.RATE, {}, torch.Generator().manual_seed(0)
    )
    data, times = poisoned.samples, list[float]()

    def ended(*_: Any) -> None:
        if not times:
            line_up()
        times.append(time.perf_counter())
        if times[-1] - times[0] >= bench.seconds:
            raise _Enough

    recipe = replace(_loops.recipe(way.precision), epochs=10**6, schedule="constant", lr=0.01)
    with running(way):
        try:
            training.fit(
                network(model), data, recipe, key="gpu", device=bench.device, progress=ended
            )
        except _Enough:
            pass
    return BATCH * bench.steps * (len(times) - 1) / (times[-1] - times[0])


def step_rate(bench: Bench, model: str, way: Way) -> float:
    """Images/s of the step alone: one batch that is there, again and again."""
    device, recipe, hooks = bench.device, _loops.recipe(way.precision), Hooks()
    net = network(model).to(device, memory_format=torch.channels_last).train()
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
    labels = torch.arange(BATCH, device=device) % CLASSES
    batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, labels, 0, 0)
    with running(way):
        optimizer = hooks.optimizer(net, replace(recipe, lr=0.01))
        update = training.updater(net, optimizer, recipe, hooks, device)
        return BATCH / pace(lambda: update(batch), device, bench.seconds / 2)


def pipeline_rate(bench: Bench) -> float:
    """Images/s of batches drawn, cropped and mirrored."""
    images = training.on_device(random_set(50 * BATCH).images, bench.device)
    rng, recipe = torch.Generator().manual_seed(0), _loops.recipe("fp32")
    index = torch.randperm(len(images), generator=rng)[:BATCH].to(bench.device)

    def draw() -> None:
        training.augmented(images.index_select(0, index), recipe, rng)

    return BATCH / pace(draw, bench.device, bench.seconds)


def rates(bench: Bench) -> Rows:
    """Training in every way: the ways take turns."""
    pipeline = pipeline_rate(bench)
    found: Rows = [{"model": "any", "way": "pipeline alone", "images/s": pipeline}]
    turns: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(bench.rounds):
        for model in bench.models:
            for way in WAYS if model == bench.main else WAYS[:3]:
                both = training_rate(bench, model, way)
                turns.setdefault((model, way.name, "training"), []).append(both)
                alone = step_rate(bench, model, way)
                turns.setdefault((model, way.name, "step alone"), []).append(alone)
    for (model, way_name, what), measured in turns.items():
        rate = statistics.median(measured)
        row = {"model": model, "way": f"{way_name}: {what}", "images/s": rate}
        row["spread"] = f"{min(measured):.0f}-{max(measured):.0f}"
        if model == bench.main:
            bench.found[f"{way_name} {what}"] = rate
            if convolutions := bench.found.get("convolutions"):
                row["of the convolutions"] = rate / convolutions
            if product := bench.found.get("matmul bf16"):
                row["of the matrix product"] = rate * bench.found["operations"] / product
        found.append(row)
    return found


def toolbox(bench: Bench) -> Rows:
    """The plain torchvision loop: PIL images, a DataLoader, fp32, results read at every step."""
    workers, found = min(8, cores()), []
    with running(TOOLBOX):  # not with the determinism this project asks of cuDNN
        measured = _loops.toolbox(bench.main, bench.steps, 5, bench.device, workers)
    bench.found["toolbox"] = measured["training"]
    for what, rate in measured.items():
        way = f"{TOOLBOX.name}, fp32, {workers} workers: {what}"
        found.append({"model": bench.main, "way": way, "images/s": rate})
    return found


def _cell(bench: Bench, way: Way) -> float:
    """Images/s of one cell, which keeps to its share of the card."""
    bound_memory(bench.device, 1 / max(bench.cells))
    return training_rate(bench, bench.main, way)


def at_once(bench: Bench) -> Rows:
    """Cells that share the card, each in a process of its own."""
    asked, found = replace(bench, seconds=2 * bench.seconds, found={}), []
    with crew(max(bench.cells)) as processes:
        for way in WAYS[1:3]:
            for count in bench.cells:
                each = processes.together(count, _cell, asked, way)
                bench.found[f"{way.name} {count} cells"] = sum(each)
                row = {"cells": count, "way": way.name, "images/s": sum(each)}
                found.append({**row, "slowest": min(each), "fastest": max(each)})
    return found


def evaluation(bench: Bench) -> Rows:
    """ACC and ASR of a model: the second time, as of a defense."""
    net, test, recipe = network(bench.main), random_set(bench.images), _loops.recipe("bf16")
    attack, found = BadNets(target=_loops.TARGET), []
    for turn in ("first", "second"):
        started, rng = time.perf_counter(), torch.Generator().manual_seed(0)
        stamped = attack.trigger_set(test[torch.arange(9 * bench.images // 10)], {}, rng)
        toys.measured(net, test, stamped, _loops.TARGET, recipe, bench.device)
        took, count = time.perf_counter() - started, len(test) + 9 * bench.images // 10
        found.append({"turn": turn, "images": count, "s": took, "images/s": count / took})
    return found


def defenses(bench: Bench) -> Rows:
    """The pace of each seed's defense, between updates of its optimisers, against one victim."""
    build = functools.partial(
        toys.network, classes=CLASSES, shape=(3, SIDE, SIDE), model=bench.main
    )
    victim, train = build(torch.Generator().manual_seed(0)), toys.image_set(16 * BATCH)
    poisoned = toys.PLANTED.poison(train, 0.2, {}, torch.Generator().manual_seed(0))
    data = poisoned.samples
    recipe = Recipe(epochs=6, precision="bf16", lr=0.02, warmup=1.0)
    training.fit(victim, data, recipe, key="gpu", device=bench.device)
    clean = toys.image_set(4 * BATCH, seed=1)
    given = {"model": victim.cpu(), "clean": clean, "train": data}

    def case(sees: frozenset[str], state: Any) -> Case:
        return Case(
            sees=sees,
            key="gpu",
            device=bench.device,
            recipe=replace(recipe, crop=4, flip=True),
            given={what: value for what, value in given.items() if what in sees},
            build=build,
            state=state,
        )

    return [_defense(bench, name, case) for name in SEEDS]


def _defense(bench: Bench, name: str, case: Callable[..., Case]) -> dict[str, Any]:
    """Run a defense made short, waiting for the device after each update."""
    short = toys.small(catalog.method("defense", name)) | SHORT.get(name, {})
    times = list[float]()

    def updated(*_: Any) -> None:
        wait(bench.device)
        times.append(time.perf_counter())

    started = time.perf_counter()
    listening, error = register_optimizer_step_post_hook(updated), ""
    try:
        defense = catalog.make("defense", name, short)
        stage = defense.stage()
        defense.defend(case(defense.sees, stage.run(case(stage.sees, {})) if stage else {}))
    except Exception as raised:  # the others are still worth their time
        error = f"{type(raised).__name__}: {raised}"[:80]
    finally:
        listening.remove()
    wait(bench.device)
    apart = [after - before for before, after in zip(times, times[1:], strict=False)]
    middle = 1000 * statistics.median(apart) if apart else None
    row = {"defense": name, "updates": len(times), "ms an update": middle}
    row["s in all"] = time.perf_counter() - started
    return {**row, "error": error} if error else row


SHORT: dict[str, dict[str, Any]] = {
    "anp": {"steps": 20},
    "fip": {"steps": 20},
    "soda": {"steps": 20, "theta1": 0.0, "theta2": 0.0},
}
"""More steps where two are too few to see the pace; SODA removes whatever it detects."""


def aims(bench: Bench) -> Rows:
    """What was hoped for, and what was found."""
    name, best = max(
        ((way.name, bench.found.get(f"{way.name} training", 0.0)) for way in WAYS[:3]),
        key=lambda pair: pair[1],
    )
    found = bench.found
    graphs, eager = (found.get(f"{way.name} training", 0.0) for way in (WAYS[2], WAYS[1]))
    product = found.get("matmul bf16", 0.0) / found.get("operations", 1.0)
    lines = [
        (f"{name}: fraction of the bf16 matrix product", best, product, ">= 0.4"),
        (f"{name}: times the torchvision loop", best, found.get("toolbox", 0.0), ">= 20"),
        (f"{name}: seconds to a victim of 30 epochs, computed", VICTIM, best, "<= 30"),
        ("graphs: times the eager step, bf16", graphs, eager, "> 1"),
    ]
    most = f"{name} {max(bench.cells)} cells"
    if most in found:
        lines.append((f"{most}: times one", found[most], best, "> 1"))
    return [
        {"what": what, "aim": aim, "found": over / under if under else None}
        for what, over, under, aim in lines
    ]


PARTS: tuple[tuple[str, float, Callable[[Bench], Rows]], ...] = (
    ("the card", 8, card),
    ("training", 50, rates),
    ("the toolbox way", 10, toolbox),
    ("cells at once", 35, at_once),
    ("defenses", 20, defenses),
    ("evaluation", 3, evaluation),
    ("seeds together", 4, lambda bench: together.recorded_rows(bench.device, bench.seconds / 5)),
    ("aims", 0, aims),
)
"""Title, seconds it is expected to take, and the part."""
