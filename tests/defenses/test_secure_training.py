"""Secure training: NONE and CBD, formulas and parts against their definitions, and on toys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.cbd import CBD, Weighted, weights
from defenses.fine_tuning import FrozenInEval
from defenses.none_training import NONE, gaps, natural_break, readers, reset
from defenses.parts.outputs import convolutions
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.engine import training
from tests.support import toys


def draws(*shape: int, name: str = "draws") -> Tensor:
    return torch.randn(*shape, generator=seeds.generator("secure", name), dtype=torch.float64)


GREY: dict[str, Any] = {"shape": toys.GREY}
"""Of a toy victim on small images, on which trainings take less than a second."""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none-training", {"share": 1.5}),
        ("none-training", {"strong": 0.4}),
        ("none-training", {"epochs": -1}),
        ("cbd", {"confounder_epochs": -1}),
        ("cbd", {"batch": 1}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=next(iter(options))):
        catalog.make("defense", name, options)


# NONE


def test_the_gaps_are_those_of_their_definition_however_images_come() -> None:
    values, p = draws(300, 5), (4 * draws(300, 3, name="p")).softmax(1)
    values[(p[:, 1] > 0.9).nonzero()[3:5], 2] = 50.0  # a channel two images of one class excite
    wanted = torch.stack(
        [
            values[p[:, k] > 0.9].amax(0)
            - values[p[:, k] < 0.1].mean(0)
            - 3 * values[p[:, k] < 0.1].std(0, correction=0)
            for k in range(3)
        ]
    ).amax(0)
    for size in (300, 40):
        found = gaps(zip(values.split(size), p.split(size), strict=True), 0.9, 0.1)
        assert torch.allclose(found, wanted)
    assert int(found.argmax()) == 2
    unsure = torch.full((300, 3), 1 / 3).double()
    assert bool(gaps([(values, unsure)], 0.9, 0.1).isneginf().all()), "nothing is of a class"


def test_the_natural_break_leaves_the_least_variance() -> None:
    values = draws(40).abs().exp()

    def within(upper: Tensor) -> float:
        return sum(
            float((part - part.mean()).square().sum()) for part in (values[upper], values[~upper])
        )

    splits = [values >= cut for cut in values.sort().values[1:]]
    best = min(splits, key=within)
    assert torch.equal(natural_break(values), best)
    two = torch.tensor([1.0, 9.0, 1.1, 8.8, 0.9, 9.1])
    assert natural_break(two).tolist() == [False, True, False, True, False, True]
    assert not natural_break(torch.ones(5)).any() and not natural_break(torch.ones(1)).any()


def test_channels_are_followed_up_to_the_sum() -> None:
    model = toys.network(seeds.generator("none"), model="resnet18", width=4)
    names = {module: name for name, module in model.named_modules()}
    found = {names[conv]: {names[part] for part in parts} for conv, parts in readers(model).items()}
    block = "trunk.layer2.0."
    assert found[block + "conv1"] == {block + "bn1", block + "conv2"}
    assert found[block + "conv2"] == {block + "bn2"}
    assert found[block + "downsample.0"] == {block + "downsample.1"}
    assert set(found) == {names[conv] for conv in convolutions(model)}


def test_the_reset_zeroes_what_is_listed_and_nothing_else() -> None:
    model = toys.network(seeds.generator("none"), model="resnet18", width=4)
    before = toys.weights(model)
    listed = {"layer2.0.conv1": [1, 5], "layer4.1.conv2": [0, 30]}
    parts = dict(model.trunk.named_modules())
    chosen = {parts[name]: torch.tensor(places) for name, places in listed.items()}
    with torch.no_grad():
        parts["layer2.0.bn1"].get_parameter("bias").fill_(0.5)
        before = toys.weights(model)
    reset(model, chosen)  # type: ignore[arg-type]
    one, other = "trunk.layer2.0.", "trunk.layer4.1."
    zeroed = {
        **{f"{one}{name}": (0, [1, 5]) for name in ("conv1.weight", "bn1.weight", "bn1.bias")},
        f"{one}conv2.weight": (1, [1, 5]),
        **{f"{other}{name}": (0, [0, 30]) for name in ("conv2.weight", "bn2.weight", "bn2.bias")},
    }
    for name, value in model.state_dict().items():
        wanted = before[name].clone()
        if name in zeroed:
            wanted.index_fill_(zeroed[name][0], torch.tensor(zeroed[name][1]), 0.0)
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize("name", ["tiny", "vgg11-bn", "mobilenet-v2", "preact-resnet18"])
def test_a_reset_channel_is_silent_under_any_prefix(name: str) -> None:
    """Whatever a reset channel's norm put out is put out no more; a wrapper changes nothing."""
    models = [toys.network(seeds.generator("none", name), model=name).eval() for _ in range(2)]
    wrapped = nn.ModuleDict({"module": models[1]})["module"]
    for model in (models[0], nn.Sequential(wrapped)):
        convs = [conv for conv, parts in readers(model).items() if len(parts) > 1]
        reset(model, {conv: torch.tensor([2]) for conv in convs[:3]})
    assert not toys.differing(models[0], models[1])
    quiet = [
        part
        for conv, parts in readers(models[0]).items()
        for part in parts
        if isinstance(part, nn.BatchNorm2d) and not bool(conv.weight[2].any())
    ]
    seen: list[Tensor] = []
    handles = [part.register_forward_hook(lambda *given: seen.append(given[2])) for part in quiet]
    with torch.no_grad():
        models[0](toys.image_set(3, shape=toys.COLOUR).images.float() / 255)
    for handle in handles:
        handle.remove()
    assert len(seen) >= 3 and not any(bool(out[:, 2].any()) for out in seen)


