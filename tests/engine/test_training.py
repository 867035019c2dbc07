"""The training loop: schedules by hand values, augmentation against slow references, hooks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from sweeper.core import seeds
from sweeper.core.errors import DivergedError, SweepError
from sweeper.core.types import ImageSet
from sweeper.engine import augment, recipes, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.training import Batch, Hooks, learning_rate
from tests.support import toys


def rng(name: str | int = "draw") -> Generator:
    return seeds.generator("training tests", name)


def train(model: nn.Module, data: ImageSet, key: str = "key", **more: Any) -> list[float]:
    hooks, progress = more.pop("hooks", None), more.pop("progress", None)
    recipe = replace(toys.RECIPE, **{"epochs": 2, **more})
    return training.fit(
        model, data, recipe, key=key, device=toys.CPU, hooks=hooks, progress=progress
    )


# Learning rate


@pytest.mark.parametrize(
    ("recipe", "step", "expected"),
    [
        # 10 epochs of 5 steps, peak 1.0
        (Recipe(schedule="constant", lr=1.0, epochs=10), 49, 1.0),
        (Recipe(schedule="linear", lr=1.0, epochs=10), 0, 1.0),
        (Recipe(schedule="linear", lr=1.0, epochs=10), 25, 0.5),
        (Recipe(schedule="linear", lr=1.0, epochs=10), 49, 0.02),
        (Recipe(schedule="linear", lr=1.0, epochs=10, warmup=2.0), 0, 0.1),
        (Recipe(schedule="linear", lr=1.0, epochs=10, warmup=2.0), 9, 1.0),
        (Recipe(schedule="linear", lr=1.0, epochs=10, warmup=2.0), 10, 1.0),
        (Recipe(schedule="linear", lr=1.0, epochs=10, warmup=2.0), 30, 0.5),
        (Recipe(schedule="linear", lr=1.0, epochs=10, warmup=2.0), 49, 0.025),
        (Recipe(schedule="cosine", lr=1.0, epochs=10), 4, 1.0),
        (Recipe(schedule="cosine", lr=1.0, epochs=10), 5, (1 + math.cos(math.pi / 10)) / 2),
        (Recipe(schedule="cosine", lr=1.0, epochs=10), 25, 0.5),
        (Recipe(schedule="cosine", lr=1.0, epochs=10, period=100), 25, 0.9938441702975689),
        (Recipe(schedule="step", lr=1.0, epochs=10, milestones=(4, 8)), 19, 1.0),
        (Recipe(schedule="step", lr=1.0, epochs=10, milestones=(4, 8)), 20, 0.1),
        (Recipe(schedule="step", lr=1.0, epochs=10, milestones=(4, 8)), 40, 0.01),
        (Recipe(schedule="step", lr=1.0, epochs=10, milestones=(4,), gamma=0.5), 30, 0.5),
        (Recipe(schedule="constant", lr=0.4, epochs=10, warmup=1.0), 1, 0.16),
        (Recipe(schedule="constant", lr=0.4, epochs=10, warmup=0.5), 2, 0.4),
    ],
)
def test_learning_rates_by_hand(recipe: Recipe, step: int, expected: float) -> None:
    assert learning_rate(recipe, step, 5) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(
    schedule=st.sampled_from(["linear", "cosine", "step", "constant"]),
    epochs=st.integers(1, 20),
    steps=st.integers(1, 30),
    warmup=st.floats(0, 25),
)
def test_learning_rates_lie_between_zero_and_the_peak(
    schedule: str, epochs: int, steps: int, warmup: float
) -> None:
    recipe = Recipe(
        schedule=schedule, epochs=epochs, lr=0.3, warmup=warmup, milestones=(epochs // 2,)
    )
    rates = [learning_rate(recipe, step, steps) for step in range(epochs * steps)]
    assert all(0 < rate <= 0.3 + 1e-12 for rate in rates)
    rising = [rate for step, rate in enumerate(rates) if step < warmup * steps]
    assert rising == sorted(rising)
    falling = rates[len(rising) :]
    assert falling == sorted(falling, reverse=True)


def test_the_loop_sets_the_learning_rate_of_every_step() -> None:
    class Spy(Hooks):
        rates: list[float] = []

        def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any) -> Tensor:
            self.rates.append(optimizer.param_groups[0]["lr"])
            return super().step(model, optimizer, loss)

    recipe = dict(epochs=3, batch=40, lr=0.3, warmup=1.0, schedule="linear")
    train(toys.network(rng()), toys.image_set(100), hooks=Spy(), **recipe)
    assert Spy.rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05])


# Augmentation


def slow_crop_flip(images: Tensor, pad: int, flip: bool, generator: Generator) -> Tensor:
    """One image after the other, pixel by pixel over a padded copy."""
    count, height, width, channels = images.shape
    top = torch.randint(2 * pad + 1, (count, 1), generator=generator).flatten().tolist()
    left = torch.randint(2 * pad + 1, (count, 1), generator=generator).flatten().tolist()
    mirrored = [False] * count
    if flip:
        mirrored = (torch.rand(count, 1, generator=generator) < 0.5).flatten().tolist()
    out = torch.zeros_like(images)
    for number in range(count):
        frame = torch.zeros(height + 2 * pad, width + 2 * pad, channels, dtype=images.dtype)
        frame[pad : pad + height, pad : pad + width] = images[number]
        rows, columns = top[number], left[number]
        window = frame[rows : rows + height, columns : columns + width]
        out[number] = window.flip(1) if mirrored[number] else window
    return out


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    pad=st.integers(0, 5),
    flip=st.booleans(),
)
def test_crop_and_flip_equal_the_slow_reference(
    seed: int, count: int, height: int, width: int, channels: int, pad: int, flip: bool
) -> None:
    images = torch.randint(
        1, 256, (count, height, width, channels), generator=rng(seed), dtype=torch.uint8
    )
    before = images.clone()
    found = augment.crop_flip(images, pad, flip, rng(seed + 1))
    assert torch.equal(found, slow_crop_flip(images, pad, flip, rng(seed + 1)))
    assert torch.equal(images, before)


def test_every_crop_and_both_mirrorings_occur_equally_often() -> None:
    side, pad, count = 9, 2, 5000
    images = torch.zeros(count, side, side, 1, dtype=torch.uint8)
    images[:, 4, 3] = 255
    found = augment.crop_flip(images, pad, True, rng()).flatten(1).argmax(1)
    rows, columns = found // side, found % side
    assert sorted(set(rows.tolist())) == [2, 3, 4, 5, 6]
    assert int(torch.bincount(rows)[2:].min()) > 0.17 * count
    spread = torch.bincount(columns, minlength=side) / count
    # Shifts -2..2 of column 3, or of its mirror image 5: 1..5 and 3..7, half each.
    expected = torch.tensor([0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0])
    assert float((spread - expected).abs().max()) < 0.02


def slow_rotation(image: Tensor, angle: float) -> Tensor:
    """Each pixel of the result looks up the nearest pixel at the rotated place; black outside."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            at_x = math.cos(angle) * x - math.sin(angle) * y + (width - 1) / 2
            at_y = math.sin(angle) * x + math.cos(angle) * y + (height - 1) / 2
            r, c = round(at_y), round(at_x)
            if 0 <= r < height and 0 <= c < width:
                out[:, row, column] = image[:, r, c]
    return out


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14), (16, 7)])
def test_rotation_equals_the_slow_reference(height: int, width: int) -> None:
    images = torch.rand(6, 2, height, width, generator=rng())
    found = augment.rotate(images, 40.0, rng("angle"))
    angles = (torch.rand(6, generator=rng("angle")) * 2 - 1) * math.radians(40)
    slow = torch.stack(
        [slow_rotation(image, angle) for image, angle in zip(images, angles.tolist(), strict=True)]
    )
    assert float((found == slow).double().mean()) > 0.98, "beyond ties of rounding they are equal"


