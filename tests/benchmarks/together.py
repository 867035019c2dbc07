"""Three seeds of one small network trained as one batch, beside one seed alone: is it worth it?

Weights are stacked and the step is `vmap`ped over them, so that a convolution becomes a grouped one
and three seeds launch as many kernels as one. A training may go so where its attack has no hooks.
Nothing but this benchmark does: the seeds of a sweep are cells of their own, in processes of their
own. On a CPU that is right: grouped convolutions cost more than one after another. On a GPU, which
waits for launches, the part of `gpu` will tell, beside three seeds as branches of one CUDA graph.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from sweeper import models
from sweeper.engine import graphed, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from tests.benchmarks._clocks import pace
from tests.benchmarks._loops import BATCH, CLASSES, CPU, recipe

SEEDS, ROUNDS, STEPS = 3, 5, 5
MODELS, SIDES = ("tiny",), (8, 32)
Update = Callable[[], Tensor]
"""One step of all seeds; their losses [seeds], valid until the next call."""


@dataclass(frozen=True)
class Bed:
    """What is trained: a network of every seed, and a batch of its own for each."""

    model: str
    side: int
    precision: str
    device: torch.device
    seeds: int = SEEDS

    def networks(self) -> list[nn.Module]:
        """The same ones at every call."""
        given: dict[str, Any] = {"classes": CLASSES, "shape": (3, self.side, self.side)}
        given |= {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        draws = [torch.Generator().manual_seed(seed) for seed in range(self.seeds)]
        built = [models.build(self.model, {}, **given, generator=draw) for draw in draws]
        return [training.place(net, self.device, 4).train() for net in built]

    def batches(self) -> list[Batch]:
        """Random images of each seed, and labels in turn."""
        rng, labels = torch.Generator().manual_seed(0), torch.arange(BATCH) % CLASSES
        images = torch.rand(self.seeds, BATCH, 3, self.side, self.side, generator=rng)
        placed = [i.to(self.device, memory_format=torch.channels_last) for i in images]
        there = labels.to(self.device)
        return [Batch(image, there, there, 0, 0) for image in placed]

    @property
    def recipe(self) -> Recipe:
        return replace(recipe(self.precision), lr=0.01)

    def each(self) -> list[Callable[[], Tensor]]:
        """The engine's own step of every seed."""
        hooks, found = Hooks(), []
        for net, batch in zip(self.networks(), self.batches(), strict=True):
            optimizer = hooks.optimizer(net, self.recipe)
            step = training.updater(net, optimizer, self.recipe, hooks, self.device)
            found.append(functools.partial(step, batch))
        return found


def in_turn(bed: Bed) -> Update:
    """Every seed with the engine's own step, one after another."""
    steps = bed.each()
    return lambda: torch.stack([step() for step in steps])


def as_one(bed: Bed) -> Update:
    """All seeds in one step: weights, statistics and momenta have a leading dimension of seeds."""
    networks, batches = bed.networks(), bed.batches()
    parameters, buffers = stack_module_state(networks)  # type: ignore[arg-type]
    parameters = {name: nn.Parameter(value.detach()) for name, value in parameters.items()}
    bare, settings = networks[0], bed.recipe
    optimizer = Hooks().optimizer(nn.ParameterList(parameters.values()), settings)
    images = torch.stack([batch.inputs for batch in batches])
    labels = torch.stack([batch.labels for batch in batches])

    def one(weights: Mapping[str, Tensor], statistic: Mapping[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(bare, (weights, statistic), (x,))  # type: ignore[arg-type]
        return logits

    def update() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with training.autocast(settings, bed.device):
            logits = torch.vmap(one)(parameters, buffers, images)
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            )
        losses = losses.view(bed.seeds, -1).mean(1)
        losses.sum().backward()  # a seed's loss knows its own weights alone
        optimizer.step()
        return losses.detach()

    return update


def branches(bed: Bed) -> Update:
    """Every seed in a stream of its own; on a CPU, which has none, in turn."""
    if bed.device.type != "cuda":
        return in_turn(bed)
    steps, streams = bed.each(), [torch.cuda.Stream() for _ in range(bed.seeds)]

    def update() -> Tensor:
        here, losses = torch.cuda.current_stream(), []
        for step, stream in zip(steps, streams, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                losses.append(step())
        for stream in streams:
            here.wait_stream(stream)
        return torch.stack(losses)

    return update


def recorded(update: Update, device: torch.device) -> Update:
    """The same as a CUDA graph."""
    recorder = graphed.RECORDERS[device.type]()
    for _ in range(graphed.WARM):
        recorder.warm(update)
    losses = recorder.record(update)

    def replay() -> Tensor:
        recorder.replay()
        return losses

    return replay


def apart(bed: Bed, way: Callable[[Bed], Update], steps: int = 3) -> float:
    """The largest difference of a loss from that of the seed alone, in so many steps."""
    one, other = in_turn(bed), way(bed)
    gaps = [(one() - other()).abs().max().item() for _ in range(steps)]
    return max(gaps)


def ways(bed: Bed) -> dict[str, Update]:
    """One seed alone, and all of them in every way."""
    return {
        "one alone": in_turn(replace(bed, seeds=1)),
        f"{bed.seeds} in turn": in_turn(bed),
        f"{bed.seeds} as one batch": as_one(bed),
    }


def rows() -> list[dict[str, Any]]:
    """CPU seconds on one thread; the ways take turns."""
    found = []
    for model, side, precision in itertools.product(MODELS, SIDES, ("fp32", "bf16")):
        bed = Bed(model, side, precision, CPU)
        updates = ways(bed)
        turns: list[dict[str, float]] = []
        for turn in range(ROUNDS + 1):
            took = {name: _seconds(update) for name, update in updates.items()}
            turns += [took] if turn else []  # the first one warms up
        for name in updates:
            seconds = statistics.median(turn[name] for turn in turns)
            times = statistics.median(turn[name] / turn["one alone"] for turn in turns)
            row = {"model": model, "side": side, "precision": precision, "way": name}
            found.append({**row, "ms a step": 1000 * seconds, "times one": round(times, 2)})
        found[-1]["loss apart"] = apart(bed, as_one)
    return found


def recorded_rows(device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Wall of a step on a GPU, each way as it is and as a graph, measured for so many seconds."""
    found = []
    for precision in ("fp32", "bf16"):
        bed, once = Bed(MODELS[0], SIDES[-1], precision, device), 0.0
        updates = {**ways(bed), f"{bed.seeds} in streams": branches(bed)}
        for name, update in list(updates.items()):
            updates[f"{name}, graph"] = recorded(update, device)
        for name, update in updates.items():
            took = pace(update, device, seconds, calls=5)
            once = once or took
            row = {"precision": precision, "way": name, "ms a step": 1000 * took}
            found.append({**row, "times one": took / once})
        found[-1]["loss apart, as one batch"] = apart(bed, as_one)
    return found


def _seconds(update: Update) -> float:
    started = time.process_time()
    for _ in range(STEPS):
        update()
    return (time.process_time() - started) / STEPS
