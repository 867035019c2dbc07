"""FIP and f-FIP: what the penalty is, what it leaves, and the formulas step by step."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.badnets import BadNets
from defenses import fine_tuning
from defenses import fip as fip_module
from defenses.base import Case
from defenses.f_fip import FFIP, Spectral
from defenses.fine_tuning import FineTuning
from defenses.fip import FIP, _Penalty, squared_batch_means
from sweeper import models
from sweeper.core import catalog, seeds
from sweeper.core.errors import DivergedError, SweepError
from sweeper.core.types import ImageSet
from sweeper.data import open_dataset, splits
from sweeper.engine import curvature, recipes, training
from sweeper.models.base import Net
from sweeper.plan import spec
from tests.support import toys
from tests.support.places import data_folder

SEES = frozenset({"model", "clean"})
SHORT: dict[str, Any] = {"steps": 6, "batch": 16, "images": 8, "micro": 4, "every": 2}


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


def pixels(count: int = 16) -> Tensor:
    return toys.image_set(count, seed=9).images.float().div(255)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model(x)
    return found


def penalty(fip: FIP, own: Case) -> _Penalty:
    return _Penalty(fip, own, own.fresh_model(), own.clean)


def test_the_retention_term_and_its_gradient_are_zero_at_the_start() -> None:
    found = penalty(FIP(eta_f=0.0), case())
    distance = found.distance()
    slopes = torch.autograd.grad(distance, [*found.weights.values()])
    assert distance.item() == 0 and all(not bool(s.any()) for s in slopes)
    with torch.no_grad():
        found.weights["classifier.weight"][0] += 0.5
    wanted = 0.25 * found.fisher["classifier.weight"][0].sum().item()
    assert found.distance().item() == pytest.approx(wanted, rel=1e-5) and wanted > 0


def test_the_loss_has_half_of_eta_r_times_the_distance() -> None:
    found = penalty(FIP(eta_f=0.0, eta_r=1e4), case())
    with torch.no_grad():
        found.weights["classifier.weight"] += 0.3
    batch = toys.plain(toys.image_set(16, seed=9))
    clean = functional.cross_entropy(logits(found.model, batch.inputs), batch.labels)
    more = found.loss(batch) - clean
    assert more.item() == pytest.approx(5e3 * found.distance().item(), rel=1e-3)
    assert more.item() > 0.1


def test_without_penalties_it_is_fine_tuning_bit_for_bit() -> None:
    plain = FineTuning(
        steps=8, lr=0.005, momentum=0.95, schedule="constant", weight_decay=0.0, batch=16
    ).defend(case())
    found = FIP(eta_f=0.0, eta_r=0.0, clip=0.0, guard=None, steps=8, batch=16).defend(case())
    assert plain.model is not None and found.model is not None
    assert not toys.differing(plain.model, found.model)
    assert toys.differing(found.model, toys.victim())
    other = FIP(eta_r=0.0, clip=0.0, guard=None, **{**SHORT, "steps": 8}).defend(case())
    assert toys.differing(other.model, found.model), "the penalty does something"


@pytest.mark.parametrize(
    ("sweep", "overrides", "method", "control"),
    [
        ("fip-adaptive", [], "fip", "ft-as-long"),
        ("fip-adaptive", ["scale=small"], "fip", "ft-as-long"),
        ("seeds-small", [], "fip", "ft-200"),
        ("seeds-small", [], "f-fip", "f-ft-200"),
        ("proof", [], "fip", "ft-200"),
        ("proof", [], "f-fip", "f-ft-200"),
    ],
)
def test_the_control_of_fip_trains_as_long_on_the_same_images(
    sweep: str,
    overrides: list[str],
    method: str,
    control: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many steps of the same batches at the same rates; with the terms it is FIP."""
    entries = {entry.label: entry for entry in spec.load(sweep, overrides).defenses}
    seen: dict[str, Any] = {}

    def descend(own: Case, model: nn.Module, data: ImageSet, *given: Any, **named: Any) -> Any:
        named.pop("loss")
        seen[label] = (data.images.sum(0), *given, named)
        return [0.0, 0.0]

    for kind in (fine_tuning, fip_module):
        monkeypatch.setattr(kind, "descend", descend)
    monkeypatch.setattr(Case, "accuracy", lambda *_: 1.0)
    for label in (method, control):
        entry = entries[label]
        catalog.make("defense", entry.name, entry.options).defend(case(clean=200))
    (images, *one), (others, *other) = seen[method], seen[control]
    assert one == other and torch.equal(images, others)


