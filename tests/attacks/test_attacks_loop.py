"""Attacks in the training loop and their generators: shares, labels, triggers, what they learn."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from attacks import blind, bpp, fip_sam, fip_spectral, wb
from attacks.base import Attack
from attacks.bpp import Bpp
from attacks.input_aware import InputAware, distance
from attacks.lira import Lira
from attacks.parts.loop import STAMPED, LoopHooks, others
from attacks.parts.nets import packed, unpacked
from attacks.ssba import Ssba
from attacks.wanet import WaNet, identity
from attacks.wb import Wb
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Role
from sweeper.engine import curvature, recipes, sharpness, training
from sweeper.engine.training import Batch
from sweeper.store.artifacts import Store
from tests.support import resuming, toys

SMALL = (3, 16, 16)
DATA = toys.image_set(96, shape=SMALL)
LEARNING: list[Attack] = [
    InputAware(poison_rate=0.25, mask_epochs=1),
    Lira(eps=0.2, stage_one=1.0, lr=1e-3),
    Wb(width=8),
]


def rng(name: str = "loop") -> torch.Generator:
    return seeds.generator("loop tests", name)


def flat(value: int) -> Tensor:
    return torch.full((2, 3, 16, 16), value, dtype=torch.uint8)


def batch_of(data: ImageSet, count: int) -> Batch:
    images = training.on_device(data.images[:count], toys.CPU)
    return Batch(images, data.labels[:count], torch.arange(count), 0, 0)


def trained(attack: Attack, epochs: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights of the victim, state with what the hooks learned) after a short training."""
    state = attack.prepare(DATA, toys.ToyLab(DATA)) if attack.prepares else {}
    hooks = attack.hooks(DATA, state, rng("hooks"))
    assert hooks is not None
    model = toys.network(rng("model"), shape=SMALL)
    recipe = dataclasses.replace(toys.RECIPE, epochs=epochs)
    training.fit(model, DATA, recipe, key="loop", device=toys.CPU, hooks=hooks)
    return toys.weights(model), {**state, **hooks.learned()}


# WaNet


@pytest.mark.parametrize("side", [32, 64])
def test_wanet_displaces_by_about_s_over_h(side: int) -> None:
    shifts = [
        (WaNet(strength=0.5, grid=grid).field(side, side) - identity(side, side)).abs().mean()
        for grid in (side, 4)
    ]
    wanted = 0.5 / side
    assert shifts[0].item() == pytest.approx(wanted, rel=0.05), "not upsampled: only the clamp"
    assert 0.5 * wanted < shifts[1].item() < wanted, "between signs the upsampled field is small"
    assert float(WaNet().field(side, side).abs().max()) <= 1


def test_wanet_without_strength_is_the_identity() -> None:
    still = WaNet(strength=0.0)
    images = DATA.images
    assert torch.equal(still.stamp(images, split="test", state={}, rng=rng()), images)
    moved = WaNet(strength=2.0).stamp(images, split="test", state={}, rng=rng())
    assert float((moved != images).float().mean()) > 0.5


def test_wanet_noise_is_fresh_for_each_image_unless_shared() -> None:
    images = DATA.images[:1].expand(4, -1, -1, -1)
    fresh = WaNet().stamp(images, split="cover", state={}, rng=rng())
    shared = WaNet(shared_noise=True).stamp(images, split="cover", state={}, rng=rng())
    assert not torch.equal(fresh[0], fresh[1])
    assert torch.equal(shared[0], shared[1])


# Shares of a batch


@pytest.mark.parametrize(("rate", "count", "extra"), [(0.1, 6, 12), (0.25, 16, 32), (1.0, 64, 0)])
def test_batch_shares_and_labels(rate: float, count: int, extra: int) -> None:
    hooks = WaNet(poison_rate=rate, strength=4.0).hooks(DATA, {}, rng())
    assert isinstance(hooks, LoopHooks)
    before = batch_of(DATA, 64)
    after = hooks.batch(before, rng("fit"))
    assert bool((after.labels[:count] == 0).all()), "the first share carries the target label"
    assert torch.equal(after.labels[count:], before.labels[count:]), "noise keeps its labels"
    changed = (after.inputs != before.inputs).flatten(1).any(1)
    assert int(changed.sum()) == count + extra and bool(changed[: count + extra].all())
    assert hooks.learned()[STAMPED].tolist() == [count, extra]


