"""DBD and ASD: the contrast, the losses, MixMatch and its splits, what each stage may change."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from defenses.asd import ASD, freeze_first_half
from defenses.base import Case, Needs
from defenses.dbd import DBD
from defenses.parts.losses import losses_of, lowest
from defenses.parts.mixmatch import MixMatch, _Loss, mixed, sharpened, symmetric, weights
from defenses.parts.simclr import nt_xent
from defenses.parts.steps import descend
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Outcome, Role
from sweeper.engine import metrics, training
from sweeper.models.base import Net
from tests.support import toys


def rng(name: str | int = "draw") -> Generator:
    return seeds.generator("semi-supervised tests", name)


def draws(*shape: int, name: str | int = "draws") -> Tensor:
    return torch.randn(*shape, generator=rng(name))


def trained(outcome: Outcome) -> Net:
    assert isinstance(outcome.model, Net)
    return outcome.model


# The contrast


def slow_nt_xent(views: Tensor, heat: float, first_only: bool) -> float:
    """The specification, anchor by anchor."""
    count, losses = len(views) // 2, []
    for a in range(count if first_only else 2 * count):
        power = [math.exp(float(views[a] @ other) / heat) for other in views]
        losses.append(-math.log(power[(a + count) % (2 * count)] / (sum(power) - power[a])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_nt_xent_equals_the_specification(count: int, first_only: bool) -> None:
    views = functional.normalize(draws(2 * count, 5, name=count), dim=1)
    found = nt_xent(views, 0.5, first_only)
    assert float(found) == pytest.approx(slow_nt_xent(views, 0.5, first_only), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(views, 0.5, first_only), found), "in full precision"


def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """By name what each training was given, and the weights before and after it."""
    calls: dict[str, dict[str, Any]] = {}
    fit = training.fit

    def noted(model: Any, data: ImageSet, recipe: Any, *, key: str, **rest: Any) -> list[float]:
        call = {"before": toys.weights(model), "data": data, "recipe": recipe, **rest}
        found = fit(model, data, recipe, key=key, **rest)
        calls[key.rpartition("/")[2]] = {**call, "after": toys.weights(model)}
        return found

    monkeypatch.setattr(training, "fit", noted)
    return calls


def changed(call: dict[str, Any]) -> set[str]:
    return {name for name, old in call["before"].items() if not old.equal(call["after"][name])}


SHORT: dict[str, Any] = {"contrast_epochs": 1, "head_epochs": 1, "epochs": 2, "iterations": 2}


def test_the_contrast_ignores_labels_and_leaves_the_classifier() -> None:
    own, method = toys.case(DBD.sees), DBD(contrast_epochs=2, contrast_batch=100)
    data = own.train
    one, other = own.new_model(), own.new_model()
    losses = method.contrast(own, one, data)
    shuffled = data.labels[torch.randperm(len(data), generator=rng())]
    assert losses == method.contrast(own, other, replace(data, labels=shuffled))
    assert not toys.differing(one, other), "labels changed the trunk"
    moved = toys.differing(one, own.new_model())
    assert moved and all(name.startswith("trunk.") for name in moved)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("moving", [False, True])
def test_dbds_stages_train_what_they_should_as_published(
    moving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stages(monkeypatch)
    own = toys.case(DBD.sees, flip=True)
    model = trained(DBD(**SHORT, moving_statistics=moving).defend(own))
    contrast, head = calls["contrast"], calls["head"]
    assert all(name.startswith("trunk.") for name in changed(contrast))
    recipe = contrast["recipe"]
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.4, 0.9, 1e-4)
    assert (recipe.batch, recipe.schedule, recipe.crop, recipe.flip) == (512, "cosine", 0, False)
    projection = contrast["hooks"].projection
    assert [type(part) for part in projection] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert projection[3].out_features == 128 and contrast["hooks"].flip
    statistics = {name for name in changed(head) if "running" in name or "num_batches" in name}
    assert changed(head) - statistics == {"classifier.weight", "classifier.bias"}
    assert bool(statistics) == moving, "a frozen trunk keeps its statistics"
    assert isinstance(head["hooks"].shared_optimizer, torch.optim.Adam)
    assert (head["recipe"].lr, head["recipe"].batch, head["recipe"].flip) == (2e-3, 128, True)
    assert set(model.state_dict()) == set(own.new_model().state_dict())


# The losses


def test_symmetric_cross_entropy_equals_its_closed_form() -> None:
    logits, labels = 3 * draws(40, 7), torch.arange(40) % 7
    shares = logits.softmax(1).clamp(1e-7, 1)
    given = functional.one_hot(labels, 7).float()
    direct = -(given * logits.log_softmax(1)).sum(1)
    reverse = -(shares * given.clamp(1e-4, 1).log()).sum(1)
    assert torch.allclose(symmetric(logits, labels), 0.1 * direct + reverse, atol=1e-5)
    one = symmetric(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert float(one) == pytest.approx(0.1 * math.log(2) - 0.5 * math.log(1e-4))


def test_symmetric_cross_entropy_of_certain_logits_has_a_finite_slope() -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]] * 2, requires_grad=True)
    symmetric(logits, torch.tensor([0, 2])).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


def test_losses_are_of_the_images_as_they_lie_unless_the_release_is_asked_for() -> None:
    own, model, data = toys.case(DBD.sees, crop=4, flip=True), toys.victim(), toys.image_set(60)
    with torch.no_grad():
        wanted = symmetric(model(data.images.float() / 255), data.labels)
    found = DBD().losses(own, model, data, "a")
    assert torch.allclose(found, wanted, atol=1e-4) and torch.equal(
        found, DBD().losses(own, model, data, "b")
    )
    views = [DBD(augmented_scores=True).losses(own, model, data, name) for name in ("a", "b")]
    assert not torch.equal(views[0], found) and not torch.equal(*views)
    assert torch.equal(found, losses_of(own, model, data, symmetric))


# The pieces of MixMatch


def test_sharpened_guesses_sum_to_one_and_are_surer() -> None:
    shares = draws(30, 6).softmax(1)
    found = sharpened(shares, 0.5)
    assert torch.allclose(found.sum(1), torch.ones(30)) and torch.equal(
        found.argmax(1), shares.argmax(1)
    )
    assert bool((found.amax(1) > shares.amax(1)).all())
    assert torch.allclose(sharpened(shares, 1.0), shares)
    assert sharpened(torch.tensor([[0.6, 0.4]]), 0.5)[0, 0] == pytest.approx(0.36 / 0.52)


def test_mixing_weights_are_the_larger_side_of_a_beta() -> None:
    found = weights(20_000, 0.75, rng(), False).double()
    drawn = np.random.default_rng(0).beta(0.75, 0.75, 200_000)
    wanted = torch.from_numpy(np.maximum(drawn, 1 - drawn))
    assert 0.5 <= float(found.min()) and float(found.max()) <= 1
    at = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    assert torch.allclose(found.quantile(at), wanted.quantile(at), atol=0.01)
    one = weights(9, 0.75, rng(), True)
    assert one.shape == (9,) and len(one.unique()) == 1


def test_mixed_keeps_the_larger_part_of_each_its_own() -> None:
    images, targets = draws(4, 3, 2, 2), draws(4, 5).softmax(1)
    weight, other = torch.tensor([1.0, 0.5, 0.75, 0.6]), torch.tensor([2, 3, 0, 1])
    found = mixed(images, weight, other)
    for i, (w, j) in enumerate(zip(weight, other, strict=True)):
        assert torch.allclose(found[i], w * images[i] + (1 - w) * images[j])
    assert torch.equal(found[0], images[0])
    assert torch.allclose(mixed(targets, weight, other).sum(1), torch.ones(4))


class Plain(MixMatch):
    """The shared part alone, on a linear model."""

    title, paper, kind, sees = "plain", "test", "secure training", frozenset({"train"})

    def defend(self, case: Case) -> Outcome:
        raise NotImplementedError


def linear(classes: int = 10) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    with torch.no_grad():
        model[1].weight.copy_(0.3 * draws(classes, 192, name="linear"))
        model[1].bias.zero_()
    return model


def bare(**given: Any) -> Case:
    """A case that holds nothing, for which nothing is trained."""
    return toys.case(frozenset(), shape=(3, 8, 8), model=nn.Identity(), **given)


def loss_of(method: MixMatch, model: nn.Module, others: Tensor, **given: Any) -> _Loss:
    own = bare()
    return _Loss(method, own, model, others, own.recipe, given.pop("epoch", 0), 4)


def test_the_loss_of_unmixed_images_is_that_of_the_specification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With mixing weights of 1, and without augmentation, both parts can be written down."""
    monkeypatch.setattr("defenses.parts.mixmatch.weights", lambda count, *_: torch.ones(count))
    data, model = toys.image_set(8, shape=(3, 8, 8)), linear()
    images, same = data.images.float() / 255, data.images[:1].repeat(5, 1, 1, 1)
    method = Plain(iterations=10)
    found = loss_of(method, model, same, epoch=2)(toys.plain(data, step=5))
    shares = model(images[:1]).softmax(1)
    guess = shares.detach() ** 2 / (shares.detach() ** 2).sum()
    wanted = functional.cross_entropy(model(images), data.labels)
    wanted = wanted + 15 * 2.5 / 4 * (shares - guess).square().mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    slopes = [torch.autograd.grad(loss, list(model.parameters()))[0] for loss in (found, wanted)]
    assert torch.allclose(*slopes, atol=1e-6), "no gradient goes through the guesses"


