"""Wide convolutions in pieces: every bit is torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sweeper import models
from sweeper.engine import metrics
from sweeper.engine.pieces import CACHE, WideConv, in_pieces
from sweeper.engine.recipes import Recipe

Shape = tuple[int, int, int, int, int]
"""Channels in and out, kernel, stride, side of the map."""
STAGE: Shape = (512, 512, 3, 1, 4)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many channels each computed piece of a wide convolution had, in turn."""
    seen: list[int] = []
    whole = nn.Conv2d._conv_forward

    def noted(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self, WideConv):
            seen.append(len(weight))
        return whole(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", noted)
    return seen


def conv(shape: Shape, *, bias: bool = False) -> nn.Conv2d:
    """A convolution with its channels last."""
    inputs, outputs, kernel, stride, _ = shape
    made = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images(shape: Shape, batch: int = 16, layout: Any = torch.channels_last) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(batch, shape[0], shape[4], shape[4], generator=rng)
    return drawn.contiguous(memory_format=layout)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize(
    ("shape", "bias"),
    [
        pytest.param(STAGE, False, id="the last stage of a ResNet"),
        pytest.param((256, 512, 3, 2, 8), False, id="its first layer"),
        pytest.param((512, 512, 3, 1, 2), True, id="the last stage of a VGG"),
        pytest.param((1024, 2048, 1, 2, 8), False, id="a wide shortcut"),
        pytest.param((500, 520, 3, 1, 3), True, id="channels that no block divides"),
    ],
)
def test_a_convolution_in_pieces_has_the_bits_of_a_whole_one(
    parts: list[int], shape: Shape, bias: bool, layout: torch.memory_format, precision: str
) -> None:
    plain = conv(shape, bias=bias)
    for batch in (16, 37):
        x = images(shape, batch, layout)
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), bf16:
            one = plain(x)
            with in_pieces(plain):
                other = plain(x)
        assert one.equal(other)
        assert one.stride() == other.stride(), "what reads it next computes as before"
    assert type(plain) is nn.Conv2d and len(parts) > 2
    assert sum(parts) == 2 * shape[1]


def test_a_convolution_stays_whole_where_pieces_are_not_faster_or_not_surely_the_same(
    parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces(x: Tensor, asked: nn.Conv2d) -> int:
        parts.clear()
        with in_pieces(asked):
            asked(x)
        return len(parts)

    few, wide = images(STAGE), conv(STAGE)
    assert pieces(few, wide) == 1, "a gradient may be asked"
    with torch.no_grad():
        assert pieces(few, wide) == 8
        assert pieces(images(STAGE, 15), wide) == 1, "another library may compute few images"
        assert pieces(images((*STAGE[:4], 9)), wide) == 1, "large maps"
        assert pieces(few.double(), conv(STAGE).double()) == 1, "oneDNN has no double"
        assert pieces(images((64, 64, 3, 1, 4)), conv((64, 64, 3, 1, 4))) == 0, "few weights"
        before = torch.backends.mkldnn.set_flags(False)
        try:
            assert pieces(few, wide) == 1, "portable processes do without oneDNN"
        finally:
            torch.backends.mkldnn.set_flags(before[0])
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        assert pieces(few, wide) == 1, "threads share out the whole otherwise"


def test_a_model_is_asked_in_pieces_and_is_as_before_when_that_is_over(parts: list[int]) -> None:
    given: dict[str, Any] = {"classes": 10, "shape": (3, 32, 32)}
    given |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    net = models.build("resnet18", {}, **given, generator=torch.Generator().manual_seed(0))
    shown = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
    metrics.predict(net, shown, Recipe(precision="fp32"), torch.device("cpu"))
    convs = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    assert len(parts) > sum(part.weight.numel() * 4 > CACHE for part in convs)
    assert {type(part) for part in convs} == {nn.Conv2d}
    with pytest.raises(RuntimeError), in_pieces(net):
        net(shown[:, :2].float())
    assert {type(part) for part in convs} == {nn.Conv2d}