def reference(own: Case, fip: FIP) -> Net:
    """The purification by its formulas: momentum written out, the trace by loops."""
    model = own.fresh_model()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    fisher = curvature.fisher_diagonal(model, own.clean, own.device)
    speed = {n: torch.zeros_like(p) for n, p in start.items()}
    draws = own.rng("signs")
    model.train()
    recipe = own.recipe.__class__(**{**vars(own.recipe), "batch": fip.batch})
    batches = training.draws(own.clean, recipe, fip.steps, own.rng("steps"), own.device)
    for step, (x, y) in enumerate(batches):
        named = dict(model.named_parameters())
        if step % fip.every == 0:
            with curvature.side_pass(model):
                scores = functional.log_softmax(model(x[: fip.images]), 1)
            trace = torch.zeros(())
            size = fip.micro if fip.estimator == "micro-batch" else fip.images
            for first in range(0, fip.images, size):
                chosen = [scores[i, y[i]] for i in range(first, first + size)]
                if fip.estimator == "signs":
                    signs = torch.randint(2, (size,), generator=draws).tolist()
                    chosen = [s if sign else -s for s, sign in zip(chosen, signs, strict=True)]
                mean = torch.stack(chosen).sum() / size
                slopes = torch.autograd.grad(mean, [*named.values()], create_graph=True)
                trace = trace + sum((s**2).sum() for s in slopes)
            trace = trace * size / (fip.images // size)
        loss = functional.cross_entropy(model(x), y)
        if step % fip.every == 0:
            loss = loss + (fip.eta_f or 0) * trace
        for name, value in named.items():
            loss = loss + fip.eta_r / 2 * (fisher[name] * (value - start[name]) ** 2).sum()
        slopes = torch.autograd.grad(loss, [*named.values()])
        norm = torch.cat([s.flatten() for s in slopes]).norm()
        factor = min(1.0, fip.clip / (float(norm) + 1e-6))
        for (name, value), slope in zip(named.items(), slopes, strict=True):
            speed[name] = fip.momentum * speed[name] + factor * slope
            value.data -= fip.lr * speed[name]
    return model.eval()


@pytest.mark.parametrize("estimator", ["signs", "micro-batch"])
def test_it_follows_the_formulas_step_by_step(estimator: str) -> None:
    fip = FIP(eta_f=0.01, estimator=estimator, guard=None, **SHORT)
    found, wanted = fip.defend(case()).model, reference(case(), fip)
    assert found is not None
    changed = 0.0
    for name, value in found.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, wanted.state_dict()[name], atol=2e-4), name
            changed += float((value - toys.victim().state_dict()[name]).abs().sum())
    assert changed > 1


def test_the_given_statistics_are_updated_once_a_step() -> None:
    found = FIP(guard=None, **SHORT).defend(case()).model
    assert found is not None
    counts = [n for n in found.state_dict() if n.endswith("num_batches_tracked")]
    assert counts
    for name in counts:
        moved = found.state_dict()[name] - toys.victim().state_dict()[name]
        assert int(moved) == SHORT["steps"], "the pass for the trace moves none"


def test_the_balance_is_measured_on_the_clean_images_before_the_first_step() -> None:
    own = case()
    same: dict[str, Any] = {"estimator": "micro-batch", "images": 32}
    one, other = (penalty(FIP(balance=share, **same), own) for share in (0.5, 2.0))
    assert other.eta_f == pytest.approx(4 * one.eta_f) and one.eta_f > 0
    model = own.fresh_model().train()
    losses, traces = [], []
    for part in torch.arange(64).view(2, 32):
        x, y = own.clean.images[part].float() / 255, own.clean.labels[part]
        chosen = curvature.log_likelihood(model(x), y)
        losses.append(-chosen.mean().item())
        traces.append(curvature.by_micro_batches(chosen, [*model.parameters()], 8).item())
    assert one.eta_f == pytest.approx(0.5 * sum(losses) / sum(traces), rel=1e-3)
    assert not toys.differing(one.model, toys.victim()), "nothing moves while measuring"
    assert penalty(FIP(eta_f=0.25), own).eta_f == 0.25


