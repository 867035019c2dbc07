"""How near training comes to the machine's limit: the convolutions of ResNet-18 alone, both ways.

Every convolution of the network is run on its own shapes at batch 128, forward and backward, in the
faster of two memory layouts; their sum is the limit. Two processes at one thread each, as in
training, which takes turns with it; the best run of a convolution beside the best step, so that
what else the machine does counts in neither. The first convolution needs no gradient of its input.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.benchmarks import _loops
from tests.benchmarks._crew import crew, line_up

MODEL, ROUNDS, REPEATS, STEPS = "resnet18", 2, 3, 3
LAYOUTS = (torch.channels_last, torch.contiguous_format)
Shape = tuple[int, int, int, int, int, int]
"""Channels in, channels out, kernel, stride, padding, side of the image."""


def shapes(model: str) -> Counter[Shape]:
    """How often each convolution occurs in the network."""
    net, found = _loops.network(model).eval(), Counter[Shape]()

    def note(conv: nn.Conv2d, given: tuple[torch.Tensor, ...], _: Any) -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
        found[(*sizes, int(conv.padding[0]), given[0].shape[2])] += 1

    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(note)
    with torch.inference_mode():
        net(torch.zeros(1, 3, _loops.SIDE, _loops.SIDE))
    return found


def fastest(work: Callable[[], Any]) -> float:
    """Seconds of the best of some runs after one warm-up."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def one(
    shape: Shape,
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: torch.device = _loops.CPU,
    clock: Callable[[Callable[[], Any]], float] = fastest,
) -> float:
    """Seconds of one convolution, forward and backward."""
    inputs, outputs, kernel, stride, padding, side = shape
    x = torch.randn(_loops.BATCH, inputs, side, side).to(device, dtype, memory_format=layout)
    weight = torch.randn(outputs, inputs, kernel, kernel).to(device, dtype, memory_format=layout)

    def forward() -> torch.Tensor:
        return nn.functional.conv2d(x, weight, None, stride, padding)

    gradient = torch.randn_like(forward())
    wanted = [inputs > 3, True, False]
    places = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, wanted)
    backward = torch.ops.aten.convolution_backward
    return clock(forward) + clock(lambda: backward(gradient, x, weight, None, *places))


def operations(shape: Shape) -> int:
    """Multiplications and additions of one convolution, forward and backward, for one image."""
    inputs, outputs, kernel, stride, _, side = shape
    passes = 3 if inputs > 3 else 2
    return passes * 2 * inputs * outputs * kernel**2 * (side // stride) ** 2


def limit(dtype: torch.dtype) -> dict[str, float]:
    """Images/s if a step were its convolutions alone, and their multiply-adds in GFLOP/s."""
    seconds, work = 0.0, 0
    line_up()
    for shape, times in shapes(MODEL).items():
        seconds += times * min(one(shape, dtype, layout) for layout in LAYOUTS)
        work += times * operations(shape) * _loops.BATCH
    return {"images/s": _loops.BATCH / seconds, "GFLOP/s": work / seconds / 1e9}


def rows() -> list[dict[str, Any]]:
    """The limit, what training reaches beside it, and the fraction, in both precisions."""
    found = []
    with crew(2) as two:
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            limits, reached, flops = [], [], []
            for _ in range(ROUNDS):
                cells = two.together(2, limit, dtype)
                limits.append(sum(cell["images/s"] for cell in cells))
                flops.append(sum(cell["GFLOP/s"] for cell in cells))
                cells = two.together(2, _loops.engine, MODEL, precision, STEPS)
                reached.append(sum(cell["best"] for cell in cells))
            fractions = [a / b for a, b in zip(reached, limits, strict=True)]
            row: dict[str, Any] = {"model": MODEL, "precision": precision}
            row |= {"GFLOP/s": round(statistics.median(flops))}
            row |= {"limit images/s": round(statistics.median(limits), 1)}
            row |= {"best step images/s": round(statistics.median(reached), 1)}
            found.append({**row, "fraction": round(statistics.median(fractions), 3)})
    return found