def test_the_guess_is_the_mean_of_two_views() -> None:
    model, views = linear(), draws(6, 3, 8, 8)
    loss = loss_of(Plain(), model, toys.image_set(4, shape=(3, 8, 8)).images)
    guess = loss.guessed(views)
    wanted = (model(views[:3]).softmax(1) + model(views[3:]).softmax(1)) / 2
    assert torch.allclose(guess, wanted) and not guess.requires_grad


def test_batchnorm_sees_labelled_and_other_images_of_a_step_in_one_batch() -> None:
    """The releases' three passes need images interleaved to that end; one pass does not."""
    data, seen = toys.image_set(8, shape=(3, 8, 8)), []
    model = linear()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss_of(Plain(), model, data.images)(toys.plain(data))
    assert [len(images) for images in seen] == [16, 24], "the guess, and the step"


def test_weights_get_gradients_under_autocast_after_the_guess() -> None:
    own = bare(precision="bf16")
    data, model = toys.image_set(8, shape=(3, 8, 8)), linear()
    loss = _Loss(Plain(), own, model, data.images, own.recipe, 0, 1)
    loss(toys.plain(data)).backward()
    assert all(value.grad is not None for value in model.parameters())


def test_the_weight_of_the_guesses_rises_from_zero_to_its_whole() -> None:
    images = toys.image_set(4, shape=(3, 8, 8)).images
    losses = [loss_of(Plain(), linear(), images, epoch=epoch) for epoch in range(4)]
    found = [loss.ramp(step) for loss in losses for step in range(1024)]
    assert found[0] == 0 and found[-1] == pytest.approx(15, rel=1e-3)
    assert np.allclose(np.diff(found), 15 / 4096)