def test_the_released_trace_has_mean_zero_and_the_correct_one_has_not() -> None:
    model = case().fresh_model()
    weights = [*model.parameters()]
    out, labels = model(pixels()), toys.image_set(16, seed=9).labels

    def released(rng: torch.Generator) -> Tensor:
        return curvature.as_released(out, labels, weights, rng, 1).detach()

    rng = torch.Generator().manual_seed(0)
    values = torch.stack([released(rng) for _ in range(300)])
    error = float(values.std()) / 300**0.5
    assert abs(float(values.mean())) < 4 * error and bool((values < 0).any())
    slopes = curvature.gradient_of(out.log_softmax(1)[:, labels].mean(), weights)
    counts = torch.arange(len(slopes), 0, -1)
    wanted = (counts.square() * torch.stack([s.square().sum() for s in slopes])).sum().sqrt()
    assert float(values.std()) == pytest.approx(wanted.item(), rel=0.2), "the first weighs most"


def test_the_released_fisher_is_the_square_of_a_mean_and_moves_nothing() -> None:
    own = case(clean=40)
    model = own.fresh_model()
    found = squared_batch_means(model, own.clean, own.device)
    assert not toys.differing(model, toys.victim()) and not model.training
    with curvature.side_pass(model.train()):
        scores = model(own.clean.images.float() / 255).log_softmax(1)
    matrix = torch.stack([scores[:, label].mean() for label in own.clean.labels]).mean()
    slopes = torch.autograd.grad(matrix, [*model.parameters()])
    for (name, value), slope in zip(found.items(), slopes, strict=True):
        assert torch.allclose(value, slope.square(), rtol=1e-2, atol=1e-9), name


@pytest.mark.parametrize("fip", [FIP, FFIP])
def test_without_a_retention_term_no_fisher_diagonal_is_computed(
    monkeypatch: pytest.MonkeyPatch, fip: type[FIP]
) -> None:
    monkeypatch.setattr(curvature, "fisher_diagonal", None)
    notes = fip(eta_f=0.0, eta_r=0.0, guard=None, **SHORT).defend(case()).notes
    assert "distance" not in notes


def trained(own: Case | None = None, **options: Any) -> Net:
    found = FIP(guard=None, **{**SHORT, **options}).defend(own or case()).model
    assert found is not None
    return found


class Deaf(Case):
    """A case in which one named draw has another seed."""

    other = "signs"

    def rng(self, name: str) -> torch.Generator:
        return super().rng(name + "!" * (name == self.other))


def test_signs_and_mixup_have_generators_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    own = torch.rand

    def seen(*size: Any, **given: Any) -> Tensor:
        drawn = own(*size, **given)
        shares.extend([drawn.item()] if size == ((),) else [])
        return drawn

    monkeypatch.setattr(torch, "rand", seen)
    found = [trained(mixup=True, estimator=e) for e in ("signs", "micro-batch")]
    assert shares[:6] == shares[6:] and len(set(shares)) == 6, "signs do not move the shares"
    assert toys.differing(*found)
    monkeypatch.setattr(torch, "rand", own)
    assert not toys.differing(trained(eta_f=0.0), trained(case(kind=Deaf), eta_f=0.0))
    assert toys.differing(trained(eta_f=1.0), trained(case(kind=Deaf), eta_f=1.0))