def test_with_nothing_to_reset_or_drop_none_is_plain_training_and_tuning() -> None:
    case = toys.case(NONE.sees, **GREY)
    asked = NONE(share=0.0, skip=1.0, epochs=2, lr=0.05, tune_epochs=2, tune_lr=0.01, batch=60)
    outcome = asked.defend(case)
    assert outcome.flagged is not None and not outcome.flagged.any()
    common: dict[str, Any] = {
        "batch": 60,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 0.0,
        "nesterov": False,
    }
    model = case.new_model()
    step = {"schedule": "step", "milestones": (1, 2), "gamma": 0.1}
    case.fit(model, case.train, name="train", epochs=2, lr=0.05, **step, **common)
    before = toys.weights(model)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    case.fit(
        model,
        case.train,
        name="tune",
        hooks=FrozenInEval(norms),
        epochs=2,
        lr=0.01,
        schedule="constant",
        **common,
    )
    assert outcome.model is not None and not toys.differing(outcome.model, model)
    after = toys.weights(model)
    kept = [key for key in before if "running" in key or "tracked" in key]
    assert kept and all(torch.equal(before[key], after[key]) for key in kept)


def test_none_drops_what_carries_the_toy_trigger_and_loses_the_backdoor() -> None:
    asked = NONE(share=0.1, epochs=8, lr=0.05, tune_epochs=4, tune_lr=0.01, batch=32)
    outcome = asked.defend(toys.case(NONE.sees, **GREY))
    assert toys.auroc(outcome.scores) > 0.95
    poisoned = toys.poisoned_set(**GREY).role == 1
    assert outcome.flagged is not None and outcome.model is not None
    assert float((outcome.flagged == poisoned).float().mean()) > 0.95
    assert outcome.notes["channels"] == [1, 1, 1, 2, 2, 4, 4]
    acc, asr = toys.oracle(**GREY)(outcome.model)
    assert acc > 0.9 and asr < 0.1


# CBD


def test_the_weights_have_mean_one_and_favour_what_the_confounder_finds_hard() -> None:
    confounded, own = draws(64).abs(), draws(64, name="own").abs()
    confounded[7], own[7] = 80.0, 1e-4
    found = weights(confounded, own)
    assert float(found.mean()) == pytest.approx(1.0)
    assert float(found.min()) >= 0 and float(found.max()) <= 64
    assert int(found.argmax()) == 7
    assert torch.allclose(weights(own, own), torch.ones(64).double(), atol=1e-3)
    alone = weights(torch.tensor([5.0, 0.0, 0.0]), torch.ones(3))
    assert alone.tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert not weights(torch.zeros(3), torch.ones(3)).any()


def test_no_gradient_goes_through_the_weights() -> None:
    model, confounder = toys.victim(), toys.network(seeds.generator("confounder")).eval()
    data = toys.image_set(20)
    batch = training.Batch(data.images.float() / 255, data.labels, torch.arange(20), 0, 0)
    head = model.classifier.get_parameter("weight")
    (found,) = torch.autograd.grad(Weighted(confounder).loss(model, batch, toys.RECIPE), [head])
    own = functional.cross_entropy(model(batch.inputs), data.labels, reduction="none")
    other = functional.cross_entropy(confounder(batch.inputs), data.labels, reduction="none")
    (wanted,) = torch.autograd.grad((weights(other, own).detach() * own).mean(), [head])
    assert torch.allclose(found, wanted, atol=1e-7)
    own = functional.cross_entropy(model(batch.inputs), data.labels, reduction="none")
    (through,) = torch.autograd.grad((weights(other.detach(), own) * own).mean(), [head])
    assert not torch.allclose(found, through, atol=1e-6)


def test_the_confounder_stays_as_it_was_and_leaves_nothing_behind() -> None:
    case = toys.case(CBD.sees, **GREY)
    asked = CBD(confounder_epochs=1, epochs=1, lr=0.05)
    confounder = asked.confounder(case, case.train)
    before, model = toys.weights(confounder), case.new_model()
    assert toys.differing(confounder, model), "other weights to begin with"
    case.fit(model, case.train, hooks=Weighted(confounder), epochs=1, lr=0.05)
    assert toys.same(before, toys.weights(confounder)) and not confounder.training
    steps = {int(value) for key, value in model.state_dict().items() if "tracked" in key}
    assert steps == {8}, "BatchNorm's statistics follow each batch once"


def test_cbd_does_not_learn_what_the_confounder_has_learned() -> None:
    case, asked = toys.case(CBD.sees, **GREY), CBD(confounder_epochs=2, epochs=6, lr=0.01, batch=16)
    outcome, without = asked.defend(case), replace(asked, confounder_epochs=0).defend(case)
    assert (
        toys.auroc(outcome.scores) > 0.8 and outcome.model is not None and without.model is not None
    )
    ask = toys.oracle(**GREY)
    (acc, asr), (_, plain) = ask(outcome.model), ask(without.model)
    assert asr < 0.1 and plain > 0.9 and acc > 0.3, (acc, asr, plain)
