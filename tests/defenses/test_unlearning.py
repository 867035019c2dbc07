"""Repairs that unlearn: SEAM, BNP, EP, FST, ABL, and passes they share, by their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from defenses.abl import ABL, Ascent, Trap, losses_of, lowest, trapped
from defenses.base import Needs
from defenses.bnp import BNP, LEVELS, divergence, divergences
from defenses.ep import EP, entropy
from defenses.fst import FST, Shifted
from defenses.parts.neurons import layers
from defenses.parts.norm_inputs import above, observed
from defenses.parts.passes import Lasting, passes
from defenses.seam import SEAM, wrong
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.engine import training
from sweeper.models.base import Net
from tests.support import toys
from tests.support.repairs import case, draws, rates, repaired

# Passes


def test_passes_are_one_training_with_one_optimiser() -> None:
    own, hooks = case(), Lasting(adam=True)
    model, steps = own.fresh_model(), []
    for loss in passes(own, model, own.clean, 3, hooks, lr=1e-3, batch=40):
        assert hooks.shared_optimizer is not None and loss > 0 and not model.training
        steps.append({float(state["step"]) for state in hooks.shared_optimizer.state.values()})
    assert steps == [{2.0}, {4.0}, {6.0}], "Adam's moments last over the passes"


# SEAM


@pytest.mark.parametrize("classes", [3, 10])
def test_wrong_labels_are_uniform_over_the_others(classes: int) -> None:
    truth = torch.arange(900 * classes) % classes
    found = wrong(truth, classes, seeds.generator("wrong"))
    counts = torch.zeros(classes, classes).index_put_(
        (truth, found), torch.ones(len(truth)), accumulate=True
    )
    assert not bool(counts.diagonal().any()), "never the truth"
    expected = 900 / (classes - 1)
    others = counts[~torch.eye(classes, dtype=torch.bool)]
    assert float((others - expected).abs().max()) < 5 * expected**0.5
    again = wrong(truth, classes, seeds.generator("another batch"))
    assert not torch.equal(found, again)


def test_forgetting_and_recovery_end_by_their_rules() -> None:
    own = case(clean=200)
    found = SEAM(forget=0.3, forget_epochs=40, epochs=60, lr=3e-3)
    outcome = found.defend(own)
    drop, keep = found.divided(own)
    assert len(drop) == 60 and len(keep) == 140
    shown = {row.numpy().tobytes() for row in drop.images}
    assert shown.isdisjoint(row.numpy().tobytes() for row in keep.images)
    forget, recover = outcome.notes["forget"], outcome.notes["recover"]
    assert forget[0] > 0.9 and forget[-1] < 0.2 <= min(forget[:-1])
    assert recover[0] < 0.6, "what was forgotten is forgotten on other images too"
    assert recover[-1] > 0.97 >= max(recover[:-1])
    assert own.accuracy(repaired(outcome), keep) == recover[-1]
    assert rates(repaired(outcome))[0] > 0.9
    short = replace(found, limit=0.0, forget_epochs=2, epochs=1, recovered=1.0).defend(own)
    assert len(short.notes["forget"]) == 3 and len(short.notes["recover"]) == 2


def test_without_passes_seam_changes_nothing() -> None:
    outcome = SEAM(forget_epochs=0, epochs=0).defend(case())
    assert not toys.differing(repaired(outcome), toys.victim())


def test_seam_refuses_two_classes() -> None:
    assert SEAM().applies(Needs(2, toys.COLOUR, "tiny", True, 80))
    assert SEAM().applies(Needs(3, toys.COLOUR, "tiny", True, 80)) is None


# BNP and EP


def test_the_divergence_is_that_of_two_gaussians() -> None:
    mean, other = draws(6, name="mean"), draws(6, name="other mean")
    var, wide = draws(6, name="var").exp(), draws(6, name="other var").exp()
    found = divergence(mean, var, other, wide)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean.double(), var.double().sqrt()),
        torch.distributions.Normal(other.double(), wide.double().sqrt()),
    )
    assert torch.allclose(found, wanted) and bool((found > 0).all())
    assert torch.allclose(divergence(mean, var, mean, var), torch.zeros(6, dtype=torch.float64))
    scale = draws(6, name="scale")
    scaled = divergence(scale * mean, scale**2 * var, scale * other, scale**2 * wide)
    assert torch.allclose(scaled, found, rtol=1e-5)
    dead = divergence(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert bool(dead.isfinite().all()) and float(dead[0]) == 0


def test_inputs_of_norms_are_seen_as_they_are_and_no_hook_stays() -> None:
    model, images = toys.victim(), toys.image_set(300).images
    found = divergences(model, images, toys.CPU)
    with torch.no_grad():
        first = model.trunk[0][0](model.normalise(images.float() / 255))
        norm = model.trunk[0][1]
    wanted = divergence(
        first.double().mean((0, 2, 3)),
        first.double().var((0, 2, 3), correction=0),
        norm.running_mean,
        norm.running_var,
    )
    assert torch.allclose(found[0], wanted, rtol=1e-3, atol=1e-6), "in batches as all at once"
    assert len(found) == len(layers(model)) == 7 and not norm._forward_pre_hooks
    peaks = observed(model, images, toys.CPU, lambda z: z.amax(2))
    assert torch.allclose(peaks[0], first.amax((2, 3)), atol=1e-4)


def test_statistics_of_the_images_themselves_prune_next_to_nothing() -> None:
    """A network whose running statistics are those of the clean images has divergence 0."""
    model, data = toys.victim().train(), toys.image_set(200)
    for _, norm in layers(model):
        norm.momentum = 1.0
    with torch.no_grad():
        model(data.images.float() / 255)
    clean = torch.cat(divergences(model.eval(), data.images, toys.CPU))
    other = torch.cat(divergences(toys.victim(), data.images, toys.CPU))
    assert float(clean.abs().max()) < 1e-2 < float(other.max())


def marked(channel: int) -> Net:
    """The toy victim with one channel's running statistics far from what it is given."""
    model = toys.victim()
    _, norm = layers(model)[-1]
    with torch.no_grad():
        norm.get_buffer("running_mean")[channel] += 50 * norm.get_buffer("running_var").max().sqrt()
    return model