def test_sampled_labels_are_those_of_the_model() -> None:
    """Where the model is sure, they are what it says; elsewhere the expectation over all labels."""
    own = case()
    model = own.fresh_model()
    own.clean.labels.copy_(logits(model, own.clean.images.float() / 255).argmax(1))
    sure = penalty(FIP(labels="sampled", eta_f=0.0), own)
    with torch.no_grad():
        sure.model.classifier.weight *= 1e3
    sharp = sure.information(own.clean)
    wanted = curvature.fisher_diagonal(sure.model, own.clean, own.device)
    assert all(torch.allclose(sharp[name], wanted[name], rtol=1e-4) for name in wanted)

    few, classes = own.clean[torch.arange(4)], len(own.clean.classes)
    unsure = penalty(FIP(labels="sampled", eta_f=0.0), case())
    with torch.no_grad():
        unsure.model.classifier.weight.zero_()
    every = [
        curvature.fisher_trace(
            unsure.model, ImageSet(few.images, torch.full((4,), y), few.classes), own.device
        )
        for y in range(classes)
    ]
    drawn = [sum(float(v.sum()) for v in unsure.information(few).values()) for _ in range(60)]
    error = torch.tensor(drawn).std().item() / 60**0.5
    assert sum(drawn) / 60 == pytest.approx(sum(every) / classes, abs=4 * error + 1e-6)


def test_sampled_labels_enter_the_trace_and_leave_the_loss_alone() -> None:
    given = toys.plain(toys.image_set(16, seed=9))
    wrong = replace(given, labels=given.labels.roll(1))

    def measured(labels: str) -> tuple[float, float]:
        own = penalty(FIP(labels=labels, estimator="batch", images=0), case())
        trace, loss = own.trace(wrong)
        return trace.item(), loss.item()

    (given, one), (sampled, other) = measured("given"), measured("sampled")
    assert one == other, "the clean loss is that of the labels given"
    assert sampled < 0.5 * given, "what the model draws it finds likely"
    assert toys.differing(trained(), trained(labels="sampled"))


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_the_trace_s_pass_normalises_as_asked_and_moves_no_statistic(norm: str) -> None:
    own = penalty(FIP(norm=norm, estimator="batch", images=0), case())
    before, batch = toys.weights(own.model), toys.plain(toys.image_set(16, seed=9))
    x, y = batch.inputs, batch.labels
    own.model.train()
    trace, loss = own.trace(batch)
    assert all(module.training for module in own.model.modules()), "and is put back"
    assert toys.same(before, toys.weights(own.model))
    model = case().fresh_model().train(norm == "batch")
    wanted = functional.cross_entropy(model(x), y)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    slopes = torch.autograd.grad(wanted, [*model.parameters()])
    assert trace.item() == pytest.approx(curvature.squared_norm(slopes).item(), rel=1e-4)
    assert bool(toys.differing(trained(), trained(norm=norm))) == (norm == "running")


@pytest.mark.parametrize("estimator", ["micro-batch", "projection", "batch"])
def test_every_estimator_runs(estimator: str) -> None:
    outcome = FIP(estimator=estimator, draws=2, mixup=True, guard=None, **SHORT).defend(case())
    assert outcome.notes["eta_f"] > 0 and toys.differing(outcome.model, toys.victim())


def test_the_purified_model_has_the_victim_s_keys_and_is_free() -> None:
    for fip in (FIP(**SHORT), FFIP(**SHORT)):
        found = fip.defend(case()).model
        assert found is not None
        assert list(found.state_dict()) == list(toys.victim().state_dict())
        assert all(p.requires_grad and p.grad is None for p in found.parameters())
        kinds = [type(module) for module in found.modules()]
        assert kinds == [type(module) for module in toys.victim().modules()]
    assert FIP.sees == SEES, "no trigger and no test image can enter the loop"


@pytest.mark.parametrize(("after", "scale"), [(0.86, 1.0), (0.84, 0.5)])
def test_where_the_guard_fails_half_of_eta_f_and_lr_is_taken(
    monkeypatch: pytest.MonkeyPatch, after: float, scale: float
) -> None:
    own = case()
    numbers = iter([0.9, after])
    data: list[ImageSet] = []
    monkeypatch.setattr(Case, "accuracy", lambda _, m, d: (data.append(d), next(numbers))[1])
    found = FIP(eta_f=0.02, **SHORT).defend(own).notes
    assert (found["holdout_before"], found["holdout_after"]) == (0.9, after)
    assert found["eta_f"] == 0.02 * scale and found["lr"] == 0.005 * scale
    fitted, held = own.split()
    assert all(torch.equal(d.images, held.images) for d in data)
    assert found["trained"] == sum(p.numel() for p in toys.victim().parameters())
    assert len(fitted) + len(held) == len(own.clean)


