"""SODA: reconstruction and removal, against formulas written out here."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Case, Needs
from defenses.soda import (
    SODA,
    Removal,
    features_of,
    outstanding,
    reconstruct,
    target_rate,
)
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.engine.training import Batch
from sweeper.models.base import Net
from sweeper.run import record
from tests.support import repairs, toys
from tests.support.repairs import case, pixels

draws = functools.partial(repairs.draws, of="soda")

# Stage 3

SETTINGS: dict[str, Any] = {"steps": 60, "lr": 0.1, "weight": 0.9, "stop": 0.99}


def test_images_of_the_source_reach_the_target() -> None:
    model = toys.victim()
    before, start = toys.weights(model), pixels(20)
    kept = start.clone()
    made, arrived = reconstruct(model, start, 0, **SETTINGS)
    assert arrived.float().mean() >= 0.85 and torch.equal(start, kept)
    assert toys.same(before, toys.weights(model)), "the network is not trained"
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        sure = model(made).softmax(1)[:, 0]
    assert bool((sure[arrived] >= 0.98).all())
    assert target_rate(model, made, 0) == float(arrived.double().mean())


def test_each_image_is_a_problem_of_its_own() -> None:
    model, start = toys.victim(), pixels(6)
    together, arrived = reconstruct(model, start, 3, **SETTINGS)
    for number in range(6):
        alone, hit = reconstruct(model, start[number : number + 1], 3, **SETTINGS)
        assert torch.allclose(alone[0], together[number], atol=1e-4)
        assert hit[0] == arrived[number]


def test_an_image_that_has_arrived_takes_one_more_step_and_stays() -> None:
    model, start = toys.victim(), pixels(20)
    label = int(model(start[:1]).argmax())
    made, arrived = reconstruct(model, start[:1], label, **{**SETTINGS, "stop": 0.01})
    step, _ = reconstruct(model, start[:1], label, **{**SETTINGS, "stop": 1.0, "steps": 1})
    assert torch.equal(made, step) and bool(arrived[0])
    short, _ = reconstruct(model, start, 0, **SETTINGS)
    longer, _ = reconstruct(model, start, 0, **{**SETTINGS, "steps": 110})
    with torch.no_grad():
        done = model(short).softmax(1)[:, 0] >= 0.995
    assert bool(done.any()) and torch.equal(short[done], longer[done])


def test_the_first_step_descends_the_loss_of_the_specification() -> None:
    model, start = toys.victim(), pixels(4)
    made, _ = reconstruct(model, start, 5, steps=1, lr=0.1, weight=0.9, stop=1.0)
    image = model.normalise(start).requires_grad_()
    loss = 0.9 * image.square().mean((1, 2, 3)) - model.classifier(model.trunk(image))[:, 5]
    (gradient,) = torch.autograd.grad(loss.sum(), [image])
    expected = image - 0.1 * (gradient + 5e-4 * image)
    assert torch.allclose(model.normalise(made), expected, atol=1e-5)


# Stage 4


def removal(made: Tensor, **given: Any) -> Removal:
    options = SODA(**given)
    mask = given.get("mask", torch.ones(32))
    return Removal(mask, made, made, 7, 2, options)


def test_the_outstanding_neurons_are_the_largest_weights_of_the_target() -> None:
    weight = draws(10, 33).abs()
    order = weight[4].argsort(descending=True)
    mask = outstanding(order, 0.3)
    assert int(mask.sum()) == 9, "rounded down"
    assert weight[4][mask == 1].min() >= weight[4][mask == 0].max()
    assert int(outstanding(torch.arange(100), 0.29).sum()) == 29, "0.29 * 100 is 28.999..."
    assert bool(outstanding(order, 1.0).all())


@pytest.mark.parametrize(
    ("name", "given"),
    [("tiny", {}), ("resnet18", {"width": 8}), ("vgg11-bn", {}), ("vit-tiny", {"depth": 1})],
)
def test_a_mask_of_ones_changes_no_bit(name: str, given: dict[str, Any]) -> None:
    model = toys.network(seeds.generator("soda net"), model=name, **given).eval()
    images = toys.image_set(3, shape=toys.COLOUR).images
    x = images.float() / 255
    with torch.no_grad():
        features = model.features(x)
        assert torch.equal(model.classifier(features * torch.ones(features.shape[1])), model(x))
        assert torch.equal(features_of(model, images), features)


def test_without_its_parts_removal_is_plain_fine_tuning() -> None:
    own = case(clean=90)
    tuned = SODA(q=1.0, lam=0.0, count=0, epochs=2, batch=32)
    hooks = Removal(torch.ones(32), torch.empty(0, *toys.QUARTER), pixels(3), 1, 0, tuned)
    found = tuned.tune(own, own.clean, hooks, 0.01)
    plain = own.fresh_model()
    own.fit(
        plain,
        own.clean,
        name="removal 0.01",
        epochs=2,
        batch=32,
        lr=0.01,
        weight_decay=5e-4,
        schedule="constant",
        warmup=0.0,
    )
    assert not toys.differing(found, plain) and len(hooks.rates) == 2
    masked = Removal(outstanding(torch.arange(32), 0.3), pixels(0), pixels(0), 1, 0, tuned)
    assert toys.differing(tuned.tune(own, own.clean, masked, 0.01), plain)
    assert masked.rates == [None, None]


def test_switched_off_columns_of_the_head_only_decay() -> None:
    own, options = case(), SODA(epochs=1, batch=40)
    mask = outstanding(torch.arange(32), 0.25)
    model = options.tune(own, own.clean, Removal(mask, pixels(0), pixels(0), 1, 0, options), 0.1)
    before, after = own.fresh_model().classifier.weight, model.classifier.weight
    off, on = mask == 0, mask == 1
    ratio = after[:, off] / before[:, off]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), atol=1e-4), "weight decay alone"
    assert not torch.allclose(after[:, on], before[:, on], rtol=1e-2)


def test_a_batch_ends_in_reconstructed_images_with_the_label_of_the_source() -> None:
    made = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 32, 32)
    hooks = removal(made, mixed=8)
    labels = torch.zeros(4, dtype=torch.int64)
    clean = Batch(torch.full((4, 3, 32, 32), 9.0), labels, labels, 0, 0)
    rng, seen = seeds.generator("batches"), []
    for _ in range(5):
        batch = hooks.augmented(clean, rng)
        assert batch.inputs.shape[0] == 12 and bool((batch.inputs[:4] == 9).all())
        assert batch.labels.tolist() == [0] * 4 + [7] * 8
        seen += batch.inputs[4:, 0, 0, 0].int().tolist()
    assert [seen.count(number) for number in range(5)] == [8] * 5, "none comes twice as often"
    assert sorted(seen[:5]) == list(range(5)) and seen != sorted(seen)


class Given(nn.Module):
    """A trunk that returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_the_loss_is_the_specification_s_and_its_second_term_is_bounded() -> None:
    net = Net(Given(), nn.Linear(4, 10, bias=False), [0.0], [1.0])
    x, labels = draws(6, 1, 2, 2), torch.tensor([1, 2, 3, 7, 7, 7])
    hooks = removal(x[3:], mixed=3, lam=0.5)
    hooks.mask = torch.tensor([1.0, 0.0, 1.0, 1.0])
    batch = Batch(x, labels, labels, 0, 0)

    def found() -> Tensor:
        return hooks.loss(net, batch, toys.RECIPE)

    def expected() -> Tensor:
        logits = (x.flatten(1) * hooks.mask) @ net.classifier.weight.T
        away = functional.cross_entropy(logits[3:], torch.full((3,), 2))
        return functional.cross_entropy(logits, labels) - 0.5 * away

    assert torch.allclose(found(), expected())
    near = torch.autograd.grad(found(), [net.classifier.weight])[0]
    hooks.options = SODA(lam=0.0, mixed=3)
    assert not torch.allclose(near, torch.autograd.grad(found(), [net.classifier.weight])[0])
    with torch.no_grad():
        net.classifier.weight[2] -= 1000 * x[3:].flatten(1).mean(0)
    logits = net.classifier(x[3:].flatten(1) * hooks.mask)
    assert functional.cross_entropy(logits, torch.full((3,), 2)) > 100
    hooks.options = SODA(lam=0.5, mixed=3)
    assert torch.allclose(found(), expected()), "the term has no bound, as in the release"