@pytest.mark.parametrize("shift", [False, True])
def test_bnp_zeroes_the_channel_that_does_not_fit(shift: bool) -> None:
    model = marked(5)
    outcome = BNP(shift=shift).defend(case(model=model))
    name = layers(model)[-1][0]
    before, after = model.state_dict(), repaired(outcome).state_dict()
    dead = (after[f"{name}.weight"] == 0).nonzero().flatten().tolist()
    assert dead == [5]
    assert (float(after[f"{name}.bias"][5]) == 0) == shift
    for key in before:
        zeroed = after[key] != before[key]
        assert key.endswith("weight") or (shift and key.endswith("bias")) or not bool(zeroed.any())
        assert not bool(after[key][zeroed].any()), "what changed is zero, the rest is as it was"


def test_bnp_without_an_outlier_is_the_identity_and_all_images_choose_u() -> None:
    far = BNP(u=1e9).defend(case())
    assert not toys.differing(repaired(far), toys.victim()) and far.notes["pruned"] == 0
    own = case(clean=200)
    outcome = BNP(u=None).defend(own)
    curve, u = outcome.notes["curve"], outcome.notes["u"]
    before, least = curve[0][1], curve[0][1] - max(0.03, 2 / len(own.clean)) - 1e-9
    assert [tried for tried, _ in curve[1:]] == list(LEVELS[: len(curve) - 1])
    accepted = [tried for tried, accuracy in curve[1:] if accuracy >= least]
    assert u == (accepted[-1] if accepted else None)
    assert own.accuracy(repaired(outcome), own.clean) >= before - 0.03 - 1e-9
    hopeless = BNP(u=None, tau=0.0).defend(case(clean=200, model=marked(5)))
    assert hopeless.notes["u"] is None or hopeless.notes["u"] in LEVELS


def test_a_channel_of_two_modes_has_the_least_entropy() -> None:
    values = draws(500, 9)
    values[:, 4] = 0.01 * values[:, 4] + 8.0 * (torch.arange(500) % 10 == 0)
    found = entropy(values, 0.01)
    assert int(found.argmin()) == 4
    assert above([-found], 2.0).tolist() == [k == 4 for k in range(9)]
    assert torch.allclose(entropy(3 * values - 7, 0.01), found, atol=0.05), "standardised"
    constant = entropy(torch.ones(50, 2), 0.01)
    assert constant.tolist() == [0, 0]


def test_entropy_by_hand() -> None:
    values = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert entropy(values, 0.5).tolist() == pytest.approx([0.6931472])
    four = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert entropy(four, 0.1).tolist() == pytest.approx([1.3862944])
    assert entropy(four, 100.0).tolist() == [0.0]


def test_ep_zeroes_what_stands_out_and_nothing_at_infinity() -> None:
    given = toys.case(EP.sees)
    found = EP(u=float("inf")).defend(given)
    assert not toys.differing(repaired(found), toys.victim())
    outcome = EP(u=1.0).defend(given)
    changed = toys.differing(repaired(outcome), toys.victim())
    assert outcome.notes["pruned"] > 0 and changed
    names = {f"{name}.weight" for name, _ in layers(toys.victim())}
    assert changed <= names


# FST


def test_the_head_keeps_its_norm_turns_away_and_features_move() -> None:
    own, model = case(), toys.victim()
    old = model.classifier.get_parameter("weight").detach().clone()
    norms, cosines = [], []

    class Watched(Shifted):
        def stepped(self, model: nn.Module, step: int) -> None:
            super().stepped(model, step)
            assert isinstance(model, Net)
            weight = model.classifier.get_parameter("weight").detach()
            norms.append(float(weight.norm() / old.norm()))
            cosines.append(float((weight * old).sum() / weight.norm() / old.norm()))

    own.fit(model, own.clean, hooks=Watched(0.5, own.rng("head")), epochs=8, lr=0.05, batch=20)
    assert norms == pytest.approx([1] * len(norms), abs=1e-5)
    assert cosines[-1] < cosines[0] - 0.1
    assert "trunk.0.0.weight" in toys.differing(model, toys.victim())