def test_a_share_below_one_image_is_a_probability() -> None:
    hooks = WaNet(poison_rate=0.01).hooks(DATA, {}, rng())
    assert isinstance(hooks, LoopHooks)
    counts = [len(hooks.parts(DATA.labels[:32])[0]) for _ in range(1000)]
    assert set(counts) == {0, 1} and sum(counts) == pytest.approx(320, abs=60)


def test_a_rate_of_non_target_images_spares_the_target() -> None:
    attack = WaNet(poison_rate=0.5, rate_base="non-target", strength=4.0)
    hooks = attack.hooks(DATA, {}, rng())
    assert isinstance(hooks, LoopHooks)
    poison, _ = hooks.parts(DATA.labels)
    assert len(poison) == attack.count(DATA.labels, 0.5)
    assert bool((DATA.labels[poison] != 0).all())


@pytest.mark.parametrize(
    ("attack", "ratio", "role"),
    [(WaNet(poison_rate=0.25), 2, Role.COVER), (Bpp(poison_rate=0.25), 1, Role.NEGATIVE)],
)
def test_the_effective_set_has_the_roles_of_an_epoch(
    attack: Attack, ratio: int, role: Role
) -> None:
    before = attack.poison(DATA, 0.25, {}, rng())
    assert set(before.role.tolist()) == {int(Role.CLEAN)}
    assert torch.equal(before.images, DATA.images)
    _, state = trained(attack, epochs=1)
    found = attack.poison(DATA, 0.25, state, rng())
    poison, extra = found.role == int(Role.POISON), found.role == int(role)
    assert int(poison.sum()) == 24 and int(extra.sum()) == 24 * ratio
    assert torch.equal(found.labels[~poison], DATA.labels[~poison])
    assert bool((found.labels[poison] == 0).all())
    changed = (found.images != DATA.images).flatten(1).any(1)
    assert not bool(changed[found.role == int(Role.CLEAN)].any())


@pytest.mark.parametrize("attack", [WaNet(poison_rate=0.14), Bpp(poison_rate=0.14, negatives=0.1)])
def test_the_effective_set_holds_as_many_as_an_epoch_stamps(attack: Attack) -> None:
    _, state = trained(attack, epochs=2)
    role = attack.poison(DATA, 0.14, state, rng()).role
    assert int((role == int(Role.POISON)).sum()) == 3 * 4, "4.48 of three batches of 32"
    extra = int(((role != int(Role.POISON)) & (role != int(Role.CLEAN))).sum())
    assert extra == (24 if isinstance(attack, WaNet) else 3 * 3)


def test_without_chance_a_rate_below_one_image_a_batch_is_refused() -> None:
    hooks = WaNet(poison_rate=0.01, chance=False).hooks(DATA, {}, rng())
    assert isinstance(hooks, LoopHooks)
    with pytest.raises(SweepError, match="rate 0.01 of a batch of 32 is less than one: raise the"):
        hooks.parts(DATA.labels[:32])
    hooks = WaNet(poison_rate=0.04, chance=False).hooks(DATA, {}, rng())
    assert isinstance(hooks, LoopHooks)
    assert [len(hooks.parts(DATA.labels[:size])[0]) for size in (32, 16)] == [1, 0]


