"""D-BR and the SD separation it starts from: the loss, the scores, the split, the two phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from defenses.base import Case
from defenses.d_br import DBR
from defenses.d_br_oracle import DBROracle
from defenses.d_st import DST
from defenses.parts import sd
from defenses.parts.alternate import Signed
from defenses.parts.sd import CLEAN, POISONED, SD, UNCERTAIN, fct, intra_loss, separate
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Outcome, Role, State
from sweeper.engine import augment, training
from sweeper.models.base import Net
from tests.support import sweeps, toys
from tests.support.sweeps import on_cifar

SHORT: dict[str, Any] = {"train_epochs": 1, "intra_epochs": 1}


def rng(name: str | int = "draw") -> Generator:
    return seeds.generator("d-br tests", name)


# The intra-class loss


def slow_intra_loss(features: Tensor, labels: Tensor) -> Tensor:
    """The specification, one class after the other."""
    centres = [features[labels == j].mean(0) for j in sorted(set(labels.tolist()))]
    unit = torch.stack([centre / centre.norm() for centre in centres])
    similar = unit @ unit.T
    similar[range(len(unit)), range(len(unit))] = 0
    return similar.mean()


def test_intra_loss_of_orthogonal_and_of_identical_centres() -> None:
    labels = torch.tensor([3, 3, 7, 7])
    apart = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    assert float(intra_loss(apart, labels)) == pytest.approx(0, abs=1e-6)
    assert float(intra_loss(torch.ones(4, 2), labels)) == pytest.approx(0.5)
    assert float(intra_loss(apart, torch.full((4,), 3))) == pytest.approx(0), "one class alone"


@given(seed=st.integers(0, 1000), count=st.integers(1, 30), classes=st.integers(1, 9))
def test_intra_loss_equals_the_specification(seed: int, count: int, classes: int) -> None:
    features = torch.randn(count, 6, generator=rng(seed))
    labels = torch.randint(classes, (count,), generator=rng(seed))
    expected = slow_intra_loss(features, labels)
    torch.testing.assert_close(intra_loss(features, labels), expected, atol=1e-5, rtol=1e-4)


def test_intra_loss_is_computed_in_full_precision_under_autocast() -> None:
    features, labels = torch.randn(40, 8, generator=rng()), torch.arange(40) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = intra_loss(features, labels)
    assert torch.equal(found, intra_loss(features, labels))


# The scores


class Corner(nn.Module):
    """Features: the mean of a corner of the image, and that of its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, :, -6:, -6:].mean((1, 2, 3)), x[:, :, 13:19, 13:19].mean((1, 2, 3))]
        return torch.stack(parts, 1) * self.weight


def cornered() -> Net:
    return Net(Corner(), nn.Linear(2, 10), [0.0] * 3, [1.0] * 3)


def test_the_score_is_high_where_a_patch_drives_the_feature() -> None:
    images = torch.full((300, 3, 32, 32), 60, dtype=torch.uint8)
    images[:50, :, -6:, -6:] = 255
    scores = fct(cornered(), images, rng())
    assert scores.shape == (300,) and scores.dtype == torch.float32
    assert float(scores[:50].median()) > 5 * float(scores[50:].max())


def test_the_score_is_the_squared_distance_summed_over_features_and_averaged_over_draws() -> None:
    model, images = toys.victim().train(), toys.image_set(40).images
    found = fct(model, images, rng(), draws=3)
    assert not model.training, "running statistics are used, and stay"
    assert not toys.differing(model, toys.victim())
    draw, pixels = rng(), images.float() / 255
    expected = torch.zeros(40)
    with torch.inference_mode():
        for _ in range(3):
            turned = augment.translate(augment.rotate(pixels, 180.0, draw), 0.2, draw)
            jump = model.features(turned) - model.features(pixels)
            expected += jump.square().sum(1) / 3
    torch.testing.assert_close(found, expected)


