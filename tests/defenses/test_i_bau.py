"""I-BAU: the hypergradient, the perturbation, the outer loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from defenses.i_bau import IBAU, Batches, hypergradient
from sweeper.models.base import Net
from tests.support import toys
from tests.support.repairs import buffers, case, normal, pixels


@pytest.mark.parametrize("iterations", [0, 1, 200])
def test_the_hypergradient_of_a_quadratic_goes_to_its_closed_form(iterations: int) -> None:
    """inner = d'Ad/2 - d'Bw has its fixed point at A^-1 B w; outer = |d - c|^2 / 2 + |w|^2."""
    half = normal(4, 4).double()
    a, b = half @ half.T + torch.eye(4), normal(4, 3).double()
    weights, goal = normal(3).double().requires_grad_(True), normal(4, 1)[:, 0].double()
    change = torch.linalg.solve(a, b @ weights).detach().requires_grad_(True)
    outer = (change - goal).square().sum() / 2 + weights.square().sum()
    rate = 0.9 / float(torch.linalg.eigvalsh(a)[-1])

    def step(d: Tensor) -> Tensor:
        return d - rate * (a @ d - b @ weights)

    (found,) = hypergradient(outer, step, change, [weights], iterations)
    direct = 2 * weights.detach()
    closed = direct + b.T @ torch.linalg.solve(a, (change - goal).detach())
    if iterations == 0:
        assert torch.equal(found, direct)
    elif iterations == 1:
        assert torch.allclose(found, direct + rate * b.T @ (change - goal).detach())
    else:
        assert torch.allclose(found, closed, rtol=1e-6) and not torch.allclose(found, direct)


def outer(defense: IBAU, count: int, change: Tensor) -> tuple[Tensor, Tensor]:
    """The outer loss on `count` images, and that of the images as they are."""
    model, x, labels = toys.victim(), pixels(count), torch.arange(count) % 10
    loss, _ = defense.outer_gradients(
        model, [*model.parameters()], change, x, labels, torch.arange(count), (x, labels)
    )
    return loss, functional.cross_entropy(model(x), labels).detach()


def test_the_outer_loss_sees_the_perturbation_in_small_batches_too() -> None:
    nothing, strong = torch.zeros(1, *toys.QUARTER), normal(1, *toys.QUARTER)
    one, plain = outer(IBAU(iterations=1), 20, nothing)
    assert torch.equal(one, plain)
    patched, plain = outer(IBAU(iterations=0), 20, strong)
    assert not torch.equal(patched, plain)
    blind, plain = outer(IBAU(iterations=0, least=0), 20, strong)
    assert torch.equal(blind, plain), "as released: no image of 20 carries it"


def test_the_ascent_lowers_the_inner_loss_within_its_ball() -> None:
    model, data = toys.victim(), toys.image_set(80, seed=3)
    images, labels = data.images.float() / 255, data.labels
    batches = list(zip(images.split(20), labels.split(20), strict=True))
    start = torch.zeros(1, *toys.QUARTER)
    for radius in (10.0, 0.01):
        defense = IBAU(radius=radius, ascent_lr=100.0)
        change = defense.climb(model, batches)
        inner = [defense.inner(model, d, images, labels).item() for d in (start, change)]
        assert inner[1] < inner[0] and 0 < float(change.norm()) <= radius * (1 + 1e-5)
    shown = IBAU().perturbed(model, images, 5 * normal(1, *toys.QUARTER))
    assert 0 == float(shown.min()) and float(shown.max()) == 1


def test_i_bau_leaves_statistics_and_undoes_what_costs_too_much() -> None:
    found = IBAU(outer_steps=1, iterations=2).defend(case(clean=160))
    assert found.model is not None and found.notes["kept"] == 1
    assert toys.same(buffers(found.model), buffers(toys.victim()))
    changed = toys.differing(found.model, toys.victim())
    assert changed == {name for name, _ in toys.victim().named_parameters()}
    wild = IBAU(outer_steps=2, iterations=0, lr=1.0)
    undone = wild.defend(case(clean=160))
    assert undone.notes["kept"] == 0
    assert not toys.differing(undone.model, toys.victim())  # type: ignore[arg-type]
    kept = replace(wild, tau=None).defend(case(clean=160))
    assert toys.differing(kept.model, toys.victim())  # type: ignore[arg-type]


@pytest.mark.parametrize("loader", ["fixed", "shuffled", "augmented"])
def test_an_ascent_goes_through_what_the_loader_gives(
    loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed: list[Tensor] = []
    unlearned: list[Tensor] = []
    climb, outer_gradients = IBAU.climb, IBAU.outer_gradients

    def climbing(self: IBAU, model: Net, batches: Batches) -> Tensor:
        climbed.append(torch.cat([images for images, _ in batches]))
        return climb(self, model, batches)

    def unlearning(self: IBAU, *given: Any) -> Any:
        unlearned.append(given[3])
        return outer_gradients(self, *given)

    monkeypatch.setattr(IBAU, "climb", climbing)
    monkeypatch.setattr(IBAU, "outer_gradients", unlearning)
    held = case(clean=40, crop=4, flip=True)
    IBAU(outer_steps=2, batch=40, tau=None, iterations=0, loader=loader).defend(held)
    assert torch.equal(unlearned[0], unlearned[1]), "one copy, the same in each round"
    assert torch.equal(climbed[0], climbed[1]) == (loader == "fixed")
    plain = held.clean.images.flatten(1).sum(1).sort().values
    for images in (*climbed, *unlearned):
        sums = (images * 255).round().long().flatten(1).sum(1).sort().values
        assert torch.equal(sums, plain) == (loader != "augmented")
