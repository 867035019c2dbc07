"""Neural Cleanse: the mask's weight, the smallest mask, which classes are flagged, unlearning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from defenses.base import Needs
from defenses.neural_cleanse import (
    NeuralCleanse,
    Patched,
    Triggers,
    Weights,
    judged,
    painted,
    squashed,
)
from sweeper.core import seeds
from sweeper.core.types import ImageSet
from sweeper.engine import training
from sweeper.models.base import Net
from tests.support import toys
from tests.support.repairs import SEES, draws, pixels, repaired


def weights(**options: Any) -> Weights:
    return Weights(NeuralCleanse(**options), 1)


def follow(schedule: Weights, results: str) -> list[float]:
    """The weight after each epoch: + a success, - a failure."""
    found = []
    for result in results:
        schedule.update(torch.tensor([result == "+"]))
        found.append(float(schedule.value))
    return found


def test_the_weight_follows_the_published_rules() -> None:
    schedule = weights()
    assert follow(schedule, "++++-++++") == [0] * 9, "five successes in a row, not nine of ten"
    assert follow(schedule, "+") == pytest.approx([1e-3])
    assert not bool(schedule.raised), "the first weight is no raise"
    assert follow(schedule, "+++++") == pytest.approx([1e-3] * 4 + [2e-3])
    assert bool(schedule.raised) and not bool(schedule.lowered)
    assert follow(schedule, "++++-----") == pytest.approx([2e-3] * 8 + [2e-3 / 2**1.5])
    assert bool(schedule.lowered)
    assert follow(schedule, "----+----") == pytest.approx([2e-3 / 2**1.5] * 9)
    assert follow(weights(), "-" * 20) == [0] * 20


def test_classes_have_weights_of_their_own() -> None:
    schedule = Weights(NeuralCleanse(patience=1), 2)
    schedule.update(torch.tensor([True, False]))
    schedule.update(torch.tensor([True, True]))
    assert schedule.value.tolist() == pytest.approx([2e-3, 1e-3])


def test_painting_stays_within_the_pixels_and_an_empty_mask_changes_nothing() -> None:
    images = pixels(12)
    mask, pattern = squashed(100 * draws(12, 4, 16, 16))
    found = painted(images, mask, pattern)
    assert float(mask.min()) >= 0 and float(mask.max()) <= 1
    assert float(found.min()) > -1e-6 and float(found.max()) < 1 + 1e-6, "but for rounding"
    assert torch.equal(painted(images, torch.zeros_like(mask), pattern), images)
    assert torch.allclose(painted(images, torch.ones_like(mask), pattern), pattern, atol=1e-6)


def test_only_small_masks_are_flagged() -> None:
    norms = torch.tensor([60.0, 62, 58, 61, 63, 59, 64, 60, 57, 16])
    index, flagged = judged(norms, 2.0)
    assert flagged.tolist() == [False] * 9 + [True]
    assert float(index[9]) == pytest.approx((60 - 16) / (1.4826 * 2), rel=1e-3)
    large = norms.clone()
    large[9] = 200
    index, flagged = judged(large, 2.0)
    assert float(index[9]) > 2 and not bool(flagged.any()), "one-sided"


def test_a_class_without_a_trigger_has_no_part_in_the_median() -> None:
    norms = torch.tensor([60.0, 62, 58, 61, 63, 16])
    with_none = torch.cat([norms, torch.full((5,), torch.inf)])
    index, flagged = judged(with_none, 2.0)
    assert torch.equal(index[:6], judged(norms, 2.0)[0]) and bool(index[6:].isnan().all())
    assert flagged.nonzero().flatten().tolist() == [5]
    assert not bool(judged(torch.full((6,), torch.inf), 2.0)[1].any())


def shortcut(dark: ImageSet) -> Net:
    """A linear model of prototypes, in which one pixel alone makes every image class 2."""
    flat = dark.images.flatten(1).float() / 255
    means = torch.stack([flat[dark.labels == label].mean(0) for label in range(6)])
    head = nn.Linear(192, 6)
    with torch.no_grad():
        head.weight.copy_(30 * (means - means.mean(0)))
        head.bias.copy_(-(head.weight * means.mean(0)).sum(1))
        head.weight[:, 70] = 0.0
        head.weight[2, 70] = 60.0
        head.bias[2] -= 15.0
    return Net(nn.Flatten(), head, [0.0] * 3, [1.0] * 3).eval()


def test_a_shortcut_through_one_pixel_is_found_with_a_norm_near_one() -> None:
    base = toys.image_set(96, classes=6, shape=(3, 8, 8))
    dark = replace(base, images=base.images // 4)  # on none of them is that pixel bright
    own = toys.case(SEES, classes=6, shape=(3, 8, 8), clean=dark, model=shortcut(dark))
    asked = NeuralCleanse(epochs=100, steps=6, patience=2, weight=0.01)
    found = asked.invert(own, own.fresh_model(), dark)
    assert float(found.norms[2]) == pytest.approx(1.0, abs=0.6)
    others = found.norms[torch.arange(6) != 2]
    assert bool((others > 2 * found.norms[2]).all()), found.norms
    assert judged(found.norms, 2.0)[1].nonzero().flatten().tolist() == [2]
    assert torch.allclose(found.masks.flatten(1).sum(1), found.norms)
    with torch.no_grad():
        stamped = painted(dark.images.float().div(255), found.masks[2], found.patterns[2])
        hit = own.fresh_model()(stamped).argmax(1) == 2
    assert float(hit.float().mean()) >= 0.9, "the mask kept is one that works"
    short = replace(asked, epochs=12, tune_epochs=0)
    together = short.invert(own, own.fresh_model(), dark)
    alone = replace(short, group=1).invert(own, own.fresh_model(), dark)
    assert torch.allclose(alone.norms, together.norms, rtol=1e-3), "side by side or alone"
    assert bool(together.norms.isfinite().any())
    outcome = short.defend(own)
    assert not toys.differing(repaired(outcome), shortcut(dark)), "detection alone"


def test_a_class_that_has_ended_is_not_computed_and_the_others_keep_their_bits() -> None:
    base = toys.image_set(96, classes=6, shape=(3, 8, 8))
    dark = replace(base, images=base.images // 4)
    own = toys.case(SEES, classes=6, shape=(3, 8, 8), clean=dark, model=shortcut(dark))
    asked = NeuralCleanse(epochs=100, steps=6, patience=2, weight=0.01, stale=3)
    model, shown = own.fresh_model(), list[int]()
    model.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    found = asked.invert(own, model, dark)
    assert shown[0] == 6 * 32 and sorted(shown, reverse=True) == shown, "none comes back"
    assert shown[-1] < shown[0], "classes end one after another"
    last = replace(asked, classes=(0, 1, 2, 3, 4, 5), stale=100, epochs=len(shown) // 6)
    waited = last.invert(own, own.fresh_model(), dark)
    assert bool((waited.norms <= found.norms).all())
    longest = waited.norms == found.norms
    assert bool(longest.any()) and torch.equal(waited.masks[longest], found.masks[longest])


def test_the_smallest_mask_that_works_is_kept_not_the_last() -> None:
    base = toys.image_set(96, classes=6, shape=(3, 8, 8))
    dark = replace(base, images=base.images // 4)
    own = toys.case(SEES, classes=6, shape=(3, 8, 8), clean=dark, model=shortcut(dark))
    asked = NeuralCleanse(steps=6, patience=2, weight=0.01)
    norms = torch.stack(
        [
            replace(asked, epochs=epochs).invert(own, own.fresh_model(), dark).norms
            for epochs in (8, 16, 24)
        ]
    )
    assert bool(norms[2].isfinite().all())
    assert bool((norms[1:] <= norms[:-1]).all()), "more epochs never leave a larger mask"
    assert bool((norms[2] < norms[1]).any())


def test_the_toy_trigger_is_found_and_unlearned() -> None:
    given: dict[str, Any] = {"classes": 6, "shape": toys.GREY}
    own = toys.case(SEES, clean=120, **given)
    asked = NeuralCleanse(epochs=30, steps=6, batch=12, patience=2, weight=0.01)
    outcome = asked.defend(own)
    assert outcome.notes["flagged"].tolist() == [0] and outcome.notes["kept"] > 0
    ask = toys.oracle(**given)
    before, after = ask(toys.victim(**given)), ask(repaired(outcome))
    plain = ask(repaired(replace(asked, share=0.0).defend(own)))
    assert before[1] > 0.9 and after[1] < 0.6 < plain[1], (before, after, plain)
    assert after[0] > before[0] - 0.1


def test_triggers_are_put_on_a_share_of_the_images_and_labels_stay() -> None:
    found = Triggers(
        torch.tensor([3, 5]),
        torch.ones(2, 1, 16, 16),
        torch.stack([torch.zeros(toys.QUARTER), torch.ones(toys.QUARTER)]),
        torch.ones(2),
    )
    images = pixels(500)
    batch = training.Batch(images, torch.arange(500) % 10, torch.arange(500), 0, 0)
    out = Patched(found, 0.2).augmented(batch, seeds.generator("patched"))
    black = (out.inputs == 0).flatten(1).all(1)
    white = (out.inputs == 1).flatten(1).all(1)
    same = (out.inputs == images).flatten(1).all(1)
    assert bool((black ^ white ^ same).all()) and torch.equal(out.labels, batch.labels)
    assert 70 < int((~same).sum()) < 130 and 25 < int(black.sum()) < 75


def test_neural_cleanse_needs_six_classes() -> None:
    needs = Needs(10, toys.COLOUR, "tiny", True, 80)
    assert NeuralCleanse().applies(needs) is None
    assert "six" in (NeuralCleanse().applies(replace(needs, classes=5)) or "")
    assert "0 to 9" in (NeuralCleanse(classes=(1, 2, 3, 4, 5, 10)).applies(needs) or "")
