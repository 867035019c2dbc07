"""The controls: fine-tuning by steps, and random pruning of as many channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from defenses.anp import ANP
from defenses.base import Case
from defenses.fine_tuning import FineTuning
from defenses.parts import channels
from defenses.random_pruning import RandomPruning, zero_as_many
from defenses.sibp import SIBP
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.engine import training
from sweeper.models.base import Net
from tests.support import toys

SEES = frozenset({"model", "clean"})


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_steps_are_updates_of_plain_sgd_on_batches_drawn_with_replacement(schedule: str) -> None:
    own = case()
    options: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0, "batch": 16}
    found = FineTuning(steps=6, schedule=schedule, **options).defend(own).model
    model = own.fresh_model().train()
    weights = [*model.parameters()]
    speeds = [torch.zeros_like(w) for w in weights]
    recipe = own.recipe.__class__(**{**vars(own.recipe), "batch": 16})
    batches = training.draws(own.clean, recipe, 6, own.rng("steps"), own.device)
    for step, (x, y) in enumerate(batches):
        slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)
        share = (1 + torch.cos(torch.tensor(torch.pi * step / 6)).item()) / 2
        for weight, speed, slope in zip(weights, speeds, slopes, strict=True):
            speed.mul_(0.9).add_(slope)
            weight.data -= 0.02 * (share if schedule == "cosine" else 1.0) * speed
    assert found is not None and toys.differing(found, toys.victim())
    for name, value in found.state_dict().items():
        assert torch.allclose(value.float(), model.state_dict()[name].float(), atol=1e-4), name


def test_steps_with_a_frozen_trunk_train_the_head_alone() -> None:
    found = FineTuning(steps=3, layers="head", batch=16).defend(case()).model
    assert found is not None and not any(m.training for m in found.modules())
    assert toys.differing(found, toys.victim()) == {"classifier.weight", "classifier.bias"}
    assert all(p.requires_grad for p in found.parameters())


def test_without_steps_nothing_has_changed() -> None:
    assert FineTuning().steps is None
    own, other = case(), case()
    found = FineTuning(epochs=2, batch=32).defend(own).model
    model = other.fresh_model()
    other.fit(
        model,
        other.clean,
        epochs=2,
        lr=0.01,
        batch=32,
        schedule="cosine",
        period=0,
        warmup=0.0,
        weight_decay=5e-4,
    )
    assert found is not None and not toys.differing(found, model)
    with pytest.raises(SweepError, match="steps"):
        catalog.make("defense", "fine-tuning", {"steps": 0})


def lost(before: nn.Module, after: nn.Module) -> dict[str, int]:
    """Channels of each parameter that are zero in `after` and were not in `before`."""
    old, found = dict(before.named_parameters()), {}
    for name, value in after.named_parameters():
        rows = value.detach().flatten(1) if value.ndim > 1 else value.detach()[:, None]
        was = old[name].detach().reshape(rows.shape)
        count = int(((rows == 0).all(1) & (was != 0).any(1)).sum())
        if count:
            found[name] = count
    return found


def zeroed(before: nn.Module, after: nn.Module) -> set[str]:
    """Every entry that differs is zero; which parameters these are in."""
    changed = toys.differing(after, before)
    old, new = before.state_dict(), after.state_dict()
    assert all(not bool(new[n][new[n] != old[n]].any()) for n in changed)
    return changed


@pytest.mark.parametrize("batch", [128, 8])
def test_like_anp_as_many_weights_of_norms_and_no_bias(batch: int) -> None:
    anp = ANP(steps=10, threshold=0.97, batch=batch).defend(case()).model
    control = RandomPruning(steps=10, threshold=0.97, batch=batch).defend(case())
    victim = toys.victim()
    assert anp is not None and control.model is not None
    assert lost(victim, control.model) == lost(victim, anp) != {}
    assert toys.differing(anp, control.model), "other channels"
    assert all(name.endswith("weight") for name in zeroed(victim, control.model))
    assert sum(control.notes["pruned"].values()) == sum(lost(victim, anp).values())


def test_like_sibp_as_many_kernels_norms_and_biases() -> None:
    sibp = SIBP(u=1.0, epochs=0).defend(case()).model
    control = RandomPruning(like="sibp", u=1.0).defend(case())
    victim = toys.victim()
    assert sibp is not None and control.model is not None
    weights = {n: k for n, k in lost(victim, sibp).items() if n.endswith("weight")}
    found = {n: k for n, k in lost(victim, control.model).items() if n.endswith("weight")}
    assert found == weights and toys.differing(sibp, control.model)
    changed = zeroed(victim, control.model)
    assert any(n.endswith("bias") for n in changed), "a norm loses both"
    named = dict(control.model.named_parameters())
    for name, norm in channels.norms(control.model).items():
        assert not bool(named[f"{name}.bias"][norm.weight == 0].any())


def test_other_cells_draw_other_channels() -> None:
    models = [RandomPruning(like="sibp").defend(case(key=key)).model for key in ("a", "a", "b")]
    assert not toys.differing(models[0], models[1]) and toys.differing(models[0], models[2])


def test_every_channel_is_drawn_equally_often_and_dead_ones_never() -> None:
    hits = torch.zeros(10)
    for number in range(300):
        victim, pruned = nn.BatchNorm2d(10), nn.BatchNorm2d(10)
        with torch.no_grad():
            victim.weight[3] = pruned.weight[3] = 0
            pruned.weight[:4] = 0
        dead = zero_as_many(victim, pruned, seeds.generator("draw", number))
        assert set(dead) == {"weight"} and int(dead["weight"].sum()) == 3
        hits += dead["weight"]
    assert hits[3] == 0
    others = hits[torch.arange(10) != 3]
    assert float(others.min()) > 60 and float(others.max()) < 140, "300 x 3 / 9 = 100 each"


def test_the_fine_tuning_is_sibp_s_with_the_channels_kept_at_zero() -> None:
    control = RandomPruning(like="sibp", epochs=2, patience=0, freeze=True).defend(case()).model
    bare = RandomPruning(like="sibp").defend(case()).model
    assert isinstance(control, Net) and bare is not None
    assert toys.differing(control, bare)
    assert set(lost(toys.victim(), bare).items()) <= set(lost(toys.victim(), control).items())
    nothing = RandomPruning(like="sibp", u=1e9, conv=1e9, epochs=2, patience=0).defend(case()).model
    sibp = SIBP(u=1e9, conv=1e9, epochs=2, patience=0).defend(case()).model
    assert nothing is not None and sibp is not None and not toys.differing(nothing, sibp)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SweepError, match="not one of anp, sibp"):
        catalog.make("defense", "random-pruning", {"like": "soda"})
    with pytest.raises(SweepError, match="mode"):
        catalog.make("defense", "random-pruning", {"like": "sibp", "mode": "all"})
