"""IBD-PSC: which norms are amplified, how many, and the score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from defenses.base import Needs
from defenses.ibd_psc import IBDPSC, norms
from defenses.strip import STRIP
from sweeper.core.errors import SweepError
from tests.support import toys
from tests.support.planted import outcome

PARTS = ("weight", "bias")


def test_the_norms_are_those_of_the_forward_pass() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm2d(3)
            self.bare = nn.BatchNorm2d(3, affine=False)
            self.first = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.bare(self.first(self.first(x))))
            return out

    model = Crossed().eval()
    assert norms(model, toys.image_set(1).images) == ["first", "last"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_copy_has_its_last_layers_amplified_and_the_victim_none() -> None:
    case = toys.case(IBDPSC.sees)
    order = norms(case.fresh_model(), case.clean.images[:1])
    before = toys.weights(case._given["model"])
    for count in (0, 2, len(order)):
        model = IBDPSC().copy(case, order, count)
        wanted = {f"{name}.{part}" for name in order[len(order) - count :] for part in PARTS}
        assert toys.differing(model, case.fresh_model()) <= wanted
        for name in order[len(order) - count :]:
            assert torch.equal(model.state_dict()[f"{name}.weight"], 1.5 * before[f"{name}.weight"])
            assert torch.equal(model.state_dict()[f"{name}.bias"], 1.5 * before[f"{name}.bias"])
    assert toys.same(before, toys.weights(case._given["model"]))


def test_layers_are_amplified_until_the_error_passes() -> None:
    case = toys.case(IBDPSC.sees, clean=120)
    order = norms(case.fresh_model(), case.clean.images[:1])
    for error in (0.05, 0.6):
        count, errors = IBDPSC(error=error, factor=3.0).enough(case, order, case.clean)
        assert len(errors) == count and all(value <= error for value in errors[:-1])
        assert errors[-1] > error or count == len(order)
        again = 1 - case.accuracy(IBDPSC(factor=3.0).copy(case, order, count), case.clean)
        assert again == pytest.approx(errors[-1])
    found = IBDPSC(error=1.0).defend(case)
    assert found.notes["layers"] == [len(order)], "all layers, once"


def test_with_factor_one_the_score_is_the_top_probability() -> None:
    case, images = toys.case(IBDPSC.sees), toys.image_set(30, seed=6).images
    found = IBDPSC(factor=1.0).defend(case).filter
    assert found is not None
    top = case.fresh_model()(images.float().div(255)).softmax(1).amax(1)
    assert torch.allclose(found(images), top, atol=1e-5)
    assert outcome("ibd-psc", "published").threshold == 0.9


@pytest.mark.parametrize("name", ["ibd_psc", "parts.strip"])
def test_every_input_of_a_filter_is_scored_in_batches_as_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense, images = (IBDPSC() if name == "ibd_psc" else STRIP(steps=3)), toys.image_set(25).images
    whole = defense.defend(toys.case(defense.sees)).filter
    assert whole is not None
    before = whole(images)
    monkeypatch.setattr(f"defenses.{name}.BATCH", 8)
    assert len(before) == 25 and torch.allclose(whole(images), before, atol=1e-5)


def test_ibd_psc_says_what_a_model_without_norms_lacks() -> None:
    needs = Needs(10, toys.COLOUR, "vit-tiny", False, 80)
    assert "BatchNorm" in (IBDPSC().applies(needs) or "")
    bare = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(toys.QUARTER), 10))
    with pytest.raises(SweepError, match="BatchNorm"):
        IBDPSC().defend(toys.case(IBDPSC.sees, model=bare))
