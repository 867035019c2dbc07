"""MCR: the curve, its training, BatchNorm's statistics and the choice of a point."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.badnets import BadNets
from defenses.base import Case
from defenses.mcr import MCR
from defenses.mcr_pair import MCRPair
from defenses.parts import curve as curves
from defenses.parts.batchnorm import reestimate
from defenses.parts.curve import (
    SCHEDULES,
    SHAPES,
    Curve,
    farthest,
    flat,
    most_central,
    path,
)
from defenses.parts.neurons import layers
from sweeper import models
from sweeper.core import catalog, seeds
from sweeper.core.errors import DivergedError, SweepError
from sweeper.core.types import ImageSet
from sweeper.data import open_dataset, splits
from sweeper.engine import recipes, training
from sweeper.models.base import Net
from tests.support import toys
from tests.support.places import data_folder

SEES = frozenset({"model", "clean"})
TIMES = [0.0, 0.1, 0.25, 0.5, 0.7, 1.0]


def case(**given: Any) -> Case:
    return toys.case(SEES | {"train"}, **given)


def other(name: str = "other") -> Net:
    """A second network: other weights, other running statistics."""
    model = toys.network(seeds.generator("mcr", name))
    reestimate(model, toys.image_set(40, seed=3).images)
    return model


def some(count: int = 30) -> ImageSet:
    return toys.image_set(count, seed=9)


def pixels(count: int = 30) -> Tensor:
    return some(count).images.float().div(255)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(pixels())
    return found


def drawn(curve: Curve) -> Curve:
    """Move the bends off the line."""
    noise = torch.randn(curve.inner.shape, generator=seeds.generator("mcr", "bends"))
    with torch.no_grad():
        curve.inner += 0.05 * noise
    return curve


# The curve


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bends", [3, 4, 6])
def test_coefficients_are_weights_and_the_ends_are_met(shape: str, bends: int) -> None:
    for t in [*TIMES, 1 / 3]:
        found = SHAPES[shape](t, bends)
        assert len(found) == bends and min(found) >= 0 and math.isclose(sum(found), 1)
    assert SHAPES[shape](0.0, bends) == [1.0] + [0.0] * (bends - 1)
    assert SHAPES[shape](1.0, bends) == [0.0] * (bends - 1) + [1.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ends_are_the_given_networks_bit_for_bit(shape: str) -> None:
    first, last = toys.victim(), other()
    curve = drawn(Curve(first, last, shape=shape))
    assert torch.equal(curve.weights(0.0), flat(first))
    assert torch.equal(curve.weights(1.0), flat(last))
    for t, given in ((0, first), (1.0, last)):
        found = curve.at(t, some().images)
        assert found is not given and not toys.differing(found, given)
        assert torch.equal(logits(found), logits(given)), "with its own running statistics"


def test_polychain_meets_its_bend_and_bezier_does_not() -> None:
    for shape, meets in (("polychain", True), ("bezier", False)):
        curve = drawn(Curve(toys.victim(), other(), shape=shape))
        assert torch.allclose(curve.weights(0.5), curve.inner[0], atol=1e-6) == meets


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bends", [3, 5])
def test_it_starts_as_the_straight_line(shape: str, bends: int) -> None:
    first, last = toys.victim(), other()
    curve = Curve(first, last, bends=bends, shape=shape)
    for t in TIMES:
        line = (1 - t) * flat(first) + t * flat(last)
        assert torch.allclose(curve.weights(t), line, atol=1e-6)


def test_the_bend_moves_the_point_by_two_t_one_less_t() -> None:
    curve = Curve(toys.victim(), other())
    for t in TIMES:
        (gradient,) = torch.autograd.grad(curve.weights(t).sum(), [curve.inner])
        assert torch.allclose(gradient, torch.full_like(gradient, 2 * t * (1 - t)))


def test_a_point_computes_what_a_network_of_those_weights_computes() -> None:
    curve, data = drawn(Curve(toys.victim(), other())), some()
    model = copy.deepcopy(curve.first).train()
    torch.nn.utils.vector_to_parameters(curve.weights(0.3).detach(), list(model.parameters()))
    expected = functional.cross_entropy(model(pixels()), data.labels)
    assert torch.allclose(curve.loss(0.3, pixels(), data.labels), expected, atol=1e-6)
    norm = curve.weights(0.3).square().sum()
    with_term = curve.loss(0.3, pixels(), data.labels, 0.02)
    assert torch.allclose(with_term, expected + 0.01 * norm, rtol=1e-5)


def test_between_equal_networks_every_point_is_that_network() -> None:
    curve, data = Curve(toys.victim(), toys.victim()), some()
    losses = [curve.loss(t, pixels(), data.labels).item() for t in TIMES]
    assert max(losses) - min(losses) < 1e-5
    model = toys.victim()
    reestimate(model, data.images)
    assert torch.allclose(logits(curve.at(0.4, data.images)), logits(model), atol=1e-4)


def test_networks_without_batch_norm_have_curves_too() -> None:
    first, last = (
        toys.network(
            seeds.generator(name), shape=toys.QUARTER, model="vit-tiny", depth=1, dim=12
        ).eval()
        for name in ("one", "two")
    )
    curve = drawn(Curve(first, last))
    assert torch.equal(logits(curve.at(0.0, some().images)), logits(first))
    model = copy.deepcopy(first)
    torch.nn.utils.vector_to_parameters(curve.weights(0.6).detach(), list(model.parameters()))
    assert torch.equal(logits(curve.at(0.6, some().images)), logits(model))


# Running statistics


class Chain(nn.Module):
    """Norm, then convolution, dropout and a second norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.9)
        self.second = nn.BatchNorm2d(4, affine=False, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.drop(self.conv(self.first(x))))
        return out


