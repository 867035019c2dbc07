"""What the speed-ups change: repeated, nothing; against a plain loop, the order of sums alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from sweeper.core import seeds
from sweeper.core.types import ImageSet
from sweeper.engine import training
from sweeper.engine.isolation import isolated
from sweeper.engine.recipes import Recipe
from tests.support import toys

RECIPE = Recipe(epochs=1, batch=32, lr=0.05, crop=4, flip=True, precision="fp32")
KEY = "a" * 20


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return toys.image_set(320)


def trained(data: ImageSet, recipe: Recipe, model: str, threads: int = 1) -> torch.Tensor:
    """All weights after an epoch of the engine."""
    with isolated(KEY, threads):
        net = toys.network(seeds.generator(KEY), model=model)
        training.fit(net, data, recipe, key=KEY, device=toys.CPU)
    return torch.cat([value.detach().flatten() for value in net.parameters()])


def plain(data: ImageSet, recipe: Recipe, model: str) -> torch.Tensor:
    """The same epoch: other memory layout, an optimiser that takes one tensor at a time."""
    rng = seeds.generator(KEY, "fit")
    with isolated(KEY, 1):
        net = toys.network(seeds.generator(KEY), model=model).train()
        rule = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        optimizer = torch.optim.SGD(net.parameters(), recipe.lr, **rule, foreach=False, fused=False)
        images = data.images.permute(0, 2, 3, 1).contiguous()
        order = training.order(len(data), recipe.batch, rng)
        for step, index in enumerate(order):
            optimizer.param_groups[0]["lr"] = training.learning_rate(recipe, step, len(order))
            pixels = training.augmented(images[index], recipe, rng).contiguous()
            optimizer.zero_grad()
            functional.cross_entropy(net(pixels), data.labels[index]).backward()
            optimizer.step()
    return torch.cat([value.detach().flatten() for value in net.parameters()])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Their distance, as a share of the length of one."""
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("model", ["tiny", "mobilenet-v2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_cell_has_the_same_bits(data: ImageSet, model: str, precision: str) -> None:
    recipe, part = replace(RECIPE, precision=precision, batch=8), data[torch.arange(16)]
    assert torch.equal(trained(part, recipe, model), trained(part, recipe, model))


def test_one_step_differs_from_a_plain_loop_by_rounding(data: ImageSet) -> None:
    part = data[torch.arange(32)]
    assert apart(plain(part, RECIPE, "tiny"), trained(part, RECIPE, "tiny")) < 5e-4  # 5e-5


def test_one_step_differs_between_numbers_of_threads_by_rounding(data: ImageSet) -> None:
    part = data[torch.arange(32)]
    one, two = (trained(part, RECIPE, "tiny", threads) for threads in (1, 2))
    assert apart(one, two) < 1e-5  # 2e-7


def test_one_step_in_bf16_is_near_fp32(data: ImageSet) -> None:
    part = data[torch.arange(32)]
    half = trained(part, replace(RECIPE, precision="bf16"), "tiny")
    assert 0 < apart(trained(part, RECIPE, "tiny"), half) < 0.02  # 2e-3