def test_the_score_of_no_transformation_is_zero_and_of_an_even_image_under_flip() -> None:
    images = toys.image_set(30).images
    assert not fct(toys.victim(), images, rng(), transforms=()).any()
    even = torch.cat([images, images.flip(3)], 3)
    assert not fct(toys.victim(), even, rng(), transforms=("flip",)).any()
    for name in sd.TRANSFORMS:
        assert fct(toys.victim(), images, rng(), transforms=(name,)).any(), name


def test_scores_are_fixed_by_their_generator() -> None:
    model, images = toys.victim(), toys.image_set(30).images
    one, other, third = (fct(model, images, rng(name)) for name in ("a", "a", "b"))
    assert torch.equal(one, other) and not torch.equal(one, third)


# The split


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0]), min_size=20, max_size=80),
    alpha_c=st.floats(0.05, 0.6),
    alpha_p=st.floats(0.05, 0.4),
)
def test_the_split_has_exact_sizes_and_keeps_the_order(
    scores: list[float], alpha_c: float, alpha_p: float
) -> None:
    values = torch.tensor(scores)
    part = separate(values, alpha_c, alpha_p)
    assert part.dtype == torch.uint8
    assert int((part == CLEAN).sum()) == int(len(scores) * alpha_c + 1e-9)
    assert int((part == POISONED).sum()) == int(len(scores) * alpha_p + 1e-9)
    for low, high in ((CLEAN, UNCERTAIN), (UNCERTAIN, POISONED), (CLEAN, POISONED)):
        below, above = values[part == low], values[part == high]
        if len(below) and len(above):
            assert float(below.max()) <= float(above.min())


def test_ties_are_broken_by_index() -> None:
    part = separate(torch.zeros(20), 0.2, 0.1)
    assert part.tolist() == [CLEAN] * 4 + [UNCERTAIN] * 14 + [POISONED] * 2
    assert separate(torch.arange(100.0), 0.29, 0.01).eq(CLEAN).sum() == 29, "0.29 x 100 is 29"


def test_the_released_thresholds_take_ties_and_fresh_scores() -> None:
    scores = torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 4, 5, 6])
    part = sd.separate_by_threshold(scores, scores, 0.2, 0.2)
    assert part.tolist() == [CLEAN] * 4 + [UNCERTAIN] * 4 + [POISONED] * 2
    fresh = torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0, 4.9, 0])
    part = sd.separate_by_threshold(scores, fresh, 0.2, 0.2)
    assert part.tolist() == [POISONED] + [CLEAN] * 7 + [UNCERTAIN, CLEAN]
    with pytest.raises(SweepError, match="rank"):
        sd.separate_by_threshold(torch.zeros(10), torch.zeros(10), 0.2, 0.2)


def test_an_empty_part_is_refused_in_words() -> None:
    with pytest.raises(SweepError, match="raise the share"):
        separate(torch.arange(10.0), 0.2, 0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha_c": 0.8, "alpha_p": 0.3},
        {"transforms": ("blur",)},
        {"separation": "index"},
        {"train_epochs": 0, "intra_epochs": 0},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SweepError):
        DBR(**wrong)


# The training of the separation


def staged(**options: Any) -> SD:
    found = DBR(**{**SHORT, **options}).stage()
    assert isinstance(found, SD)
    return found


def trained(**options: Any) -> Net:
    """The separation's network after the asked epochs; the recipe's own habits must not matter."""
    case = toys.case(frozenset({"train"}), crop=4, flip=True, label_smoothing=0.1)
    return staged(**options).train(case, case.train)


def test_the_recipe_of_the_separation_is_the_paper_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda model, data, recipe, **_: seen.append(recipe))
    found = DBR().stage()
    assert isinstance(found, SD)
    case = toys.case(frozenset({"train"}), crop=4, flip=True, rotation=9.0, erase=0.2)
    found.train(case, case.train)
    (recipe,) = seen
    assert (recipe.epochs, recipe.batch, recipe.lr) == (12, 128, 0.01)
    assert (recipe.momentum, recipe.weight_decay, recipe.label_smoothing) == (0.9, 5e-4, 0)
    assert (recipe.crop, recipe.flip, recipe.rotation, recipe.erase) == (0, False, 0, 0)
    assert training.learning_rate(recipe, 2 * 7, 7) == pytest.approx(0.00999, abs=1e-5)


