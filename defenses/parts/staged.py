"""Networks with the same early layers, shown the same inputs in turn: each from its first change.

A search prunes ever more of one network and measures it each time. What its layers put out before
the first one that changed is what they put out before, so it is kept. Bits stay as they are.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sweeper.models.base import Net

LIMIT = 2**29
"""Bytes kept, at most; each layer that may change has an equal part of it."""

Changing = Callable[[Net], Sequence[nn.Module]]
"""The layers of a network that may differ from those of the one before."""


def chain(model: nn.Module) -> list[nn.Module]:
    """The modules a network calls one after another; one alone where it is not known to do so."""
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        return [part for child in model for part in chain(child)]
    if isinstance(model, Net):
        kind = type(model)
        if kind.forward is Net.forward and kind.features is Net.features:
            return [model.normalise, *chain(model.trunk), model.classifier]
    return [model]


class Staged:
    """What was put in before the layers that may change, by the network that was shown last."""

    def __init__(self, changing: Changing) -> None:
        self._changing = changing
        self._kept: dict[int, list[Tensor]] = {}
        """Place in the chain -> what it was given of each batch."""
        self._state: list[list[Tensor]] = []
        """Weights and buffers of each place."""

    @contextlib.contextmanager
    def resumed(self, model: nn.Module) -> Iterator[None]:
        """Let the network's forward pass begin at its first change within the context.

        Args:
            model: Shown the inputs of the network before, in the same batches, in eval mode.
        """
        parts = chain(model)
        if len(parts) == 1 or not isinstance(model, Net):
            yield
            return
        changing = {*self._changing(model)}
        places = {i for i, part in enumerate(parts) if i and changing & {*part.modules()}}
        values = [[*part.parameters(), *part.buffers()] for part in parts]
        same = sum(1 for _ in itertools.takewhile(_equal, zip(values, self._state, strict=False)))
        state = self._state[:same] + [[v.detach().clone() for v in own] for own in values[same:]]
        before, self._kept, self._state = self._kept, {}, []
        begin = max((place for place in before if place <= same), default=0)
        fresh: dict[int, list[Tensor]] = {place: [] for place in places if place > begin}
        given = iter(before.get(begin, []))

        def forward(x: Tensor) -> Tensor:
            x = next(given).clone() if begin else x
            for place in range(begin, len(parts)):
                if place in fresh:
                    fresh[place].append(x.clone())  # a layer may write on what it is given
                    if len(places) * sum(kept.nbytes for kept in fresh[place]) > LIMIT:
                        del fresh[place]
                x = parts[place](x)
            return x

        vars(model)["forward"] = forward
        try:
            yield
        finally:
            del vars(model)["forward"]
        self._kept = {place: kept for place, kept in before.items() if place <= begin} | fresh
        self._state = state


def _equal(pair: tuple[list[Tensor], list[Tensor]]) -> bool:
    return len(pair[0]) == len(pair[1]) and all(map(torch.equal, *pair))
