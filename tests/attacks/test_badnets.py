"""BadNets: the patch of every preset pixel by pixel, and the counts of every release."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks.badnets import BadNets
from attacks.parts.select import draw
from attacks.parts.stamp import GRID, paste
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Role
from tests.support import toys

CIFAR = torch.arange(10).repeat_interleave(5000)
"""CIFAR-10's training labels, 5,000 a class."""
HELD_OUT = torch.arange(10).repeat_interleave(4500)
"""The same after a tenth is set aside for the defender."""
CHECKS = {(29, 31): 255, (30, 30): 255, (31, 29): 255, (31, 31): 255}
CORNER = [(row, column) for row in (29, 30, 31) for column in (29, 30, 31)]
GRID_32 = {cell: CHECKS.get(cell, 0) for cell in CORNER}
WHITE_32 = dict.fromkeys(CORNER, 255)
SQUARE_32 = {(row, column): 255 for row in (28, 29, 30) for column in (28, 29, 30)}
PATCHES = {
    "": GRID_32,
    "d-br": GRID_32,
    "d-br-all2all": SQUARE_32,
    "d-br-imagenet": {(r, c): 255 for r in range(10, 32) for c in range(10, 32)},
    "anp": GRID_32,
    "fip": GRID_32,
    "backdoor-toolbox": GRID_32,
    "backdoorbench": WHITE_32,
    "backdoorbench-all2all": WHITE_32,
    "backdoorbox": WHITE_32,
}
"""Preset -> the cells it changes on 32x32 pixels and their values, from each release."""


def make(preset: str = "", **more: Any) -> BadNets:
    found: BadNets = catalog.make("attack", "badnets", {**toys.asked(preset), **more})
    return found


def stamp(attack: BadNets, images: Tensor, split: str = "test") -> Tensor:
    return attack.stamp(images, split=split, state={}, rng=seeds.generator("unused"))


def flat(value: int, side: int = 32, channels: int = 3) -> Tensor:
    return torch.full((2, channels, side, side), value, dtype=torch.uint8)


def test_every_preset_has_its_patch_written_down() -> None:
    assert set(PATCHES) == {"", *BadNets.presets}


@pytest.mark.parametrize("preset", PATCHES)
@pytest.mark.parametrize("value", [0, 37, 254])
def test_exactly_the_listed_cells_carry_the_listed_values(preset: str, value: int) -> None:
    attack = make(preset)
    expected = flat(value)
    for (row, column), patch in PATCHES[preset].items():
        mixed = (1 - attack.opacity) * value + attack.opacity * patch
        expected[:, :, row, column] = int(mixed + 1e-4)  # truncated, as the releases do
    assert torch.equal(stamp(attack, flat(value)), expected)
    assert torch.equal(stamp(attack, flat(value), "train"), expected)


@pytest.mark.parametrize(
    ("preset", "side", "cells"),
    [
        ("d-br", 64, (slice(61, 64), slice(61, 64))),
        ("backdoorbox", 64, (slice(58, 64), slice(58, 64))),
        ("backdoorbench", 64, (slice(57, 64), slice(57, 64))),
        ("d-br-all2all", 64, (slice(57, 63), slice(57, 63))),
        ("d-br-imagenet", 224, (slice(202, 224), slice(202, 224))),
        ("d-br-all2all", 8, (slice(5, 7), slice(5, 7))),
    ],
)
def test_larger_and_smaller_canvases(preset: str, side: int, cells: tuple[slice, slice]) -> None:
    found = stamp(make(preset), flat(100, side, 1))
    changed = torch.zeros(side, side, dtype=torch.bool)
    changed[cells] = True
    assert torch.equal(found[0, 0] != 100, changed)


def test_a_softened_patch_has_a_darker_border() -> None:
    found = stamp(make("backdoorbench"), flat(100, 64))[0, 0, 57:, 57:]
    assert found[1:, 1:].flatten().min() >= 100 and bool((found[2:, 2:] == 255).all())
    assert found[0].tolist() == found[:, 0].tolist() and int(found[0].max()) < 100
    half = stamp(make("backdoorbench", opacity=0.5), flat(100, 64))[0, 0]
    assert int(half[63, 63]) == 177 and int(half[0, 0]) == 100


