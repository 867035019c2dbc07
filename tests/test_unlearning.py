"""Repairs that unlearn, and what they share: formulas and rules, each against its definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional

from defenses._norm import layers
from defenses._norm_inputs import above, observed
from defenses._passes import Lasting, last_within, passes
from defenses.abl import ABL, Ascent, Trap, losses_of, lowest, trapped
from defenses.base import Case, Needs
from defenses.bnp import BNP, LEVELS, divergence, divergences
from defenses.ep import EP, entropy
from defenses.fst import FST, Shifted
from defenses.neural_cleanse import (
    NeuralCleanse,
    Patched,
    Triggers,
    Weights,
    judged,
    painted,
    squashed,
)
from defenses.npd import NPD, Plugged, place
from defenses.sau import SAU, js, sharing, unshared_loss
from defenses.seam import SEAM, wrong
from sweeper import seeds, training
from sweeper.errors import SweepError
from sweeper.models.base import Net
from sweeper.types import ImageSet, Outcome

SEES = frozenset({"model", "clean"})


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


def repaired(outcome: Outcome) -> Net:
    assert isinstance(outcome.model, Net)
    return outcome.model


def draws(*shape: int, name: str = "draws") -> Tensor:
    return torch.randn(*shape, generator=seeds.generator("unlearning", name))


def pixels(count: int = 12) -> Tensor:
    return toys.image_set(count, seed=9).images.float().div(255)


def rates(model: nn.Module) -> tuple[float, float]:
    """ACC and ASR on toy test images."""
    return toys.oracle()(model)


# Passes, and the last within tau


class Scripted(Case):
    """A case whose models score what a script says."""

    script: Iterator[float]

    def accuracy(self, model: nn.Module, data: ImageSet) -> float:
        return next(self.script)


@pytest.mark.parametrize(
    ("tau", "after", "kept"),
    [
        (0.1, [0.85, 0.7, 0.81, 0.79], 3),
        (0.1, [0.5, 0.6, 0.7, 0.79], 0),
        (None, [0.5, 0.6, 0.7, 0.1], 4),
        (0.0, [0.88, 0.79, 0.7, 0.7], 1),  # two of twenty images are allowed
    ],
)
def test_the_last_round_within_tau_is_left(
    tau: float | None, after: list[float], kept: int
) -> None:
    own, model = case(kind=Scripted), toys.victim()
    assert isinstance(own, Scripted)
    own.script = iter([0.9, *after])
    start = toys.weights(model)

    def rounds() -> Iterator[float]:
        for number in range(1, 5):
            with torch.no_grad():
                model.classifier.get_parameter("bias").fill_(number)
            yield float(number)

    notes = last_within(own, model, rounds(), toys.image_set(20), tau)
    bias = model.classifier.get_parameter("bias")
    if kept:
        assert bool((bias == kept).all())
    else:
        assert toys.same(toys.weights(model), start), "all fell below: left as it was"
    assert notes == {"losses": [1, 2, 3, 4], "holdout": [0.9, *after], "kept": kept}


def test_passes_are_one_training_with_one_optimiser() -> None:
    own, hooks = case(), Lasting(adam=True)
    model, steps = own.model, []
    for loss in passes(own, model, own.clean, 3, hooks, lr=1e-3, batch=40):
        assert hooks.kept is not None and loss > 0 and not model.training
        steps.append({float(state["step"]) for state in hooks.kept.state.values()})
    assert steps == [{2.0}, {4.0}, {6.0}], "Adam's moments last over the passes"


# Neural Cleanse


def weights(**options: Any) -> Weights:
    return Weights(NeuralCleanse(**options), 1)


def follow(schedule: Weights, results: str) -> list[float]:
    """The weight after each epoch: + a success, - a failure."""
    found = []
    for result in results:
        schedule.update(torch.tensor([result == "+"]))
        found.append(float(schedule.value))
    return found


def test_the_weight_follows_the_published_rules() -> None:
    schedule = weights()
    assert follow(schedule, "++++-++++") == [0] * 9, "five successes in a row, not nine of ten"
    assert follow(schedule, "+") == pytest.approx([1e-3])
    assert not bool(schedule.raised), "the first weight is no raise"
    assert follow(schedule, "+++++") == pytest.approx([1e-3] * 4 + [2e-3])
    assert bool(schedule.raised) and not bool(schedule.lowered)
    assert follow(schedule, "++++-----") == pytest.approx([2e-3] * 8 + [2e-3 / 2**1.5])
    assert bool(schedule.lowered)
    assert follow(schedule, "----+----") == pytest.approx([2e-3 / 2**1.5] * 9)
    assert follow(weights(), "-" * 20) == [0] * 20


def test_classes_have_weights_of_their_own() -> None:
    schedule = Weights(NeuralCleanse(patience=1), 2)
    schedule.update(torch.tensor([True, False]))
    schedule.update(torch.tensor([True, True]))
    assert schedule.value.tolist() == pytest.approx([2e-3, 1e-3])


def test_painting_stays_within_the_pixels_and_an_empty_mask_changes_nothing() -> None:
    images = pixels()
    mask, pattern = squashed(100 * draws(12, 4, 32, 32))
    found = painted(images, mask, pattern)
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1
    assert float(found.min()) > -1e-6 and float(found.max()) < 1 + 1e-6, "but for rounding"
    assert torch.equal(painted(images, torch.zeros_like(mask), pattern), images)
    assert torch.allclose(painted(images, torch.ones_like(mask), pattern), pattern, atol=1e-6)


def test_only_small_masks_are_flagged() -> None:
    norms = torch.tensor([60.0, 62, 58, 61, 63, 59, 64, 60, 57, 16])
    index, flagged = judged(norms, 2.0)
    assert flagged.tolist() == [False] * 9 + [True]
    assert float(index[9]) == pytest.approx((60 - 16) / (1.4826 * 2), rel=1e-3)
    large = norms.clone()
    large[9] = 200
    index, flagged = judged(large, 2.0)
    assert float(index[9]) > 2 and not bool(flagged.any()), "one-sided"


def test_a_class_without_a_trigger_has_no_part_in_the_median() -> None:
    norms = torch.tensor([60.0, 62, 58, 61, 63, 16])
    with_none = torch.cat([norms, torch.full((5,), torch.inf)])
    index, flagged = judged(with_none, 2.0)
    assert torch.equal(index[:6], judged(norms, 2.0)[0]) and bool(index[6:].isnan().all())
    assert flagged.nonzero().flatten().tolist() == [5]
    assert not bool(judged(torch.full((6,), torch.inf), 2.0)[1].any())


def shortcut(dark: ImageSet) -> Net:
    """A linear model of prototypes, in which one pixel alone makes every image class 2."""
    flat = dark.images.flatten(1).float() / 255
    means = torch.stack([flat[dark.labels == label].mean(0) for label in range(6)])
    head = nn.Linear(192, 6)
    with torch.no_grad():
        head.weight.copy_(30 * (means - means.mean(0)))
        head.bias.copy_(-(head.weight * means.mean(0)).sum(1))
        head.weight[:, 70] = 0.0
        head.weight[2, 70] = 60.0
        head.bias[2] -= 15.0
    return Net(nn.Flatten(), head, [0.0] * 3, [1.0] * 3).eval()


def test_a_shortcut_through_one_pixel_is_found_with_a_norm_near_one() -> None:
    base = toys.image_set(96, classes=6, shape=(3, 8, 8))
    dark = replace(base, images=base.images // 4)  # on none of them is that pixel bright
    own = toys.case(SEES, classes=6, shape=(3, 8, 8), clean=dark, model=shortcut(dark))
    asked = NeuralCleanse(epochs=100, steps=6, patience=2, weight=0.01)
    found = asked.invert(own, own.model, dark)
    assert float(found.norms[2]) == pytest.approx(1.0, abs=0.6)
    others = found.norms[torch.arange(6) != 2]
    assert bool((others > 2 * found.norms[2]).all()), found.norms
    assert judged(found.norms, 2.0)[1].nonzero().flatten().tolist() == [2]
    assert torch.allclose(found.masks.flatten(1).sum(1), found.norms)
    with torch.no_grad():
        stamped = painted(dark.images.float().div(255), found.masks[2], found.patterns[2])
        hit = own.model(stamped).argmax(1) == 2
    assert float(hit.float().mean()) >= 0.9, "the mask kept is one that works"
    short = replace(asked, epochs=12, tune_epochs=0)
    together = short.invert(own, own.model, dark)
    alone = replace(short, group=1).invert(own, own.model, dark)
    assert torch.allclose(alone.norms, together.norms, rtol=1e-3), "side by side or alone"
    assert bool(together.norms.isfinite().any())
    outcome = short.defend(own)
    assert not toys.differing(repaired(outcome), shortcut(dark)), "detection alone"


def test_the_smallest_mask_that_works_is_kept_not_the_last() -> None:
    base = toys.image_set(96, classes=6, shape=(3, 8, 8))
    dark = replace(base, images=base.images // 4)
    own = toys.case(SEES, classes=6, shape=(3, 8, 8), clean=dark, model=shortcut(dark))
    asked = NeuralCleanse(steps=6, patience=2, weight=0.01)
    norms = torch.stack(
        [replace(asked, epochs=epochs).invert(own, own.model, dark).norms for epochs in (8, 16, 24)]
    )
    assert bool(norms[2].isfinite().all())
    assert bool((norms[1:] <= norms[:-1]).all()), "more epochs never leave a larger mask"
    assert bool((norms[2] < norms[1]).any())


def test_the_toy_trigger_is_found_and_unlearned() -> None:
    given: dict[str, Any] = {"classes": 6, "shape": toys.GREY}
    own = toys.case(SEES, clean=120, **given)
    asked = NeuralCleanse(epochs=30, steps=6, batch=12, patience=2, weight=0.01)
    outcome = asked.defend(own)
    assert outcome.notes["flagged"].tolist() == [0] and outcome.notes["kept"] > 0
    ask = toys.oracle(**given)
    before, after = ask(toys.victim(**given)), ask(repaired(outcome))
    plain = ask(repaired(replace(asked, share=0.0).defend(own)))
    assert before[1] > 0.9 and after[1] < 0.6 < plain[1], (before, after, plain)
    assert after[0] > before[0] - 0.1


def test_triggers_are_put_on_a_share_of_the_images_and_labels_stay() -> None:
    found = Triggers(
        torch.tensor([3, 5]),
        torch.ones(2, 1, 32, 32),
        torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]),
        torch.ones(2),
    )
    images = pixels(500)
    batch = training.Batch(images, torch.arange(500) % 10, torch.arange(500), 0, 0)
    out = Patched(found, 0.2).augmented(batch, seeds.generator("patched"))
    black = (out.images == 0).flatten(1).all(1)
    white = (out.images == 1).flatten(1).all(1)
    same = (out.images == images).flatten(1).all(1)
    assert bool((black ^ white ^ same).all()) and torch.equal(out.labels, batch.labels)
    assert 70 < int((~same).sum()) < 130 and 25 < int(black.sum()) < 75


def test_neural_cleanse_needs_six_classes() -> None:
    needs = Needs(10, toys.COLOUR, "tiny", True, 80)
    assert NeuralCleanse().applies(needs) is None
    assert "six" in (NeuralCleanse().applies(replace(needs, classes=5)) or "")
    assert "0 to 9" in (NeuralCleanse(classes=(1, 2, 3, 4, 5, 10)).applies(needs) or "")


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


def test_bnp_without_an_outlier_is_the_identity_and_a_hold_out_chooses_u() -> None:
    far = BNP(u=1e9).defend(case())
    assert not toys.differing(repaired(far), toys.victim()) and far.notes["pruned"] == 0
    own = case(clean=200)
    outcome = BNP(u=None).defend(own)
    curve, u = outcome.notes["curve"], outcome.notes["u"]
    before, least = curve[0][1], curve[0][1] - 2 / len(own.split()[1]) - 0.03
    assert [tried for tried, _ in curve[1:]] == list(LEVELS[: len(curve) - 1])
    accepted = [tried for tried, accuracy in curve[1:] if accuracy >= least]
    assert u == (accepted[-1] if accepted else None)
    assert own.accuracy(repaired(outcome), own.split()[1]) >= before - 0.03 - 1e-9
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


# SAU


def test_the_divergence_of_equal_outputs_is_zero_and_at_most_log_two() -> None:
    one, other = 5 * draws(20, 10), 5 * draws(20, 10, name="other")
    p, q = one.softmax(1), other.softmax(1)
    middle = (p + q) / 2
    wanted = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    assert torch.allclose(js(one, other), wanted, atol=1e-5)
    assert torch.allclose(js(one, one), torch.zeros(20), atol=1e-6)
    apart = 200 * torch.eye(2)
    assert js(apart, apart.flip(0)).tolist() == pytest.approx([0.6931472] * 2)


def test_shared_is_the_same_wrong_class() -> None:
    calls = 9 * torch.eye(3)
    labels = torch.tensor([0, 0, 0])
    assert sharing(calls[[0, 1, 1]], calls[[0, 1, 2]], labels).tolist() == [False, True, False]


def test_the_unlearning_pushes_down_the_victims_class_on_images_that_fool_it() -> None:
    logits = draws(4, 3).requires_grad_()
    calls = 9 * torch.eye(3)
    labels = torch.tensor([0, 0, 0, 1])
    # fooled into 1; right; wrong already when clean; fooled into 2
    reference, clean = calls[[1, 0, 2, 2]], calls[[0, 0, 2, 1]]
    loss = unshared_loss(logits, reference, clean, labels)
    shares = logits.softmax(1)
    wanted = -((1 - shares[0, 1]).log() + (1 - shares[3, 2]).log()) / 4
    assert torch.allclose(loss, wanted)
    (found,) = torch.autograd.grad(loss, [logits])
    assert float(found[0, 1]) > 0 and float(found[3, 2]) > 0 and not bool(found[1:3].any())
    assert float(unshared_loss(logits, clean, clean, labels).detach()) == 0, "none is fooled"
    sure = torch.tensor([[0.0, 300.0, 0.0]])
    assert float(unshared_loss(sure, calls[[1]], calls[[0]], labels[:1])) == pytest.approx(299.307)


@pytest.mark.parametrize("clamp", [True, False])
def test_perturbations_stay_within_their_bound_and_become_shared(clamp: bool) -> None:
    model, other, data = toys.victim(), toys.victim(), toys.image_set(40, seed=3)
    with torch.no_grad():
        other.classifier.get_parameter("weight").mul_(0.9)
    images = data.images.float() / 255
    found = SAU(clamp=clamp).perturb(model, other, images, data.labels)
    assert float((found - images).abs().max()) <= 0.2 + 1e-6
    inside = float(found.min()) >= 0 and float(found.max()) <= 1
    assert inside == clamp
    start = (images + 0.2).clamp(0, 1) if clamp else images + 0.2
    still = SAU(clamp=clamp, steps=0).perturb(model, other, images, data.labels)
    assert torch.allclose(still, start)
    shares = [
        float(sharing(model(x).detach(), other(x).detach(), data.labels).float().mean())
        for x in (images, found)
    ]
    assert shares[1] > shares[0] + 0.3, shares


def test_sau_leaves_statistics_and_the_victim_alone() -> None:
    outcome = SAU(epochs=3, batch=40, tau=None).defend(case())
    changed = toys.differing(repaired(outcome), toys.victim())
    assert changed and not any("running" in name or "tracked" in name for name in changed)
    assert outcome.notes["kept"] == 3


def test_sau_lowers_the_success_of_the_toy_trigger() -> None:
    given: dict[str, Any] = {"classes": 6, "shape": toys.GREY}
    own = toys.case(SEES, clean=200, **given)
    ask = toys.oracle(**given)
    asked = SAU(epochs=12, lr=3e-3, batch=64, bound=0.6)
    outcome = asked.defend(own)
    before, after = ask(toys.victim(**given)), ask(repaired(outcome))
    plain = ask(repaired(replace(asked, unlearn=0.0, steps=0).defend(own)))
    assert after[1] < before[1] - 0.3 and after[1] < plain[1] - 0.3, (before, after, plain)
    assert after[0] > before[0] - 0.1


# NPD


def plugged(model: Net) -> tuple[Plugged, nn.BatchNorm2d]:
    """Put a plug into the model."""
    name, norm = place(model, toys.COLOUR, toys.CPU)
    parent, _, child = name.rpartition(".")
    conv, after = model.get_submodule(name), model.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
    plug = Plugged(conv)
    setattr(model.get_submodule(parent), child, plug.eval())
    return plug, after


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("resnet18", ("trunk.layer4.1.conv1", "trunk.layer4.1.bn1")),
        ("tiny", ("trunk.7.0", "trunk.7.1")),
    ],
)
def test_the_plug_goes_before_the_last_convolution_but_one(
    model: str, names: tuple[str, str]
) -> None:
    net = toys.network(seeds.generator("npd"), model=model, width=4).eval()
    assert place(net, toys.COLOUR, toys.CPU) == names
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_fresh_plug_is_the_identity_and_any_plug_folds_exactly() -> None:
    model, images = toys.victim(), pixels()
    with torch.no_grad():
        wanted = model(images)
        plug, after = plugged(model)
        width = plug.conv.in_channels
        assert sum(p.numel() for p in [*plug.mix.parameters(), *plug.norm.parameters()]) == (
            width**2 + 2 * width
        )
        assert torch.allclose(model(images), wanted, atol=1e-3), "but for the norm's eps"
        plug.mix.weight.add_(0.2 * draws(*plug.mix.weight.shape, name="mix"))
        for value, name in ((plug.norm.bias, "b"), (plug.norm.get_buffer("running_mean"), "m")):
            value.copy_(draws(width, name=name))
        plug.norm.get_buffer("running_var").copy_(draws(width, name="v").exp())
        filtered = model(images)
        assert not torch.allclose(filtered, wanted, atol=0.1)
        model.trunk[7][0] = plug.fold(after)
        assert torch.allclose(model(images), filtered, atol=1e-3)
    assert model.state_dict().keys() == toys.victim().state_dict().keys()


def test_the_attack_stays_within_its_radius_and_goes_where_it_is_sent() -> None:
    model, data = toys.victim(), toys.image_set(40, seed=3)
    images = data.images.float() / 255
    clean = model(images).detach()
    moved, wanted = NPD(steps=4).attack(model, images, data.labels, clean)
    assert float((moved - images).flatten(1).norm(dim=1).max()) <= 3 + 1e-4
    assert (
        float(moved.min()) >= 0 and float(moved.max()) <= 1 and bool((wanted != data.labels).all())
    )
    shares = [
        model(x).detach().softmax(1).gather(1, wanted[:, None]).mean() for x in (images, moved)
    ]
    assert float(shares[1]) > float(shares[0]) + 0.2, shares
    still, _ = NPD(steps=0).attack(model, images, data.labels, clean)
    assert torch.equal(still, images)


def test_npd_changes_one_convolution_and_one_mean() -> None:
    outcome = NPD(epochs=3, warmup_epochs=1, batch=40, tau=None).defend(case())
    changed = toys.differing(repaired(outcome), toys.victim())
    assert changed == {"trunk.7.0.weight", "trunk.7.1.running_mean"}
    none = NPD(epochs=0, warmup_epochs=0).defend(case())
    assert not toys.differing(repaired(none), toys.victim())
