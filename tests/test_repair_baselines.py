"""The baselines of repair: CLP, NAD, RNP, FT-SAM, I-BAU, Super-FT, AWM, against their formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn import functional

from defenses import clp, nad, rnp
from defenses._accept import Rule
from defenses._hooks import EveryStep
from defenses._norm import Neurons
from defenses.awm import AWM, folded, masked, whole
from defenses.base import Case, Defense, Needs
from defenses.clp import CLP
from defenses.clp_holdout import CLPHoldout
from defenses.fine_tuning import FineTuning
from defenses.ft_sam import FTSAM, Sharpness
from defenses.i_bau import IBAU, hypergradient
from defenses.nad import NAD, attention, levels
from defenses.rnp import RNP
from defenses.super_ft import SuperFT
from sweeper import curvature, seeds, training
from sweeper.errors import DivergedError, SweepError
from sweeper.models.base import Net
from sweeper.types import ImageSet

SEES = frozenset({"model", "clean"})


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


def rng(*name: Any) -> torch.Generator:
    return seeds.generator("repair baselines", *name)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng(*shape))


def fresh(model: str, **options: Any) -> Net:
    return toys.network(rng(model), model=model, **options).eval()


def pixels(count: int = 40) -> Tensor:
    return toys.image_set(count, seed=9).images.float().div(255)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_buffers()}


# Fair rule H


def test_the_last_accepted_round_is_kept() -> None:
    held = case()
    model, rule = held.model, Rule(held, held.clean, 0.03)
    weight = model.classifier.get_parameter("weight")
    start = weight.detach().clone()

    def rounds() -> Iterator[None]:
        for factor in (0.5, 1.5, -1.0):
            with torch.no_grad():
                weight.copy_(start * factor)
            yield

    notes = rule.last(rounds(), [weight], lambda: model)
    assert notes["holdout"][3] < rule.least <= notes["holdout"][2] and notes["round_kept"] == 2
    assert torch.equal(weight, start * 1.5), "the rejected round is undone"
    assert rule.last(iter([]), [weight], lambda: model)["round_kept"] == 0


def test_a_model_that_is_not_finite_is_never_accepted() -> None:
    held = case()
    rule, model = Rule(held, held.clean, 1.0), held.model
    torch.nn.init.constant_(model.classifier.get_parameter("weight"), torch.nan)
    assert rule.accuracy(model) == 0


# CLP


def pair(outputs: int, inputs: int = 4, kernel: int = 3, **options: Any) -> clp.Pair:
    conv = nn.Conv2d(inputs, outputs, kernel, **options)
    norm = nn.BatchNorm2d(outputs)
    with torch.no_grad():
        conv.weight.copy_(normal(*conv.weight.shape))
        norm.weight.copy_(1 + 0.1 * normal(outputs))
        norm.running_var = 1 + torch.rand(outputs, generator=rng("var"))
    return conv, norm


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_clp_scores_are_largest_singular_values(groups: int) -> None:
    conv, norm = pair(8, groups=groups)
    assert norm.running_var is not None
    found = clp.scores(conv, norm)
    gains = (norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()).tolist()
    for o, factor in enumerate(gains):
        matrix = factor * conv.weight[o].detach().reshape(4 // groups, 9)
        assert float(found[o]) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-4)
    with torch.no_grad():
        conv.weight[3].neg_()
        norm.weight[5].neg_()
    assert torch.allclose(clp.scores(conv, norm), found)


def test_clp_of_a_1x1_kernel_is_its_norm_and_released_has_no_epsilon() -> None:
    conv, norm = pair(6, kernel=1)
    assert norm.running_var is not None
    lengths = conv.weight.detach().flatten(1).norm(dim=1) * norm.weight.detach().abs()
    assert torch.allclose(clp.scores(conv, norm, False), lengths / norm.running_var.sqrt())
    norm.running_var.zero_()
    assert clp.scores(conv, norm, False).isfinite().all(), "a variance of zero is no infinity"


def wide() -> Net:
    return fresh("tiny", width=12)


def dead(model: Net) -> list[Tensor]:
    return [norm.weight == 0 for _, norm in clp.by_graph(model)]


def test_clp_prunes_the_planted_channel_and_nothing_else() -> None:
    model = wide()
    chosen, norm = clp.by_graph(model)[3]
    with torch.no_grad():
        chosen.weight[7].mul_(50)
        norm.bias.fill_(0.5)
    victim = toys.weights(model)
    outcome = CLP().defend(toys.case(CLP.sees, model=model))
    found = dead(outcome.model)  # type: ignore[arg-type]
    assert [int(part.sum()) for part in found] == [0, 0, 0, 1, 0, 0, 0] and bool(found[3][7])
    assert outcome.notes["pruned"] == 1 and outcome.notes["too_small"] == 0
    assert outcome.model is not None
    name = next(n for n, part in model.named_modules() if part is norm)
    changed = {k for k, v in outcome.model.state_dict().items() if not torch.equal(v, victim[k])}
    assert changed <= {f"{name}.weight", f"{name}.bias"} and f"{name}.weight" in changed
    assert outcome.model.get_parameter(f"{name}.bias")[7].item() == 0


def test_clp_does_not_depend_on_the_scale_of_a_layer() -> None:
    models = [wide(), wide()]
    with torch.no_grad():
        for conv, norm in clp.by_graph(models[0]) + clp.by_graph(models[1]):
            conv.weight.mul_(torch.linspace(1, 2, conv.out_channels).exp().view(-1, 1, 1, 1))
            norm.eps = 0
        for _, norm in clp.by_graph(models[1]):
            norm.weight.mul_(7)
    for model in models:
        CLP().prune(model, 1.5)
    one, other = dead(models[0]), dead(models[1])
    assert sum(int(part.sum()) for part in one) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_clp_at_infinity_is_the_identity_and_small_layers_never_lose_a_channel() -> None:
    assert not toys.differing(
        CLP(u=math.inf).defend(toys.case(CLP.sees)).model,  # type: ignore[arg-type]
        toys.victim(),
    )
    scores = torch.ones(10)
    scores[0] = 1e6
    assert not clp.outliers(scores, 3.0).any(), "(n - 1) / sqrt(n) is below 3"
    assert clp.outliers(torch.cat([scores, torch.ones(1)]), 3.0).tolist() == [True] + 10 * [False]


@pytest.mark.parametrize(
    ("model", "count", "wrongly"),
    [("resnet18", 20, 0), ("preact-resnet18", 9, 8), ("densenet121", 59, 4)],
)
def test_clp_pairs_what_the_network_computes(model: str, count: int, wrongly: int) -> None:
    """By experiment: what a convolution puts out is what its BatchNorm reads."""
    net = fresh(model, **({} if model == "densenet121" else {"width": 8}))
    pairs, read = clp.by_graph(net), {}
    assert len(pairs) == count
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    handles = [
        part.register_forward_hook(lambda module, given, output: read.update({module: given[0]}))
        for part in net.modules()
        if isinstance(part, nn.BatchNorm2d)
    ] + [
        part.register_forward_hook(lambda module, given, output: read.update({module: output}))
        for part in net.modules()
        if isinstance(part, nn.Conv2d)
    ]
    net(pixels(2))
    for handle in handles:
        handle.remove()
    assert all(torch.equal(read[conv], read[norm]) for conv, norm in pairs)
    wrong = [n for c, n in clp.by_registration(net) if not torch.equal(read[c], read[n])]
    assert len(wrong) == wrongly
    assert len({id(norm) for _, norm in pairs}) == count <= len(norms)


def test_clp_pairs_every_norm_of_a_network_with_convolutions_of_our_own() -> None:
    net = toys.network(seeds.generator("net"), model="mobilenet-v2")
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [norm for _, norm in clp.by_graph(net)] == norms


def test_clp_leaves_a_norm_alone_that_reads_no_convolution() -> None:
    trunk = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Flatten())
    for found in (clp.by_graph(trunk), clp.by_registration(trunk)):
        assert [norm for _, norm in found] == [trunk[2]], "the first is before any convolution"


def test_clp_with_a_holdout_takes_the_smallest_coefficient_it_allows() -> None:
    held = case()
    notes = CLPHoldout().defend(held).notes
    tried = [u for u, _ in notes["curve"]]
    assert tried == [1 + k / 2 for k in range(len(tried))] and notes["u"] == tried[-1]
    least = notes["holdout_before"] - 0.03
    assert notes["curve"][-1][1] >= least > max(a for _, a in notes["curve"][:-1])
    nothing = CLPHoldout(most=1.0).defend(held)
    assert nothing.notes["u"] is None
    assert not toys.differing(nothing.model, toys.victim())  # type: ignore[arg-type]


# NAD


def test_attention_ignores_scale_and_order_of_channels() -> None:
    maps = normal(3, 5, 4, 6)
    found = attention(maps)
    expected = maps.square().sum(1)
    expected = expected / (expected.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-6)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(attention(7 * maps), found, atol=1e-5)
    assert torch.allclose(attention(maps[:, torch.tensor([3, 1, 4, 0, 2])]), found, atol=1e-6)
    assert not torch.allclose(attention(maps, 4.0), found, atol=1e-2)


def test_attention_refuses_1x1_maps() -> None:
    with pytest.raises(SweepError, match="1x1"):
        attention(normal(3, 5, 1, 1))


def test_levels_are_the_last_map_of_each_resolution() -> None:
    images = toys.image_set(2).images
    stages = [f"trunk.layer{k}" for k in (1, 2, 3, 4)]
    assert levels(fresh("resnet18", width=8), images) == stages
    model = fresh("vgg11-bn")
    names = levels(model, images)
    after = [model.get_submodule(f"trunk.{int(n.split('.')[1]) + 1}") for n in names]
    assert len(names) == 5 and all(isinstance(part, nn.MaxPool2d) for part in after)
    assert NAD().applies(Needs(10, (3, 32, 32), "vit-tiny", False, 500))


def test_the_teacher_stays_and_the_student_moves_its_statistics_once_a_batch() -> None:
    held = case()
    teacher, student = held.model, held.model
    before, counted = toys.weights(teacher), buffers(student)
    NAD(epochs=3, batch=32).distil(held, teacher, student)
    assert toys.same(before, toys.weights(teacher)) and not teacher.training
    counters = [name for name in counted if name.endswith("num_batches_tracked")]
    moved = {int(student.get_buffer(n) - counted[n]) for n in counters}
    assert moved == {9}, "3 epochs of 80 images in batches of 32"


def test_a_student_like_its_teacher_pays_no_attention_loss() -> None:
    held = case()
    seen = {}
    for betas in ((0.0, 0.0, 0.0), (500.0, 1000.0, 1000.0)):
        # One batch in eval mode, teacher and student the same network.
        model = held.model
        names = levels(model, held.clean.images[:2])[-3:]
        with nad.recorded(model, names) as maps:
            weights = dict(zip(names, betas, strict=True))
            hooks = nad._Distillation(weights, 2.0, model, dict(maps), maps)
            hooks.theirs = maps
            batch = training.Batch(pixels(8), torch.zeros(8, dtype=torch.long), *3 * [0])  # type: ignore[arg-type]
            seen[betas] = hooks.loss(model, batch, toys.RECIPE).item()
    assert seen[0.0, 0.0, 0.0] == pytest.approx(seen[500.0, 1000.0, 1000.0], rel=1e-6)


def test_nad_without_attention_is_fine_tuning_and_with_it_is_not() -> None:
    changes: dict[str, Any] = {
        "epochs": 2,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "batch": 32,
        "schedule": "constant",
        "momentum": 0.9,
        "nesterov": True,
        "warmup": 0.0,
    }
    plain = case().model
    case().fit(plain, case().clean, **changes)
    found = [
        NAD(epochs=2, teacher_epochs=1, batch=32, betas=betas).defend(case()).model
        for betas in ((0.0, 0.0, 0.0), (500.0, 1000.0, 1000.0))
    ]
    assert not toys.differing(found[0], plain)  # type: ignore[arg-type]
    assert toys.differing(found[1], plain)  # type: ignore[arg-type]


def test_the_teacher_s_learning_rate_falls_every_second_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes, fit = {}, training.fit

    def spied(*given: Any, key: str, **rest: Any) -> list[float]:
        recipes[key.rpartition("/")[2]] = given[2]
        return fit(*given, key=key, **rest)

    monkeypatch.setattr(training, "fit", spied)
    NAD(teacher_epochs=5, teacher_gamma=0.2, epochs=1).defend(case())
    rates = [training.learning_rate(recipes["teacher"], 3 * epoch, 3) for epoch in range(5)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004])


# RNP


def test_rnp_has_a_mask_for_every_channel_of_a_norm() -> None:
    assert Neurons(fresh("resnet18")).count == 4800


def test_rnp_prunes_norms_of_the_original_and_nothing_else() -> None:
    defense = RNP(unlearn_epochs=2, recover_epochs=30, recover_lr=5.0, threshold=0.9, batch=32)
    outcome = defense.defend(case())
    assert outcome.model is not None and outcome.notes["pruned"] > 0
    victim = toys.victim()
    norms = {f"{n}.weight" for n, p in victim.named_modules() if isinstance(p, nn.BatchNorm2d)}
    assert toys.differing(outcome.model, victim) <= norms
    zeros = sum(int((outcome.model.get_parameter(name) == 0).sum()) for name in norms)
    assert zeros == outcome.notes["pruned"]
    none = replace(defense, threshold=0.0, recover_epochs=2).defend(case())
    assert none.notes["pruned"] == 0
    assert not toys.differing(none.model, victim)  # type: ignore[arg-type]


def test_rnp_masks_stay_in_their_bounds_and_learn() -> None:
    held = case()
    masks = RNP(recover_epochs=20, recover_lr=20.0, batch=16).recover(held, held.model, held.clean)
    assert 0 <= float(masks.min()) < 1 and float(masks.max()) == 1
    assert torch.equal(
        RNP(recover_epochs=0).recover(held, held.model, held.clean), torch.ones(len(masks))
    )


def test_rnp_unlearns_until_its_limit_and_says_when_it_does_not() -> None:
    held = case()
    defense = RNP(unlearn_lr=0.3, batch=16)
    model, notes = defense.unlearn(held, held.clean)
    curve = notes["unlearning"]
    assert notes["unlearned"] and len(curve) < 21
    assert curve[-1] <= 0.2 < min(curve[:-1])
    assert held.accuracy(model, held.clean) < held.accuracy(held.model, held.clean)
    assert not model.training
    _, short = replace(defense, unlearn_epochs=1, unlearn_lr=1e-4).unlearn(held, held.clean)
    assert not short["unlearned"] and len(short["unlearning"]) == 1


@pytest.mark.parametrize(("classes", "limit"), [(2, 0.5), (5, 0.4), (10, 0.2), (43, 0.2)])
def test_rnp_stops_at_twice_chance_but_not_below_a_fifth(classes: int, limit: float) -> None:
    held = case(clean=toys.image_set(2 * classes, classes=classes))
    _, notes = RNP(unlearn_epochs=0).unlearn(held, held.clean)
    assert notes["limit"] == limit and not notes["unlearned"]


def test_rnp_clips_after_the_backward_pass() -> None:
    model, hooks = nn.Linear(2, 2), rnp._Ascent(0.2, 20.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    hooks.step(model, optimizer, lambda: 1e6 * model(torch.ones(1, 2)).sum())
    moved = [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(20, rel=1e-4)


def test_rnp_learns_from_no_image_of_the_hold_out(monkeypatch: pytest.MonkeyPatch) -> None:
    held, seen = case(), []
    fit = Case.fit

    def spy(self: Case, model: nn.Module, data: ImageSet, **rest: Any) -> list[float]:
        seen.append(data)
        return fit(self, model, data, **rest)

    monkeypatch.setattr(Case, "fit", spy)
    RNP(unlearn_epochs=1, recover_epochs=1).defend(held)
    kept = {image.numpy().tobytes() for image in held.split()[1].images}
    assert len(seen) == 2 and kept
    assert all(image.numpy().tobytes() not in kept for data in seen for image in data.images)


# FT-SAM


def test_the_climb_has_length_rho_relative_to_the_weights() -> None:
    weights, slopes = [normal(4, 3), normal(5)], [normal(3, 4).T, normal(6)[1:]]
    found = curvature.climb(weights, slopes, 2.0, True)
    relative = torch.cat([(e / w.abs()).flatten() for e, w in zip(found, weights, strict=True)])
    assert float(relative.norm()) == pytest.approx(2.0, rel=1e-5)
    for e, w, g in zip(found, weights, slopes, strict=True):
        assert torch.allclose(e / e.norm(), w.square() * g / (w.square() * g).norm(), atol=1e-6)
    plain = curvature.climb(weights, slopes, 2.0, adaptive=False)
    assert float(torch.cat([e.flatten() for e in plain]).norm()) == pytest.approx(2.0, rel=1e-5)


def test_the_adaptive_climb_does_not_see_a_rescaling_between_layers() -> None:
    x, y = normal(32, 6), torch.arange(32) % 3
    found = []
    for scale in (1.0, 5.0):
        one, two = normal(8, 6) * scale, normal(3, 8) / scale
        one, two = one.requires_grad_(True), two.requires_grad_(True)

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return functional.cross_entropy((x @ a.T).relu() @ b.T, y)

        slopes = torch.autograd.grad(loss(one, two), [one, two])
        up = {
            adaptive: curvature.climb([one.detach(), two.detach()], slopes, 0.5, adaptive)
            for adaptive in (True, False)
        }
        found.append({k: loss(one + e[0], two + e[1]).item() for k, e in up.items()})
    assert found[0][True] == pytest.approx(found[1][True], rel=1e-4)
    assert abs(found[0][False] - found[1][False]) > 1e-2


def test_ft_sam_without_radius_is_sgd_on_the_smoothed_loss() -> None:
    sam = FTSAM(rho=0.0, epochs=2, batch=32).defend(case()).model
    plain = FineTuning(epochs=2, batch=32, momentum=0.9)
    assert toys.differing(sam, plain.defend(case()).model)  # type: ignore[arg-type]
    smooth = case(label_smoothing=0.1 * 10 / 9)
    assert not toys.differing(sam, plain.defend(smooth).model)  # type: ignore[arg-type]
    logits, labels, s = normal(7, 10), torch.arange(7), 0.1
    wanted = torch.full((7, 10), s / 9).scatter_(1, labels[:, None], 1 - s)
    gap = functional.cross_entropy(logits, labels, label_smoothing=s * 10 / 9)
    kl = functional.kl_div(logits.log_softmax(1), wanted, reduction="none").sum(1).mean()
    entropy = -(wanted * wanted.log()).sum(1).mean()
    assert float(gap) == pytest.approx(float(kl + entropy), rel=1e-5)


def test_ft_sam_puts_weights_back_and_moves_statistics_once() -> None:
    model = toys.victim().train()
    start, counted = toys.weights(model), buffers(model)
    x, labels, seen = pixels(32), torch.arange(32) % 10, []

    def loss() -> Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        return functional.cross_entropy(model(x), labels)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=1.0)
    Sharpness(2.0).step(model, optimizer, loss)
    assert len(seen) == 2
    assert any(not torch.equal(a, b) for a, b in zip(*seen, strict=True)), "the climb moves"
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters()), "bit for bit"
    once = toys.victim().train()
    once(x)
    assert toys.same(buffers(model), buffers(once)) and not toys.same(buffers(model), counted)


def test_the_released_schedule_swings_with_a_period_of_200_updates() -> None:
    rate = FTSAM(schedule="update").rate
    assert [rate(step) for step in (0, 50, 200, 1000)] == pytest.approx([0.01, 0.005, 0.01, 0.01])
    assert rate(100) == pytest.approx(0.0)
    found = [
        FTSAM(schedule=schedule, epochs=2, batch=16).defend(case()).model
        for schedule in ("update", "epoch")
    ]
    assert toys.differing(*found)  # type: ignore[arg-type]


# I-BAU


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
    loss, _ = defense.slopes(
        model, [*model.parameters()], change, x, labels, torch.arange(count), (x, labels)
    )
    return loss, functional.cross_entropy(model(x), labels).detach()


def test_the_outer_loss_sees_the_perturbation_in_small_batches_too() -> None:
    nothing, strong = torch.zeros(1, 3, 32, 32), normal(1, 3, 32, 32)
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
    start = torch.zeros(1, 3, 32, 32)
    for radius in (10.0, 0.01):
        defense = IBAU(radius=radius, ascent_lr=100.0)
        change = defense.climb(model, batches)
        inner = [defense.inner(model, d, images, labels).item() for d in (start, change)]
        assert inner[1] < inner[0] and 0 < float(change.norm()) <= radius * (1 + 1e-5)
    shown = IBAU().perturbed(images, 5 * normal(1, 3, 32, 32))
    assert 0 == float(shown.min()) and float(shown.max()) == 1


def test_i_bau_leaves_statistics_and_undoes_what_costs_too_much() -> None:
    found = IBAU(outer_steps=1, iterations=2).defend(case(clean=160))
    assert found.model is not None and found.notes["round_kept"] == 1
    assert toys.same(buffers(found.model), buffers(toys.victim()))
    changed = toys.differing(found.model, toys.victim())
    assert changed == {name for name, _ in toys.victim().named_parameters()}
    wild = IBAU(outer_steps=2, iterations=0, lr=1.0)
    undone = wild.defend(case(clean=160))
    assert undone.notes["round_kept"] == 0
    assert not toys.differing(undone.model, toys.victim())  # type: ignore[arg-type]
    kept = replace(wild, tau=None).defend(case(clean=160))
    assert toys.differing(kept.model, toys.victim())  # type: ignore[arg-type]


# Super-FT


def test_the_triangle_starts_anew_with_the_second_phase() -> None:
    sft = SuperFT()
    rates = [sft.rate(step, 45, 2.5) for step in range(90)]
    assert rates[0] == rates[20] == rates[40] == pytest.approx(0.03)
    assert rates[10] == rates[30] == pytest.approx(2.5) == max(rates)
    assert rates[45] == rates[65] == pytest.approx(0.03)
    assert rates[55] == pytest.approx(0.05) == max(rates[45:])
    assert min(rates) == pytest.approx(0.03) and rates[5] == pytest.approx((0.03 + 2.5) / 2)


class Rates(SuperFT):
    """Super-FT that notes the step and the learning rate of every update."""

    def rate(self, step: int, change: int, peak: float) -> float:
        found = super().rate(step, change, peak)
        ASKED.append((step, change, found))
        return found


ASKED: list[tuple[int, int, float]] = []


def test_every_update_is_asked_once_and_phases_are_whole_epochs() -> None:
    ASKED.clear()
    Rates(epochs=5, first=0.4, batch=32).defend(case())
    assert [step for step, _, _ in ASKED] == list(range(15))
    assert {change for _, change, _ in ASKED} == {6}, "2 of 5 epochs, of 3 updates each"


def test_an_update_has_its_own_learning_rate_not_the_one_before() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=7.0)
    hooks, moved = EveryStep(lambda step: 10.0**-step), []
    for _ in range(3):
        before = weight.detach().clone()
        hooks.step(nn.Module(), optimizer, weight.sum)
        moved.append(float(before - weight.detach()))
    assert moved == pytest.approx([1.0, 0.1, 0.01])


def test_super_ft_without_a_peak_is_fine_tuning() -> None:
    flat = SuperFT(base=0.02, peak=0.02, second_peak=0.02, epochs=2, batch=32)
    plain = FineTuning(
        lr=0.02, epochs=2, batch=32, schedule="constant", momentum=0.0, weight_decay=0.0
    )
    cyclic = replace(flat, peak=2.0, half=1)
    found = [defense.defend(case()).model for defense in (flat, plain, cyclic)]
    assert not toys.differing(found[0], found[1])  # type: ignore[arg-type]
    assert toys.differing(found[0], found[2])  # type: ignore[arg-type]


def test_super_ft_says_when_the_loss_is_no_number_and_automatic_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DivergedError, match="loss of epoch"):
        SuperFT(peak=1e30, half=1, epochs=3, batch=16).defend(case())
    monkeypatch.setattr("defenses.super_ft.PEAKS", (1e30, 0.1, 0.05))
    outcome = SuperFT(peak=None, half=1, epochs=3, batch=16).defend(case())
    assert outcome.notes["curve"][0] == (1e30, None) and len(outcome.notes["curve"]) == 2
    assert outcome.notes["peak"] == 0.1 and outcome.notes["within_tau"]
    with pytest.raises(SweepError, match="not below base"):
        SuperFT(peak=0.001)


# AWM


def test_masks_of_one_change_nothing_and_folding_is_masking() -> None:
    model, x = toys.victim(), pixels()
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


def test_forty_images_move_masks_within_their_bounds() -> None:
    held = case(clean=40)
    model = held.model.requires_grad_(False)
    masks, defense = whole(model), AWM(outer_steps=2, inner_epochs=3, lr=0.5, bound=3.0)
    for change in defense.learn(held, model, masks, held.clean):
        assert 0 < float(change.abs().sum()) <= 3.0 * (1 + 1e-5) and not change.requires_grad
    values = torch.cat([mask.detach().flatten() for mask in masks.values()])
    assert float(values.min()) == 0 and float(values.max()) == 1, "both bounds are reached"
    assert not toys.differing(model, held.model), "weights and statistics are left alone"


def test_awm_climbs_from_its_own_predictions_and_weighs_both_losses() -> None:
    held = case()
    model, x, labels = held.model, pixels(16), torch.arange(16) % 10
    masks, change = whole(model), torch.zeros(1, 3, 32, 32)
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
    assert outcome.model is not None and outcome.notes["round_kept"] == 1
    victim = toys.victim()
    assert toys.differing(outcome.model, victim) <= set(whole(victim))
    for name in whole(victim):
        small, large = outcome.model.get_parameter(name), victim.get_parameter(name)
        assert bool((small.abs() <= large.abs()).all())
    assert 0.9 < outcome.notes["mask_mean"] < 1


def test_a_turn_that_costs_too_much_is_undone() -> None:
    wild = AWM(outer_steps=1, inner_epochs=4, lr=1.0, alpha=0.0, bound=1e4)
    undone = wild.defend(case(clean=40))
    assert undone.notes["round_kept"] == 0 and undone.notes["mask_mean"] == 1
    assert not toys.differing(undone.model, toys.victim())  # type: ignore[arg-type]
    kept = replace(wild, tau=None).defend(case(clean=40))
    assert toys.differing(kept.model, toys.victim())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "defense",
    [
        NAD(batch=32),
        FTSAM(rho=1.0, epochs=20, lr=0.03, batch=16),
        AWM(ascent_lr=1000.0, bound=300.0, alpha=0.5, batch=16),
        CLP(u=1.0),
    ],
    ids=lambda defense: type(defense).__name__,
)
def test_the_backdoor_of_the_toy_victim_goes(defense: Defense) -> None:
    """ASR falls from 1 to below 0.1; as many epochs of plain fine-tuning leave most of it."""
    ask = toys.oracle()
    assert ask(toys.victim())[1] == 1
    given = toys.case(defense.sees, clean=160)
    acc, asr = ask(defense.defend(given).model)  # type: ignore[arg-type]
    assert asr < 0.1 and acc >= (0.65 if isinstance(defense, CLP) else 0.95)
    if isinstance(defense, FTSAM):
        plain = FineTuning(epochs=20, lr=0.03, batch=16).defend(given).model
        assert ask(plain)[1] > 0.5  # type: ignore[arg-type]
