"""What convolutions put out while images go through a network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """All convolutions of a model, in the order they are registered."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@contextlib.contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Keep what each of these modules put out last; no hook stays behind.

    Yields:
        Module -> its output, which every forward pass within the context replaces.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[module] = output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