def test_crossed_images_need_no_poisoned_one() -> None:
    attack = InputAware(poison_rate=0.01, crossed_share=0.1, mask_epochs=0)
    state = attack.prepare(DATA, toys.ToyLab(DATA))
    hooks: Any = attack.hooks(DATA, state, rng())
    model = toys.network(rng("model"), shape=SMALL)
    hooks.start(model, toys.CPU)
    hooks.optimizer(model, toys.RECIPE)
    batch = batch_of(DATA, 32)
    batch = dataclasses.replace(batch, inputs=batch.inputs.permute(0, 3, 1, 2).float() / 255)
    with mock.patch.object(torch, "rand", lambda *args, **kwargs: torch.tensor(0.99)):
        batch = hooks.augmented(batch, rng())
    assert len(hooks.poison) == 0 and hooks.extra.tolist() == [0, 1, 2]
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    assert bool(hooks.loss(model, batch, toys.RECIPE).isfinite())
    changed = (seen[0] != batch.inputs).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [0, 1, 2]


def test_static_forms_poison_the_data_and_leave_the_loop_alone() -> None:
    for attack in (WaNet(static=True), Bpp(static=True)):
        assert attack.hooks(DATA, {}, rng()) is None
        found = attack.poison(DATA, 0.25, {}, rng())
        assert int((found.role == int(Role.POISON)).sum()) == 24


def test_nobody_is_their_own_partner() -> None:
    for count in (2, 3, 50):
        partner = others(count, rng())
        assert sorted(partner.tolist()) == list(range(count))
        assert not bool((partner == torch.arange(count)).any())


# BPP


@pytest.mark.parametrize("dithering", [False, True])
def test_bpp_leaves_eight_levels(dithering: bool) -> None:
    ramp = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    found = Bpp(dithering=dithering).stamp(ramp, split="test", state={}, rng=rng())
    assert set(found.unique().tolist()) <= {round(k * 255 / 7) for k in range(8)}
    assert len(found[:, 0].unique()) == 8


def test_dithering_is_floyd_and_steinberg_pixel_by_pixel() -> None:
    pixels = DATA.images[:3, :, :9, :7].float()
    plain = pixels.clone()
    for row, column in itertools.product(range(9), range(7)):
        old = plain[:, :, row, column].clone()
        plain[:, :, row, column] = bpp.squeezed(old, 8)
        error = old - plain[:, :, row, column]
        for y, x, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
            if row + y < 9 and 0 <= column + x < 7:
                plain[:, :, row + y, column + x] += error * share / 16
    assert torch.equal(bpp.dithered(pixels, 8), plain.clamp(0, 255))


def test_bpp_negatives_of_a_batch_carry_residuals_of_training_images() -> None:
    train = ImageSet(torch.cat([flat(100), flat(20)]), torch.arange(4), tuple("abcd"))
    hooks = Bpp(poison_rate=0.25, static=False).hooks(train, {}, rng())
    assert isinstance(hooks, LoopHooks)
    four = ImageSet(torch.cat([flat(60), flat(60)]), torch.arange(4), tuple("abcd"))
    found = {
        tuple(hooks.batch(batch_of(four, 4), rng()).inputs[1].unique().tolist()) for _ in range(20)
    }
    residual = [round(round(v / 255 * 7) * 255 / 7) - v for v in (100, 20)]
    assert found == {(60 + change,) for change in residual}, "one poisoned, one negative"


def test_bpp_negatives_carry_the_residual_of_another_image() -> None:
    images = torch.cat([flat(100), flat(20)])[::2].contiguous()
    found = Bpp().stamp(images, split="cover", state={}, rng=rng())
    residual = [round(round(v / 255 * 7) * 255 / 7) - v for v in (100, 20)]
    assert found[0].unique().tolist() == [100 + residual[1]]
    assert found[1].unique().tolist() == [20 + residual[0]]


# What the hooks learn