def test_retention_keeps_nearer_to_the_given_weights() -> None:
    found = [
        FIP(eta_f=0.0, eta_r=eta, guard=None, steps=25, batch=16, lr=0.02).defend(case()).notes
        for eta in (1e-9, 1e5)
    ]
    assert found[1]["distance"] < 0.7 * found[0]["distance"]


@pytest.mark.parametrize("estimator", ["signs", "micro-batch"])
def test_the_penalty_lowers_the_trace_on_images_it_has_not_seen(estimator: str) -> None:
    unseen, traces = toys.image_set(64, shape=toys.QUARTER, seed=9), {}
    for eta in (0.0, 10.0):
        fip = FIP(eta_f=eta, eta_r=0.0, guard=None, steps=32, lr=0.01, momentum=0.0)
        found = replace(fip, estimator=estimator).defend(case(shape=toys.QUARTER)).model
        assert found is not None
        traces[eta] = curvature.fisher_trace(found, unseen, torch.device("cpu"))
    assert traces[10.0] < 0.5 * traces[0.0]


def test_a_loss_that_is_not_finite_is_said() -> None:
    with pytest.raises(DivergedError, match="step"):
        FIP(lr=1e18, clip=0.0, guard=None, eta_f=0.0, steps=6, batch=16).defend(case())