def test_the_intra_class_loss_leaves_the_head_and_moves_the_trunk() -> None:
    fresh = toys.case(frozenset({"train"})).new_model()
    changed = toys.differing(trained(train_epochs=0), fresh)
    assert changed and all(name.startswith("trunk.") for name in changed)
    changed = toys.differing(trained(intra_epochs=0), fresh)
    assert "classifier.weight" in changed and any(name.startswith("trunk.") for name in changed)


def test_the_intra_class_loss_drives_centres_apart() -> None:
    data = toys.case(frozenset({"train"})).train

    def together(model: Net) -> float:
        with torch.inference_mode():
            return float(intra_loss(model.features(data.images.float() / 255), data.labels))

    options = {"train_epochs": 1, "sd_batch": 32, "sd_lr": 0.05}
    before = together(trained(intra_epochs=0, **options))
    assert together(trained(intra_epochs=4, **options)) < 0.9 * before


def test_a_second_pass_updates_the_running_statistics_twice() -> None:
    def updates(model: Net) -> int:
        return max(int(v) for k, v in model.state_dict().items() if k.endswith("batches_tracked"))

    once, twice = (updates(trained(two_passes=flag, sd_batch=60)) for flag in (False, True))
    assert (once, twice) == (8, 12), "4 steps an epoch; the first epoch is cross-entropy"


def test_the_stage_leaves_scores_and_parts_the_same_at_every_run() -> None:
    stage = staged()
    one, other = (stage.run(toys.case(stage.sees)) for _ in range(2))
    assert set(one) == {"scores", "part"} and toys.same(one, other)
    assert one["part"].dtype == torch.uint8 and len(one["scores"]) == len(one["part"]) == 240
    assert torch.equal(one["part"], separate(one["scores"], 0.2, 0.05))
    fresh = staged(separation="threshold").run(toys.case(stage.sees))
    assert torch.equal(fresh["scores"], one["scores"])
    assert not torch.equal(fresh["part"], one["part"]), "scores are drawn anew for the split"


def test_d_br_and_d_st_share_one_stage() -> None:
    assert DBR().stage() == DST().stage() == DBROracle().stage()
    assert DBR(epochs=3).stage() == DST(batch=64).stage()
    assert DBR(alpha_p=0.01).stage() != DST().stage()


def test_rows_carry_detection_rates_and_the_stage_runs_once(tmp_path: Path) -> None:
    both = [{"defense": name, **SHORT, "epochs": 1} for name in ("d-br", "d-st")]
    path = sweeps.write(
        tmp_path, attacks=["badnets"], poison_rates=[0.2], seeds=1, defenses=["none", *both]
    )
    counts, _ = sweeps.inline(path, tmp_path / "store")
    assert counts == {"ok": 5}, "train, stage, three defenses"
    rows = sweeps.frame(tmp_path / "store").set_index("defense")
    for name in ("d-br", "d-st"):
        assert rows.loc[name, ["tpr", "fpr", "precision", "auroc", "acc", "asr"]].notna().all()
    assert rows.loc["d-br", "auroc"] == rows.loc["d-st", "auroc"]
    assert rows.loc["none", ["auroc"]].isna().all()


# Unlearning and relearning


def truth() -> State:
    """A separation that knows the roles: a quarter of the clean samples, half of the poisoned."""
    poisoned = toys.poisoned_set().role == int(Role.POISON)
    part = torch.full((240,), UNCERTAIN, dtype=torch.uint8)
    part[(~poisoned).nonzero().flatten()[::4]] = CLEAN
    part[poisoned.nonzero().flatten()[::2]] = POISONED
    return {"scores": poisoned.float(), "part": part}


def case(state: State | None = None, **given: Any) -> Case:
    return toys.case(DBR.sees, state=state or truth(), **given)


def repaired(outcome: Outcome) -> Net:
    assert isinstance(outcome.model, Net)
    return outcome.model


