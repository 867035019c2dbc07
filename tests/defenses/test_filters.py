"""Filters of inputs that corrupt them, paste their regions, or ask fine-tuned copies."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from defenses import sentinet
from defenses.badexpert import BaDExpert, suspicion
from defenses.base import Case
from defenses.nad import levels
from defenses.parts.corruptions import (
    CORRUPTIONS,
    bell,
    convolved,
    corrupted,
    disk,
    jpeg,
    streaked,
    zoomed,
)
from defenses.parts.threshold import cut
from defenses.sentinet import SentiNet, above, effect, grad_cam, region, upper
from defenses.teco import TeCo
from sweeper.core import catalog, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.engine import metrics
from sweeper.run import material
from tests.support import toys

FIXED = {"defocus-blur", "zoom-blur", "brightness", "contrast", "pixelate", "jpeg"}
"""Corruptions without a draw."""


ASKING: dict[str, dict[str, Any]] = {
    "ibd-psc": {},
    "scale-up": {"factors": [3]},
    "sentinet": {"steps": 3},
    "strip": {"steps": 3},
    "strip-cleanser": {"steps": 3},
    "teco": {"types": ["brightness", "contrast"], "steps": 2},
}
"""Defenses whose time goes in asking the victim about many images -> options for less of it."""


def draw(name: str = "filters") -> torch.Generator:
    return seeds.generator(name)


def smooth(count: int, channels: int = 3, side: int = 32) -> Tensor:
    coarse = torch.rand(count, channels, 5, 5, generator=draw("smooth"))
    large = torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)
    return (255 * large).round().to(torch.uint8)


def flat(*values: int, side: int = 16) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side)


def triggered(data: ImageSet) -> Tensor:
    return toys.PLANTED.trigger_set(data, {}, draw("trigger")).images


def told_apart(name: str, found: Any) -> float:
    """AUROC of a filter on fresh clean images and other fresh ones with the toy trigger."""
    clean, other = toys.image_set(60, seed=11), toys.image_set(60, seed=12)
    hit = triggered(other[other.labels != 0])
    scores = torch.cat([found.filter(clean.images), found.filter(hit)]).double()
    rate = metrics.auroc(scores.numpy(), (torch.arange(len(scores)) >= 60).numpy())
    assert rate is not None, name
    return rate


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("teco", {"types": ["gaussian-noise", "blur"]}, "defocus-blur"),
        ("teco", {"types": ["jpeg"]}, "types: name two or more"),
        ("teco", {"types": ["jpeg", "fog", "jpeg"]}, "each once"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        catalog.make("defense", name, options)


# Corruptions


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 20, 27)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_of_each_image_alone_and_repeats(
    name: str, shape: tuple[int, int, int]
) -> None:
    images = toys.image_set(6, shape=shape).images
    before = images.clone()
    mild, hard = (corrupted(images, name, severity, draw()) for severity in (1, 5))
    assert torch.equal(images, before), "the images given stay as they are"
    assert mild.shape == images.shape and mild.dtype == torch.uint8
    assert torch.equal(corrupted(images, name, 1, draw()), mild)
    assert torch.equal(corrupted(images[4:5], name, 1, draw()), mild[4:5])
    assert torch.equal(corrupted(images, name, 1, draw("other")), mild) == (name in FIXED)
    for found in (mild, hard):
        assert bool((found != images).flatten(1).any(1).all()), "every image is changed"


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"snow", "frost", "fog", "pixelate"}))
def test_a_higher_severity_changes_more(name: str) -> None:
    images = smooth(20)
    far = [
        (corrupted(images, name, severity, draw()).double() - images).abs().mean()
        for severity in range(1, 6)
    ]
    assert far == sorted(far), "each severity is further from the image than the one before"


@pytest.mark.parametrize("quality", [7, 25, 80])
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (3, 27)])
def test_jpeg_is_what_a_codec_makes(quality: int, channels: int, side: int) -> None:
    def coded(image: Tensor) -> Tensor:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(
            stream, "JPEG", quality=quality
        )
        found = torch.from_numpy(np.array(Image.open(stream)))
        return found.view(side, side, channels).permute(2, 0, 1)

    images = 40 + smooth(12, channels, side) // 2
    wanted = torch.stack([coded(image) for image in images]).float()
    found = jpeg(images.float() / 255, quality).clamp(0, 1) * 255
    away, change = ((image - wanted).abs().mean() for image in (found, images.float()))
    assert float(away) < (0.15 if channels == 1 else 1.2), "a codec rounds between its steps too"
    assert 3 * float(away) < float(change), "the codec itself does more"


def test_photons_have_the_mean_of_the_image_and_its_variance() -> None:
    for value, severity, rate in ((51, 1, 60), (102, 3, 12)):
        found = corrupted(flat(value, side=128), "shot-noise", severity, draw()).double() / 255
        assert float(found.mean()) == pytest.approx(value / 255, rel=0.03)
        assert float(found.var()) == pytest.approx(value / 255 / rate, rel=0.05)


def test_impulses_hit_their_share_of_the_values_half_of_them_black() -> None:
    found = corrupted(flat(100, side=128), "impulse-noise", 4, draw())
    black, white = float((found == 0).double().mean()), float((found == 255).double().mean())
    assert black == pytest.approx(0.085, abs=0.01) and white == pytest.approx(0.085, abs=0.01)
    assert set(found.unique().tolist()) == {0, 100, 255}


def test_blurs_are_convolutions_whose_weights_add_up_to_one() -> None:
    x = torch.rand(2, 3, 9, 11, generator=draw())
    kernel = torch.rand(3, 5, generator=draw())
    padded = torch.nn.functional.pad(x, (2, 2, 1, 1), mode="replicate")
    wanted = torch.nn.functional.conv2d(
        padded.flatten(0, 1)[:, None], kernel.flip(0, 1)[None, None]
    )
    assert torch.allclose(convolved(x, kernel), wanted.view_as(x), atol=1e-5)
    for found in (bell(0.7), disk(3, 0.1), disk(10, 0.5)):
        assert float(found.sum()) == pytest.approx(1, abs=1e-5)
        assert torch.allclose(found, found.T, atol=1e-6)
    even = torch.full((1, 1, 9, 9), 0.3)
    assert torch.allclose(streaked(even, 20, 15, 33.0), even)
    line = torch.zeros(1, 1, 9, 9)
    line[..., 4, :] = 1
    assert torch.allclose(streaked(line, 10, 3, 0.0), line, atol=1e-6), "along the line: nothing"
    assert float(streaked(line, 10, 3, 90.0)[0, 0, 4, 4]) < 0.5


def test_zoom_brightness_and_contrast_keep_what_they_should() -> None:
    x = smooth(5).float() / 255
    assert torch.allclose(zoomed(x, 1.0), x, atol=1e-6)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32) / 32
    assert torch.allclose(zoomed(ramp, 2.0)[0, 0, 5], 7.75 / 32 + torch.arange(32) / 64, atol=1e-5)
    bright = CORRUPTIONS["brightness"](x, 0, draw())
    assert torch.allclose(bright.amax(1), (x.amax(1) + 0.1).clamp(max=1), atol=1e-5)
    assert torch.allclose(bright * x.amax(1, True), x * bright.amax(1, True), atol=1e-5), "hue"
    assert CORRUPTIONS["brightness"](0 * x, 1, draw()).unique().tolist() == pytest.approx([0.2])
    weak = CORRUPTIONS["contrast"](x, 4, draw())
    assert torch.allclose(weak.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(weak.std((2, 3)), 0.05 * x.std((2, 3)), atol=1e-5)


# TeCo


def asked(ask: Any, clean: Any = 12) -> Case:
    case = toys.case(TeCo.sees, clean=clean)
    case._given = {**case._given, "queries": ask}
    return case


def bright(images: Tensor) -> Tensor:
    """A model of labels alone: class 1 above a mean of 60."""
    return torch.eye(2)[(images.float().mean((1, 2, 3)) > 60).long()]


def test_teco_notes_the_first_severity_that_changes_the_label() -> None:
    teco = TeCo(types=("brightness", "contrast"))
    dark = flat(0, 20, 90)
    assert teco.broken(asked(bright), dark).tolist() == [[3, 6], [2, 6], [6, 6]]
    assert teco.broken(asked(bright), flat(50, 55)).tolist() == [[1, 6], [1, 6]], "none is left"
    found = teco.defend(asked(bright)).filter
    assert found is not None and found(dark).tolist() == pytest.approx([1.5, 2.0, 0.0])
    mild = TeCo(types=("brightness", "contrast"), steps=2)
    assert mild.broken(asked(bright), dark).tolist() == [[3, 3], [2, 3], [3, 3]]


def test_the_released_form_corrupts_what_is_corrupted_already() -> None:
    dark, before = flat(0, 20, 90), flat(0, 20, 90).clone()
    kept = TeCo(types=("contrast", "brightness"), accumulate=True)
    assert kept.broken(asked(bright), dark).tolist() == [[6, 2], [6, 2], [6, 6]]
    after = TeCo(types=("brightness", "contrast"), accumulate=True)
    assert after.broken(asked(bright), dark).tolist() == [[2, 1], [2, 1], [6, 6]], "it stays bright"
    assert torch.equal(dark, before), "the images given stay as they are"


def test_teco_gives_nothing_to_what_never_changes_and_ignores_the_order_of_types() -> None:
    images = toys.image_set(5, seed=6).images
    constant = asked(lambda images: torch.eye(3)[:1].expand(len(images), -1))
    found = TeCo(steps=1).defend(constant)
    assert found.filter is not None and found.threshold == 0.0
    assert found.filter(images).tolist() == [0.0] * 5
    case, types = toys.case(TeCo.sees), ("jpeg", "shot-noise", "fog", "glass-blur")
    one, other = TeCo(types=types), TeCo(types=types[::-1])
    broken = one.broken(case, images)
    assert torch.equal(broken, other.broken(case, images).flip(1))
    assert 1 <= int(broken.min()) and int(broken.max()) <= 6 and len(broken.unique()) > 2
    assert torch.equal(one.broken(case, images[3:]), broken[3:]), "each image on its own"


def test_teco_s_threshold_is_the_quantile_of_the_clean_budget() -> None:
    case = toys.case(TeCo.sees, clean=20)
    found = TeCo(types=("brightness", "contrast", "jpeg"), rate=0.1).defend(case)
    assert found.filter is not None
    assert found.threshold == cut(found.filter(case.clean.images), 0.1)


# What the victim is asked


@pytest.mark.parametrize("name", ASKING)
def test_a_victim_that_is_only_asked_has_its_channels_last(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: set[bool] = set()
    forward = nn.Conv2d.forward

    def noted(layer: nn.Conv2d, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # the one gradient an image is rounded as before
            laid.add(layer.weight.is_contiguous(memory_format=torch.channels_last))
        return forward(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    recipe = replace(toys.RECIPE, precision="bf16")
    box = functools.partial(material.black_box, recipe=recipe, device=toys.CPU)
    monkeypatch.setattr(toys, "black_box", box)
    defense = catalog.make("defense", name, ASKING[name])
    found = defense.defend(toys.case(defense.sees, shape=toys.QUARTER, precision="bf16"))
    if found.filter is not None:
        found.filter(toys.image_set(4, shape=toys.QUARTER).images)
    assert laid == {True}, "with its channels first it takes two to three times as long"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_asked_victim_answers_as_a_fresh_one(precision: str) -> None:
    own = toys.case(frozenset({"model"}), precision=precision)
    images = toys.image_set(50).images.float() / 255
    with torch.no_grad(), own.autocast():
        one, other = own.fresh_model()(images), own.asked_model()(images)
    assert not toys.differing(own.fresh_model(), own.asked_model())
    bound = 0 if precision == "fp32" else 1e-4  # 0 with native bf16 too
    assert torch.allclose(one.float(), other.float(), rtol=0, atol=bound)


# SentiNet


class Pooled(nn.Module):
    """Channels of an image, averaged, and a linear head; its map is the image itself."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Identity())
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight.data.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.trunk(x.requires_grad_()).mean((2, 3)))
        return out