@pytest.mark.parametrize(
    "given",
    [
        {"estimator": "exact"},
        {"fisher": "true"},
        {"labels": "true"},
        {"norm": "group"},
        {"eta_f": -1.0},
        {"every": 0},
        {"momentum": 1.0},
        {"guard": -0.1},
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match="fip"):
        catalog.make("defense", "fip", given)


# f-FIP


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Linear(4, 6, bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.Conv2d(6, 4, 3, groups=2, dilation=2),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    ],
    ids=str,
)
def test_a_layer_on_its_singular_values_is_the_layer(layer: nn.Linear | nn.Conv2d) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=seeds.generator("w")))
    found = Spectral(layer)
    shape = (layer.in_channels, 7, 7) if isinstance(layer, nn.Conv2d) else (layer.in_features,)
    x = torch.rand(5, *shape, generator=seeds.generator("x"))
    assert torch.allclose(logits(found, x), logits(layer, x), atol=1e-5)
    assert torch.allclose(found.weight(), layer.weight, atol=1e-6)
    with torch.no_grad():
        found.delta.copy_(torch.randn(found.delta.shape, generator=seeds.generator("delta")))
        found.delta[:, 0] = -20
        assert float(found.scale().min()) >= 0 and bool((found.values + found.delta < 0).any())
        away = logits(found, x)
        layer.weight.copy_(found.weight())
    assert torch.allclose(away, logits(layer, x), atol=1e-5), "what is folded is what was trained"
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    matrix = layer.weight.reshape(groups, layer.weight.shape[0] // groups, -1)
    assert found.delta.numel() == groups * min(matrix.shape[1:])


def test_entering_and_leaving_returns_the_logits() -> None:
    model = toys.victim()
    x = pixels()
    before = logits(model, x)
    leave = FFIP().enter(model)
    assert torch.allclose(logits(model, x), before, atol=1e-4)
    assert all(name.endswith(".delta") for name in curvature.trainable(model))
    with torch.no_grad():
        for value in curvature.trainable(model).values():
            value -= 0.05
    away = logits(model, x)
    leave()
    assert torch.allclose(logits(model, x), away, atol=1e-4)
    assert not torch.allclose(away, before, atol=1e-2)


def test_only_singular_values_and_statistics_change() -> None:
    outcome = FFIP(guard=None, **SHORT).defend(case())
    found, victim = outcome.model, toys.victim()
    assert found is not None
    changed = toys.differing(found, victim)
    norms = {n for n, m in victim.named_modules() if isinstance(m, nn.BatchNorm2d)}
    still = {f"{n}.{part}" for n in norms for part in ("weight", "bias")} | {"classifier.bias"}
    assert not changed & still
    for name in ("classifier.weight", "trunk.1.0.weight"):
        left, _, right = torch.linalg.svd(victim.get_parameter(name).flatten(1), False)
        inner = left.T @ found.get_parameter(name).detach().flatten(1) @ right.T
        assert torch.allclose(inner, inner.diag().diag(), atol=1e-4), "the same singular vectors"
        assert name in changed and bool((inner.diag() >= -1e-5).all())


def test_a_cifar_resnet18_has_4325_singular_values() -> None:
    with torch.device("meta"):
        trunk, head = models.family("resnet18", {}).build(10, toys.COLOUR)
    layers = [m for m in (*trunk.modules(), head) if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(min(m.weight.flatten(1).shape) for m in layers) == 4325
    assert 4325 < 0.001 * sum(p.numel() for part in (trunk, head) for p in part.parameters())


# Acceptance, minutes of training


def victim_of(data: Any, recipe: recipes.Recipe, seed: int) -> Net:
    """A BadNets victim (white 4x4 patch, 10 %, target 0) of the attacker's split."""
    used, _ = splits.split(data, 0.125)
    train = data.train[used]
    poisoned = TRIGGER.poison(train, 0.1, {}, seeds.generator("acceptance", seed))
    model = models.build(
        "resnet18",
        {"width": 16},
        classes=len(train.classes),
        shape=tuple(train.images.shape[1:]),
        mean=data.mean,
        std=data.std,
        generator=seeds.generator("acceptance model", seed),
    )
    given = poisoned.samples
    training.fit(model, given, recipe, key=f"acceptance {seed}", device=device())
    return model


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


TRIGGER = BadNets(trigger="white", size=4)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(7200)
def test_acceptance_on_small_data() -> None:
    """Section 12 of the method's specification; the bars that are not met are said, not hidden."""
    root = data_folder()
    if root is None:
        pytest.skip("needs cifar10/train.parquet in the folder SWEEPER_DATA names")
    data = open_dataset({"dataset": "cifar10", "train_size": 8000, "test_size": 2000}, root)
    recipe = recipes.resolve({"epochs": 20}, "cifar10", "resnet18")
    hit = TRIGGER.trigger_set(data.test, {}, seeds.generator("trigger"))
    same: dict[str, Any] = {"steps": 500, "lr": 0.001, "momentum": 0.95, "batch": 64}
    tried = {
        "fine-tuning": FineTuning(schedule="constant", weight_decay=0.0, **same),
        "fip": FIP(**same),
        "f-fip": FFIP(**{**same, "lr": 0.05}),
    }
    measured: list[dict[str, tuple[float, float, float]]] = []
    for seed in range(3):
        victim = victim_of(data, recipe, seed)
        _, held = splits.split(data, 0.125)
        own = Case(
            sees=SEES,
            key=f"acceptance {seed}",
            device=device(),
            recipe=recipe,
            given={"model": victim, "clean": data.train[splits.clean_set(data, held, 500, seed)]},
            build=functools.partial(copy.deepcopy, victim),
        )

        def measure(model: nn.Module, own: Case = own) -> tuple[float, float, float]:
            found = toys.measured(model, data.test, hit, 0, recipe, device())
            trace = curvature.fisher_trace(model, data.test[torch.arange(500)], device())
            return float(found["acc"] or 0), float(found["asr"] or 0), trace

        rows = {"before": measure(victim)}
        for name, defense in tried.items():
            model = defense.defend(own).model
            assert model is not None
            rows[name] = measure(model)
        print(json.dumps({"seed": seed, **rows}))  # noqa: T201
        if rows["before"][1] > 0.8:
            measured.append(rows)
    assert len(measured) >= 2, "most victims must have learned the trigger"
    middle = {n: [median(m[n][k] for m in measured) for k in range(3)] for n in measured[0]}
    bars = {
        "asr": middle["fip"][1] <= 0.20,
        "acc": middle["before"][0] - middle["fip"][0] <= 0.05,
        "trace": middle["fip"][2] <= middle["before"][2] / 2,
        "control": middle["fip"][1] <= middle["fine-tuning"][1],
        "f-fip": middle["f-fip"][1] <= 0.30,
    }
    if not all(bars.values()):
        pytest.xfail(f"bars not met: {[n for n, met in bars.items() if not met]}: {middle}")