@pytest.mark.parametrize("batch", [7, 16, 61, 500])
def test_statistics_are_those_of_all_images(batch: int) -> None:
    model, data = Chain(), some(61).images
    model.first.running_mean.fill_(77)
    before = [p.clone() for p in model.parameters()]
    reestimate(model, data, batch)
    whole = data.float().div(255)
    assert torch.allclose(model.first.running_mean, whole.mean((0, 2, 3)), atol=1e-5)
    parts = whole.chunk(-(-61 // batch))
    variance = sum(len(p) * p.var((0, 2, 3)) for p in parts) / 61
    assert torch.allclose(model.first.running_var, variance, atol=1e-5), "unbiased, as torch has it"
    assert not any(module.training for module in model.modules())
    assert (model.first.momentum, model.second.momentum) == (0.1, None)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    again = Chain()
    again.load_state_dict(model.state_dict())
    reestimate(again, data, batch)
    assert toys.same(toys.weights(model), toys.weights(again)), "no dropout, nothing of the past"


def test_the_order_of_the_images_hardly_matters() -> None:
    data, found = some(60).images, []
    for images in (data, data.flip(0)):
        model = toys.victim()
        reestimate(model, images, 30)
        found.append(logits(model))
    assert torch.allclose(*found, atol=1e-4)


def test_one_batch_gives_what_a_step_in_train_mode_sees() -> None:
    model = toys.victim()
    reestimate(model, some().images)
    correct = [norm.running_var.clone() for _, norm in layers(model)]
    model.train()
    for _, norm in layers(model):
        norm.reset_running_stats()
        norm.momentum = 1.0
    logits(model)
    assert all(
        torch.allclose(norm.running_var, expected, rtol=1e-4)
        for (_, norm), expected in zip(layers(model), correct, strict=True)
    )


def test_without_new_statistics_a_point_inside_is_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    own = case(clean=200)
    first, last = own.fresh_model(), MCRPair().second(own)
    curve = MCR(steps=100, lr=0.05, batch=32).connect(own, first, last, own.clean)
    right = own.accuracy(curve.at(0.5, own.clean.images), own.clean)
    monkeypatch.setattr(curves, "reestimate", lambda *_: None)
    wrong = own.accuracy(curve.at(0.5, own.clean.images), own.clean)
    assert right > 0.9 and wrong < right - 0.3


# Training


def test_the_ends_stay_and_the_bend_moves() -> None:
    own = case()
    first, last = own.fresh_model(), other()
    before = toys.weights(first), toys.weights(last)
    curve = MCR(steps=3, batch=16).connect(own, first, last, own.clean)
    assert toys.same(before[0], toys.weights(first))
    assert toys.same(before[1], toys.weights(last))
    assert all(p.grad is None for model in (first, last) for p in model.parameters())
    assert not torch.allclose(curve.inner, Curve(first, last).inner, atol=1e-4)


def test_training_lowers_the_loss_along_the_curve() -> None:
    own = case(clean=200)
    first, last, data = own.fresh_model(), other(), own.clean
    images = data.images.float().div(255)

    def mean_loss(curve: Curve) -> float:
        found = [curve.loss(t, images, data.labels).item() for t in (0.3, 0.5, 0.7)]
        return sum(found) / 3

    before = mean_loss(Curve(first, last))
    assert (
        mean_loss(MCR(steps=60, lr=0.05, batch=64).connect(own, first, last, own.clean))
        < 0.7 * before
    )


def test_one_key_one_curve_and_another_another() -> None:
    found = [
        MCR(steps=3, batch=16).connect(own, own.fresh_model(), other(), own.clean).inner.detach()
        for own in (case(), case(), case(key="another"))
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("clean", [20, 80])
def test_the_number_of_steps_does_not_depend_on_the_images(
    monkeypatch: pytest.MonkeyPatch, clean: int
) -> None:
    seen: list[tuple[int, float, int]] = []
    loss = Curve.loss

    def spied(self: Curve, t: float, images: Tensor, labels: Tensor, l2: float = 0.0) -> Tensor:
        seen.append((len(images), t, self.bends))
        return loss(self, t, images, labels, l2)

    monkeypatch.setattr(Curve, "loss", spied)
    own = case(clean=clean)
    MCR(steps=7, batch=32, bends=4).connect(own, own.fresh_model(), other(), own.clean)
    assert [count for count, _, _ in seen] == [32] * 7
    assert len({t for _, t, _ in seen}) == 7 and all(0 <= t <= 1 for _, t, _ in seen)
    assert {bends for _, _, bends in seen} == {4}


def test_the_learning_rate_follows_its_schedule() -> None:
    annealed, cosine = SCHEDULES["annealed"], SCHEDULES["cosine"]
    assert [annealed(t) for t in (0, 0.3, 0.5)] == [1, 1, 1]
    assert math.isclose(annealed(0.7), 0.505) and math.isclose(annealed(0.9), 0.01)
    assert math.isclose(annealed(0.99), 0.01)
    assert (cosine(0), cosine(1)) == (1, 0) and math.isclose(cosine(0.5), 0.5)
    own, weight = case(), nn.Parameter(torch.zeros(1))
    places: list[float] = []

    def slope(images: Tensor, labels: Tensor) -> Tensor:
        places.append(weight.item())
        return weight.sum()

    options = MCR(steps=10, batch=8, lr=0.1, schedule="annealed")
    options.descend(own, "slope", nn.ParameterList([weight]), own.clean, slope)
    expected, speed = [0.0], 0.0
    for step in range(10):
        speed = 0.9 * speed + 1
        expected.append(expected[-1] - 0.1 * annealed(step / 10) * speed)
    assert torch.allclose(torch.tensor([*places, weight.item()]), torch.tensor(expected))


@pytest.mark.parametrize("augment", [False, True])
def test_images_are_augmented_only_where_asked(
    monkeypatch: pytest.MonkeyPatch, augment: bool
) -> None:
    seen: list[Any] = []

    def spied(data: ImageSet, recipe: Any, *rest: Any) -> list[Any]:
        seen.append(recipe)
        return []

    monkeypatch.setattr(training, "drawn", spied)
    own = case(crop=4, flip=True, erase=0.5, rotation=9.0)
    MCR(augment=augment, steps=1).connect(own, own.fresh_model(), other(), own.clean)
    (recipe,) = seen
    found = (recipe.crop, recipe.flip, recipe.erase, recipe.rotation)
    assert found == ((4, True, 0.5, 9.0) if augment else (0, False, 0.0, 0.0))


def test_a_curve_that_runs_away_says_so() -> None:
    own = case()
    with pytest.raises(DivergedError, match="curve"):
        MCR(steps=20, lr=1e30, batch=16).connect(own, own.fresh_model(), other(), own.clean)


# Both forms


def test_the_point_is_the_most_central_of_the_good_ones() -> None:
    times = MCRPair().times
    assert times == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    level = [0.9] * 9
    assert most_central(times, level, 0.02) == 0.5
    assert most_central(times, [*level[:4], 0.87, *level[5:]], 0.02) == 0.4
    assert most_central(times, [*level[:4], 0.87, 0.91, *level[6:]], 0.02) == 0.6, "the better"
    assert most_central(times, [*level[:4], 0.88, *level[5:]], 0.02) == 0.5, "within tau"
    assert most_central(times, [0.0] * 8 + [1.0], 0.02) == 0.9


def test_from_one_model_it_is_the_farthest_of_the_good_ones() -> None:
    times = MCR().times
    assert times == (0.5, 0.6, 0.7, 0.8, 0.9), "the fine-tuned end is no candidate"
    assert farthest(times, [0.9] * 5, 0.02) == 0.9
    assert farthest(times, [0.9, 0.9, 0.9, 0.89, 0.87], 0.02) == 0.8
    assert farthest(times, [0.95, 0.9, 0.9, 0.9, 0.9], 0.02) == 0.5


def test_the_choice_is_made_on_the_hold_out_and_the_curve_of_all_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, asked = case(clean=100), []
    _, held = own.split()
    accuracies = iter([0.9, 0.9, 0.9, 0.5, 0.5])

    def scripted(self: Case, model: nn.Module, data: ImageSet) -> float:
        asked.append(torch.equal(data.images, held.images))
        return next(accuracies)

    monkeypatch.setattr(Case, "accuracy", scripted)
    options = MCR(steps=2, tune_steps=2)
    outcome = options.defend(own)
    assert outcome.notes["t"] == 0.7 and asked == [True] * 5
    assert outcome.notes["curve"][2] == (0.7, 0.9)
    second = options.tuned(own, own.clean)
    curve = options.connect(own, own.fresh_model(), second, own.clean)
    assert not toys.differing(outcome.model, curve.at(0.7, own.clean.images))


def test_at_one_the_fine_tuned_end_is_delivered_whatever_the_curve() -> None:
    own = case()
    end = MCR(tune_steps=2).tuned(own, own.clean)
    for steps in (0, 2):
        outcome = MCR(steps=steps, tune_steps=2, t=1.0).defend(own)
        assert not toys.differing(outcome.model, end)


@pytest.mark.parametrize("t", [0.1, 0.9])
def test_a_given_t_is_delivered_and_all_images_are_used(t: float) -> None:
    own, options = case(), MCR(steps=2, tune_steps=2, t=t)
    outcome = options.defend(own)
    assert outcome.notes == {"t": t}
    second = options.tuned(own, own.clean)
    curve = options.connect(own, own.fresh_model(), second, own.clean)
    assert not toys.differing(outcome.model, curve.at(t, own.clean.images))


def test_the_fine_tuned_end_is_a_copy_that_fits_the_clean_images() -> None:
    own = case(clean=200)
    held = toys.image_set(200, seed=1)
    shifted = replace(held, labels=(held.labels + 1) % 10)
    own = case(clean=shifted)
    before = toys.weights(own._given["model"])
    last = MCR(tune_steps=80, batch=64).tuned(own, own.clean)
    assert not last.training and all(p.grad is None for p in last.parameters())
    assert own.accuracy(own.fresh_model(), shifted) < 0.1 and own.accuracy(last, shifted) > 0.8
    assert toys.same(before, toys.weights(own._given["model"]))


def test_the_second_model_is_trained_on_the_poisoned_set_by_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[ImageSet, Any]] = []

    def spied(model: Any, data: ImageSet, recipe: Any, **rest: Any) -> list[float]:
        seen.append((data, recipe))
        return []

    own = case(lr=0.04, momentum=0.5, weight_decay=0.001)
    monkeypatch.setattr(training, "fit", spied)
    made = [catalog.make("defense", "mcr-pair", given) for given in ({}, {"preset": "released"})]
    seconds = [defense.second(own) for defense in made]
    assert all(torch.equal(data.labels, own.train.labels) for data, _ in seen)
    assert all(len(data) == len(own.train) for data, _ in seen)
    assert seen[0][1] == own.recipe
    released = seen[1][1]
    assert math.isclose(released.lr, 0.028) and math.isclose(released.momentum, 0.4)
    assert math.isclose(released.weight_decay, 0.0011)
    assert toys.differing(seconds[0], own.new_model()), "weights of its own"


def test_path_measures_the_network_at_each_t() -> None:
    curve, own = drawn(Curve(toys.victim(), other())), case()
    found = path(curve, TIMES, own.clean.images, lambda model: own.accuracy(model, own.clean))
    assert len(found) == len(TIMES)
    assert found[0] == own.accuracy(own.fresh_model(), own.clean)
    assert found[-1] == own.accuracy(other(), own.clean)


@pytest.mark.parametrize(
    "given",
    [{"shape": "line"}, {"bends": 2}, {"t": 1.1}, {"t": 0.0}, {"schedule": "step"}, {"steps": -1}],
)
@pytest.mark.parametrize("name", ["mcr", "mcr-pair"])
def test_impossible_options_are_refused(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=name):
        catalog.make("defense", name, given)


# Acceptance, minutes of training


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def acceptance(root: Path, seed: int, train_size: int, epochs: int, **given: Any) -> dict[str, Any]:
    """All figures of one seed: `tiny` on CIFAR-10, BadNets 10 %, 500 clean images."""
    asked = {"dataset": "cifar10", "train_size": train_size, "test_size": 2000}
    data = open_dataset(asked, root)
    recipe = recipes.resolve({"epochs": epochs}, "cifar10", "tiny")
    kept, held = splits.split(data, 0.1)
    train, test, key = data.train[kept], data.test, f"mcr {seed}"
    poisoned = BadNets().poison(train, 0.1, {}, seeds.generator(key, "poison"))
    hit = BadNets().trigger_set(test, {}, seeds.generator(key, "trigger"))
    build = functools.partial(
        models.build, "tiny", {}, classes=10, shape=(3, 32, 32), mean=data.mean, std=data.std
    )
    bad = poisoned.samples
    victim = build(generator=seeds.generator(key, "model"))
    training.fit(victim, bad, recipe, key=key, device=device())
    clean = data.train[splits.clean_set(data, held, 500, seed)]
    own = Case(
        sees=SEES | {"train"},
        key=key,
        device=device(),
        recipe=recipe,
        given={"model": victim, "clean": clean, "train": bad},
        build=lambda rng: build(generator=rng),
    )

    def measure(model: nn.Module) -> tuple[float, float]:
        found = toys.measured(model, test, hit, 0, recipe, device())
        return float(found["acc"] or 0), float(found["asr"] or 0)

    def along(curve: Curve, images: Tensor, times: Sequence[float]) -> list[tuple[float, float]]:
        return [measure(curve.at(t, images)) for t in times]

    clean = own.clean
    pair, one = MCRPair(**given), MCR(tune_steps=500, **given)
    second = pair.second(own)
    line = Curve(own.fresh_model(), second)
    found: dict[str, Any] = {"seed": seed, "line": along(line, clean.images, (0.0, 0.5, 1.0))}
    curve = pair.connect(own, own.fresh_model(), second, clean)
    outcome = pair.repaired(own, lambda data: second)
    assert outcome.model is not None
    found |= {"pair": measure(outcome.model), "t": outcome.notes["t"]}
    found["along"] = along(curve, clean.images, [step / 10 for step in range(11)])
    pixels = clean.images.to(device()).float().div(255)
    for name, which in (("loss of the line", line), ("loss of the curve", curve)):
        with torch.no_grad():
            losses = [which.loss(t / 10, pixels, clean.labels.to(device())) for t in range(11)]
        found[name] = float(torch.stack(losses).mean())
    found["fine-tuned end"] = measure(one.tuned(own, clean))
    outcome = one.defend(own)
    assert outcome.model is not None
    found |= {"one": measure(outcome.model), "one t": outcome.notes["t"]}
    scratch = own.new_model("scratch").train()
    one.descend(
        own,
        "scratch",
        scratch,
        clean,
        lambda x, y: functional.cross_entropy(scratch(x).float(), y),
        lr=0.02,
    )
    found["scratch"] = measure(scratch.eval())
    return found


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(7200)
def test_acceptance_on_small_data() -> None:
    """Section 13 of the method's specification, with the `tiny` network on CIFAR-10."""
    root = data_folder()
    if root is None:
        pytest.skip("needs cifar10/train.parquet in the folder SWEEPER_DATA names")
    measured = [acceptance(root, seed, 11_000, 12, steps=1500) for seed in range(3)]
    for found in measured:
        print(json.dumps(found))  # noqa: T201
        assert found["loss of the curve"] < found["loss of the line"]
        assert found["line"][1][0] < min(found["line"][0][0], found["line"][2][0]) - 0.05
    bars = {
        "ends carry the backdoor": min(m["line"][i][1] for m in measured for i in (0, 2)) >= 0.95,
        "middle": median(m["line"][0][0] - m["along"][5][0] for m in measured) <= 0.06,
        "ASR": median(m["pair"][1] for m in measured) <= 0.3,
        "ACC": median(m["line"][0][0] - m["pair"][0] for m in measured) <= 0.06,
        "scratch": median(m["pair"][0] - m["scratch"][0] for m in measured) >= 0.2,
        "one": median(m["one"][1] - m["fine-tuned end"][1] for m in measured) <= 0.05,
    }
    missed = [name for name, met in bars.items() if not met]
    if missed:
        pytest.xfail(f"bars not met: {missed}: {measured}")
