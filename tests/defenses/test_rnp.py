"""RNP: unlearning, the masks that recover, what is pruned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from defenses import rnp
from defenses.base import Case
from defenses.parts.neurons import Neurons
from defenses.rnp import RNP
from sweeper.core.types import ImageSet
from tests.support import toys
from tests.support.repairs import case, fresh


def test_rnp_has_a_mask_for_every_channel_of_a_norm() -> None:
    assert Neurons(fresh("resnet18")).count == 4800


def test_rnp_prunes_norms_of_the_original_and_nothing_else() -> None:
    defense = RNP(unlearn_epochs=2, recover_epochs=30, recover_lr=5.0, threshold=0.9, batch=32)
    outcome = defense.defend(case())
    assert outcome.model is not None and outcome.notes["pruned"] > 0
    victim = toys.victim()
    norms = {f"{n}.weight" for n, p in victim.named_modules() if isinstance(p, nn.BatchNorm2d)}
    assert toys.differing(outcome.model, victim) <= norms
    zeros = sum(int((outcome.model.get_parameter(name) == 0).sum()) for name in norms)
    assert zeros == outcome.notes["pruned"]
    none = replace(defense, threshold=0.0, recover_epochs=2).defend(case())
    assert none.notes["pruned"] == 0
    assert not toys.differing(none.model, victim)  # type: ignore[arg-type]


def test_rnp_masks_stay_in_their_bounds_and_learn() -> None:
    held = case()
    masks = RNP(recover_epochs=20, recover_lr=20.0, batch=16).recover(
        held, held.fresh_model(), held.clean
    )
    assert 0 <= float(masks.min()) < 1 and float(masks.max()) == 1
    assert torch.equal(
        RNP(recover_epochs=0).recover(held, held.fresh_model(), held.clean), torch.ones(len(masks))
    )


def test_rnp_unlearns_until_its_limit_and_says_when_it_does_not() -> None:
    held = case()
    defense = RNP(unlearn_lr=0.3, batch=16)
    model, notes = defense.unlearn(held, held.clean)
    curve = notes["unlearning"]
    assert notes["unlearned"] and len(curve) < 21
    assert curve[-1] <= 0.2 < min(curve[:-1])
    assert held.accuracy(model, held.clean) < held.accuracy(held.fresh_model(), held.clean)
    assert not model.training
    _, short = replace(defense, unlearn_epochs=1, unlearn_lr=1e-4).unlearn(held, held.clean)
    assert not short["unlearned"] and len(short["unlearning"]) == 1


@pytest.mark.parametrize(("classes", "limit"), [(2, 0.5), (5, 0.4), (10, 0.2), (43, 0.2)])
def test_rnp_stops_at_twice_chance_but_not_below_a_fifth(classes: int, limit: float) -> None:
    held = case(clean=toys.image_set(2 * classes, classes=classes))
    _, notes = RNP(unlearn_epochs=0).unlearn(held, held.clean)
    assert notes["limit"] == limit and not notes["unlearned"]


def test_rnp_clips_after_the_backward_pass() -> None:
    model, hooks = nn.Linear(2, 2), rnp._Ascent(0.2, 20.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    hooks.step(model, optimizer, lambda: 1e6 * model(torch.ones(1, 2)).sum())
    moved = [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(20, rel=1e-4)


def test_rnp_learns_from_every_clean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    held, seen = case(), []
    fit = Case.fit

    def spy(self: Case, model: nn.Module, data: ImageSet, **rest: Any) -> list[float]:
        seen.append(data)
        return fit(self, model, data, **rest)

    monkeypatch.setattr(Case, "fit", spy)
    notes = RNP(unlearn_epochs=1, recover_epochs=1).defend(held).notes
    assert [len(data) for data in seen] == [len(held.clean)] * 2
    assert notes["curve"][0] == (0, notes["clean_before"])
