"""Fine-tuning and fine-pruning: what they may change, and what stays bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Case
from defenses.fine_pruning import FinePruning, KeepPruned, dormancy, prune
from defenses.fine_tuning import FineTuning, FrozenInEval
from sweeper.core import catalog
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Outcome
from sweeper.engine import training
from sweeper.models.base import Net
from tests.support import toys

SEES = frozenset({"model", "clean"})
HEAD = {"classifier.weight", "classifier.bias"}


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


def repaired(outcome: Outcome) -> Net:
    assert isinstance(outcome.model, Net)
    return outcome.model


class Chain(nn.Module):
    """A network whose features are the means of ReLU maps: convolution, norm, ReLU, mean."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def chain(seed: int = 0, width: int = 12) -> Net:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        trunk = Chain(width)
        nn.init.uniform_(trunk.norm.bias)
        nn.init.uniform_(trunk.norm.running_mean, -0.2, 0.2)
        return Net(trunk, nn.Linear(width, 10), [0.5] * 3, [0.25] * 3).eval()


def pixels(count: int = 50) -> Tensor:
    return toys.image_set(count, seed=4).images.float().div(255)


# Fine-tuning


def test_at_learning_rate_zero_and_frozen_statistics_nothing_changes() -> None:
    found = FineTuning(lr=0.0, layers="head", epochs=2).defend(case())
    assert not toys.differing(repaired(found), toys.victim())


def test_at_learning_rate_zero_only_running_statistics_move() -> None:
    changed = toys.differing(repaired(FineTuning(lr=0.0, epochs=1).defend(case())), toys.victim())
    assert changed and all(
        name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed
    )


def test_training_the_head_changes_the_head_alone() -> None:
    found = repaired(FineTuning(layers="head", epochs=2).defend(case()))
    assert all(p.requires_grad for p in found.parameters()), "what was frozen is freed again"
    assert toys.differing(found, toys.victim()) == HEAD
    everything = repaired(FineTuning(epochs=2).defend(case()))
    assert toys.differing(everything, toys.victim()) > HEAD


@pytest.mark.parametrize("layers", ["all", "head"])
def test_accuracy_on_the_clean_images_does_not_fall(layers: str) -> None:
    own = case()
    outcome = FineTuning(layers=layers, epochs=10, batch=32).defend(own)
    assert own.accuracy(repaired(outcome), own.clean) >= own.accuracy(own.fresh_model(), own.clean)
    assert outcome.notes["loss_last"] <= outcome.notes["loss_first"] + 1e-3


def test_the_options_reach_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    fit = training.fit

    def spied(model: Any, data: ImageSet, recipe: Any, **rest: Any) -> list[float]:
        seen.append(recipe)
        return fit(model, data, recipe, **rest)

    monkeypatch.setattr(training, "fit", spied)
    FineTuning(lr=0.003, epochs=2, schedule="constant", weight_decay=0.0).defend(
        case(clean=20, label_smoothing=0.0, crop=2, period=100)
    )
    (recipe,) = seen
    assert (recipe.lr, recipe.epochs, recipe.schedule) == (0.003, 2, "constant")
    assert recipe.batch == 20, "a clean budget below one batch is one batch, not none"
    assert recipe.weight_decay == 0 and recipe.warmup == 0
    assert recipe.crop == 2, "augmentation is the data set's, not the defense's"
    assert recipe.period == 0, "a cosine falls over the epochs asked for, not over a fixed number"
    default = FineTuning()
    assert (default.lr, default.epochs, default.batch) == (0.01, 100, 256)


def test_frozen_modules_keep_their_statistics_and_others_do_not() -> None:
    model = toys.victim()
    before = toys.weights(model)
    first = model.trunk[0]
    training.fit(
        model,
        toys.image_set(64),
        replace(toys.RECIPE, epochs=1),
        key="frozen",
        device=toys.CPU,
        hooks=FrozenInEval([first]),
    )
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    buffers = {n for n in moved if "running" in n}
    assert buffers and not any(name.startswith("trunk.0.") for name in buffers)


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(SweepError, match="not one of all, head"):
        catalog.make("defense", "fine-tuning", {"layers": "last"})


