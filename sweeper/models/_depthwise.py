"""Strided depthwise convolutions whose bfloat16 gradient does not take a second on a CPU.

oneDNN has no fast kernel for the gradient of their input: three such layers were 43 % of
MobileNetV2's step in bf16 (803 of 1,850 ms, batch 128 of 32x32, one core). That gradient is the one
at stride 1 of an output with zeros between its pixels, which has a fast kernel and the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride; the numbers are nn.Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        fast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not fast or torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return super().forward(x)
        weight = self.weight.bfloat16()
        output: Tensor = _Strided.apply(x.bfloat16(), weight, self.stride, self.padding)
        return output


class _Strided(torch.autograd.Function):
    """The convolution, with a gradient of its own."""

    generate_vmap_rule = True  # torch.func's gradients of single samples pass through it

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        return functional.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (down, right), (above, left) = ctx.stride, ctx.padding
        gradients: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            height = x.shape[2] + 2 * above - weight.shape[2] + 1
            width = x.shape[3] + 2 * left - weight.shape[3] + 1
            dilated = gradient.new_zeros(len(x), height, width, len(weight)).permute(0, 3, 1, 2)
            dilated[:, :, ::down, ::right] = gradient
            gradients[0] = _backward(dilated, x, weight, (1, 1), ctx.padding, 0)
        if ctx.needs_input_grad[1]:
            gradients[1] = _backward(gradient, x, weight, ctx.stride, ctx.padding, 1)
        return (*gradients, None, None)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    operand: int,
) -> Tensor:
    """The gradient of the input (0) or the weight (1)."""
    output_mask = [operand == 0, operand == 1, False]
    shared = ([1, 1], False, [0, 0], len(weight), output_mask)
    operand_gradient: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, *shared
    )[operand]
    return operand_gradient


def fast_depthwise(module: nn.Module) -> None:
    """Give every strided depthwise convolution of a network this gradient, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.groups == part.in_channels == part.out_channels > 1:
            if part.stride != (1, 1) and part.dilation == (1, 1) and part.bias is None:
                part.__class__ = StridedDepthwise