def scripted(monkeypatch: pytest.MonkeyPatch, rates: list[float | None]) -> None:
    """Let successive epochs measure these shares."""
    numbers = iter(rates)
    monkeypatch.setattr("defenses.soda.target_rate", lambda *_: next(numbers))


@pytest.mark.parametrize(
    ("rates", "bar", "epochs"),
    [([0.9, 0.04, 0.5], 0.05, 2), ([0.9, 0.5, 0.05], 0.05, 3), ([0.0, 0.0, 0.0], 0.0, 3)],
)
def test_training_ends_with_the_first_epoch_below_the_bar(
    monkeypatch: pytest.MonkeyPatch, rates: list[float | None], bar: float, epochs: int
) -> None:
    own = case()

    def tuned(epochs: int, bar: float) -> tuple[Net, Removal]:
        scripted(monkeypatch, rates)
        options = SODA(epochs=epochs, bar=bar, batch=40)
        hooks = Removal(torch.ones(32), pixels(4), pixels(4), 3, 0, options)
        return options.tune(own, own.clean, hooks, 0.01), hooks

    model, hooks = tuned(3, bar)
    assert hooks.rates == rates[:epochs] and not model.training
    expected, _ = tuned(epochs, 0.0)
    assert not toys.differing(model, expected)


@pytest.mark.parametrize(
    ("accuracies", "attempts", "accepted"),
    [([0.9, 0.88], 1, True), ([0.9, 0.8, 0.88], 2, True), ([0.9, 0.8, 0.7], 2, False)],
)
def test_a_repair_that_costs_too_much_is_tried_again_gentler_then_given_up(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], attempts: int, accepted: bool
) -> None:
    numbers = iter(accuracies)
    own = case(clean=600)
    with monkeypatch.context() as patch:
        patch.setattr(Case, "accuracy", lambda *_: next(numbers))
        model, notes = SODA(steps=3, epochs=1, count=4).remove(own, 3, 0)
    assert len(notes["attempts"]) == attempts and notes["accepted"] == accepted
    assert bool(toys.differing(model, toys.victim())) == accepted
    if attempts == 2:
        gentler = notes["attempts"][1]
        assert (gentler["lr"], gentler["q"]) == (0.0025, 0.5)