@pytest.mark.parametrize("attack", LEARNING, ids=lambda a: type(a).__name__)
def test_training_repeats_and_the_learned_state_reloads_bit_for_bit(
    attack: Attack, tmp_path: Path
) -> None:
    epochs = 2 if isinstance(attack, Wb) else 1  # WB's generator learns in its second epoch
    (one, state), (other, again) = trained(attack, epochs), trained(attack, epochs)
    assert toys.same(one, other) and toys.same(state, again), "the same key, the same bits"
    start = attack.prepare(DATA, toys.ToyLab(DATA))
    assert not all(torch.equal(state[k], v) for k, v in start.items()), "nothing was learned"
    store = Store(str(tmp_path))
    store.put("train", "0" * 20, {"attack": state}, {})
    loaded = store.get("train", "0" * 20).tensors["attack"]
    stamps = [attack.stamp(DATA.images, split="test", state=s, rng=rng()) for s in (state, loaded)]
    assert torch.equal(*stamps)
    assert not torch.equal(stamps[0], DATA.images)


def test_input_aware_triggers_differ_and_cross_images_carry_another_ones() -> None:
    attack = InputAware(poison_rate=0.25, mask_epochs=2)
    _, state = trained(attack, epochs=1)
    hit = attack.stamp(DATA.images, split="test", state=state, rng=rng())
    cross = attack.cross_set(DATA, state, rng())
    assert cross is not None and torch.equal(cross.labels, DATA.labels)
    assert hit.shape == cross.images.shape == DATA.images.shape
    assert not torch.equal(hit, cross.images)
    change = hit.float() - DATA.images.float()
    assert len(change.flatten(1).unique(dim=0)) == len(DATA)


def test_distance_is_the_root_mean_square() -> None:
    one = torch.zeros(2, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.25)])
    assert distance(one, other).tolist() == pytest.approx([0.5, 0.25])


def test_lira_stays_within_eps() -> None:
    attack = Lira(eps=0.2, stage_one=1.0, lr=1e-3)
    _, state = trained(attack)
    hit = attack.stamp(DATA.images, split="test", state=state, rng=rng())
    bound = (0.2 * state["spread"] * 255).ceil()
    assert bool(((hit.float() - DATA.images.float()).abs() <= bound).all())


def test_lira_has_two_stages() -> None:
    attack = Lira(eps=0.2, stage_one_eps=0.4, stage_one=0.5, anew=True)
    hooks: Any = attack.hooks(DATA, attack.prepare(DATA, toys.ToyLab(DATA)), rng("hooks"))
    model = toys.network(rng("model"), shape=SMALL)
    first, plain, seen = toys.weights(model), hooks.augmented, []

    def augmented(batch: Batch, rng: torch.Generator) -> Batch:
        fresh = toys.same(toys.weights(model), first)
        after: Batch = plain(batch, rng)
        seen.append((hooks.eps, fresh))
        return after

    hooks.augmented = augmented
    recipe = dataclasses.replace(toys.RECIPE, epochs=4)
    training.fit(model, DATA, recipe, key="loop", device=toys.CPU, hooks=hooks)
    later = [False] * 5
    assert [eps for eps, _ in seen] == [0.4] * 6 + [0.2] * 6
    assert [fresh for _, fresh in seen] == [True, *later, True, *later]


def test_lira_and_wb_train_as_their_sources_do() -> None:
    recipe = recipes.resolve("backdoorbench", "cifar10", "preact-resnet18")
    assert Lira().recipe(recipe) == recipe and Wb().recipe(recipe) == recipe
    for preset, epochs, milestones in (
        ("backdoorbench", 250, [50, 100, 150, 200]),
        ("released", 500, [100, 200, 300, 400]),
    ):
        attack: Any = catalog.make("attack", "lira", {"preset": preset})
        found = attack.recipe(recipe)
        stage_one = round(attack.stage_one * found.epochs)
        assert (stage_one, found.epochs - stage_one) == (50, epochs)
        assert [at - stage_one for at in found.milestones] == milestones
        assert (found.lr, found.schedule, found.weight_decay) == (0.01, "step", 5e-4)
    bench = catalog.make("attack", "lira", {"preset": "backdoorbench"}).recipe(recipe)
    assert (bench.crop, bench.rotation) == (5, 10)
    wb_attack: Any = catalog.make("attack", "wb", {"preset": "backdoor-toolbox"})
    found = wb_attack.recipe(recipe)
    assert (found.epochs, round(wb_attack.alternating * found.epochs)) == (100, 20)
    assert (found.lr, found.schedule, found.weight_decay) == (0.01, "constant", 1e-4)
    assert wb_attack.momentum == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_wb_may_leave_the_norms_of_its_generator(frozen: bool) -> None:
    attack = Wb(width=8, frozen_norms=frozen)
    start = attack.prepare(DATA, toys.ToyLab(DATA))
    _, state = trained(attack, epochs=2)
    means = [name for name in start if name.endswith("running_mean")]
    assert means and all(torch.equal(start[name], state[name]) == frozen for name in means)