def test_the_saliency_is_the_map_weighted_by_the_gradient() -> None:
    weight = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]])
    model, x = Pooled(weight), torch.rand(4, 3, 6, 6, generator=draw())
    label, found = grad_cam(model, "trunk", x)  # type: ignore[arg-type]
    assert torch.equal(label[:, 0], (x.mean((2, 3)) @ weight.T).argmax(1))
    assert set(label.flatten().tolist()) == {1}
    wanted = (weight[label[:, 0]][:, :, None, None] * x).sum(1) / 36
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not found.requires_grad and model.head.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["preact-resnet18", "vgg11-bn", "mobilenet-v2"])
def test_every_family_of_convolutions_has_a_map_to_look_at(name: str) -> None:
    model = toys.network(seeds.generator(name), model=name).eval()
    pixels = toys.image_set(2, shape=toys.COLOUR).images.float() / 255
    label, found = grad_cam(model, levels(model, 255 * pixels)[-1], pixels)
    assert torch.equal(label[:, 0], model(pixels).argmax(1)) and found.shape == (2, 32, 32)
    assert bool(found.isfinite().all()) and bool((found.flatten(1).std(1) > 0).all())


def test_the_region_is_the_asked_share_whatever_the_values() -> None:
    values = torch.rand(5, 10, 20, generator=draw())
    mask = region(values, 0.15)
    assert mask.shape == (5, 1, 10, 20) and mask.flatten(1).sum(1).tolist() == [30] * 5
    inside = values.masked_fill(~mask[:, 0], 2).amin((1, 2))
    assert bool((inside >= values.masked_fill(mask[:, 0], -1).amax((1, 2))).all())
    assert int(region(torch.zeros(1, 10, 20), 0.15).sum()) == 30, "a black image has a region too"
    assert int(region(torch.zeros(1, 4, 4), 0.01).sum()) == 1