def test_only_images_that_reached_the_target_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Removal] = []

    def noted(self: SODA, own: Case, data: ImageSet, hooks: Removal, lr: float) -> Net:
        hooks.rates.append(None)
        seen.append(hooks)
        return own.fresh_model()

    monkeypatch.setattr(SODA, "tune", noted)
    _, notes = SODA(steps=12).remove(case(clean=300), 3, 0)
    assert 0 < notes["reconstructed"] < notes["started"], "the test needs some that did not"
    made = torch.cat([seen[0].reconstructed, seen[0].held])
    tried = notes["attempts"][0]
    assert 0 < tried["reconstructed"] < tried["started"] < notes["started"], "those of a part"
    assert len(made) == tried["reconstructed"] and target_rate(toys.victim(), made, 0) == 1.0


def test_without_reconstructed_images_it_still_fine_tunes() -> None:
    model, notes = SODA(count=0, epochs=1).remove(case(clean=200), 3, 0)
    assert notes["started"] == notes["reconstructed"] == 0
    assert notes["attempts"][0]["reverse_asr"] == [None] and toys.differing(model, toys.victim())


def test_a_source_without_an_image_to_start_from_leaves_the_model() -> None:
    clean = toys.image_set(80, seed=1)
    model, notes = SODA().remove(case(clean=clean[clean.labels != 3]), 3, 0)
    assert not notes["accepted"] and notes["attempts"] == []
    assert not toys.differing(model, toys.victim())


@pytest.mark.parametrize(("preset", "label"), [("", 3), ("released", 0)])
def test_reconstructed_images_carry_the_source_and_in_the_release_class_0(
    monkeypatch: pytest.MonkeyPatch, preset: str, label: int
) -> None:
    seen: list[Removal] = []

    def noted(self: SODA, own: Case, data: ImageSet, hooks: Removal, lr: float) -> Net:
        hooks.rates.append(None)
        seen.append(hooks)
        return own.fresh_model()

    monkeypatch.setattr(SODA, "tune", noted)
    given = {**toys.asked(preset), "steps": 60}
    catalog.make("defense", "soda", given).remove(case(clean=300), 3, 5)
    assert len(seen) == (1 if preset else 2), "a choice is made on a part, then all is used"
    hooks = seen[-1]
    assert hooks.label == label and hooks.target == 5
    assert len(hooks.reconstructed) - len(hooks.held) in (0, 1) and len(hooks.held) > 2
    assert target_rate(toys.victim(), torch.cat([hooks.reconstructed, hooks.held]), 5) == 1.0
    weight = toys.victim().classifier.weight.detach()[5].abs()
    assert weight[hooks.mask == 1].min() >= weight[hooks.mask == 0].max()


def test_end_to_end_on_a_toy_and_all_notes_are_json() -> None:
    outcome = SODA(theta1=0.0, steps=60, epochs=2, count=8).defend(case(clean=200))
    notes = json.loads(json.dumps(record.plain(outcome.notes), allow_nan=False))
    assert notes["target"] in notes["flagged"] and notes["source"] != notes["target"]
    assert notes["reconstructed"] <= notes["started"] <= 8
    assert isinstance(outcome.model, Net) and not outcome.model.training
    shapes = {name: value.shape for name, value in toys.victim().state_dict().items()}
    assert {name: v.shape for name, v in outcome.model.state_dict().items()} == shapes


def test_a_given_pair_is_repaired_without_detection_and_marked() -> None:
    given = {"source": 3, "target": 5, "steps": 60, "epochs": 2, "count": 8}
    oracle = catalog.make("defense", "soda-oracle", given)
    assert "oracle" in oracle.sees, "no defender knows the pair"
    outcome = oracle.defend(toys.case(oracle.sees, clean=200))
    plain, notes = SODA(steps=60, epochs=2, count=8).remove(case(clean=200), 3, 5)
    assert not toys.differing(outcome.model, plain)
    assert outcome.notes == {"target": 5, "source": 3, **notes}
    needs = Needs(classes=4, shape=toys.COLOUR, model="tiny", batchnorm=True, clean=80)
    assert "target 5 is none of the 4" in (oracle.applies(needs) or "")
    with pytest.raises(SweepError, match="two classes"):
        catalog.make("defense", "soda-oracle", {"source": 2, "target": 2})
