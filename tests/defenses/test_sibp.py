"""SIBP: scores and thresholds against numbers worked out by hand, and the rounds around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Case
from defenses.fine_tuning import FineTuning
from defenses.parts import channels
from defenses.sibp import CANDIDATES, SIBP
from sweeper import models
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.models.base import Net
from tests.support import toys

SEES = frozenset({"model", "clean"})


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


def net(model: str, **options: Any) -> Net:
    """A network whose norms have statistics and weights of their own."""
    found = toys.network(seeds.generator(model), model=model, **options)
    rng = seeds.generator("norms")
    with torch.no_grad():
        for norm in channels.norms(found).values():
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=rng) + 0.5)
            norm.running_var.copy_(torch.rand(norm.weight.shape, generator=rng) + 0.5)
    return found.eval()


def pruned(model: nn.Module, **options: Any) -> channels.Dead:
    return SIBP(**options).prune(model, options.get("u", 1.9))


def test_the_score_of_a_kernel_is_its_largest_weight_over_its_deviation() -> None:
    weight = torch.zeros(2, 2, 2, 2)
    weight[0, 0] = torch.tensor([[1.0, 1.0], [1.0, 5.0]])  # deviation sqrt(3): 5 / 1.732
    weight[0, 1] = torch.tensor([[2.0, -2.0], [2.0, -2.0]])  # 1
    weight[1] = torch.tensor([[0.0, 3.0], [0.0, 0.0]])  # 3 / (3 sqrt(3) / 4)
    found = channels.conv_scores(weight)
    assert found.tolist() == pytest.approx([5 / 3**0.5, 4 / 3**0.5])
    scaled = weight * torch.tensor([7.0, -0.1])[:, None, None, None]
    assert torch.allclose(channels.conv_scores(scaled), found)


def test_the_score_of_a_norm_is_the_factor_it_scales_with() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 1.0]))
    found = channels.norm_scores(norm)
    assert found[:2].tolist() == [0.5, 2.0] and bool(found[2].isnan()), "a dead one has none"
    assert channels.norm_scores(norm, literal=True).tolist() == [0.5, 2.0, 0.0]
    with torch.no_grad():
        norm.weight *= 3
    assert channels.norm_scores(norm)[:2].tolist() == [1.5, 6.0]
    group = nn.GroupNorm(1, 3)
    with torch.no_grad():
        group.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
    assert channels.norm_scores(group).tolist() == [1, 2, 3], "no variance: the weight alone"


def test_kernels_of_one_element_have_no_score_and_are_left_alone() -> None:
    weight = torch.randn(8, 5, 1, 1, generator=seeds.generator("pointwise"))
    for literal in (False, True):
        found = channels.conv_scores(weight, literal)
        assert not bool(found.isfinite().any())
        assert not bool(channels.outliers(found, 0.5, literal).any())


def test_outliers_by_hand() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0, torch.nan])
    assert channels.outliers(values, 1.7).tolist() == [False] * 4 + [True, False]
    assert not bool(channels.outliers(values, 1.9).any()), "mean 2, deviation sqrt(5): 6 < 6.25"
    assert not bool(channels.outliers(values, 1.7, literal=True).any())
    assert not bool(channels.outliers(torch.tensor([3.0, torch.nan]), 0.0).any())


@pytest.mark.parametrize("literal", [False, True])
def test_exactly_the_predicted_channels_are_zero(literal: bool) -> None:
    model, before = net("resnet18", width=8), net("resnet18", width=8)
    dead = pruned(model, literal=literal)
    old, predicted = dict(before.named_parameters()), set()
    for name, part in channels.convolutions(before).items():
        flat = part.weight.detach().flatten(2)
        if flat.shape[2] == 1:
            continue
        score = (flat.abs() / flat.std(2, correction=0, keepdim=True)).flatten(1).amax(1)
        over = score > score.mean() + 0.5 * score.std()
        predicted |= {(f"{name}.weight", int(k)) for k in over.nonzero()}
    for name, part in channels.norms(before).items():
        score = part.weight.detach().abs() / part.running_var.sqrt()
        over = score > score.mean() + 1.9 * score.std()
        predicted |= {(f"{name}.{p}", int(k)) for k in over.nonzero() for p in ("weight", "bias")}
    assert len(predicted) > 30
    for name, value in model.named_parameters():
        for channel, row in enumerate(value):
            if (name, channel) in predicted:
                assert not bool(row.any())
            else:
                assert torch.equal(row, old[name][channel]), "everything else is unchanged"
    assert {(n, int(k)) for n, part in dead.items() for k in part.nonzero()} == predicted


def test_a_second_pruning_knows_the_first() -> None:
    """Zeroed slices have no score: what is left is judged on its own."""
    model = net("resnet18", width=8)
    first = pruned(model)
    second = pruned(model)
    assert not any(bool((second[name] & part).any()) for name, part in first.items())
    counts = [sum(channels.counts(dead).values()) for dead in (first, second)]
    assert 0 < counts[1] <= 1.2 * counts[0]
    literal = net("resnet18", width=8)
    once = pruned(literal, literal=True)
    twice = pruned(literal, literal=True)
    convs = [n for n in channels.convolutions(literal) if bool(once[f"{n}.weight"].any())]
    assert convs and not any(bool(twice[f"{n}.weight"].any()) for n in convs), "0/0 is not a number"


def test_infinite_coefficients_change_no_bit_and_larger_u_prunes_less() -> None:
    model = toys.victim()
    dead = SIBP(u=float("inf"), conv=float("inf")).prune(model, float("inf"))
    assert not toys.differing(model, toys.victim()) and not channels.counts(dead)
    sets = [pruned(net("resnet18", width=8), u=u) for u in CANDIDATES]
    norms = [n for n in sets[0] if n.endswith(".bias")]
    for more, fewer in zip(sets, sets[1:], strict=False):
        assert all(bool((fewer[n] <= more[n]).all()) for n in norms)
    assert sum(int(sets[0][n].sum()) for n in norms) > sum(int(sets[-1][n].sum()) for n in norms)


@pytest.mark.parametrize("literal", [False, True])
def test_off_vgg_the_released_threshold_is_one(literal: bool) -> None:
    found = channels.scores(net("resnet18", width=8), literal)
    assert channels.thresholds(found, "released") == (1.0, 1.0)
    with pytest.raises(SweepError, match="released or adaptive"):
        channels.thresholds(found, "vgg-list")


def test_on_vgg16_the_list_has_eight_convolutions_and_norms() -> None:
    with torch.device("meta"):
        trunk, _ = models.family("vgg16-bn", {}).build(10, toys.COLOUR)
    model = nn.ModuleDict({"trunk": trunk})
    listed = [n for n, _ in model.named_modules() if channels.VGG_LIST.fullmatch(n)]
    assert len(listed) == 27
    convs = [n for n in channels.convolutions(model) if n in listed]
    assert convs == [f"trunk.{k}" for k in (14, 17, 20, 24, 27, 30, 34, 37)]
    norms = [n for n in channels.norms(model) if n in listed]
    assert norms == [f"trunk.{k}" for k in (15, 18, 21, 25, 28, 31, 35, 38)]
    scores = {n: torch.full((4,), float(n.rpartition(".")[2])) for n in (*convs, *norms)}
    found = channels.Scores({n: scores[n] for n in convs}, {n: scores[n] for n in norms}, {})
    for mode in ("released", "vgg-list"):
        assert channels.thresholds(found, mode) == pytest.approx((25.375, 26.375))


def test_the_adaptive_threshold_is_that_of_deep_layers_with_outliers() -> None:
    order = [f"c{k}" for k in range(10)]
    plain, outlier = torch.ones(20), torch.cat([torch.ones(19), torch.tensor([9.0])])
    norms = {f"n{k}": outlier if k in (1, 5, 7, 9) else plain for k in range(10)}
    convs = {name: torch.full((20,), 1.0 + (name == "c5")) for name in order}
    found = channels.Scores(convs, norms, {f"n{k}": f"c{k}" for k in range(10)})
    found_convs, found_norms = channels.suspicious_layers(found)
    assert found_convs == ["c4", "c5", "c6", "c7", "c8"], "the median share is 0: all deep ones"
    many = {f"n{k}": plain if k in (4, 8) else outlier for k in range(10)}
    found = channels.Scores(convs, many, found.owner)
    found_convs, found_norms = channels.suspicious_layers(found)
    assert found_convs == ["c5", "c6", "c7"] and found_norms == ["n5", "n6", "n7"]
    t_conv, t_norm = channels.thresholds(found, "adaptive")
    assert t_conv == pytest.approx((4 / 3) / 1.1)
    assert t_norm == pytest.approx(1.4 / (0.8 * 1.4 + 0.2))
    real = channels.thresholds(channels.scores(net("resnet18", width=8)), "adaptive")
    assert all(0.5 < t < 2 for t in real), "a factor about 1 on any architecture"


@pytest.mark.parametrize("name", ["resnet18", "preact-resnet18", "mobilenet-v2"])
def test_every_family_has_scores_but_of_pointwise_kernels_and_loses_channels(name: str) -> None:
    model = net(name)
    found = channels.scores(model)
    for layer, conv in channels.convolutions(model).items():
        assert bool(found.conv[layer].isfinite().all()) == (conv.kernel_size != (1, 1))
    assert all(bool(v.isfinite().all()) for v in found.norm.values())
    assert channels.counts(pruned(model, mode="adaptive"))


def test_without_epochs_it_is_pruning_alone_and_draws_nothing() -> None:
    one, other = (SIBP(epochs=0).defend(case(key=key)).model for key in ("a", "b"))
    wanted = toys.victim()
    pruned(wanted)
    assert one is not None and other is not None
    assert not toys.differing(one, wanted) and not toys.differing(other, wanted)
    assert toys.differing(one, toys.victim())


def test_with_nothing_pruned_it_is_fine_tuning_bit_for_bit() -> None:
    plain = FineTuning(epochs=3, weight_decay=1e-4, schedule="constant").defend(case()).model
    for freeze in (True, False):
        sibp = SIBP(u=1e9, conv=1e9, epochs=3, patience=0, clip=0.0, freeze=freeze)
        found = sibp.defend(case()).model
        assert plain is not None and found is not None
        assert not toys.differing(plain, found)
    clipped = SIBP(u=1e9, conv=1e9, epochs=3, patience=0, clip=1e-4).defend(case()).model
    assert clipped is not None and toys.differing(plain, clipped)


@pytest.mark.parametrize(
    ("preset", "found"),
    [
        ("", (0, True, 3.0, 0.5)),
        ("released", (4, True, 0.0, 0.0)),
        ("released-gtsrb", (0, False, 15.0, 0.0)),
    ],
)
@pytest.mark.parametrize("control", [False, True])
def test_presets_bring_the_release_s_augmentation(
    monkeypatch: pytest.MonkeyPatch, preset: str, found: tuple[Any, ...], control: bool
) -> None:
    seen: list[Any] = []

    def fit(self: Case, model: nn.Module, data: ImageSet, **given: Any) -> None:
        given["hooks"].epochs = 1
        seen.append((self, given))

    monkeypatch.setattr(Case, "fit", fit)
    if control:
        preset = f"sibp-{preset}" if preset else "sibp"
    name = "random-pruning" if control else "sibp"
    method = catalog.make("defense", name, toys.asked(preset))
    method.defend(case(crop=0, flip=True, rotation=3.0, erase=0.5))
    assert len(seen) == (1 if "released" in preset else 2), "the epochs are chosen, then run"
    for own, given in seen:
        recipe = vars(own.recipe) | given
        assert tuple(recipe[part] for part in ("crop", "flip", "rotation", "erase")) == found


def zeros(model: nn.Module, dead: channels.Dead) -> list[bool]:
    named = dict(model.named_parameters())
    return [not bool(named[n][part].any()) for n, part in dead.items() if bool(part.any())]


def test_pruned_channels_stay_zero_or_grow_back() -> None:
    dead = pruned(toys.victim(), literal=True)
    options: dict[str, Any] = {"epochs": 2, "patience": 0, "literal": True, "batch": 32}
    kept = SIBP(freeze=True, **options).defend(case()).model
    grown = SIBP(freeze=False, clip=0.0, **options).defend(case()).model
    assert kept is not None and grown is not None
    assert all(zeros(kept, dead)) and not all(zeros(grown, dead))


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    numbers = iter([*accuracies, *[0.0] * 90])
    monkeypatch.setattr(Case, "accuracy", lambda *_: next(numbers))


def test_fine_tuning_stops_when_the_hold_out_no_longer_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, [0.9, 0.2, 0.3, 0.5, 0.5, 0.4])  # before, pruned, epochs 1, 2, 3, 4
    found = SIBP(epochs=9, patience=2).defend(case())
    (chosen,), (only,) = found.notes["choice"]["rounds"], found.notes["rounds"]
    assert chosen["epochs"] == only["epochs"] == 4 and chosen["holdout_pruned"] == 0.2
    assert not any(module.training for module in found.model.modules())


def test_no_epoch_near_chance_counts_against_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = [0.1, 0.12, 0.14, 0.1]
    scripted(monkeypatch, [0.9, 0.1, *asleep, 0.6, 0.5, 0.5])
    (chosen,) = SIBP(epochs=9, patience=2).defend(case()).notes["choice"]["rounds"]
    assert chosen["epochs"] == len(asleep) + 3
    scripted(monkeypatch, [0.9, 0.1, 0.16, 0.16, 0.16])
    (chosen,) = SIBP(epochs=9, patience=2).defend(case()).notes["choice"]["rounds"]
    assert chosen["epochs"] == 3, "one that has learned a little is stopped as any other"


def test_the_strongest_pruning_within_tau_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # before; then of each candidate pruned and after one epoch, twice
    scripted(monkeypatch, [0.9, 0.0, 0.1, 0.1, 0.0, 0.84, 0.84, 0.0, 0.86, 0.86])
    found = SIBP(u=None, epochs=1).defend(case())
    choice = found.notes["choice"]
    assert choice["tried"] == {"0.5": 0.1, "1.0": 0.84, "1.5": 0.86} and choice["within_tau"]
    assert [entry["u"] for entry in found.notes["rounds"]] == [1.5]
    scripted(monkeypatch, [1.0])
    found = SIBP(u=None, epochs=1).defend(case())
    assert not found.notes["choice"]["within_tau"] and found.notes["rounds"][0]["u"] == 2.5


def test_a_further_round_that_costs_too_much_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.9, 0.5, 0.9, 0.5, 0.8])
    options: dict[str, Any] = {"epochs": 0, "conv": 0.2}
    found = SIBP(rounds=3, **options).defend(case())
    assert len(found.notes["rounds"]) == 1 and found.notes["choice"]["undone"]["holdout"] == 0.8
    monkeypatch.undo()
    first = SIBP(**options).defend(case()).model
    assert not toys.differing(found.model, first)
    listed = SIBP(u=(1.9, 0.5), tau=0.0, **options).defend(case())
    assert [r["u"] for r in listed.notes["rounds"]] == [1.9, 0.5], "a list is followed to its end"


@pytest.mark.parametrize(
    "given",
    [
        {"mode": "vgg"},
        {"augment": "flip"},
        {"u": None, "patience": 0},
        {"u": [1.9, 1.2], "epochs": [5]},
        {"rounds": 0},
        {"clip": -1.0},
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match="sibp"):
        catalog.make("defense", "sibp", given)
    assert catalog.make("defense", "sibp", {"u": [1.9, 1.7], "epochs": [4, 4]}).count == 2


def test_scores_need_no_data_and_write_nothing() -> None:
    model = net("resnet18", width=8)
    before: dict[str, Tensor] = toys.weights(model)
    one, other = channels.scores(model), channels.scores(model)
    plain = [{n: v.nan_to_num() for n, v in found.conv.items()} for found in (one, other)]
    assert toys.same(*plain) and toys.same(before, toys.weights(model))
