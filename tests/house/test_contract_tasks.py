"""What every task keeps, and every attack and defense on the tasks beyond images.

A new file in `sweeper/tasks/` is tested here once `tests/support/beyond.py` has samples of it; a
method that declares another task is tested without an edit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.base import Attack
from defenses.base import Needs
from sweeper import models
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Role, Samples
from sweeper.engine import curvature, training
from sweeper.engine import task as tasks
from sweeper.models.base import Net
from tests.house import outcomes
from tests.support import beyond, toys

TASKS = tasks.names()
every = pytest.mark.parametrize("name", TASKS)


def rng(name: str = "draw") -> torch.Generator:
    return seeds.generator("contract of tasks", name)


def test_every_task_has_toy_samples_and_a_toy_network() -> None:
    assert set(beyond.SAMPLES) == set(beyond.MODELS) == set(TASKS)


@every
def test_a_task_says_what_it_is(name: str) -> None:
    task = tasks.task(name)
    assert task.title and task.score and task.version >= 1
    assert tasks.of(beyond.samples(name)) is task


@every
def test_a_loaded_batch_without_augmentation_is_the_plain_one(name: str) -> None:
    data, task = beyond.samples(name, 16), tasks.task(name)
    tensors = task.load(data, toys.CPU)
    index = torch.arange(16)
    batch = tasks.Batch(tensors["inputs"][index], tensors["labels"], index, 0, 0, name)
    shown, plain = task.augmented(batch, beyond.RECIPE, rng()), task.plain(data, toys.CPU)
    assert torch.equal(shown.inputs, plain.inputs) and torch.equal(shown.labels, plain.labels)
    assert shown.inputs.dtype != torch.uint8 and shown.inputs.ndim == data.inputs.ndim
    if task.classifies:
        assert shown.inputs.shape[1:] == data.inputs.shape[1:]


@every
def test_a_batch_is_augmented_as_the_generator_says(name: str) -> None:
    data, task = beyond.samples(name, 16), tasks.task(name)
    settings: dict[str, Any] = {"crop": 2, "flip": True, "rotation": 30.0}
    recipe = dataclasses.replace(
        beyond.RECIPE, **{k: v for k, v in settings.items() if k in task.augments}
    )
    tensors = task.load(data, toys.CPU)
    batch = tasks.Batch(tensors["inputs"], tensors["labels"], torch.arange(16), 0, 0, name)
    one, other = (task.augmented(batch, recipe, rng()) for _ in range(2))
    plain = task.plain(data, toys.CPU)
    assert torch.equal(one.inputs, other.inputs), "draw from `rng` alone"
    assert torch.equal(one.inputs, plain.inputs) == (not task.augments)
    assert torch.equal(one.labels, other.labels)
    if data.labelled:
        assert torch.equal(one.labels, plain.labels)


@every
def test_the_loss_is_the_negative_mean_of_the_scores(name: str) -> None:
    data, task = beyond.samples(name, 16), tasks.task(name)
    batch = task.plain(data, toys.CPU)
    output = task.forward(beyond.network(data).eval(), batch)
    scores = task.scores(output, batch)
    assert scores.shape == (16,) and bool((scores < 0).all())
    assert task.loss(output, batch).item() == pytest.approx(-scores.mean().item(), rel=1e-5)
    total = task.loss(output, batch, reduction="sum").item()
    assert total == pytest.approx(-scores.sum().item(), rel=1e-5)


@every
def test_training_answering_and_rating(name: str) -> None:
    data, task = beyond.samples(name), tasks.task(name)
    model = beyond.network(data)
    losses = training.fit(
        model, data, dataclasses.replace(beyond.RECIPE, epochs=6), key="k", device=toys.CPU
    )
    assert losses[-1] < losses[0] and not model.training
    answers = task.answers(model, data.inputs, beyond.RECIPE, toys.CPU)
    assert len(answers) == len(data)
    assert 0 <= task.rate(answers, data) <= 1
    order = torch.randperm(len(data), generator=rng())
    shuffled = task.answers(model, data.inputs[order], beyond.RECIPE, toys.CPU)
    assert torch.equal(shuffled, answers[order]), "an answer does not depend on its neighbours"


@every
def test_mixing_is_done_as_named_or_refused(name: str) -> None:
    data, task = beyond.samples(name, 16), tasks.task(name)
    batch, order = task.plain(data, toys.CPU), torch.arange(16).flip(0)
    if not task.mixing:
        with pytest.raises(SweepError, match="no MixUp is known"):
            task.mixed(batch, 0.7, order, rng())
        return
    for share in (1.0, 0.0):
        mixed, kept = task.mixed(batch, share, order, rng())
        assert mixed.inputs.shape == batch.inputs.shape and 0 <= kept <= 1
        if share == 1:
            assert kept == 1 and torch.equal(mixed.inputs, batch.inputs)
    shares = [task.mixed(batch, 0.5, order, rng(str(k)))[1] for k in range(200)]
    assert 0.3 < sum(shares) / 200 < 0.9


@every
def test_curvature_needs_scores_alone(name: str) -> None:
    """The Fisher diagonal is the mean squared gradient of scores; the Hessian is of the loss."""
    data, task = beyond.samples(name, 4), tasks.task(name)
    model = beyond.network(data).eval()
    diagonal = curvature.fisher_diagonal(model, data, toys.CPU)
    total = {key: torch.zeros_like(value) for key, value in diagonal.items()}
    weights = curvature.trainable(model)
    for place in range(4):
        batch = task.plain(data[place : place + 1], toys.CPU)
        score = task.scores(task.forward(model, batch), batch).sum()
        for key, slope in zip(
            weights, torch.autograd.grad(score, [*weights.values()]), strict=True
        ):
            total[key] += slope.square() / 4
    for key, value in diagonal.items():
        assert torch.allclose(value, total[key], rtol=1e-3, atol=1e-6), key
    batch = task.plain(data, toys.CPU)
    wanted = task.loss(task.forward(model, batch), batch).item()
    hessian = curvature.Hessian(model, data, toys.CPU, batch=3)
    assert hessian.loss() == pytest.approx(wanted, rel=1e-5)
    product = hessian(torch.ones(hessian.size))
    assert product.shape == (hessian.size,) and bool(product.isfinite().all())


@every
def test_pictures_are_images(name: str) -> None:
    pictures = tasks.task(name).pictures(beyond.samples(name, 5))
    assert pictures.dtype == torch.uint8 and pictures.ndim == 4 and len(pictures) == 5
    assert pictures.shape[1] in (1, 3)


# Attacks beyond images


def built(name: str, data: Samples) -> tuple[Attack, float]:
    attack: Attack = toys.short("attack", name, {})
    if not attack.rated:
        return attack, 0.0
    for rate in (0.1, 0.3, 0.5, 1.0):
        if attack.applies(toys.facts(data), rate) is None:
            return attack, rate
    raise AssertionError(attack.applies(toys.facts(data), 0.1))


@pytest.mark.parametrize(("name", "task"), beyond.pairs("attack"))
def test_an_attack_poisons_and_triggers_beyond_images(name: str, task: str) -> None:
    data, test = beyond.samples(task), beyond.samples(task, 40, "test")
    attack, rate = built(name, data)
    before, untouched = data.inputs.clone(), test.inputs.clone()
    state: dict[str, Tensor] = attack.prepare(data, beyond.lab(data)) if attack.prepares else {}
    assert all(isinstance(value, Tensor) for value in state.values())
    found = attack.poison(data, rate, state, rng())
    again = attack.poison(data, rate, state, rng())
    assert torch.equal(data.inputs, before), "poison() must not write to the samples it is given"
    assert torch.equal(found.samples.inputs, again.samples.inputs), "draw from `rng` alone"
    poison = found.role == int(Role.POISON)
    assert int(poison.sum()) == (attack.count(data.labels, rate) if attack.rated else 0)
    assert torch.equal(found.samples.inputs[~poison], data.inputs[found.index[~poison]])
    assert torch.equal(found.true_labels, data.labels[found.index])
    if data.labelled:
        wanted = attack.relabel(found.true_labels[poison], len(data.classes))
        assert torch.equal(found.samples.labels[poison], wanted)
    elif attack.rated:
        changed = found.samples.labels[poison] != found.true_labels[poison]
        assert bool(changed.flatten(1).any(1).all())
    assert found.samples.task == task and found.samples.inputs.dtype == data.inputs.dtype
    hit = attack.trigger_set(test, state, rng())
    assert torch.equal(test.inputs, untouched)
    assert hit.samples.inputs.shape == test.inputs.shape
    assert hit.samples.inputs.dtype == test.inputs.dtype
    records = {"poisoned": found.samples, "triggered": hit.samples}
    tensors = {
        f"{record}.{key}": value
        for record, made in records.items()
        for key, value in made.tensors.items()
    }
    outcomes.check(f"{task} attack {name}", attack.version, tensors)
    if attack.rated and data.labelled:
        changed = (hit.samples.inputs != test.inputs).flatten(1).any(1)
        assert bool(changed.all()) and bool(hit.counts.any())
        poisoned = (found.samples.inputs != data.inputs[found.index]).flatten(1).any(1)
        assert torch.equal(poisoned, poison)


@pytest.mark.parametrize("name", catalog.names("attack"))
def test_an_attack_names_tasks_there_are(name: str) -> None:
    named = catalog.method("attack", name).tasks
    assert named and named <= {*TASKS, tasks.ANY}


# Defenses beyond images


MAY_LEAVE = ("none", "anp-oracle")
"""Defenses that may hand back the victim as it is."""


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[key], other[key]) for key in one)


@functools.lru_cache
def victim_of(task: str) -> tuple[Samples, Net]:
    """A few samples and a network trained on them, for all defenses: none changes them."""
    data = beyond.samples(task, 24)
    return data, beyond.trained(data)


@pytest.mark.parametrize(("name", "task"), beyond.pairs("defense"))
def test_a_defense_defends_beyond_images(name: str, task: str) -> None:
    data, victim = victim_of(task)
    defense = toys.short("defense", name, {})
    before, state = data.inputs.clone(), toys.weights(victim)
    outcomes = [defense.defend(beyond.case(data, victim, defense.sees)) for _ in range(2)]
    one, other = (outcome.model for outcome in outcomes)
    assert one is not None and other is not None
    assert toys.same(toys.weights(one), toys.weights(other)), "draw from case.rng alone"
    assert torch.equal(data.inputs, before) and toys.same(state, toys.weights(victim))
    assert one.state_dict().keys() == victim.state_dict().keys(), "it leaves nothing behind"
    answers = tasks.of(data).answers(one, data.inputs, beyond.RECIPE, toys.CPU)
    assert len(answers) == len(data)
    if name not in MAY_LEAVE:
        assert differing(toys.weights(one), state)


@pytest.mark.parametrize(("name", "task"), beyond.pairs("defense"))
def test_a_defense_runs_with_the_fewest_samples_it_asks_for(name: str, task: str) -> None:
    data, defense = beyond.samples(task), toys.short("defense", name, {})
    family, given = beyond.MODELS[task]
    shape, classes = tuple(data.inputs.shape[1:]), len(data.classes)
    batch = models.least_batch(family, given, classes, shape)
    assert batch == (2 if task == "points" else 1)
    least = defense.least_clean(Needs(classes, shape, family, True, 0, task, batch))
    own = beyond.case(data[:least], beyond.network(data).eval(), defense.sees)
    model = defense.defend(own).model
    assert model is not None
    assert all(bool(value.isfinite().all()) for value in toys.weights(model).values())


@pytest.mark.parametrize("name", catalog.names("defense"))
def test_a_defense_names_tasks_there_are(name: str) -> None:
    named = catalog.method("defense", name).tasks
    assert named and named <= {*TASKS, tasks.ANY}


@pytest.mark.parametrize("task", [task for task in TASKS if task != "image"])
def test_f_fip_swaps_every_layer_for_one_that_computes_the_same(task: str) -> None:
    from defenses.f_fip import FFIP, Spectral

    data, of = beyond.samples(task, 8), tasks.task(task)
    model, batch = beyond.trained(data).eval(), of.plain(data, toys.CPU)

    def scores() -> Tensor:
        return of.scores(of.forward(model, batch), batch)

    wanted = scores()
    nn = torch.nn
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
    layers = sum(type(part) in kinds for part in model.modules())
    leave = FFIP().enter(model)
    swapped = [part for part in model.modules() if isinstance(part, Spectral)]
    assert len(swapped) == layers > 2
    assert torch.allclose(scores(), wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for part in swapped:
            part.delta.mul_(0).sub_(0.01)
    moved = scores()
    leave()
    assert torch.allclose(scores(), moved, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(moved, wanted, atol=1e-4)


@every
def test_fip_mixes_where_the_task_can(name: str) -> None:
    from defenses.fip import FIP

    data = beyond.samples(name)
    fip = FIP(steps=2, mixup=True, guard=None)
    own = beyond.case(data, beyond.trained(data), FIP.sees)
    if not tasks.task(name).mixing:
        with pytest.raises(SweepError, match="no MixUp"):
            fip.defend(own)
        return
    notes = fip.defend(own).notes
    assert math.isfinite(notes["loss_last"])