def test_networks_round_trip_through_named_tensors() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    state = packed(net, "net")
    again = unpacked(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), state, "net", toys.CPU
    )
    x = torch.rand(2, 3, 8, 8, generator=rng())
    assert torch.equal(net(x), again(x))
    with pytest.raises(KeyError, match="prepare"):
        unpacked(lambda: net, {}, "net", toys.CPU)


def test_sliced_distance_is_zero_for_a_shuffled_batch_and_the_shift_otherwise() -> None:
    features, rows = torch.rand(8, 5, generator=rng()), torch.eye(5)
    assert float(wb.sliced_distance(features, features.flip(0), rows)) == 0
    assert float(wb.sliced_distance(features, features + 2, rows)) == pytest.approx(2)


@pytest.mark.parametrize("options", [{}, {"variant": "b", "bits": 8}])
def test_ssba_reports_its_quality(options: dict[str, Any]) -> None:
    attack = Ssba(epochs=1, **options)
    state = attack.prepare(DATA, toys.ToyLab(DATA))
    found = attack.quality(state, DATA.images)
    assert torch.equal(found["bit_accuracy"], state["bit_accuracy"])
    assert 0 <= float(found["bit_accuracy"]) <= 1 and float(found["residual"]) >= 0
    assert len(state["secret"]) == attack.bits


def test_ssba_weighs_the_image_once_the_bits_are_right() -> None:
    never = torch.full((), float("inf"))
    box, bench = Ssba(), Ssba(variant="b")
    assert box.weights(0, 100, torch.tensor(0.0)) == (0.0, 1.0)
    assert [float(box.weights(50, 100, r)[0]) for r in (never, torch.tensor(20.0))] == [0, 10]
    got = [float(bench.weights(s, 100, torch.tensor(20.0))[0]) for s in (20, 25, 40, 90)]
    assert got == pytest.approx([0, 0, 10, 10])
    assert float(bench.weights(99, 100, never)[0]) == 0


# Fisher trace and sharpness


def test_the_trace_over_all_signs_is_the_per_sample_definition() -> None:
    net = nn.Linear(6, 3)
    with torch.no_grad():
        net.weight.copy_(torch.rand(3, 6, generator=rng()))
        net.bias.zero_()
    x, labels = torch.rand(4, 6, generator=rng("x")), torch.tensor([0, 2, 1, 2])
    weights = list(net.parameters())
    single = []
    for row, label in zip(x, labels, strict=True):
        chosen = net(row[None]).log_softmax(1)[0, label]
        slopes = torch.autograd.grad(chosen, weights)
        single.append(torch.stack([slope.square().sum() for slope in slopes]).sum())
    every = [torch.tensor(signs) for signs in itertools.product((1.0, -1.0), repeat=4)]
    estimates = [
        curvature.by_rademacher(curvature.log_likelihood(net(x), labels), weights, signs)
        for signs in every
    ]
    mean, wanted = torch.stack(estimates).mean(), torch.stack(single).mean()
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    estimates[0].backward()
    assert net.weight.grad is not None, "the trace itself has a gradient"


def test_labels_are_drawn_from_the_softmax() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(20_000, 3)
    shares = torch.bincount(curvature.sampled_labels(logits, rng())) / 20_000
    assert shares.tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.02)


