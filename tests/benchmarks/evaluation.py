"""ACC and ASR of 10,000 clean and 9,000 triggered images on two cores, beside the toolbox way.

The toolbox way reads PIL images, stamps the triggered ones when they are read and batches them with
a DataLoader of two workers; the batches alone are measured too. Images are random, so is the
network; ResNet-18 sees a twentieth of the images. Two cells at one thread against one loop at two.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from attacks.badnets import BadNets
from sweeper.engine import metrics
from tests.benchmarks import _loops
from tests.benchmarks._crew import crew, line_up
from tests.benchmarks._loops import CPU, Rates, network, random_set
from tests.benchmarks.training import TOOLBOX, compared
from tests.support import toys

CLEAN, TRIGGERED = 10_000, 9_000
SHARE = {"tiny": 1.0, "resnet18": 0.05}


def sizes(model: str) -> tuple[int, int]:
    """How many clean and triggered images a model sees."""
    return int(CLEAN * SHARE[model]), int(TRIGGERED * SHARE[model])


def engine(model: str) -> Rates:
    """Stamp the test set and evaluate, as a cell does; the batches alone."""
    clean, triggered = sizes(model)
    attack, test, rng = BadNets(), random_set(clean), torch.Generator().manual_seed(0)
    net, settings, everything = network(model), _loops.recipe("auto"), clean + triggered
    metrics.predict(net, test.images[:200], settings, CPU)
    line_up()
    started = time.perf_counter()
    stamped = attack.trigger_set(test[torch.arange(triggered)], {}, rng)
    for part in torch.cat([test.images, stamped.images]).split(metrics.EVALUATION_BATCH):
        part.float().div_(255).contiguous(memory_format=torch.channels_last)
    batches = time.perf_counter() - started
    line_up()
    started = time.perf_counter()
    stamped = attack.trigger_set(test[torch.arange(triggered)], {}, rng)
    toys.measured(net, test, stamped, 0, settings, CPU)
    whole = time.perf_counter() - started
    return {"batches": everything / batches, "evaluation": everything / whole}


def toolbox(model: str) -> Rates:
    """Two passes over two loaders; the loaders alone."""
    clean, triggered = sizes(model)
    net = network(model).eval()
    net.normalise = torch.nn.Identity()
    loaders = [
        _loops.loader(clean, augmented=False, rate=0.0),
        _loops.loader(triggered, augmented=False, rate=1.0),
    ]
    started = time.perf_counter()
    for batches in loaders:
        for _ in batches:
            pass
    alone = time.perf_counter() - started
    started, right = time.perf_counter(), 0
    with torch.no_grad():
        for batches in loaders:
            for images, labels in batches:
                right += (net(images).argmax(1) == labels).sum().item()
    whole, everything = time.perf_counter() - started, clean + triggered
    return {"batches": everything / alone, "evaluation": everything / whole}


def rows() -> list[dict[str, Any]]:
    """Batches alone and the whole evaluation."""
    found = []
    with crew(2) as two:
        for model in SHARE:
            ways = {
                TOOLBOX: lambda model=model: two.alone(toolbox, model),
                "2 cells x 1 thread": lambda model=model: two.together(2, engine, model),
                "1 cell x 2 threads": lambda model=model: two.alone(engine, model),
            }
            found += [{"model": model, **row} for row in compared(ways)]
    return found