def test_regions_are_pasted_on_every_overlay_and_noise_in_their_place() -> None:
    model, images = toys.victim(), toys.image_set(5, seed=3).images.float() / 255
    overlays = toys.image_set(4, seed=4).images.float() / 255
    noise = torch.rand(toys.QUARTER, generator=draw())
    mask = torch.rand(5, 1, 16, 16, generator=draw()) < 0.4
    label = model(images).argmax(1, keepdim=True)
    found = effect(model, images, label, mask, overlays, noise)
    for place in range(5):
        own = mask[place].expand(3, -1, -1)
        pasted, inert = overlays.clone(), overlays.clone()
        pasted[:, own] = images[place][own]
        inert[:, own] = noise[own]
        fooled = (model(pasted).argmax(1) == label[place]).double().mean()
        sure = model(inert).detach().softmax(1).amax(1).mean()
        assert found[place].tolist() == pytest.approx([float(sure), float(fooled)], abs=1e-5)


def test_a_constant_model_is_fooled_by_everything() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    nn.init.zeros_(model[1].weight)
    x, mask = torch.rand(2, 3, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    label = model(x).argmax(1, keepdim=True)
    found = effect(model, x, label, mask, x, x[0])  # type: ignore[arg-type]
    sure = float(model(x).detach().softmax(1).amax())
    assert found[:, 1].tolist() == [1.0, 1.0]
    assert found[:, 0].tolist() == pytest.approx([sure, sure])


def test_the_curve_goes_through_the_highest_points() -> None:
    confidence = torch.arange(30, dtype=torch.float64) / 40 + 0.015
    top = 0.9 - 0.5 * confidence - 0.2 * confidence**2
    order = torch.randperm(90, generator=draw())
    below = torch.cat([top, top - 0.1, top - 0.4])
    points = torch.stack([confidence.repeat(3), below], 1)[order]
    assert upper(points).tolist() == pytest.approx([0.9, -0.5, -0.2], abs=1e-6)
    for few in (1, 2):
        found = upper(points[:few])
        fitted = (points[:few, :1] ** torch.arange(3)) @ found
        assert torch.allclose(fitted, points[:few, 1], atol=1e-4), "of few points it is still one"


def test_the_distance_grows_with_the_share_fooled_and_has_the_curve_s_side() -> None:
    curve = torch.tensor([0.9, -1.2, 0.4], dtype=torch.float64)
    shares = torch.linspace(0, 1, 41, dtype=torch.float64)
    for sure in (0.0, 0.3, 0.8, 1.0):
        found = above(curve, torch.stack([torch.full_like(shares, sure), shares], 1))
        assert bool((found.diff() > 0).all())
        height = 0.9 - 1.2 * sure + 0.4 * sure**2
        assert torch.equal(found > 0, shares > height)
        assert abs(float(above(curve, torch.tensor([[sure, height]]).double()))) < 1e-3


def test_beyond_the_confidences_it_was_fitted_to_the_curve_goes_on_level() -> None:
    steep = torch.tensor([0.0, 0.0, 100.0], dtype=torch.float64)
    point = torch.tensor([[0.9, 0.5]], dtype=torch.float64)
    assert float(above(steep, point)) < 0, "81 is far above 0.5"
    assert float(above(steep, point, 0.01, 0.05)) == pytest.approx(0.25), "100 * 0.05 ** 2 is 0.25"


def test_overlays_curve_and_threshold_are_had_from_different_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []

    def spied(model: Any, pixels: Tensor, *given: Tensor) -> Tensor:
        seen.append(pixels)
        laid = given[2]
        assert not set(rows(laid)) & set(rows(pixels)), "an image is not pasted on itself"
        return effect(model, pixels, *given)

    def rows(images: Tensor) -> list[bytes]:
        return [row.numpy().tobytes() for row in images.detach()]

    monkeypatch.setattr(sentinet, "effect", spied)
    case = toys.case(SentiNet.sees, clean=50)
    found = SentiNet(steps=10).defend(case)
    fitted, held = seen
    assert len(fitted) == len(held) == 20 and not set(rows(fitted)) & set(rows(held))
    assert found.filter is not None
    clean = torch.stack([image.mul(255).round().to(torch.uint8) for image in held.detach()])
    assert found.threshold == pytest.approx(cut(found.filter(clean), 0.05))


def test_sentinet_finds_the_patch_of_the_toy_victim() -> None:
    assert told_apart("sentinet", SentiNet(steps=10).defend(toys.case(SentiNet.sees))) > 0.95


# BaDExpert


def test_the_suspicion_has_its_bounds_and_falls_with_the_repaired_confidence() -> None:
    line = torch.linspace(0, 1, 101, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="ij")
    for factor, bound in ((2.0, 0.5), (2.5, 0.4), (5.0, 0.2)):
        found = suspicion(x.flatten(), y.flatten(), factor, bound).view(101, 101)
        assert bool(found.isfinite().all()) and float(found.max()) == 0.0
        assert bool((found.diff(dim=1) <= 1e-12).all()), "it falls in y at every x"
        assert float(found[100, 100]) == -factor and float(found[100, 0]) == 0.0
        agreed = round(100 * bound) + 1
        assert torch.allclose(found[100, agreed:], -factor * line[agreed:]), (
            "an expert that is quite sure makes nothing suspicious of which the repaired model is"
        )
    assert float(suspicion(torch.tensor([0.2]), torch.tensor([0.3]))) == pytest.approx(-3.0)
    assert float(suspicion(torch.tensor([0.9]), torch.tensor([0.3]))) == pytest.approx(-0.5)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_expert_learns_wrong_labels_and_neither_copy_the_hold_out(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: dict[str, Any] = {}

    def fit(
        self: Case, model: nn.Module, data: ImageSet, *, name: str, **given: Any
    ) -> list[float]:
        taught[name] = data, given
        return []

    monkeypatch.setattr(Case, "fit", fit)
    case = toys.case(BaDExpert.sees, classes=classes)
    found = BaDExpert().defend(case)
    fitted, held = case.split()
    for data, given in taught.values():
        assert torch.equal(data.images, fitted.images) and given["warmup"] == 0.0
    wrong, right = taught["expert"][0].labels, taught["repair"][0].labels
    assert torch.equal(right, fitted.labels) and bool((wrong != right).all())
    assert set(wrong.tolist()) == set(range(classes))
    assert taught["repair"][1]["milestones"] == (2, 4, 6, 8)
    # Without training all three are one model: x = y, and the first quotient is 2.
    assert found.filter is not None
    assert found.threshold == cut(found.filter(held.images), 0.05)
    own = case.fresh_model()(held.images.float() / 255).softmax(1).amax(1).double()
    assert torch.allclose(found.filter(held.images), suspicion(own, own), atol=1e-4)


def test_badexpert_finds_the_trigger_of_the_toy_victim() -> None:
    case = toys.case(BaDExpert.sees, clean=120)
    found = BaDExpert(expert_epochs=10, expert_lr=1e-3, expert_batch=16, epochs=5).defend(case)
    assert found.notes["expert_accuracy"] < 0.3 < 0.9 < found.notes["repaired_accuracy"]
    assert told_apart("badexpert", found) > 0.95