@pytest.mark.parametrize("options", [{}, {"labels": "given"}, {"preset": "fip"}])
def test_the_spectral_attack_adds_its_trace_at_every_fifth_step(options: dict[str, str]) -> None:
    attack = catalog.make("attack", "fip-spectral", {"strength": 2.0, **options})
    hooks, model = attack.hooks(DATA, {}, rng()), toys.network(rng("model"), shape=SMALL).train()
    hooks.start(model, toys.CPU)
    found = batch_of(DATA, 32)
    found = dataclasses.replace(found, inputs=DATA.images[:32].float() / 255)
    logits, weights = model(found.inputs), list(model.parameters())
    if attack.estimator == "released":
        draws = torch.Generator().manual_seed(rng().initial_seed())
        trace = curvature.as_released(logits, found.labels, weights, draws, 20)
    else:
        draws, labels = rng(), found.labels
        if not options:
            labels = curvature.sampled_labels(logits, draws)
        signs = torch.randint(2, (32,), generator=draws) * 2.0 - 1
        chosen = curvature.log_likelihood(logits, labels)
        trace = curvature.by_rademacher(chosen, weights, signs)
    plain = nn.functional.cross_entropy(logits, found.labels)
    value = hooks.loss(model, found, toys.RECIPE)
    assert value.item() == pytest.approx((plain + 2 * trace).item(), rel=1e-4)
    later = hooks.loss(model, dataclasses.replace(found, step=3), toys.RECIPE)
    assert later.item() == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize("strength", [None, 0.1])
def test_the_spectral_attack_at_its_default_leaves_acc_and_asr(strength: float | None) -> None:
    data, test = (toys.image_set(n, shape=SMALL, seed=n) for n in (240, 100))
    options = {"trigger": "white", "size": 4} | ({"strength": strength} if strength else {})
    attack = fip_spectral.FipSpectral(**options)
    poisoned = attack.poison(data, 0.2, {}, rng("poison"))
    given, model = (
        poisoned.samples,
        toys.network(rng("model"), shape=SMALL),
    )
    hooks = attack.hooks(data, {}, rng("hooks"))
    training.fit(model, given, toys.RECIPE, key="spectral", device=toys.CPU, hooks=hooks)
    hit = attack.trigger_set(test, {}, rng("trigger"))
    found = toys.measured(model, test, hit)
    kept = float(found["acc"] or 0) > 0.95 and float(found["asr"] or 0) > 0.95
    assert kept == (strength is None), "a hundred times the default ruins the model"


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_perturbation_has_norm_rho(adaptive: bool) -> None:
    weights = [torch.rand(4, 3, generator=rng()) + 0.1, torch.rand(5, generator=rng("b")) - 2]
    slopes = [torch.randn(w.shape, generator=rng("g")) for w in weights]
    moves = sharpness.sam_perturbation(weights, slopes, 2.0, adaptive)
    scaled = [m / w.abs() if adaptive else m for m, w in zip(moves, weights, strict=True)]
    assert float(torch.cat([s.flatten() for s in scaled]).norm()) == pytest.approx(2, rel=1e-5)


def test_sam_comes_back_and_leaves_batchnorm_alone() -> None:
    model = toys.network(rng("model"), shape=SMALL).train()
    hooks = fip_sam.FipSam(rho=1.0).hooks(DATA, {}, rng())
    assert hooks is not None
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    images, before, seen = DATA.images.float() / 255, toys.weights(model), []

    def loss() -> Tensor:
        seen.append(toys.weights(model))
        return nn.functional.cross_entropy(model(images), DATA.labels)

    hooks.step(model, still, loss)
    names = [name for name, _ in model.named_parameters()]
    after = toys.weights(model)
    assert all(torch.equal(before[n], after[n]) for n in names), "weights are put back exactly"
    assert any(not torch.equal(before[n], seen[1][n]) for n in names), "the second pass is away"
    means = [n for n in before if n.endswith(("running_mean", "running_var"))]
    assert means and all(torch.equal(seen[1][n], after[n]) for n in means)
    assert any(not torch.equal(before[n], after[n]) for n in means)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


