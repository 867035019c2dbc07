"""A training that is stopped after an epoch and goes on from what was kept, beside one that is not.

What is kept goes through JSON and safetensors, as in a store.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from safetensors.torch import load, save
from torch import Tensor, nn

from attacks.base import Attack
from sweeper.core import seeds
from sweeper.core.types import ImageSet, Samples, State
from sweeper.engine import checkpoint, training
from sweeper.engine.checkpoint import Kept
from sweeper.engine.isolation import isolated
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Hooks
from tests.support import toys


class Stopped(BaseException):
    """The node went away."""


class Memory:
    """Keeps the newest checkpoint as bytes, and stops the training after so many."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after = stop_after
        self.saved = 0
        self.loaded = False
        self.tensors, self.about = b"", ""

    def load(self) -> Kept | None:
        """What was saved."""
        self.loaded = bool(self.about)
        return Kept(load(self.tensors), json.loads(self.about)) if self.about else None

    def save(self, kept: Kept) -> None:
        """Keep it; at the last one allowed, stop."""
        self.tensors = save({name: v.cpu().contiguous() for name, v in kept.tensors.items()})
        self.about = json.dumps(kept.about)
        self.saved += 1
        if self.saved == self.stop_after:
            raise Stopped


@dataclasses.dataclass
class Trained:
    """What a training left."""

    weights: dict[str, Tensor]
    losses: list[float]
    learned: dict[str, Tensor]
    told: list[int]
    """The epochs that progress was told."""


Build = Callable[[], tuple[nn.Module, Hooks | None]]
"""Makes a fresh model and fresh hooks, as a new process would."""


def train(build: Build, data: Samples, recipe: Recipe, keeper: Memory | None = None) -> Trained:
    """One attempt of a training; the global generators begin where they do in every attempt."""
    told: list[int] = []
    with isolated("resuming", 1):
        model, hooks = build()
        losses = training.fit(
            model,
            data,
            recipe,
            key="resuming",
            device=toys.CPU,
            hooks=hooks,
            progress=lambda epoch, epochs, loss: told.append(epoch),
            keeper=keeper,
        )
    learned = hooks.learned() if hooks else {}
    return Trained(toys.weights(model), losses, learned, told)


def attempts(
    build: Build,
    data: Samples,
    recipe: Recipe,
    stop_after: int,
    patch: pytest.MonkeyPatch,
) -> tuple[Trained, Trained | None]:
    """Train undisturbed; then once more, stopped after some epochs, and from there to the end.

    Returns:
        The undisturbed training, and the resumed one; None where nothing was kept.
    """
    patch.setattr(checkpoint, "EVERY", 0.0)
    whole, keeper = train(build, data, recipe), Memory(stop_after)
    try:
        train(build, data, recipe, keeper)
    except Stopped:
        return whole, train(build, data, recipe, keeper)
    return whole, None


def attacked(
    attack: Attack,
    data: ImageSet,
    state: State,
    recipe: Recipe,
    stop_after: int,
    patch: pytest.MonkeyPatch,
) -> tuple[Trained, Trained | None]:
    """The same for the victim of an attack, at its own poison rate."""

    def begin() -> tuple[nn.Module, Hooks | None]:
        hooks = attack.hooks(data, state, seeds.generator("resuming", "hooks"))
        model = toys.network(seeds.generator("resuming", "model"), shape=data.images.shape[1:])
        return model, hooks

    rng = seeds.generator("resuming", "poison")
    found = attack.poison(data, attack.poison_rate, state, rng)
    return attempts(begin, found.samples, recipe, stop_after, patch)


def assert_equal(whole: Trained, resumed: Trained, after: int) -> None:
    """Both gave the same bits, and the second began where it was stopped."""
    assert resumed.told == list(range(after + 1, len(whole.losses) + 1)), "its true epochs"
    assert resumed.losses == whole.losses
    assert toys.same(whole.weights, resumed.weights), "the weights differ"
    assert toys.same(whole.learned, resumed.learned), "what the hooks learned differs"