def run_mixmatch(data: ImageSet, kept: Tensor, **given: Any) -> tuple[nn.Module, list[float]]:
    own, model = bare(), linear()
    losses = Plain(iterations=3, batch=8, **given).mixmatch(own, model, data, 2, lambda _: kept)
    return model, losses


def test_labels_of_the_others_are_never_used_and_their_images_are() -> None:
    data = toys.image_set(40, shape=(3, 8, 8))
    kept = torch.arange(40) < 20
    wrong = replace(data, labels=torch.where(kept, data.labels, 9 - data.labels))
    one, losses = run_mixmatch(data, kept)
    other, same = run_mixmatch(wrong, kept)
    assert losses == same and not toys.differing(one, other)
    dark = data.images.clone()
    dark[~kept] = 0
    assert toys.differing(one, run_mixmatch(replace(data, images=dark), kept)[0])
    mislabelled = replace(data, labels=9 - data.labels)
    assert toys.differing(one, run_mixmatch(mislabelled, kept)[0]), "those of the labelled are"


def test_one_mixing_weight_a_step_is_an_option() -> None:
    data = toys.image_set(40, shape=(3, 8, 8))
    kept = torch.arange(40) < 20
    assert toys.differing(run_mixmatch(data, kept)[0], run_mixmatch(data, kept, one_mix=True)[0])