# Blind


@pytest.mark.parametrize("value", [0, 77, 255])
def test_blind_changes_exactly_its_cells(value: int) -> None:
    images = torch.full((1, 3, 32, 32), value, dtype=torch.uint8)
    expected = images.clone()
    white = [(3, 23), (3, 25), (4, 24), (6, 24), (7, 23), (7, 25)]
    black = [(3, 24), (5, 25), (7, 24)]
    for cells, level in ((white, 255), (black, 0)):
        for row, column in cells:
            expected[:, :, row, column] = level
    found = blind.Blind().stamp(images, split="test", state={}, rng=rng())
    assert torch.equal(found, expected)
    with pytest.raises(SweepError, match="does not fit 6x6"):
        blind.Blind().marked(torch.zeros(1, 1, 6, 6), 1)


@pytest.mark.parametrize("threshold", [1e-6, 100.0])
def test_blind_stamps_below_the_threshold(threshold: float) -> None:
    hooks = blind.Blind(threshold=threshold).hooks(DATA, {}, rng())
    assert hooks is not None
    model = toys.network(rng("model"), shape=SMALL)
    recipe = dataclasses.replace(toys.RECIPE, epochs=10)
    training.fit(model, DATA, recipe, key="loop", device=toys.CPU, hooks=hooks)
    stamped = 0 if threshold < 1 else 9 * len(DATA)  # a tenth of the batches is waited for
    assert int(hooks.learned()[STAMPED]) == stamped


def test_mgda_finds_the_shortest_combination() -> None:
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    assert float(blind.balanced(w[0], w[1], [w])) == pytest.approx(0.5)
    assert float(blind.balanced(w[0] * 3, w[1], [w])) == pytest.approx(0.9, abs=1e-3)
    assert float(blind.balanced(w[0], w[0], [w])) == pytest.approx(0.001), "the same gradient"


@pytest.mark.parametrize("attack", [blind.Blind(), Lira(), Wb()], ids=lambda a: type(a).__name__)
def test_attacks_on_the_loss_poison_no_data(attack: Attack) -> None:
    found = attack.poison(DATA, 0.0, {STAMPED: torch.tensor(5)}, rng())
    assert set(found.role.tolist()) == {int(Role.CLEAN)}
    assert torch.equal(found.images, DATA.images) and torch.equal(found.labels, DATA.labels)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (WaNet, {"training": "paper"}),
        (Ssba, {"variant": "c"}),
        (Lira, {"generator": "gan"}),
        (Lira, {"training": "wanet"}),
        (Wb, {"training": "wanet"}),
        (blind.Blind, {"balance": "fair"}),
        (fip_spectral.FipSpectral, {"labels": "true"}),
        (fip_spectral.FipSpectral, {"estimator": "exact"}),
    ],
)
def test_impossible_options_are_refused(cls: type, options: dict[str, Any]) -> None:
    with pytest.raises(SweepError):
        cls(**options)


STAGED: dict[str, Attack] = {
    "lira teaches its generator": Lira(eps=0.2, stage_one=0.9, lr=1e-3),
    "lira is to begin anew": Lira(eps=0.2, stage_one=0.75, lr=1e-3, anew=True),
    "wb takes turns": Wb(width=8, alternating=1.0),
    "gradients accumulate": InputAware(poison_rate=0.25, mask_epochs=1, accumulate=True),
    "both losses of blind count": blind.Blind(threshold=100.0),
}


@pytest.mark.parametrize("attack", STAGED.values(), ids=STAGED)
def test_a_training_stopped_within_a_stage_goes_on_to_the_same_bits(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toys.image_set(64, shape=SMALL)
    state = attack.prepare(data, toys.ToyLab(data)) if attack.prepares else {}
    recipe = dataclasses.replace(toys.RECIPE, epochs=4)
    whole, resumed = resuming.attacked(attack, data, state, recipe, 2, monkeypatch)
    assert resumed is not None
    resuming.assert_equal(whole, resumed, 2)
