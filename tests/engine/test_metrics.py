"""Metrics against their definitions: exclusion rules, DER, detection and filter rates, AUROC."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from torch import Tensor, nn

from attacks.badnets import BadNets
from attacks.none import NoAttack
from sweeper.core import seeds
from sweeper.core.errors import DivergedError
from sweeper.core.types import ImageSet, Outcome, Role, Triggered
from sweeper.engine import metrics
from sweeper.engine import task as tasks
from sweeper.engine.task import Answers
from tests.support import toys

CLASSES = 10


class Reads(nn.Module):
    """Predicts the class written into the first pixel; `table` says what for each value."""

    def __init__(self, table: list[int]) -> None:
        super().__init__()
        self.register_buffer("table", torch.tensor(table))

    def forward(self, x: Tensor) -> Tensor:
        value = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(self.get_buffer("table")[value], CLASSES).float()


def written(values: Tensor) -> Tensor:
    """Images whose first pixel holds these values."""
    images = torch.zeros(len(values), 3, 4, 4, dtype=torch.uint8)
    images[:, :, 0, 0] = values.to(torch.uint8)[:, None]
    return images


def test_set(count: int = 60, shift: int = 0) -> ImageSet:
    """Images of value `label + shift`."""
    labels = torch.arange(count) % CLASSES
    return ImageSet(written(labels + shift), labels, tuple(map(str, range(CLASSES))))


test_set.__test__ = False  # type: ignore[attr-defined]


def triggered(attack: BadNets, test: ImageSet) -> Triggered:
    """Triggered images as the attack counts them, told by values 100 + true label."""
    hit = attack.trigger_set(test, {}, seeds.generator("t"))
    values = 100 + test.labels
    stamped = hit.samples.changed(images=written(values))
    return Triggered(stamped, hit.true_labels, hit.counts, hit.leaks)


def reads(model: nn.Module) -> Answers:
    return tasks.task("image").answering(model, toys.RECIPE, toys.CPU)


def draw() -> torch.Generator:
    return seeds.generator("measure")


def evaluate(model: nn.Module, attack: Any, target: int | None = 0) -> dict[str, Any]:
    test = test_set()
    return metrics.evaluate(reads(model), test, triggered(attack, test), target, draw())


def reading(triggered_as: Any) -> Reads:
    """A perfect model on clean images; on triggered ones of true class y it says f(y)."""
    table = [v % CLASSES for v in range(100)] + [triggered_as(y) for y in range(CLASSES)]
    return Reads(table)


def test_the_constant_predictor_of_the_target() -> None:
    found = evaluate(Reads([0] * 110), BadNets())
    assert found["asr"] == 1 and found["ra"] == 0 and found["acc"] == 1 / CLASSES
    assert found["acc_nontarget"] == 0 and found["asr_all"] == 1
    assert (found["n_test"], found["n_triggered"]) == (60, 54), "target images do not count"


def test_a_perfect_model_that_ignores_the_trigger() -> None:
    found = evaluate(reading(lambda y: y), BadNets())
    assert (found["acc"], found["asr"], found["ra"]) == (1, 0, 1)
    assert found["asr_all"] == 1 / CLASSES, "without the exclusion: biased upward by 1/C"


def test_a_perfect_clean_model_has_no_asr_under_all2all() -> None:
    attack = BadNets(rule="all2all")
    found = evaluate(reading(lambda y: y), attack, None)
    assert found["asr"] == 0 == found["asr_all"] and found["ra"] == 1
    assert found["n_triggered"] == 60 and found["acc_nontarget"] == found["acc"]
    shifted = evaluate(reading(lambda y: (y + 1) % CLASSES), attack, None)
    assert shifted["asr"] == 1 and shifted["ra"] == 0


def test_target_images_are_left_out_of_asr_and_ra_but_not_of_acc() -> None:
    model = reading(lambda y: y or 5)
    model.table[0] = 1
    found = evaluate(model, BadNets())
    assert found["acc"] == 0.9 and found["acc_nontarget"] == 1
    assert found["asr"] == 0 and found["ra"] == 1, "the misread target image counts for neither"


@settings(max_examples=40, deadline=None)
@given(
    table=st.lists(st.integers(0, 9), min_size=110, max_size=110),
    rule=st.sampled_from(["all2one", "all2all"]),
    target=st.integers(0, 9),
)
def test_asr_and_ra_share_their_images(table: list[int], rule: str, target: int) -> None:
    found = evaluate(Reads(table), BadNets(rule=rule, target=target), target)
    assert all(0 <= found[name] <= 1 for name in ("acc", "asr", "asr_all", "ra", "acc_nontarget"))
    assert found["asr"] + found["ra"] <= 1 + 1e-12
    counted = [y for y in range(CLASSES) if rule == "all2all" or y != target]
    wanted = {y: (y + 1) % CLASSES if rule == "all2all" else target for y in counted}
    by_hand = sum(table[100 + y] == wanted[y] for y in counted) / len(counted)
    assert found["asr"] == pytest.approx(by_hand)


def test_leak_counts_the_images_the_attack_says() -> None:
    test = test_set()
    labels, source = test.labels, test.labels == 3
    other = ~source & (labels != 0)
    hit = Triggered(
        ImageSet(written(100 + labels), labels * 0, test.classes), labels, source, other
    )
    model = reading(lambda y: 0 if y in (3, 4) else y)
    found = metrics.evaluate(reads(model), test, hit, 0, draw())
    assert found["asr"] == 1 and found["leak"] == pytest.approx(6 / 48)
    assert evaluate(model, BadNets())["leak"] is None


def test_without_an_attack_there_is_no_asr() -> None:
    found = evaluate(reading(lambda y: y), NoAttack(), None)
    assert found["acc"] == 1 and found["n_triggered"] == 0
    assert found["asr"] is found["ra"] is found["asr_all"] is None


def test_prediction_goes_in_batches_and_leaves_the_model_trainable() -> None:
    values = torch.arange(2 * metrics.EVALUATION_BATCH + 7) % CLASSES
    found = metrics.predict(reading(int), written(values), toys.RECIPE, toys.CPU)
    assert torch.equal(found, values) and found.dtype == torch.int64
    model = toys.victim()
    images = toys.image_set(8).images
    before = toys.weights(model)
    metrics.predict(model.train(), images, toys.RECIPE, toys.CPU)
    assert toys.same(before, toys.weights(model)), "measuring moves no running statistics"
    loss = model.train()(images.float() / 255).sum()
    loss.backward()
    assert all(not p.is_inference() and p.grad is not None for p in model.parameters())


def test_outputs_that_are_not_finite_are_no_predictions() -> None:
    model = toys.victim()
    with torch.no_grad():
        model.classifier.bias[2] = math.nan
    with pytest.raises(DivergedError, match="NaN"):
        metrics.predict(model, toys.image_set(4).images, toys.RECIPE, toys.CPU)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),
        ((0.9, 1.0), (0.9, 1.0), 0.5),
        ((0.9, 1.0), (0.8, 1.0), 0.45),
        ((0.9, 1.0), (0.8, 0.0), 0.95),
        ((0.9, 0.2), (0.95, 0.4), 0.5),  # neither a gain of accuracy nor a rise of ASR counts
        ((1.0, 0.0), (0.0, 0.0), 0.0),
    ],
)
def test_der_by_hand(
    before: tuple[float, float], after: tuple[float, float], expected: float
) -> None:
    assert metrics.der(*before, *after) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_der_is_a_fraction(values: list[float]) -> None:
    assert 0 <= metrics.der(*values) <= 1


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1e6, -1.0, 0.0, 0.25, 0.5, 3.0]), st.booleans()),
        min_size=2,
        max_size=60,
    )
)
def test_auroc_equals_scikit_learn_s_with_ties(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = (np.array(part) for part in zip(*pairs, strict=True))
    assume(0 < positive.sum() < len(positive))
    assert metrics.auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    reversed_ = metrics.auroc(-scores, positive)
    assert reversed_ == pytest.approx(1 - (metrics.auroc(scores, positive) or 0))


def test_auroc_of_one_kind_alone_is_undefined() -> None:
    assert metrics.auroc(np.arange(3.0), np.ones(3, bool)) is None
    assert metrics.auroc(np.zeros(0), np.zeros(0, bool)) is None


def roles(text: str) -> Tensor:
    """p poison, c cover, n negative, anything else clean."""
    known = {"p": Role.POISON, "c": Role.COVER, "n": Role.NEGATIVE}
    return torch.tensor([int(known.get(letter, Role.CLEAN)) for letter in text], dtype=torch.uint8)


def test_covers_and_negatives_count_as_clean() -> None:
    flagged = torch.tensor([True, False, True, True, False, False])
    found = metrics.detection(Outcome(flagged=flagged), roles("ppcn.."))
    assert found == {"tpr": 0.5, "fpr": 0.5, "precision": pytest.approx(1 / 3), "f1": 0.4}


@settings(deadline=None)
@given(
    text=st.text("pcn.", min_size=1, max_size=40),
    bits=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_detection_rates_equal_scikit_learn_s(text: str, bits: list[bool]) -> None:
    poisoned = np.array([letter == "p" for letter in text])
    flagged = np.array(bits[: len(text)])
    found = metrics.detection(Outcome(flagged=torch.tensor(flagged)), roles(text))
    zero = {"zero_division": 0}
    if poisoned.any():
        assert found["tpr"] == pytest.approx(recall_score(poisoned, flagged, **zero))
    else:
        assert found["tpr"] is None
    if not poisoned.all():
        assert found["fpr"] == pytest.approx(flagged[~poisoned].mean())
    if flagged.any():
        assert found["precision"] == pytest.approx(precision_score(poisoned, flagged, **zero))
    assert found["f1"] == pytest.approx(f1_score(poisoned, flagged, **zero))


def test_nothing_flagged_has_no_precision_and_f1_zero() -> None:
    found = metrics.detection(Outcome(flagged=torch.zeros(4, dtype=torch.bool)), roles("pp.."))
    assert found == {"tpr": 0.0, "fpr": 0.0, "precision": None, "f1": 0.0}


def test_a_detector_is_measured_on_what_it_gives() -> None:
    assert metrics.detection(Outcome(), roles("p.")) == {}
    found = metrics.detection(Outcome(scores=torch.tensor([0.9, 0.1, 0.4])), roles("p.."))
    assert found == {"auroc": 1.0}


def first_pixel(images: Tensor) -> Tensor:
    return images[:, 0, 0, 0].float()


def test_a_perfect_filter_of_triggered_inputs() -> None:
    test = test_set()
    found = metrics.filtering(first_pixel, 50.0, test, triggered(BadNets(), test), draw())
    assert found == {"auroc": 1.0, "tpr_at_5": 1.0, "tpr": 1.0, "fpr": 0.0, "f1": 1.0}
    hit = triggered(BadNets(), test)
    worst = metrics.filtering(lambda x: -first_pixel(x), -50.0, test, hit, draw())
    assert worst["auroc"] == 0 and worst["tpr_at_5"] == 0 and worst["f1"] == 0


def test_a_filter_is_measured_on_equally_many_counted_images() -> None:
    test, seen = test_set(), []

    def score(images: Tensor) -> Tensor:
        seen.append(first_pixel(images))
        return first_pixel(images) % 7

    metrics.filtering(score, None, test, triggered(BadNets(), test), draw())
    (values,) = seen
    bad = [value for value in values.tolist() if value >= 100]
    assert len(values) == 2 * len(bad) == 108
    assert 100 not in bad, "triggered images of the target class do not count"
    short = metrics.filtering(score, 1.0, test[:10], triggered(BadNets(), test), draw())
    assert len(seen[1]) == 20 and set(short) > {"tpr", "fpr", "f1"}


def test_the_order_of_the_images_gives_nothing_away() -> None:
    """A filter that counts its images, a model that does, and one that looks at its whole batch."""
    many, asked = toys.image_set(2000, shape=(1, 4, 4)), [0]
    every = torch.ones(2000, dtype=torch.bool)
    hit = Triggered(many.changed(labels=many.labels * 0), many.labels, every, ~every)

    def counts(images: Tensor) -> Tensor:
        asked[0] += len(images)
        return torch.arange(asked[0] - len(images), asked[0]).float()

    def batches(images: Tensor) -> Tensor:
        asked[0] += 1
        return torch.full((len(images),), float(asked[0]))

    for blind in (counts, batches):
        for sign in (1, -1):
            score = functools.partial(metrics.scores, lambda x, f=blind, s=sign: s * f(x))
            found = metrics.filtering(score, None, many, hit, draw())
            assert found["auroc"] == pytest.approx(0.5, abs=0.05)

    def first_half(images: Tensor) -> Tensor:
        wanted = many.labels[torch.arange(len(images)) % 2000]
        return torch.where(torch.arange(len(images)) < 2000, wanted, torch.zeros(()).long())

    measured = metrics.evaluate(first_half, many, hit, 0, draw())
    assert measured["acc"] < 0.6 and measured["asr"] < 0.7, "it can only guess which are triggered"


def test_images_of_a_cross_trigger_are_measured_in_the_same_pass() -> None:
    test, asked = test_set(), []

    def predict(images: Tensor) -> Tensor:
        asked.append(len(images))
        return metrics.predict(reading(lambda y: y), images, toys.RECIPE, toys.CPU)

    crossed = ImageSet(written(100 + test.labels), (test.labels + (test.labels > 7)) % 10, ())
    hit = triggered(BadNets(), test)
    found = metrics.evaluate(predict, test, hit, 0, draw(), crossed)
    assert found["cross_acc"] == 0.8 and found["acc"] == 1 and asked == [180]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_true_positives_at_five_percent_false_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, bad = rng.normal(0, 1, 200), rng.normal(1, 1, 200)
    table = torch.from_numpy(np.concatenate([good, bad]))
    labels = torch.ones(200, dtype=torch.int64)

    def numbered(start: int) -> Tensor:
        images = torch.zeros(200, 1, 1, 2, dtype=torch.uint8)
        images[:, 0, 0, 0] = (torch.arange(200) + start) // 256
        images[:, 0, 0, 1] = (torch.arange(200) + start) % 256
        return images

    def score(images: Tensor) -> Tensor:
        place = images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()
        return table[place]

    every = torch.ones(200, dtype=torch.bool)
    stamped = ImageSet(numbered(200), labels * 0, ("a", "b"))
    hit = Triggered(stamped, labels, every, ~every)
    test = ImageSet(numbered(0), labels, ("a", "b"))
    found = metrics.filtering(score, None, test, hit, draw())
    cut = max(c for c in good if (good >= c).mean() >= 0.05)
    assert found["tpr_at_5"] == pytest.approx(float((bad > cut).mean()))
    assert (good > cut).mean() <= 0.05
    positive = np.arange(400) >= 200
    assert found["auroc"] == pytest.approx(roc_auc_score(positive, np.concatenate([good, bad])))


def test_a_filter_without_triggered_images_has_no_rates() -> None:
    test = test_set()
    found = metrics.filtering(first_pixel, 1.0, test, triggered(NoAttack(), test), draw())
    assert found == {"auroc": None}
