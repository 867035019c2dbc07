"""The frequency detector: its transform, its network, the triggers it makes up."""

from __future__ import annotations

import pytest
import torch

from defenses.frequency import (
    Frequency,
    Spectrum,
    blocks,
    cosines,
    detector,
    log_odds,
    shadows,
    triggered,
)
from sweeper.core import seeds
from sweeper.core.types import ImageSet
from tests.support import toys
from tests.support.planted import rank


def test_the_cosine_transform_is_orthonormal_and_scipy_s() -> None:
    from scipy.fft import dctn

    pixels = toys.image_set(4, shape=toys.COLOUR).images.float().div(255)
    found = Spectrum(32, 32)(pixels)
    wanted = dctn(255 * pixels.double().numpy(), axes=(2, 3), norm="ortho")
    assert torch.allclose(found.double(), torch.from_numpy(wanted), atol=1e-2)
    assert torch.allclose(found.square().sum(), (255 * pixels).square().sum(), rtol=1e-5)
    basis = cosines(12)
    assert torch.allclose(basis @ basis.T, torch.eye(12).double(), atol=1e-12)
    constant = Spectrum(8, 16)(torch.full((1, 1, 8, 16), 0.5))[0, 0]
    assert float(constant[0, 0]) == pytest.approx(127.5 * 128**0.5, rel=1e-5)
    assert float(constant.flatten()[1:].abs().max()) < 1e-3, "a constant image is all in one"


def test_the_detector_has_the_release_s_parameters() -> None:
    model = detector(toys.COLOUR, seeds.generator("detector"))
    learned = sum(value.numel() for value in model.parameters())
    running = sum(value.numel() for name, value in model.named_buffers() if "running" in name)
    assert learned + running == 292_898
    same = detector(toys.COLOUR, seeds.generator("detector"))
    assert toys.same(toys.weights(model), toys.weights(same))


def test_made_up_triggers_change_every_image_and_stay_in_range() -> None:
    images = 0.2 + 0.5 * toys.image_set(300).images.float().div(255)
    before, found = images.clone(), triggered(images, seeds.generator("made"))
    assert torch.equal(images, before) and 0 <= float(found.min()) and float(found.max()) <= 1
    changed = (found != images).flatten(1).double().mean(1)
    assert float((changed > 0).double().mean()) > 0.97, "a thin shadow may miss every pixel"
    assert bool((changed > 0.99).any()) and bool(((changed > 0) & (changed < 0.05)).any())


def test_blocks_lie_whole_within_the_image_near_every_corner() -> None:
    found = blocks(400, 20, 24, seeds.generator("blocks"))[:, 0]
    tall, wide = found.any(2).sum(1), found.any(1).sum(1)
    assert torch.equal(found.sum((1, 2)), tall * wide), "a rectangle"
    assert {int(v) for v in (*tall, *wide)} == set(range(2, 8))
    corners = found[:, :7, :7], found[:, :7, -7:], found[:, -7:, :7], found[:, -7:, -7:]
    hits = torch.stack([part.flatten(1).any(1) for part in corners])
    assert bool((hits.sum(0) == 1).all()) and int(hits.sum(1).min()) > 60


def test_shadows_are_triangles_of_either_winding() -> None:
    found = shadows(2000, 16, 16, seeds.generator("shadows")).double().mean((1, 2, 3))
    assert float(found.mean()) == pytest.approx(11 / 144, abs=0.01), "of three uniform points"


def test_the_detector_learns_to_tell_patches_it_never_saw() -> None:
    smooth = torch.nn.functional.interpolate(
        torch.rand(160, 3, 4, 4, generator=seeds.generator("smooth")), 32, mode="bicubic"
    )
    images = (255 * smooth).clamp(0, 255).to(torch.uint8)
    clean = ImageSet(images, torch.arange(160) % 10, tuple(map(str, range(10))))
    case = toys.case(frozenset({"clean"}), clean=clean[:120])
    model = detector(toys.COLOUR, seeds.generator("detector"))
    Frequency(epochs=4, lr=0.5).learn(case, model, case.clean)
    hit = toys.PLANTED.trigger_set(clean[120:], {}, seeds.generator("trigger")).images
    scores = log_odds(case, model, torch.cat([images[120:], hit]))
    assert rank(scores, torch.arange(len(scores)) >= 40) > 0.9