def test_the_split_is_asked_for_before_each_epoch_of_a_model_in_eval_mode() -> None:
    own, asked = toys.case(Plain.sees), []
    model = own.new_model()

    def choose(epoch: int) -> Tensor:
        asked.append((epoch, model.training, toys.weights(model)["classifier.weight"]))
        return torch.arange(240) % 2 == epoch % 2

    Plain(iterations=1).mixmatch(own, model, own.train, 3, choose)
    assert [(epoch, mode) for epoch, mode, _ in asked] == [(0, False), (1, False), (2, False)]
    assert not torch.equal(asked[0][2], asked[1][2]) and not model.training
    assert all(value.grad is None for value in model.parameters())


def test_adam_keeps_its_state_from_epoch_to_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Adam] = []
    adam = torch.optim.Adam

    def noted(*given: Any, **named: Any) -> torch.optim.Adam:
        made.append(adam(*given, **named))
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", noted)
    run_mixmatch(toys.image_set(40, shape=(3, 8, 8)), torch.arange(40) < 20)
    (found,) = made
    assert [int(state["step"]) for state in found.state.values()] == [6, 6]
    assert found.param_groups[0]["lr"] == 2e-3


def test_descend_takes_an_optimizer_at_the_learning_rate_of_the_recipe() -> None:
    own, model = bare(), linear()
    before, data = toys.weights(model), toys.image_set(20, shape=(3, 8, 8))
    own_adam = torch.optim.Adam(model.parameters(), lr=9.0)
    recipe = replace(own.recipe, lr=0.01, schedule="constant")
    descend(
        own,
        model,
        data,
        recipe,
        1,
        loss=lambda batch: functional.cross_entropy(model(batch.inputs), batch.labels),
        optimizer=own_adam,
    )
    step = (model[1].weight.detach() - before["1.weight"]).abs().max()
    assert float(step) == pytest.approx(0.01, rel=1e-3), "Adam's first step is its learning rate"


# DBD's split


def test_dbd_keeps_the_labels_of_exactly_the_half_of_lowest_loss() -> None:
    own = toys.case(DBD.sees)
    kept: list[Tensor] = []

    class Watched(DBD):
        def mixmatch(self, case: Any, model: Any, data: Any, epochs: Any, choose: Any) -> Any:
            def noted(epoch: int) -> Tensor:
                kept.append(choose(epoch))
                wanted = symmetric(model(data.images.float() / 255), data.labels).detach()
                assert float(wanted[kept[-1]].max()) <= float(wanted[~kept[-1]].min()) + 1e-4
                return kept[-1]

            return super().mixmatch(case, model, data, epochs, noted)

    outcome = Watched(**SHORT).defend(own)
    assert [int(mask.sum()) for mask in kept] == [120, 120]
    counts = torch.bincount(own.train.labels[kept[-1]], minlength=10)
    assert outcome.notes["labelled"] == counts.tolist()
    assert outcome.scores is not None and outcome.flagged is None
    assert float(outcome.scores[kept[-1]].max()) <= float(outcome.scores[~kept[-1]].min())