def test_alpha_decides_how_far_the_head_turns() -> None:
    far, none = (FST(alpha=a, epochs=12, lr=0.05, batch=16).defend(case()) for a in (0.5, 0.0))
    assert far.notes["head_cosine"] < none.notes["head_cosine"] - 0.1
    assert rates(repaired(none))[0] > 0.9, "the clean task is learned again"
    start = Shifted(0.0, seeds.generator("head"))
    model = toys.victim()
    start.start(model, toys.CPU)
    bound = model.classifier.get_parameter("weight").shape[1] ** -0.5
    for value in model.classifier.parameters():
        assert 0.5 * bound < float(value.detach().abs().max()) <= bound
    assert toys.differing(model, toys.victim()) == {"classifier.weight", "classifier.bias"}


# ABL


def slope(values: list[float], **options: Any) -> list[float]:
    losses = torch.tensor(values, requires_grad=True)
    (found,) = torch.autograd.grad(trapped(losses, **options), [losses])
    return [float(value) for value in found]


@pytest.mark.parametrize("trap", ["flooding", "lga"])
def test_the_trap_pushes_back_below_gamma(trap: str) -> None:
    given: dict[str, Any] = {"trap": trap, "gamma": 0.5, "per_sample": False}
    assert slope([0.2, 0.6], **given) == [-0.5, -0.5], "the mean is 0.4"
    assert slope([0.2, 0.9], **given) == [0.5, 0.5]
    assert slope([0.2, 0.9], **{**given, "per_sample": True}) == [-0.5, 0.5]
    assert trapped(torch.tensor([0.4]), "flooding", 0.5, False) == pytest.approx(0.6)
    assert trapped(torch.tensor([0.4]), "lga", 0.5, False) == pytest.approx(-0.4)


def test_the_lowest_are_isolated_in_the_order_of_the_data() -> None:
    losses = draws(1050).abs() + 1
    group = torch.randperm(1050, generator=seeds.generator("group"))[:10]
    losses[group] = 0.01
    found = lowest(losses, 0.01)
    assert int(found.sum()) == 10 and bool(found[group].all())
    assert int(lowest(torch.zeros(299), 0.01).sum()) == 2, "rounded down"
    with pytest.raises(SweepError, match="raise it"):
        lowest(losses[:99], 0.01)


def test_losses_are_those_of_each_image_in_order() -> None:
    own, model, data = case(), toys.victim(), toys.image_set(40)
    with torch.no_grad():
        logits = model(data.images.float() / 255)
    wanted = functional.cross_entropy(logits, data.labels, reduction="none")
    assert torch.allclose(losses_of(own, model, data), wanted, atol=1e-5)


def test_a_step_of_the_isolation_is_that_of_the_trap() -> None:
    model, data = toys.victim(), toys.image_set(20)
    batch = training.Batch(data.images.float() / 255, data.labels, torch.arange(20), 0, 0)
    hooks = Trap(ABL(gamma=9.0))
    mean = training.Hooks().loss(model, batch, toys.RECIPE)
    assert float(hooks.loss(model, batch, toys.RECIPE).detach()) == pytest.approx(
        18 - float(mean.detach()), rel=1e-5
    )
    ascent = Ascent().loss(model, batch, toys.RECIPE)
    assert float(ascent.detach()) == pytest.approx(-float(mean.detach()), rel=1e-5)


def test_abl_isolates_poison_and_unlearns_the_trigger() -> None:
    own, roles = toys.case(ABL.sees), toys.poisoned_set().role
    asked = ABL(
        isolation_epochs=3, isolation_lr=0.02, isolate=0.1, epochs=5, lr=0.05, batch=32, cap=None
    )
    outcome = replace(asked, unlearning_epochs=0).defend(own)
    assert outcome.flagged is not None and outcome.scores is not None
    assert int(outcome.flagged.sum()) == 24
    assert float((roles[outcome.flagged] == 1).float().mean()) > 0.9
    assert float(outcome.scores[outcome.flagged].min()) >= float(
        outcome.scores[~outcome.flagged].max()
    )
    before = rates(repaired(outcome))
    fought = replace(asked, unlearning_lr=0.003).defend(own)
    own_loss = fought.notes["isolated_loss"]
    assert len(own_loss) == 6 and own_loss[-1] > own_loss[0] + 1, "ascent raises it"
    after = rates(repaired(fought))
    assert before[1] > 0.9 and after[1] < 0.3 and after[0] > 0.7, (before, after)
    capped = replace(asked, unlearning_lr=0.003, cap=2.0, unlearning_epochs=5).defend(own)
    others = capped.notes["other_loss"]
    assert len(others) < 6 and others[-1] > 0.1 >= max(others[:-1])