def test_fip_blends_at_opacity_six_tenths() -> None:
    images = torch.arange(256).to(torch.uint8)[:, None, None, None].expand(256, 3, 32, 32)
    found = stamp(make("fip"), images)
    white, black = found[:, 0, 31, 31].tolist(), found[:, 0, 31, 30].tolist()
    assert white == [(4 * x + 6 * 255) // 10 for x in range(256)]
    assert black == [4 * x // 10 for x in range(256)]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    trigger=st.sampled_from(["grid", "white", "softened", "square"]),
    height=st.integers(6, 40),
    width=st.integers(6, 40),
    channels=st.sampled_from([1, 3]),
)
def test_stamping_twice_is_stamping_once(
    seed: int, trigger: str, height: int, width: int, channels: int
) -> None:
    images = torch.randint(
        256, (3, channels, height, width), generator=seeds.generator(seed), dtype=torch.uint8
    )
    once = stamp(BadNets(trigger=trigger), images)
    assert torch.equal(stamp(BadNets(trigger=trigger), once), once)
    assert len((once != images).flatten(2).any(1).nonzero()) <= 3 * 7 * 7


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SweepError, match="does not fit 8x8"):
        stamp(make("d-br-imagenet"), flat(0, 8))
    with pytest.raises(ValueError, match="leaves the canvas"):
        paste(flat(0), torch.tensor(GRID), 30, 0)


@pytest.mark.parametrize(
    ("options", "labels", "rate", "count", "pool"),
    [
        ({"preset": "d-br"}, CIFAR, 0.1, 4500, 45000),
        ({"rate_base": "target-class"}, CIFAR, 0.1, 500, 45000),
        ({"preset": "d-br-all2all"}, CIFAR, 0.1, 5000, 50000),
        ({"preset": "anp"}, HELD_OUT, 0.05, 2025, 40500),
        ({"preset": "backdoor-toolbox"}, CIFAR, 0.1, 5000, 50000),
        ({"preset": "backdoor-toolbox"}, CIFAR, 0.003, 150, 50000),
        ({"preset": "backdoorbench"}, CIFAR, 0.1, 5000, 50000),
        ({"preset": "backdoorbench-all2all"}, CIFAR, 0.1, 5000, 50000),
        ({"preset": "backdoorbox"}, CIFAR, 0.05, 2500, 50000),
        ({"preset": "fip"}, CIFAR, 0.1, 4500, 45000),
    ],
)
def test_counts_of_the_releases_on_cifar10(
    options: dict[str, Any], labels: Tensor, rate: float, count: int, pool: int
) -> None:
    attack = catalog.make("attack", "badnets", options)
    assert attack.count(labels, rate) == count
    assert int(attack.pool(labels).sum()) == pool


def test_backdoorbench_rounds_where_the_seeds_truncate() -> None:
    labels = torch.zeros(26640, dtype=torch.int64)  # GTSRB's size in BackdoorBench, 0.3 % = 79.92
    assert make("backdoorbench").count(labels, 0.003) == 80
    assert make("backdoor-toolbox").count(labels, 0.003) == 79


@settings(deadline=None)
@given(per_mille=st.integers(1, 1000), size=st.integers(1, 200_000))
def test_truncation_is_exact_in_spite_of_binary_fractions(per_mille: int, size: int) -> None:
    labels = torch.ones(1, dtype=torch.int64).expand(size)
    assert make().count(labels, per_mille / 1000) == per_mille * size // 1000


def test_the_draw_takes_the_pool_without_replacement() -> None:
    data = toys.image_set(400, shape=toys.COLOUR)
    draws = [make().poison(data, 0.25, {}, seeds.generator(key)) for key in ("a", "b")]
    poisoned = [(d.role == int(Role.POISON)).nonzero().flatten() for d in draws]
    assert [len(p) for p in poisoned] == [90, 90]
    assert not torch.equal(*poisoned), "another generator must draw other samples"
    assert all(bool((data.labels[p] != 0).all()) for p in poisoned)
    whole = make(rate_base="non-target").poison(data, 1.0, {}, seeds.generator("c"))
    assert torch.equal(whole.role == int(Role.POISON), data.labels != 0)
    with pytest.raises(SweepError, match="only 360 are allowed"):
        draw(data.labels != 0, 361, seeds.generator("d"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trigger": "gird"}, "not one of grid, white, softened, square"),
        ({"size": 5}, "always 3x3"),
        ({"rule": "clean"}, "not one of all2one, all2all"),
        ({"rate_base": "some"}, "rate_base"),
        ({"rounding": "up"}, "rounding"),
    ],
)
def test_impossible_options_are_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        make(**options)