# Fine-pruning


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let successive calls of `case.accuracy` return these numbers."""
    numbers = iter(accuracies)
    monkeypatch.setattr(Case, "accuracy", lambda *_: next(numbers))


def zero_columns(model: Net) -> set[int]:
    return set((model.classifier.weight == 0).all(0).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("accuracies", "count"),
    [
        ([0.9, 0.9, 0.9, 0.88, 0.5, 0.9], 3),  # the last accepted, not the first rejected
        ([0.9, 0.5, 0.9], 0),
        ([0.9, *[0.9] * 30], 30),  # the cap: 95 % of 32 units
    ],
)
def test_the_strongest_accepted_pruning_is_kept(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], count: int
) -> None:
    own = case()
    order = dormancy(own, own.fresh_model(), own.clean).argsort(stable=True)
    scripted(monkeypatch, accuracies)
    outcome = FinePruning(epochs=0).defend(own)
    assert outcome.notes["units"] == 32 and outcome.notes["pruned"] == count
    assert outcome.notes["curve"][count][1] == accuracies[count]
    assert zero_columns(repaired(outcome)) == set(order[:count].tolist()), "most dormant first"
    assert toys.differing(repaired(outcome), toys.victim()) <= {"classifier.weight"}


def test_a_hundredth_of_the_units_goes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(width=250)
    scripted(monkeypatch, [0.9, 0.9, 0.9, 0.1])
    found = FinePruning(epochs=0).defend(case(model=model))
    assert found.notes["units"] == 250 and found.notes["pruned"] == 4


def test_the_accepted_pruning_is_within_tau_on_the_clean_images() -> None:
    own = case()
    outcome = FinePruning(epochs=0, tau=0.05).defend(own)
    before, after = (own.accuracy(m, own.clean) for m in (own.fresh_model(), repaired(outcome)))
    lost = before - after
    assert outcome.notes["pruned"] > 0 and lost <= 0.05 + 1e-9


def test_pruned_units_stay_at_zero_through_fine_tuning() -> None:
    outcome = FinePruning(epochs=3, batch=32).defend(case())
    without = FinePruning(epochs=0).defend(case())
    assert outcome.notes["pruned"] == without.notes["pruned"] > 0
    assert zero_columns(repaired(outcome)) == zero_columns(repaired(without))
    assert toys.differing(repaired(outcome), repaired(without)) > HEAD


def test_pruning_survives_momentum_and_decay() -> None:
    model, units = toys.victim(), torch.tensor([0, 5])
    hooks = KeepPruned(units)
    with torch.no_grad():
        model.classifier.weight.fill_(1.0)
    hooks.stepped(model, 0)
    assert zero_columns(model) == {0, 5}


def test_dormancy_is_the_mean_magnitude_of_the_features() -> None:
    model, data = chain(), toys.image_set(700, seed=4)
    found = dormancy(case(model=model, crop=4, flip=True), model, data)
    with torch.no_grad():  # of the images as they are: augmentation ranks nothing
        expected = model.features(data.images.float().div(255)).abs().mean(0)
    assert torch.allclose(found, expected, rtol=1e-4)
    with torch.no_grad():
        model.trunk.norm.weight[int(found.argmax())] = 0
        model.trunk.norm.bias[int(found.argmax())] = -1
    dead = dormancy(case(model=model), model, data)
    assert dead[found.argmax()] == 0 == dead.min()


def test_signed_features_count_by_magnitude() -> None:
    class Signed(Chain):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return torch.cat([-3 * out[:, :1], out[:, 1:]], 1)

    model = chain()
    plain = dormancy(case(model=model), model, toys.image_set(50))
    model.trunk.__class__ = Signed
    found = dormancy(case(model=model), model, toys.image_set(50))
    assert torch.allclose(found[0], 3 * plain[0]) and torch.equal(found[1:], plain[1:])


def test_zeroing_the_head_s_column_is_removing_the_channel() -> None:
    by_head, by_channel, units = chain(), chain(), torch.tensor([2, 7, 11])
    prune(by_head, units)
    with torch.no_grad():
        by_channel.trunk.conv.weight[units] = 0
        by_channel.trunk.conv.bias[units] = 0
        by_channel.trunk.norm.weight[units] = 0
        by_channel.trunk.norm.bias[units] = 0
        assert torch.allclose(by_head(pixels()), by_channel(pixels()), atol=1e-6)
        assert not torch.allclose(by_head(pixels()), chain()(pixels()), atol=1e-3)


def test_renaming_the_units_renames_the_pruned_ones() -> None:
    model, shuffled = chain(), chain()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias"):
            parameter = shuffled.trunk.get_parameter(name)
            parameter.copy_(parameter[order])
        for name in ("running_mean", "running_var"):
            buffer = shuffled.trunk.norm.get_buffer(name)
            buffer.copy_(buffer[order])
        shuffled.classifier.weight.copy_(shuffled.classifier.weight[:, order])
        assert torch.allclose(model(pixels()), shuffled(pixels()), atol=1e-5)
    found = [FinePruning(epochs=0, tau=0.3).defend(case(model=net)) for net in (model, shuffled)]
    assert found[0].notes["pruned"] == found[1].notes["pruned"] > 0
    pruned = [zero_columns(repaired(outcome)) for outcome in found]
    assert {int(order[unit]) for unit in pruned[1]} == pruned[0]
