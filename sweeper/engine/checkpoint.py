"""The state of a training between two epochs: taken as tensors and JSON, put back bit for bit."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

EVERY = 600.0
"""Seconds of training after which the end of an epoch leaves a checkpoint."""


class Kept(NamedTuple):
    """A checkpoint."""

    tensors: Mapping[str, Tensor]
    """Of any device and layout. Training goes on in them: copy what outlasts `Keeper.save`."""
    about: Any
    """JSON: the other values, and where each tensor belongs."""


class Keeper(Protocol):
    """Who keeps the newest checkpoint of one training."""

    def load(self) -> Kept | None:
        """Return what was saved last, by this process or an earlier one."""

    def save(self, kept: Kept) -> None:
        """Keep a checkpoint in place of the one before."""


class Draws:
    """The global generators, which a library may draw from behind a method's back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        """Where they are."""
        on_gpu = self._device.type == "cuda"
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if on_gpu else None,
            "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
            "python": random.getstate(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them there."""
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self._device)
        np.random.set_state(tuple(state["numpy"]))
        version, words, spare = state["python"]
        random.setstate((version, tuple(words), spare))


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, keeper: Keeper | None, parts: Sequence[tuple[object, str]]) -> None:
        """Begin to count the time.

        Args:
            keeper: Who keeps them; None: nobody, and there are none.
            parts: All that changes in training: (object, attribute).
        """
        self._keeper, self._parts = keeper, parts
        self._last = monotonic()

    def resume(self) -> None:
        """Put everything where the newest checkpoint has it; nothing where there is none."""
        if self._keeper and (kept := self._keeper.load()):
            for (owner, name), value in zip(self._parts, kept.about, strict=True):
                _put(owner, name, _unpacked(value, kept.tensors))

    def epoch(self, left: int) -> None:
        """After an epoch: leave a checkpoint where it is time and `left` epochs are to come."""
        if not left or self._keeper is None or monotonic() - self._last < EVERY:
            return
        tensors: dict[str, Tensor] = {}
        about = []
        for owner, name in self._parts:
            try:
                about.append(_packed(_taken(getattr(owner, name)), tensors))
            except TypeError as error:
                raise TypeError(f"{type(owner).__name__}.{name}: {error}") from None
        self._keeper.save(Kept(tensors, about))
        self._last = monotonic()


def _taken(value: Any) -> Any:
    """What is kept of a value."""
    if isinstance(value, Generator):
        return value.get_state()
    return (
        value.state_dict()
        if isinstance(value, nn.Module | torch.optim.Optimizer | Draws)
        else value
    )


def _put(owner: object, name: str, kept: Any) -> None:
    """Give an attribute what was kept of it, in place where others may hold it too."""
    now = getattr(owner, name)
    if isinstance(now, Generator):
        now.set_state(kept)
    elif isinstance(now, nn.Module | torch.optim.Optimizer | Draws):
        now.load_state_dict(kept)
    elif isinstance(now, list | deque):
        now.clear()
        now.extend(kept)
    else:
        setattr(owner, name, kept.to(now.device) if isinstance(now, Tensor) else kept)


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value; its tensors go to `tensors`.

    Raises:
        TypeError: It is nothing a checkpoint can hold.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name, "stride": value.stride()}
    if isinstance(value, Mapping):
        return {"items": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple | deque):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, str | int | float | None):
        return value
    raise TypeError(f"a checkpoint holds no {type(value).__name__}")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value of that JSON; its tensors are copies with the strides they had."""
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "items" in value:
        return {key: _unpacked(item, tensors) for key, item in value["items"]}
    # fused optimisers go through a weight and its momentum in the order of memory
    kept = tensors[value["tensor"]]
    return kept.new_empty(0).new_empty_strided(kept.shape, value["stride"]).copy_(kept)
