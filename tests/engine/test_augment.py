"""Whole-batch transforms against torchvision's on single images, and the spread of their draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from sweeper.core import seeds
from sweeper.engine import augment


def rng(name: str | int = "draw") -> Generator:
    return seeds.generator("augment tests", name)


def photos(count: int = 12, height: int = 20, width: int = 26, channels: int = 3) -> Tensor:
    """Smooth random pictures in [0, 1] that use the whole range; the first is plain grey."""
    coarse = torch.rand(count, channels, 5, 5, generator=rng("photos")) * 1.6 - 0.3
    found = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)
    found[0] = 0.4
    return found


def one_by_one(images: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    return torch.stack([change(image, number) for number, image in enumerate(images)])


# Geometry


@pytest.mark.parametrize(("height", "width"), [(20, 20), (21, 21), (16, 25)])
def test_turned_equals_torchvision_on_single_images(height: int, width: int) -> None:
    images = torch.rand(16, 3, height, width, generator=rng())
    degrees = torch.linspace(-180, 180, 16) + 0.3
    found = augment.turned(images, degrees.deg2rad())
    slow = one_by_one(images, lambda image, n: reference.rotate(image, float(degrees[n])))
    same = (found == slow).all(1).double().mean()
    assert float(same) > 0.995, "beyond ties of the nearest pixel they are equal"
    assert not torch.equal(augment.turned(images, -degrees.deg2rad()), slow)


def test_a_quarter_turn_is_exact() -> None:
    images = photos(height=16, width=16)
    quarter = augment.turned(images, torch.full((12,), math.pi / 2))
    assert torch.equal(quarter, images.rot90(1, (2, 3)))


def test_crop_and_rotation_hit_their_share_and_leave_the_others_alone() -> None:
    images = torch.randint(1, 256, (3000, 8, 8, 3), generator=rng("noise")).to(torch.uint8)
    cropped = augment.crop_flip(images, 5, False, rng(), 0.8)
    still = (cropped == images).flatten(1).all(1).double().mean()
    assert float(still) == pytest.approx(0.2 + 0.8 / 121, abs=0.03)
    pixels = augment.to_float(images)
    turned = augment.rotate(pixels, 90.0, rng(), 0.25)
    hit = (turned != pixels).flatten(1).any(1)
    assert 0.2 < float(hit.double().mean()) < 0.27, "the smallest angles move no pixel of 8 x 8"
    for found, whole in (
        (augment.crop_flip(images, 5, True, rng(), 1.0), augment.crop_flip(images, 5, True, rng())),
        (augment.rotate(pixels, 10.0, rng(), 1.0), augment.rotate(pixels, 10.0, rng())),
    ):
        assert torch.equal(found, whole), "a share of 1 draws nothing more"
    mirrored = augment.crop_flip(images, 5, True, rng(), 0.0)
    same = (mirrored == images).flatten(1).all(1)
    assert 0.45 < float(same.double().mean()) < 0.55, "the border is no bound of mirroring"
    assert torch.equal(mirrored[~same], images[~same].flip(2))


@given(down=st.integers(-6, 6), right=st.integers(-8, 8), channels=st.sampled_from([1, 3]))
def test_shifted_equals_torchvision(down: int, right: int, channels: int) -> None:
    images = photos(3, 6, 8, channels)
    downs, rights = torch.tensor([down, 0, -down]), torch.tensor([right, -right, 0])
    found = augment.shifted(images, downs, rights)
    slow = one_by_one(
        images,
        lambda image, n: reference.affine(
            image, 0.0, [int(rights[n]), int(downs[n])], 1.0, [0.0], InterpolationMode.NEAREST
        ),
    )
    assert torch.equal(found, slow)


def test_translate_reaches_every_shift_of_its_range_both_ways() -> None:
    images = torch.zeros(3000, 1, 10, 20)
    images[:, :, 5, 10] = 1
    found = augment.translate(images, 0.2, rng())
    rows, columns = (found[:, 0].amax(axis).argmax(1) for axis in (2, 1))
    assert set((rows - 5).tolist()) == set(range(-2, 3))
    assert set((columns - 10).tolist()) == set(range(-4, 5))
    middle, edge = ((rows == 5).double().mean(), (rows == 7).double().mean())
    assert 0.22 < float(middle) < 0.28 and 0.10 < float(edge) < 0.15, "U(-2, 2), then rounded"
    assert torch.equal(augment.translate(images, 0.0, rng()), images)


def test_resized_equals_torchvision_s_resized_crop() -> None:
    images = photos()
    generator = rng("boxes")
    tall = torch.randint(1, 21, (12,), generator=generator)
    wide = torch.randint(1, 27, (12,), generator=generator)
    top = (torch.rand(12, generator=generator) * (21 - tall)).long()
    left = (torch.rand(12, generator=generator) * (27 - wide)).long()
    mirrored = torch.arange(12) % 2 == 1
    found = augment.resized(images, top, left, tall, wide, mirrored)

    def slow(image: Tensor, n: int) -> Tensor:
        box = [int(part[n]) for part in (top, left, tall, wide)]
        crop = reference.resized_crop(image, *box, [20, 26], InterpolationMode.BILINEAR)
        return reference.hflip(crop) if mirrored[n] else crop

    torch.testing.assert_close(found, one_by_one(images, slow), atol=1e-5, rtol=0)
    whole = augment.resized(
        images,
        torch.zeros(12),
        torch.zeros(12),
        torch.full((12,), 20),
        torch.full((12,), 26),
        torch.zeros(12, dtype=torch.bool),
    )
    torch.testing.assert_close(whole, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 26), (8, 60)])
def test_boxes_keep_their_area_and_ratio(height: int, width: int) -> None:
    top, left, tall, wide = augment._boxes(
        4000, height, width, (0.2, 1.0), (3 / 4, 4 / 3), rng("boxes")
    )
    assert bool((top >= 0).all() and (left >= 0).all())
    assert bool((top + tall <= height).all() and (left + wide <= width).all())
    assert bool((tall >= 1).all() and (wide >= 1).all())
    ratio = wide / tall
    assert float(ratio.min()) > 0.6 and float(ratio.max()) < 1.5
    if height == width:
        area = tall * wide / (height * width)
        assert float(area.min()) > 0.17 and 0.5 < float(area.mean()) < 0.66
        assert float((top == 0).double().mean()) < 0.5, "boxes lie everywhere"
    if width == 60:
        assert int(tall.max()) == height, "where nothing fits, the largest box of that ratio"


def test_resize_crop_mirrors_half_of_the_images_or_none() -> None:
    ramp = torch.linspace(0, 1, 16).expand(2000, 1, 16, 16).contiguous()
    falling = []
    for flip in (True, False):
        found = augment.resize_crop(ramp, (0.2, 1.0), (3 / 4, 4 / 3), flip, rng())
        falling.append(float((found[:, 0, 8, 0] > found[:, 0, 8, 15]).double().mean()))
    assert 0.46 < falling[0] < 0.54 and falling[1] == 0


# Colour


@pytest.mark.parametrize(
    ("change", "slow", "amounts"),
    [
        (augment.brightened, reference.adjust_brightness, (0.0, 1.8)),
        (augment.contrasted, reference.adjust_contrast, (0.0, 1.8)),
        (augment.saturated, reference.adjust_saturation, (0.0, 1.8)),
        (augment.hue_turned, reference.adjust_hue, (-0.5, 0.5)),
    ],
)
def test_colours_change_as_torchvision_changes_them(
    change: Callable[[Tensor, Tensor], Tensor],
    slow: Callable[[Tensor, float], Tensor],
    amounts: tuple[float, float],
) -> None:
    images, given = photos(), torch.linspace(*amounts, 12)
    found = change(images, given)
    expected = one_by_one(images, lambda image, n: slow(image, float(given[n])))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert float((found - images).abs().max()) > 0.2, "the amounts must change something"
    neutral = torch.zeros(12) if change is augment.hue_turned else torch.ones(12)
    torch.testing.assert_close(change(images, neutral), images, atol=1e-6, rtol=0)


def test_luma_equals_torchvision_s_grayscale() -> None:
    expected = reference.rgb_to_grayscale(photos())
    torch.testing.assert_close(augment.luma(photos()), expected, atol=1e-4, rtol=0)


def test_colours_of_images_without_colours_stay_and_their_light_changes() -> None:
    grey = photos(channels=1)
    for change in (augment.saturated, augment.hue_turned):
        assert torch.equal(change(grey, torch.full((12,), 0.3)), grey)
    assert torch.equal(augment.decolour(grey, 1.0, rng()), grey)
    found = augment.jitter(grey, 0.4, 0.4, 0.4, 0.1, 1.0, rng())
    assert found.shape == grey.shape and not torch.equal(found, grey)


def test_jitter_applies_its_draws_in_each_image_s_own_order() -> None:
    """Against torchvision, image by image, with the amounts and orders the generator gives."""
    images, count = photos(200, 6, 6), 200
    found = augment.jitter(images, 0.4, 0.4, 0.4, 0.1, 0.7, rng("jitter"))
    draw = rng("jitter")
    amounts = [1 + (torch.rand(count, generator=draw) * 2 - 1) * 0.4 for _ in range(3)]
    amounts.append((torch.rand(count, generator=draw) * 2 - 1) * 0.1)
    hit = torch.rand(count, 1, generator=draw) < 0.7
    order = torch.rand(count, 4, generator=draw).argsort(1)
    steps = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]

    def slow(image: Tensor, n: int) -> Tensor:
        for number in order[n].tolist() if hit[n] else []:
            image = steps[number](image, float(amounts[number][n]))
        return image

    torch.testing.assert_close(found, one_by_one(images, slow), atol=5e-4, rtol=0)
    assert len(set(map(tuple, order.tolist()))) == 24, "all orders occur"
    assert torch.equal(augment.jitter(images, 0.4, 0.4, 0.4, 0.1, 0.0, rng()), images)


def test_decolour_happens_with_its_probability() -> None:
    images = torch.rand(4000, 3, 2, 2, generator=rng())
    grey = (augment.decolour(images, 0.2, rng()).std(1) < 1e-6).flatten(1).all(1)
    assert 0.17 < float(grey.double().mean()) < 0.23


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3)])
def test_all_transforms_stay_in_range_on_the_smallest_images(shape: tuple[int, int]) -> None:
    images = torch.rand(50, 3, *shape, generator=rng())
    before = images.clone()
    for found in (
        augment.rotate(images, 180.0, rng()),
        augment.translate(images, 0.5, rng()),
        augment.resize_crop(images, (0.2, 1.0), (3 / 4, 4 / 3), True, rng()),
        augment.jitter(images, 0.9, 0.9, 0.9, 0.5, 1.0, rng()),
        augment.decolour(images, 0.5, rng()),
    ):
        assert found.shape == images.shape and bool(found.isfinite().all())
        assert float(found.min()) >= -1e-6 and float(found.max()) <= 1 + 1e-6
    assert torch.equal(images, before), "the batch that came in is left alone"


@pytest.mark.parametrize("channels", [1, 3])
def test_blurred_equals_torchvision_away_from_the_border(channels: int) -> None:
    images = photos(4, 40, 44, channels)
    sigma = torch.tensor([0.3, 0.8, 1.4, 2.0])
    found = augment.blurred(images, sigma)
    slow = one_by_one(images, lambda image, n: reference.gaussian_blur(image, 25, float(sigma[n])))
    inside = (..., slice(12, -12), slice(12, -12))
    torch.testing.assert_close(found[inside], slow[inside], atol=1e-4, rtol=0)
    flat = torch.full((4, channels, 7, 9), 0.7)
    assert torch.allclose(augment.blurred(flat, sigma), flat), "no dark border"


def test_blur_leaves_no_number_too_small_to_be_multiplied_fast() -> None:
    images = torch.zeros(40, 3, 32, 32)
    images[:, :, 16, 16] = 1 / 255
    found = augment.blurred(images, torch.linspace(0.1, 2, 40))
    assert float(found[found > 0].min()) >= torch.finfo(torch.float32).tiny


def test_blur_hits_its_share_and_leaves_the_others_alone() -> None:
    images = torch.rand(400, 1, 6, 6, generator=rng("noise"))
    found = augment.blur(images, (0.5, 2.0), 0.5, rng())
    hit = (found != images).flatten(1).any(1)
    assert 0.4 < float(hit.double().mean()) < 0.6
    assert torch.equal(found, augment.blur(images, (0.5, 2.0), 0.5, rng()))
    spread = found[hit].flatten(1).std(1) / images[hit].flatten(1).std(1)
    assert float(spread.max()) < 0.9 and float(spread.min()) < 0.4, "weak ones and strong ones"