def test_rotation_turns_both_ways_within_its_range_and_keeps_the_middle() -> None:
    images = torch.zeros(400, 1, 33, 33)
    images[:, :, 16, 16] = 1
    images[:, :, 16, 32] = 1
    found = augment.rotate(images, 15.0, rng())
    assert bool((found[:, 0, 16, 16] == 1).all()), "the middle stays in its place"
    right = found[:, 0, :, 24:].amax(2)
    rows = (right.argmax(1) - 16)[right.amax(1) > 0]
    reach = math.sin(math.radians(15)) * 16
    assert -reach - 1 <= int(rows.min()) < -2 and 2 < int(rows.max()) <= reach + 1
    assert torch.equal(augment.rotate(images, 0.0, rng()), images)


def test_erasing_blackens_one_box_of_a_bounded_area() -> None:
    images = torch.rand(500, 3, 32, 32, generator=rng()) * 0.9 + 0.1
    found = augment.erase(images, 1.0, rng("box"))
    black = (found == 0).all(1)
    assert torch.equal(black, (found == 0).any(1)), "a box goes through all channels"
    assert torch.equal(
        found[~black[:, None].expand_as(found)], images[~black[:, None].expand_as(images)]
    )
    shares = black.double().mean((1, 2))
    assert float(shares.min()) > 0.005 and float(shares.max()) < 0.36
    assert 0.12 < float(shares.mean()) < 0.21, "2-33 % of the area, uniform"
    rows, columns = black.any(2), black.any(1)
    boxes = rows[:, :, None] & columns[:, None, :]
    assert torch.equal(boxes, black), "what is black is a full rectangle"
    for side in (rows, columns):
        edges = side.int().diff(dim=1).abs().sum(1) + side[:, 0].int() + side[:, -1].int()
        assert bool((edges == 2).all()), "and in one piece"


