"""SAU and NPD, repairs by shared adversarial examples and by a plugged layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from defenses.npd import NPD, Plugged, place
from defenses.sau import SAU, js, sharing, unshared_loss
from sweeper.core import seeds
from sweeper.models.base import Net
from tests.support import toys
from tests.support.repairs import SEES, case, draws, pixels, repaired

# SAU


def test_the_divergence_of_equal_outputs_is_zero_and_at_most_log_two() -> None:
    one, other = 5 * draws(20, 10), 5 * draws(20, 10, name="other")
    p, q = one.softmax(1), other.softmax(1)
    middle = (p + q) / 2
    wanted = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    assert torch.allclose(js(one, other), wanted, atol=1e-5)
    assert torch.allclose(js(one, one), torch.zeros(20), atol=1e-6)
    apart = 200 * torch.eye(2)
    assert js(apart, apart.flip(0)).tolist() == pytest.approx([0.6931472] * 2)


def test_shared_is_the_same_wrong_class() -> None:
    calls = 9 * torch.eye(3)
    labels = torch.tensor([0, 0, 0])
    assert sharing(calls[[0, 1, 1]], calls[[0, 1, 2]], labels).tolist() == [False, True, False]


def test_the_unlearning_pushes_down_the_victims_class_on_images_that_fool_it() -> None:
    logits = draws(4, 3).requires_grad_()
    calls = 9 * torch.eye(3)
    labels = torch.tensor([0, 0, 0, 1])
    # fooled into 1; right; wrong already when clean; fooled into 2
    reference, clean = calls[[1, 0, 2, 2]], calls[[0, 0, 2, 1]]
    loss = unshared_loss(logits, reference, clean, labels)
    shares = logits.softmax(1)
    wanted = -((1 - shares[0, 1]).log() + (1 - shares[3, 2]).log()) / 4
    assert torch.allclose(loss, wanted)
    (found,) = torch.autograd.grad(loss, [logits])
    assert float(found[0, 1]) > 0 and float(found[3, 2]) > 0 and not bool(found[1:3].any())
    assert float(unshared_loss(logits, clean, clean, labels).detach()) == 0, "none is fooled"
    sure = torch.tensor([[0.0, 300.0, 0.0]])
    assert float(unshared_loss(sure, calls[[1]], calls[[0]], labels[:1])) == pytest.approx(299.307)


@pytest.mark.parametrize("clamp", [True, False])
def test_perturbations_stay_within_their_bound_and_become_shared(clamp: bool) -> None:
    model, other, data = toys.victim(), toys.victim(), toys.image_set(40, seed=3)
    with torch.no_grad():
        other.classifier.get_parameter("weight").mul_(0.9)
    images = data.images.float() / 255
    found = SAU(clamp=clamp).perturb(model, other, images, data.labels)
    assert float((found - images).abs().max()) <= 0.2 + 1e-6
    inside = float(found.min()) >= 0 and float(found.max()) <= 1
    assert inside == clamp
    start = (images + 0.2).clamp(0, 1) if clamp else images + 0.2
    still = SAU(clamp=clamp, steps=0).perturb(model, other, images, data.labels)
    assert torch.allclose(still, start)
    shares = [
        float(sharing(model(x).detach(), other(x).detach(), data.labels).float().mean())
        for x in (images, found)
    ]
    assert shares[1] > shares[0] + 0.3, shares


def test_sau_leaves_statistics_and_the_victim_alone() -> None:
    outcome = SAU(epochs=3, batch=40, tau=None).defend(case())
    changed = toys.differing(repaired(outcome), toys.victim())
    assert changed and not any("running" in name or "tracked" in name for name in changed)
    assert outcome.notes["kept"] == 3


def test_sau_lowers_the_success_of_the_toy_trigger() -> None:
    given: dict[str, Any] = {"classes": 6, "shape": toys.GREY}
    own = toys.case(SEES, clean=200, **given)
    ask = toys.oracle(**given)
    asked = SAU(epochs=12, lr=3e-3, batch=64, bound=0.6, tau=None)
    outcome = asked.defend(own)
    before, after = ask(toys.victim(**given)), ask(repaired(outcome))
    plain = ask(repaired(replace(asked, unlearn=0.0, steps=0).defend(own)))
    assert after[1] < before[1] - 0.3 and after[1] < plain[1] - 0.3, (before, after, plain)
    assert after[0] > before[0] - 0.1


# NPD


def plugged(model: Net) -> tuple[Plugged, nn.BatchNorm2d]:
    """Put a plug into the model."""
    name, norm = place(model, toys.COLOUR, toys.CPU)
    parent, _, child = name.rpartition(".")
    conv, after = model.get_submodule(name), model.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
    plug = Plugged(conv)
    setattr(model.get_submodule(parent), child, plug.eval())
    return plug, after


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("resnet18", ("trunk.layer4.1.conv1", "trunk.layer4.1.bn1")),
        ("tiny", ("trunk.7.0", "trunk.7.1")),
    ],
)
def test_the_plug_goes_before_the_last_convolution_but_one(
    model: str, names: tuple[str, str]
) -> None:
    net = toys.network(seeds.generator("npd"), model=model, width=4).eval()
    assert place(net, toys.COLOUR, toys.CPU) == names
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_fresh_plug_is_the_identity_and_any_plug_folds_exactly() -> None:
    model, images = toys.victim(), pixels(12)
    with torch.no_grad():
        wanted = model(images)
        plug, after = plugged(model)
        width = plug.conv.in_channels
        assert sum(p.numel() for p in [*plug.mix.parameters(), *plug.norm.parameters()]) == (
            width**2 + 2 * width
        )
        assert torch.allclose(model(images), wanted, atol=1e-3), "but for the norm's eps"
        plug.mix.weight.add_(0.2 * draws(*plug.mix.weight.shape, name="mix"))
        for value, name in ((plug.norm.bias, "b"), (plug.norm.get_buffer("running_mean"), "m")):
            value.copy_(draws(width, name=name))
        plug.norm.get_buffer("running_var").copy_(draws(width, name="v").exp())
        filtered = model(images)
        assert not torch.allclose(filtered, wanted, atol=0.1)
        model.trunk[7][0] = plug.fold(after)
        assert torch.allclose(model(images), filtered, atol=1e-3)
    assert model.state_dict().keys() == toys.victim().state_dict().keys()


def test_the_attack_stays_within_its_radius_and_goes_where_it_is_sent() -> None:
    model, data = toys.victim(), toys.image_set(40, seed=3)
    images = data.images.float() / 255
    clean = model(images).detach()
    moved, wanted = NPD(steps=4).attack(model, images, data.labels, clean)
    assert float((moved - images).flatten(1).norm(dim=1).max()) <= 3 + 1e-4
    assert (
        float(moved.min()) >= 0 and float(moved.max()) <= 1 and bool((wanted != data.labels).all())
    )
    shares = [
        model(x).detach().softmax(1).gather(1, wanted[:, None]).mean() for x in (images, moved)
    ]
    assert float(shares[1]) > float(shares[0]) + 0.2, shares
    still, _ = NPD(steps=0).attack(model, images, data.labels, clean)
    assert torch.equal(still, images)


def test_npd_changes_one_convolution_and_one_mean() -> None:
    outcome = NPD(epochs=3, warmup_epochs=1, batch=40, tau=None).defend(case())
    changed = toys.differing(repaired(outcome), toys.victim())
    assert changed == {"trunk.7.0.weight", "trunk.7.1.running_mean"}
    none = NPD(epochs=0, warmup_epochs=0).defend(case())
    assert not toys.differing(repaired(none), toys.victim())