def test_the_backdoor_goes_and_accuracy_stays() -> None:
    acc, asr = toys.oracle()(toys.victim())
    assert acc > 0.9 and asr > 0.9
    outcome = DBR(lr=2e-3, batch=32, epochs=6).defend(case())
    after, left = toys.oracle()(repaired(outcome))
    assert left < 0.2 and after > 0.85
    losses = outcome.notes["unlearned_loss"]
    assert len(losses) == 6 and losses[-1] > losses[0] + 1, "the loss on D_p was ascended"


def test_unlearning_clean_samples_instead_harms_the_model() -> None:
    """The split matters: with D_p and D_c of another meaning the method breaks."""
    state = {**truth()}
    state["part"] = 2 - state["part"]
    outcome = DBR(lr=2e-3, batch=32, epochs=6).defend(case(state))
    acc, asr = toys.oracle()(repaired(outcome))
    assert acc < 0.7 or asr > 0.8


def test_scores_and_flags_are_the_separation_s() -> None:
    outcome = DBR(epochs=1).defend(case())
    assert outcome.scores is not None and outcome.flagged is not None
    assert torch.equal(outcome.scores, truth()["scores"])
    assert torch.equal(outcome.flagged, truth()["part"] == POISONED)
    assert (outcome.notes["clean"], outcome.notes["poisoned"]) == (50, 22)


def test_no_epoch_or_no_learning_rate_leaves_the_weights() -> None:
    assert not toys.differing(repaired(DBR(epochs=0).defend(case())), toys.victim())
    still = repaired(DBR(lr=0.0, epochs=1).defend(case()))
    moved = toys.differing(still, toys.victim())
    assert moved and all("running" in name or "tracked" in name for name in moved)


def test_phases_alternate_on_their_parts_with_one_optimiser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, float, Any, int]] = []
    fit = training.fit

    def spied(model: Any, data: ImageSet, recipe: Any, *, hooks: Signed, **rest: Any) -> Any:
        found = fit(model, data, recipe, hooks=hooks, **rest)
        calls.append((len(data), hooks.sign, recipe, id(hooks.shared_optimizer)))
        return found

    monkeypatch.setattr(training, "fit", spied)
    DBR(epochs=2).defend(case(crop=2, label_smoothing=0.1, warmup=1.0))
    sizes = [(count, sign) for count, sign, _, _ in calls]
    assert sizes == [(22, -1.0), (50, 1.0)] * 2
    assert len({optimizer for *_, optimizer in calls}) == 1, "momentum is carried over"
    for _, _, recipe, _ in calls:
        assert (recipe.lr, recipe.schedule, recipe.warmup, recipe.epochs) == (
            1e-4,
            "constant",
            0,
            1,
        )
        assert (recipe.momentum, recipe.weight_decay, recipe.batch) == (0.9, 5e-4, 128)
        assert recipe.label_smoothing == 0
        assert recipe.crop == 2, "augmentation is the data set's"


def test_on_cifar100_the_release_only_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes: list[Any] = []
    fit = training.fit

    def spied(model: Any, data: ImageSet, recipe: Any, **rest: Any) -> Any:
        recipes.append(recipe)
        return fit(model, data, recipe, **rest)

    monkeypatch.setattr(training, "fit", spied)
    method = DBR(**{**DBR.presets["released-cifar100"], "epochs": 1})
    method.defend(case(crop=4, flip=True, rotation=15.0))
    found = [(recipe.crop, recipe.flip, recipe.rotation) for recipe in recipes]
    assert found == [(4, False, 0.0)] * 2


def test_the_optimiser_of_all_phases_keeps_its_momentum() -> None:
    """Two phases of one step each, by hand."""
    hooks, model = Signed(), toys.victim()
    data = toys.image_set(16)
    recipe = replace(toys.RECIPE, epochs=1, batch=16, lr=0.01, schedule="constant", warmup=0.0)
    start = toys.weights(model)["classifier.bias"]
    for sign in (-1.0, 1.0):
        hooks.sign = sign
        training.fit(model, data, recipe, key="two", device=toys.CPU, hooks=hooks)
    assert hooks.shared_optimizer is not None
    kept = hooks.shared_optimizer.state[model.classifier.bias]["momentum_buffer"]
    (second,) = [model.classifier.bias.grad + recipe.weight_decay * start]
    assert not torch.allclose(kept, second, atol=1e-4), "the buffer holds the first phase too"