@pytest.mark.parametrize("method", ["dbd", "asd"])
def test_a_share_that_leaves_nothing_labelled_is_refused_at_once(method: str) -> None:
    cls = catalog.method("defense", method)
    with pytest.raises(SweepError, match="labelled 0.001 of 240"):
        cls(labelled=0.001).defend(toys.case(cls.sees))


def test_lowest_names_the_option_to_raise() -> None:
    assert lowest(torch.tensor([3.0, 1.0, 1.0, 2.0]), 0.5).tolist() == [False, True, True, False]
    assert lowest(torch.zeros(5), 0.5).tolist() == [True, True, False, False, False]
    with pytest.raises(SweepError, match="labelled 0.1 of 5"):
        lowest(torch.zeros(5), 0.1, "labelled")


# ASD's phases


def splits(method: ASD, own: Case) -> list[Tensor]:
    """Which of (clean images of the seeds, training set) keep their labels, epoch by epoch."""
    kept: list[Tensor] = []

    class Watched(ASD):
        def mixmatch(self, case: Any, model: Any, data: Any, epochs: int, choose: Any) -> Any:
            model.eval()
            assert len(data) == len(self.seeds(case)) + len(case.train)
            kept.extend(choose(epoch) for epoch in range(epochs))
            return [0.0]

    outcome = Watched(**asdict(method)).defend(own)
    assert outcome.notes["seeds"] + 240 == len(kept[0])
    return kept


