"""The baselines of repair: NAD, FT-SAM, Super-FT, against their formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses import nad
from defenses.awm import AWM
from defenses.base import Defense, Needs
from defenses.clp import CLP
from defenses.fine_tuning import FineTuning
from defenses.ft_sam import FTSAM, Sharpness
from defenses.nad import NAD, attention, levels
from defenses.parts.hooks import EveryStep
from defenses.super_ft import SuperFT
from sweeper.core import catalog
from sweeper.core.errors import DivergedError, SweepError
from sweeper.engine import sharpness, training
from sweeper.engine.recipes import Recipe
from tests.support import toys
from tests.support.repairs import buffers, case, fresh, normal, pixels

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
    images = toys.image_set(2, shape=toys.COLOUR).images
    stages = [f"trunk.layer{k}" for k in (1, 2, 3, 4)]
    assert levels(fresh("resnet18", width=8), images) == stages
    model = fresh("vgg11-bn")
    names = levels(model, images)
    after = [model.get_submodule(f"trunk.{int(n.split('.')[1]) + 1}") for n in names]
    assert len(names) == 5 and all(isinstance(part, nn.MaxPool2d) for part in after)
    assert NAD().applies(Needs(10, (3, 32, 32), "vit-tiny", False, 500))


def test_the_teacher_stays_and_the_student_moves_its_statistics_once_a_batch() -> None:
    held = case()
    teacher, student = held.fresh_model(), held.fresh_model()
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
        model = held.fresh_model()
        names = levels(model, held.clean.images[:2])[-3:]
        with nad.recorded(model, names) as maps:
            weights = dict(zip(names, betas, strict=True))
            hooks = nad._Distillation(weights, 2.0, model, dict(maps), maps)
            hooks.teacher_maps = maps
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
    plain = case().fresh_model()
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


@pytest.mark.parametrize("preset", ["", "backdoor-toolbox", "backdoorbench"])
def test_a_toolbox_trains_teacher_and_student_as_it_does(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[Recipe] = []

    def spied(model: Any, data: Any, recipe: Recipe, **rest: Any) -> list[float]:
        recipes.append(recipe)
        return [0.0]

    monkeypatch.setattr(training, "fit", spied)
    method = NAD(**NAD.presets.get(preset, {}))
    held = case(
        crop=4, flip=True, rotation=15.0, clean=300, model=fresh("preact-resnet18", width=4)
    )
    found = method.defend(held)
    batch, decay, nesterov, crop, betas = {
        "": (64, 1e-4, True, 4, (500, 1000, 1000)),
        "backdoor-toolbox": (64, 1e-4, True, 0, (500, 1000, 1000)),
        "backdoorbench": (256, 5e-4, False, 4, (500, 1000)),
    }[preset]
    assert len(recipes) == 2 and method.betas == betas
    assert found.notes["levels"] == ["trunk.3", "trunk.4", "trunk.7"][-len(betas) :]
    for recipe in recipes:
        assert (recipe.batch, recipe.weight_decay, recipe.nesterov) == (batch, decay, nesterov)
        assert (recipe.crop, recipe.flip, recipe.rotation > 0) == (crop, crop > 0, crop > 0)


# FT-SAM


def test_the_climb_has_length_rho_relative_to_the_weights() -> None:
    weights, slopes = [normal(4, 3), normal(5)], [normal(3, 4).T, normal(6)[1:]]
    found = sharpness.sam_perturbation(weights, slopes, 2.0, True)
    relative = torch.cat([(e / w.abs()).flatten() for e, w in zip(found, weights, strict=True)])
    assert float(relative.norm()) == pytest.approx(2.0, rel=1e-5)
    for e, w, g in zip(found, weights, slopes, strict=True):
        assert torch.allclose(e / e.norm(), w.square() * g / (w.square() * g).norm(), atol=1e-6)
    plain = sharpness.sam_perturbation(weights, slopes, 2.0, adaptive=False)
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
            adaptive: sharpness.sam_perturbation(
                [one.detach(), two.detach()], slopes, 0.5, adaptive
            )
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


def test_the_presets_of_ft_sam_are_the_files_of_backdoorbench() -> None:
    read = {}
    for preset in FTSAM.presets:
        made = catalog.make("defense", "ft-sam", {"preset": preset})
        read[preset] = (made.rho, made.smoothing, made.epochs, made.schedule)
        shared = (made.lr, made.momentum, made.weight_decay, made.batch, made.adaptive)
        assert shared == (0.01, 0.9, 5e-4, 256, True)
    assert read == {
        "backdoorbench": (2.0, 0.1, 100, "update"),
        "backdoorbench-gtsrb": (8.0, 0.0, 50, "update"),
        "backdoorbench-tiny-imagenet": (8.0, 0.0, 100, "constant"),
    }


def test_a_constant_rate_of_ft_sam_is_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    own = Sharpness.step

    def step(self: Sharpness, model: Any, optimizer: torch.optim.Optimizer, loss: Any) -> Any:
        seen.append(optimizer.param_groups[0]["lr"])
        return own(self, model, optimizer, loss)

    monkeypatch.setattr(Sharpness, "step", step)
    FTSAM(schedule="constant", epochs=3, batch=40).defend(case())
    assert set(seen) == {0.01} and len(seen) >= 6


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
    assert outcome.notes["curve"][0] == (1e30, 0.0) and len(outcome.notes["curve"]) == 2
    assert outcome.notes["peak"] == 0.1 and outcome.notes["within_tau"]
    with pytest.raises(SweepError, match="not below base"):
        SuperFT(peak=0.001)


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
    size: dict[str, Any] = {}
    if isinstance(defense, CLP):  # finds no channel of the victim of 16 pixels
        size = {"shape": toys.COLOUR}
    ask = toys.oracle(**size)
    assert ask(toys.victim(**size))[1] == 1
    given = toys.case(defense.sees, clean=160, **size)
    acc, asr = ask(defense.defend(given).model)  # type: ignore[arg-type]
    assert asr < 0.1 and acc >= (0.65 if isinstance(defense, CLP) else 0.95)
    if isinstance(defense, FTSAM):
        plain = FineTuning(epochs=20, lr=0.03, batch=16).defend(given).model
        assert ask(plain)[1] > 0.5  # type: ignore[arg-type]
