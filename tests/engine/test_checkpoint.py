"""Trainings that are stopped between epochs and go on: to the same bits, or from the start."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from sweeper.core import seeds
from sweeper.engine import checkpoint, graphed, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks
from tests.support import beyond, resuming, toys
from tests.support.resuming import Memory, assert_equal, attempts
from tests.support.tape import Tape

EPOCHS = 4
DATA = toys.image_set(100, shape=toys.QUARTER)
BASE = replace(toys.RECIPE, epochs=EPOCHS, batch=40)
RECIPES = {
    "sgd": BASE,
    "plain sgd": replace(BASE, momentum=0.0, nesterov=False),
    "adam": replace(BASE, optimizer="adam", lr=1e-3),
    "bf16": replace(BASE, precision="bf16"),
    "warming up at the stop": replace(BASE, warmup=3.0, schedule="linear"),
    "steps": replace(BASE, schedule="step", milestones=(1, 3), gamma=0.5),
    "augmented": replace(BASE, crop=2, flip=True, rotation=10.0, erase=0.5),
}


def rng(name: str = "model") -> Generator:
    return seeds.generator("checkpoint tests", name)


def network() -> nn.Module:
    return toys.network(rng(), shape=toys.QUARTER)


@pytest.mark.parametrize("after", [1, EPOCHS - 1])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_resumed_training_gives_the_bits_of_an_undisturbed_one(
    recipe: Recipe, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = attempts(lambda: (network(), None), DATA, recipe, after, monkeypatch)
    assert resumed is not None
    assert_equal(whole, resumed, after)


@pytest.mark.parametrize("task", beyond.SAMPLES)
def test_so_does_one_of_every_task(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = beyond.samples(task)
    recipe = replace(beyond.RECIPE, epochs=3)
    whole, resumed = attempts(
        lambda: (beyond.network(data, rng()), None), data, recipe, 2, monkeypatch
    )
    assert resumed is not None
    assert_equal(whole, resumed, 2)


class Noisy(Hooks):
    """Draws from every global generator, as a library may."""

    keeps = ()

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        noise = torch.rand(()) + float(np.random.rand()) + random.gauss(0, 1)
        return replace(batch, inputs=batch.inputs * (1 + 0.1 * noise))


def test_draws_from_global_generators_go_on_where_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build() -> tuple[nn.Module, Hooks]:
        return nn.Sequential(network(), nn.Dropout(0.1)), Noisy()

    whole, resumed = attempts(build, DATA, BASE, 2, monkeypatch)
    assert resumed is not None
    assert_equal(whole, resumed, 2)


class Counting(Hooks):
    """Holds a state of every sort."""

    keeps = (
        "drawn",
        "mask",
        "turns",
        "recent",
        "counts",
        "net",
        "adam",
        "named",
        "on",
    )

    def __init__(self) -> None:
        self.drawn = rng("hooks")
        self.turns = torch.empty(0, dtype=torch.int64)
        self.recent: deque[float] = deque(maxlen=5)
        self.counts = [0, 0]
        self.named: dict[str, Any] = {"last": None, "pair": torch.zeros(2)}
        self.on = False

    def start(self, model: nn.Module, device: torch.device) -> None:
        self.mask = torch.zeros(3, 4).t()
        self.net = nn.Linear(2, 2)
        self.net.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        self.adam = torch.optim.Adam(self.net.parameters(), lr=0.1)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        noise = torch.rand(2, generator=self.drawn)
        self.turns = torch.cat([self.turns, batch.index[:2]])
        self.recent.append(float(noise[0]))
        self.counts[batch.epoch % 2] += 1
        self.mask += noise[0]
        self.adam.zero_grad()
        (self.net(noise) - len(self.turns)).square().sum().backward()
        self.adam.step()
        self.named = {"last": sum(self.recent), "pair": self.named["pair"] + noise}
        self.on = not self.on
        return replace(batch, inputs=batch.inputs + noise[1])

    def learned(self) -> dict[str, Tensor]:
        numbers = [*self.recent, *self.counts, self.named["last"], float(self.on)]
        return {
            "turns": self.turns,
            "mask": self.mask.contiguous(),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
            "pair": self.named["pair"],
            **self.net.state_dict(),
        }


def test_hooks_go_on_with_every_sort_of_state(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = attempts(lambda: (network(), Counting()), DATA, BASE, 3, monkeypatch)
    assert resumed is not None
    assert_equal(whole, resumed, 3)


@pytest.mark.parametrize("name", Counting.keeps)
def test_a_state_that_is_not_kept_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(item for item in Counting.keeps if item != name)
    monkeypatch.setattr(Counting, "keeps", kept)
    whole, resumed = attempts(lambda: (network(), Counting()), DATA, BASE, 3, monkeypatch)
    assert resumed is not None
    with pytest.raises(AssertionError):
        assert_equal(whole, resumed, 3)


class Silent(Hooks):
    """Does not say what it keeps."""


class Heir(Counting):
    """Inherits what another keeps, and does not say whether it has more."""


@pytest.mark.parametrize("hooks", [Silent, Heir])
def test_hooks_that_do_not_say_what_they_keep_leave_nothing_and_begin_anew(
    hooks: type[Hooks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    keeper = Memory()
    resuming.train(lambda: (network(), None), DATA, BASE, keeper)
    assert keeper.saved == EPOCHS - 1
    found = resuming.train(lambda: (network(), hooks()), DATA, BASE, keeper)
    assert keeper.saved == EPOCHS - 1 and not keeper.loaded
    assert found.told == [1, 2, 3, 4]


def test_a_state_no_file_can_hold_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Hooks):
        keeps = ("thing",)
        thing = object()

    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    with pytest.raises(TypeError, match=r"Odd\.thing: .*object"):
        resuming.train(lambda: (network(), Odd()), DATA, BASE, Memory())


def test_a_short_training_leaves_none_and_a_long_one_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(epochs: int, seconds: float) -> int:
        """How many checkpoints a training leaves whose epochs take so long."""
        now = [0.0]

        class Slow(Hooks):
            keeps = ()

            def epoch(self, model: nn.Module, epoch: int) -> None:
                now[0] += seconds

        keeper = Memory()
        monkeypatch.setattr(checkpoint, "monotonic", lambda: now[0])
        recipe = replace(BASE, epochs=epochs)
        resuming.train(lambda: (network(), Slow()), DATA, recipe, keeper)
        return keeper.saved

    assert checkpoint.EVERY == 600.0
    assert told(4, 190.0) == 0, "ten minutes pass with the last epoch, after which nothing is left"
    assert told(5, 190.0) == 1
    assert told(9, 190.0) == 2, "after the fourth and the eighth"
    assert told(3, 601.0) == 2, "not after the last"
    assert told(1, 5000.0) == 0


def test_recorded_steps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(graphed.SWITCH, "1")
    monkeypatch.setitem(graphed.RECORDERS, "cpu", Tape)
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    keeper = Memory()
    resuming.train(lambda: (network(), None), DATA, BASE, keeper)
    assert not keeper.saved and not keeper.loaded


def test_every_class_of_hooks_says_for_itself() -> None:
    assert training.kept(Hooks()) == []
    assert training.kept(Counting()) == list(Counting.keeps)
    assert training.kept(Heir()) is training.kept(Silent()) is None