def test_ascent_leaves_alone_what_is_above_the_bound() -> None:
    options: dict[str, Any] = {"lr": 5e-3, "batch": 32, "epochs": 6}
    free = DBR(**options).defend(case()).notes["unlearned_loss"][-1]
    held = DBR(bound=3.0, **options).defend(case()).notes["unlearned_loss"][-1]
    assert free > 10 and 1 < held <= 3
    model, data = toys.victim(), toys.image_set(16)
    images = data.images.float() / 255
    batch = training.Batch(images, (data.labels + 1) % 10, torch.arange(16), 0, 0)
    hooks = Signed(bound=1e-3)
    hooks.sign = -1.0
    hooks.loss(model, batch, toys.RECIPE).backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    hooks.sign = 1.0
    hooks.loss(model, batch, toys.RECIPE).backward()
    assert any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_in_eval_mode_the_bound_is_on_the_model_as_delivered() -> None:
    data, bound = toys.image_set(16, shape=toys.COLOUR), 5.0
    batch = training.Batch(
        data.images.float() / 255, (data.labels + 1) % 10, torch.arange(16), 0, 0
    )

    def victim() -> Net:
        model = toys.victim(shape=toys.COLOUR).train()
        with torch.no_grad():
            model.classifier.weight.mul_(0.5)  # not all losses are above the bound
        return model

    def losses(model: Net) -> Tensor:
        return nn.functional.cross_entropy(model(batch.inputs), batch.labels, reduction="none")

    delivered, own = losses(victim().eval()) > bound, losses(victim()) > bound
    assert delivered.any() and not delivered.all() and not delivered.equal(own)
    model = victim()
    hooks = Signed(bound, "eval")
    hooks.sign = -1.0
    hooks.loss(model, batch, toys.RECIPE).backward()
    assert model.training
    expected = victim()
    (-losses(expected)[~delivered].sum() / 16).backward()
    torch.testing.assert_close(model.classifier.weight.grad, expected.classifier.weight.grad)
    once, ours = dict(expected.named_buffers()), dict(model.named_buffers())
    assert all(ours[name].equal(value) for name, value in once.items()), "statistics move once"


def test_the_oracle_keeps_the_epoch_with_the_largest_difference() -> None:
    script = [(0.8, 0.5), (0.7, 0.1), (0.9, 0.4), (0.6, 0.0)]
    told = iter(script)
    own = toys.case(DBROracle.sees, state=truth())
    own._given["oracle"] = lambda model: next(told)
    options = {"lr": 1e-3, "batch": 32}
    outcome = DBROracle(epochs=4, **options).defend(own)
    assert outcome.notes["epoch"] == 2 and outcome.notes["curve"] == script
    direct = DBR(epochs=2, **options).defend(case())
    assert not toys.differing(repaired(outcome), repaired(direct)), "the model of that epoch"
    last = DBR(epochs=4, **options).defend(case())
    assert toys.differing(repaired(outcome), repaired(last))


def test_the_oracle_never_returns_the_victim() -> None:
    """Not even where every epoch is worse than it."""
    own = toys.case(DBROracle.sees, state=truth())
    own._given["oracle"] = lambda model: (
        (0.1, 0.9) if toys.differing(model, toys.victim()) else (0.9, 0.0)
    )
    outcome = DBROracle(epochs=2).defend(own)
    assert outcome.notes["epoch"] == 1 and len(outcome.notes["curve"]) == 2
    assert toys.differing(repaired(outcome), toys.victim())


# On real images


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_real_poisoned_images_are_found_and_unlearned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed: AUROC and precision 1, ACC 0.47 to 0.41, ASR 1 to 0."""
    row = on_cifar({"defense": "d-br", "lr": 0.003, "bound": 4.0}, tmp_path, monkeypatch)
    assert row["auroc"] > 0.95 and row["precision"] > 0.9
    assert row["asr_before"] > 0.9 and row["asr"] < 0.1
    assert row["acc"] > row["acc_before"] - 0.12