def test_erasing_happens_with_its_probability() -> None:
    images = torch.ones(4000, 1, 8, 8)
    assert torch.equal(augment.erase(images, 0.0, rng()), images)
    hit = (augment.erase(images, 0.3, rng()) == 0).flatten(1).any(1).double().mean()
    assert 0.26 < float(hit) < 0.34


def test_augmented_gives_pixels_in_channels_first() -> None:
    data = toys.image_set(8)
    images = training.on_device(data.images, toys.CPU)
    assert images.shape == (8, 16, 16, 3) and images.is_contiguous()
    found = training.augmented(images, Recipe(), rng())
    assert torch.equal(found, data.images.float() / 255)
    assert found.is_contiguous(memory_format=torch.channels_last)
    busy = Recipe(crop=4, flip=True, rotation=10.0, erase=0.5)
    one, other = (training.augmented(images, busy, rng(name)) for name in ("a", "a"))
    assert torch.equal(one, other)
    assert float(one.min()) >= 0 and float(one.max()) <= 1
    assert not torch.equal(one, training.augmented(images, busy, rng("b")))


# The loop


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (1, 4, [1]), (4, 4, [4]), (5, 1, [1] * 4)],
)
def test_an_epoch_visits_every_sample_once(count: int, batch: int, sizes: list[int]) -> None:
    found = training.order(count, batch, rng())
    assert [len(part) for part in found] == sizes
    visited = torch.cat(found).tolist()
    assert len(set(visited)) == len(visited) and set(visited) <= set(range(count))


def test_one_key_gives_one_model_whatever_runs_before() -> None:
    data = toys.image_set(100)
    everything = {"crop": 2, "flip": True, "rotation": 5.0, "erase": 0.2, "label_smoothing": 0.1}

    def trained(key: str) -> tuple[Net_, list[float]]:
        model = toys.network(rng("model"))
        losses = train(model, data, key, **everything)
        return toys.weights(model), losses

    first, losses = trained("a")
    other, _ = trained("b")
    torch.rand(17)  # the global generator is nobody's business here
    again, same_losses = trained("a")
    assert toys.same(first, again) and losses == same_losses
    assert not toys.same(first, other)


Net_ = dict[str, Tensor]


