"""AWM: masks of weights, their bounds, folding, undone turns."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.awm import AWM, Masks, folded, masked, whole
from tests.support import toys
from tests.support.repairs import case, pixels, rng


def test_masks_of_one_change_nothing_and_folding_is_masking() -> None:
    model, x = toys.victim(), pixels(40)
    masks = whole(model)
    convs = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    assert sum(m.numel() for m in masks.values()) == sum(c.weight.numel() for c in convs)
    with torch.no_grad():
        assert torch.equal(masked(model, masks, x), model(x))
        for mask in masks.values():
            mask.copy_(torch.rand(mask.shape, generator=rng("mask")))
        through = masked(model, masks, x)
        assert not torch.allclose(through, model(x), atol=1e-2)
        assert torch.allclose(folded(copy.deepcopy(model), masks)(x), through, atol=1e-6)


def test_forty_images_move_masks_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    held = case(clean=40)
    model = held.fresh_model().requires_grad_(False)
    masks, defense = whole(model), AWM(outer_steps=2, inner_epochs=3, lr=0.5, bound=3.0)
    changes: list[Tensor] = []

    def watched(
        self: AWM, model: nn.Module, masks: Masks, x: Tensor, labels: Tensor, change: Tensor
    ) -> Tensor:
        changes.append(change)
        return loss(self, model, masks, x, labels, change)

    loss = AWM.loss
    monkeypatch.setattr(AWM, "loss", watched)
    assert len([*defense.learn(held, model, masks, held.clean)]) == 2
    assert all(0 < float(change.abs().sum()) <= 3.0 * (1 + 1e-5) for change in changes)
    assert changes and not any(change.requires_grad for change in changes)
    values = torch.cat([mask.detach().flatten() for mask in masks.values()])
    assert float(values.min()) == 0 and float(values.max()) == 1, "both bounds are reached"
    assert not toys.differing(model, held.fresh_model()), "weights and statistics are left alone"


def test_awm_climbs_from_its_own_predictions_and_weighs_both_losses() -> None:
    held = case()
    model, x, labels = held.fresh_model(), pixels(16), torch.arange(16) % 10
    masks, change = whole(model), torch.zeros(1, *toys.QUARTER)
    moved = AWM(ascent_lr=100.0).climb(held, model, masks, x, change)
    own = model(x).argmax(1)
    losses = [functional.cross_entropy(model(x + d), own).item() for d in (change, moved)]
    assert losses[1] > losses[0]
    defense = AWM(alpha=0.7, gamma=1e-3)
    natural = functional.cross_entropy(model(x), labels)
    perturbed = functional.cross_entropy(model((x + moved).clamp(0, 1)), labels)
    size = sum(mask.numel() for mask in masks.values())
    expected = 0.7 * natural + 0.3 * perturbed + 1e-3 * size
    found = defense.loss(model, masks, x, labels, moved)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_awm_returns_the_victim_with_weights_of_convolutions_shrunk() -> None:
    outcome = AWM(outer_steps=1, inner_epochs=2).defend(case(clean=40))
    assert outcome.model is not None and outcome.notes["kept"] == 1
    victim = toys.victim()
    assert toys.differing(outcome.model, victim) <= set(whole(victim))
    for name in whole(victim):
        small, large = outcome.model.get_parameter(name), victim.get_parameter(name)
        assert bool((small.abs() <= large.abs()).all())
    assert 0.9 < outcome.notes["mask_mean"] < 1


def test_a_turn_that_costs_too_much_is_undone() -> None:
    wild = AWM(outer_steps=1, inner_epochs=4, lr=1.0, alpha=0.0, bound=1e4)
    undone = wild.defend(case(clean=40))
    assert undone.notes["kept"] == 0 and undone.notes["mask_mean"] == 1
    assert not toys.differing(undone.model, toys.victim())  # type: ignore[arg-type]
    kept = replace(wild, tau=None).defend(case(clean=40))
    assert toys.differing(kept.model, toys.victim())  # type: ignore[arg-type]
