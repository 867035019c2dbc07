"""Detectors: what their heads say in either mode, and where their default boxes lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sweeper import models
from sweeper.core.errors import SweepError
from sweeper.models.base import Net
from sweeper.models.ssd import SSD

SMALL: dict[str, Any] = {"width": 4, "pyramid": 8}


def built(name: str, side: int, classes: int = 4, **options: Any) -> Net:
    return models.build(
        name,
        options,
        classes=classes,
        shape=(3, side, side),
        mean=[0.4] * 3,
        std=[0.2] * 3,
        generator=torch.Generator().manual_seed(1),
    )


def pixels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("ssd-small", SMALL, 96),
        ("ssd-small", {"width": 4, "pyramid": 0}, 70),
        ("ssdlite320", {}, 96),
    ],
)
def test_heads_are_alike_in_training_and_after_it(
    name: str, options: dict[str, Any], side: int
) -> None:
    net, x = built(name, side, **options), pixels(2, 3, side, side)
    again = built(name, side, **options).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in net.state_dict().items())
    for mode in (True, False):
        with torch.no_grad():
            logits, offsets, anchors = net.train(mode)(x)
        assert logits.shape == (2, len(anchors), 5) and offsets.shape == (2, len(anchors), 4)
    with torch.no_grad():
        features = net.features(x)
        alone = net(x[:1])
    assert features.ndim == 2 and not torch.equal(features[0], features[1])
    assert torch.allclose(alone.logits[0], logits[0], atol=1e-4), "no image sees its neighbours"


def test_default_boxes_cover_the_image_in_its_own_pixels() -> None:
    anchors = built("ssd-small", 96, **SMALL).classifier.anchors
    assert len(anchors) == (12**2 + 6**2 + 3**2) * 4
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert torch.allclose(centres[0], torch.tensor([4.0, 4.0]))
    assert torch.allclose(centres[-1], torch.tensor([80.0, 80.0]))
    sides = (anchors[0, 2:] - anchors[0, :2]).tolist()
    assert sides == pytest.approx([0.1 * 96] * 2, rel=1e-4)
    large, small = (built("ssdlite320", side).classifier.anchors for side in (320, 96))
    assert torch.allclose(large * 96 / 320, small, atol=1e-3), "what it resizes is scaled back"
    assert "classifier.anchors" not in built("ssd-small", 96, **SMALL).state_dict()


def test_torchvision_s_ssd_is_built_with_its_default_boxes() -> None:
    with torch.device("meta"):
        trunk, head = SSD(name="ssd300-vgg16").build(20, (3, 96, 96))
    assert head.anchors.shape == (8732, 4), "table of the paper"
    centres = (head.anchors[:, 0] + head.anchors[:, 2]) / 2
    assert 90 < float(centres.max()) < 98, "in the pixels of the image, not of its 300"
    assert models.has_batchnorm("ssdlite320", {}, 4, (3, 96, 96))


def test_all_of_it_learns() -> None:
    net = built("ssd-small", 64, **SMALL)
    logits, offsets, _ = net(pixels(4, 3, 64, 64))
    (logits.square().mean() + offsets.square().mean()).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize(
    ("name", "options", "shape", "said"),
    [
        ("ssd-small", {}, (3, 24, 24), "at least 32 pixels"),
        ("ssd-small", {"scales": (0.1, 0.2)}, (3, 96, 96), "scales: needs four numbers"),
        ("ssd300-vgg16", {}, (1, 96, 96), "needs colour images"),
    ],
)
def test_what_does_not_fit_is_said(
    name: str, options: dict[str, Any], shape: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(SweepError, match=said):
        models.family(name, options).build(4, shape)