def test_asd_follows_its_schedule_and_keeps_the_seeds_always() -> None:
    own = toys.case(ASD.sees, clean=100)
    asked = ASD(
        trusted=4, class_epochs=6, every=2, grow=3, whole_epochs=1, meta_epochs=1, iterations=1
    )
    kept = splits(asked, own)
    assert all(bool(mask[:40].all()) for mask in kept), "the seeds keep their labels always"
    labels = own.train.labels
    counts = [torch.bincount(labels[mask[40:]], minlength=10).tolist() for mask in kept]
    assert counts[:6] == [[n] * 10 for n in (0, 0, 3, 3, 6, 6)], "of each class as many"
    assert [sum(count) for count in counts[6:]] == [120, 120]
    many = splits(replace(asked, grow=1000, every=1, class_epochs=2, meta_epochs=0), own)[1]
    halves = (torch.bincount(labels, minlength=10) // 2).tolist()
    assert torch.bincount(labels[many[40:]], minlength=10).tolist() == halves


def test_phase_one_takes_the_lowest_losses_of_each_class() -> None:
    data = toys.image_set(40)
    scores = draws(40)
    kept = ASD(grow=2, every=1).select(scores, data, 1)
    for label in range(10):
        own = scores[data.labels == label]
        assert set(scores[kept & (data.labels == label)].tolist()) == set(
            own.sort().values[:2].tolist()
        )


def test_the_seeds_are_clean_images_of_each_class() -> None:
    own = toys.case(ASD.sees, clean=60)
    found = ASD(trusted=4).seeds(own)
    assert torch.bincount(found.labels).tolist() == [4] * 10
    rows = {image.numpy().tobytes() for image in own.clean.images}
    assert all(image.numpy().tobytes() in rows for image in found.images)
    assert len(ASD(trusted=9).seeds(own)) == 60, "all there are"
    clean = own.clean[own.clean.labels != 3]
    with pytest.raises(SweepError, match="1 of 10 have none: raise clean_budgets"):
        ASD().seeds(toys.case(ASD.sees, clean=clean))
    assert ASD().least_clean(Needs(10, toys.COLOUR, "tiny", True, 9)) == 10


def test_the_virtual_copy_leaves_the_model_and_learns_with_its_second_half() -> None:
    own, model = toys.case(ASD.sees), toys.victim()
    optimizer = torch.optim.Adam(model.parameters())
    before, method = toys.weights(model), ASD()
    virtual = method.virtual(own, model, own.train, 0)
    assert toys.same(before, toys.weights(model)) and not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not optimizer.state
    shared = {value.data_ptr() for value in model.state_dict().values()}
    assert shared.isdisjoint(value.data_ptr() for value in virtual.state_dict().values())
    values = dict(virtual.named_parameters())
    moved = toys.differing(model, virtual) & set(values)
    assert moved == {name for name, value in values.items() if value.requires_grad}
    assert "classifier.weight" in moved and not virtual.training
    drop = method.scores(own, model, own.train, method.class_epochs + method.whole_epochs)
    virtual = method.virtual(own, model, own.train, method.class_epochs + method.whole_epochs)
    wanted = losses_of(own, model, own.train, symmetric)
    assert torch.allclose(drop, wanted - losses_of(own, virtual, own.train, symmetric))
    assert torch.equal(method.scores(own, model, own.train, 0), wanted), "losses before phase 3"


def test_the_second_half_of_a_resnet_18_is_its_last_two_stages() -> None:
    model = toys.network(rng(), model="resnet18", width=4)
    freeze_first_half(model)
    named = dict(model.trunk.named_parameters())
    free = {name.split(".")[0] for name, value in named.items() if value.requires_grad}
    frozen = {name.split(".")[0] for name, value in named.items() if not value.requires_grad}
    assert free == {"layer3", "layer4"} and not free & frozen
    assert all(value.requires_grad for value in model.classifier.parameters())


def test_a_sample_that_is_learned_at_once_is_left_out_in_phase_three() -> None:
    """The samples of a patch whose loss falls most in the virtual epoch lose their labels."""
    own = toys.case(ASD.sees)
    poisoned = toys.poisoned_set().role == int(Role.POISON)
    method = ASD(class_epochs=0, whole_epochs=0, virtual_batch=32)
    model = own.new_model()
    case_clean = own.train[~poisoned]
    own.fit(model, case_clean, epochs=6)
    drop = method.scores(own, model, own.train, 0)
    kept = method.select(drop, own.train, 0)
    assert float((kept & poisoned).sum()) < 0.1 * float(poisoned.sum())


# Both


def test_a_training_without_an_epoch_is_refused() -> None:
    with pytest.raises(SweepError, match="all are 0: give one of them"):
        ASD(class_epochs=0, whole_epochs=0, meta_epochs=0)


FEW: dict[str, Any] = {"iterations": 15, "batch": 16}


def test_dbd_learns_the_clean_task_without_the_backdoor() -> None:
    contrast: dict[str, Any] = {"contrast_epochs": 4, "contrast_batch": 64, "contrast_lr": 0.1}
    head = {"head_epochs": 15, "head_batch": 32}
    own = toys.case(DBD.sees, shape=toys.COLOUR)
    outcome = DBD(**contrast, **head, epochs=4, lr=0.005, **FEW).defend(own)
    acc, asr = toys.oracle(shape=toys.COLOUR)(trained(outcome))
    assert acc > 0.5, "ten classes"
    assert asr < 0.4, "the undefended toy victim has an ASR of 1"


def test_asd_learns_the_clean_task_without_the_backdoor_and_tells_who_carries_it() -> None:
    phases = {"class_epochs": 4, "every": 1, "grow": 2, "whole_epochs": 1, "meta_epochs": 1}
    outcome = ASD(**phases, virtual_batch=32, **FEW).defend(toys.case(ASD.sees))
    acc, asr = toys.oracle()(trained(outcome))
    assert acc > 0.8 and asr < 0.2
    assert outcome.scores is not None
    poisoned = toys.poisoned_set().role == int(Role.POISON)
    found = metrics.auroc(outcome.scores.numpy(), poisoned.numpy())
    assert found is not None and found > 0.8
    assert len(outcome.notes["mixmatch_loss"]) == 6 and sum(outcome.notes["labelled"]) == 120