def test_training_learns_and_ends_in_eval_mode() -> None:
    model, data, seen = toys.network(rng("model")), toys.image_set(200), []
    before = data.images.clone()
    losses = train(model, data, epochs=8, progress=lambda *told: seen.append(told))
    assert losses[-1] < 0.3 * losses[0] and len(losses) == 8
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(n, 8) for n in range(1, 9)]
    assert [loss for *_, loss in seen] == losses
    assert not model.training and torch.equal(data.images, before)


class Diary(Hooks):
    """Writes down every call and what it was given."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.batches: list[Batch] = []

    def start(self, model: nn.Module, device: torch.device) -> None:
        self.calls.append("start")

    def optimizer(self, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        self.calls.append("optimizer")
        return super().optimizer(model, recipe)

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        self.calls.append("batch")
        assert batch.inputs.dtype == torch.uint8 and batch.inputs.shape[-1] == 3
        self.batches.append(batch)
        return replace(batch, labels=(batch.labels + 1) % 10)

    def augmented(self, batch: Batch, rng: Generator) -> Batch:
        self.calls.append("augmented")
        assert batch.inputs.dtype == torch.float32 and batch.inputs.shape[1] == 3
        assert torch.equal(batch.labels, (self.batches[-1].labels + 1) % 10)
        return batch

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        self.calls.append("loss")
        assert model.training
        return super().loss(model, batch, recipe)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any) -> Tensor:
        self.calls.append("step")
        return super().step(model, optimizer, loss)

    def stepped(self, model: nn.Module, step: int) -> None:
        self.calls.append(f"stepped {step}")

    def epoch(self, model: nn.Module, epoch: int) -> None:
        self.calls.append(f"epoch {epoch}")


def test_hooks_are_called_in_order() -> None:
    diary, data = Diary(), toys.image_set(50)
    train(toys.network(rng()), data, hooks=diary, batch=25)
    once = ["batch", "augmented", "step", "loss"]
    expected = ["start", "optimizer"]
    for step in range(4):
        expected += [*once, f"stepped {step}"] + ([f"epoch {step // 2}"] if step % 2 else [])
    assert diary.calls == expected
    assert [(b.epoch, b.step) for b in diary.batches] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    for batch in diary.batches:
        assert torch.equal(batch.labels, data.labels[batch.index])
        assert torch.equal(batch.inputs.permute(0, 3, 1, 2), data.images[batch.index])


def test_a_hook_may_run_the_forward_pass_twice() -> None:
    class Twice(Hooks):
        def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any) -> Tensor:
            super().step(model, optimizer, loss)
            return super().step(model, optimizer, loss)

    model = toys.network(rng("model"))
    train(model, toys.image_set(64), hooks=Twice(), epochs=1)
    once = toys.network(rng("model"))
    train(once, toys.image_set(64), epochs=1)
    assert toys.differing(model, once)


def test_frozen_parameters_stay() -> None:
    model = toys.network(rng("model"))
    model.trunk[0].requires_grad_(False)
    before = toys.weights(model)
    train(model, toys.image_set(64))
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    frozen = {f"trunk.0.{name}" for name, _ in model.trunk[0].named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not changed & frozen and trained <= changed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value: float) -> None:
    class Broken(Hooks):
        def loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
            found = super().loss(model, batch, recipe)
            return found * value if batch.epoch == 1 else found

    with pytest.raises(DivergedError, match="epoch 2"):
        train(toys.network(rng()), toys.image_set(64), hooks=Broken(), epochs=5)


def test_a_learning_rate_far_too_high_diverges() -> None:
    with pytest.raises(DivergedError):
        train(toys.network(rng()), toys.image_set(64), lr=1e30, warmup=0.0, epochs=6)


def test_the_optimiser_is_the_recipe_s() -> None:
    model = toys.network(rng())
    recipe = Recipe(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.01)
    (group,) = training.sgd(model, recipe).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.3,
        0.8,
        True,
        0.01,
    )
    assert len(group["params"]) == len(list(model.parameters()))


def test_label_smoothing_reaches_the_loss() -> None:
    model, data = toys.victim(), toys.image_set(20)
    batch = Batch(data.images.float() / 255, data.labels, torch.arange(20), 0, 0)
    with torch.no_grad():
        logits = model(batch.inputs).log_softmax(1)
        hard = -logits[torch.arange(20), data.labels].mean()
        soft = -logits.mean()
        found = Hooks().loss(model, batch, Recipe(label_smoothing=0.2))
    assert float(found) == pytest.approx(float(0.8 * hard + 0.2 * soft), rel=1e-5)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "portable"])
def test_precision_is_the_recipe_s(precision: str) -> None:
    recipe = Recipe(precision=precision)
    wanted = precision == "bf16" or (precision == "auto" and training.native_bf16(toys.CPU))
    with training.autocast(recipe, toys.CPU), torch.no_grad():
        found = toys.victim()(torch.rand(2, 3, 32, 32))
    assert found.dtype == (torch.bfloat16 if wanted else torch.float32)


def test_draws_are_fixed_by_the_generator_and_made_with_replacement() -> None:
    data, recipe = toys.image_set(20), replace(toys.RECIPE, batch=30, crop=2, flip=True)
    runs = [list(training.draws(data, recipe, 4, rng(name), toys.CPU)) for name in "aab"]
    assert len(runs[0]) == 4
    for (x, y), (again_x, again_y), (other_x, _) in zip(*runs, strict=True):
        assert x.shape == (30, *toys.QUARTER) and y.shape == (30,) and x.dtype == torch.float32
        assert torch.equal(x, again_x) and torch.equal(y, again_y)
        assert not torch.equal(x, other_x)
    assert not torch.equal(runs[0][0][1], runs[0][1][1]), "each step draws anew"
    plain = next(training.draws(data, replace(recipe, crop=0, flip=False), 1, rng(), toys.CPU))
    known = {
        (row.numpy().tobytes(), int(y)) for row, y in zip(data.images, data.labels, strict=True)
    }
    pixels = (plain[0] * 255).round().to(torch.uint8).contiguous()
    assert all(
        (r.numpy().tobytes(), int(y)) in known for r, y in zip(pixels, plain[1], strict=True)
    )


# Recipes


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
@pytest.mark.parametrize("dataset", ["cifar10", "gtsrb", "tiny-imagenet", "digits", "own"])
def test_every_recipe_serves_every_data_set(name: str, dataset: str) -> None:
    found = recipes.resolve(name, dataset, "resnet18")
    assert found.epochs >= 1 and found.lr > 0
    assert list(found.milestones) == sorted(found.milestones)
    assert all(at < found.epochs for at in found.milestones) or name == "sibp"


def test_recipes_by_name_and_by_change() -> None:
    d_br = recipes.resolve("d-br", "cifar10", "resnet18")
    assert (d_br.epochs, d_br.lr, d_br.schedule, d_br.milestones) == (200, 0.01, "step", (100, 150))
    assert d_br.crop == 4 and d_br.flip
    changed = recipes.resolve({"base": "d-br", "epochs": 60}, "cifar10", "resnet18")
    assert changed == replace(d_br, epochs=60)
    fast = recipes.resolve({"epochs": 3}, "digits", "tiny")
    assert fast.epochs == 3 and not fast.flip, "digits are never mirrored"
    assert not recipes.resolve("fast", "gtsrb", "resnet18").flip, "signs are never mirrored"
    with pytest.raises(SweepError, match="write d-br"):
        recipes.resolve("dbr", "cifar10", "resnet18")
    with pytest.raises(SweepError, match="epochs"):
        recipes.resolve({"epoch": 3}, "cifar10", "resnet18")


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "exponential"},
        {"precision": "fp8"},
        {"epochs": 0},
        {"batch": 0},
        {"lr": -0.1},
        {"label_smoothing": 1.0},
        {"erase": 1.5},
    ],
)
def test_impossible_recipes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match="recipe"):
        recipes.resolve(wrong, "cifar10", "resnet18")
