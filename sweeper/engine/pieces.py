"""Convolutions of more weights than a core's cache holds, some channels at a time on a CPU.

oneDNN reads all weights for every image. Where images are of few pixels, as in the last stages of a
ResNet or a VGG at 32 pixels, the core waits for memory. The weights of some channels stay in its
cache, and every number is the sum it was before. `metrics.predict` at 32 pixels on one core of a
loaded Xeon with AMX, beside whole ones: ResNet-18 1.2 times as fast in bf16 and 1.1 in fp32,
VGG-16 1.4 to 1.7 and 1.2 to 1.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CACHE = 2 << 20
"""Bytes of the cache of the Xeon it was measured on: fewer weights stay in it as they are."""
PIECE = 5 << 18
"""Bytes of weights that stay in it beside images: the best of four sizes."""
BLOCK = 64
"""A piece has a multiple of these channels, which oneDNN computes together at most."""
PIXELS = 64
"""On larger maps weights are read seldom enough, and pieces gained nothing."""
BATCH = 16
"""Below it torch may compute a piece by another library than the whole."""


@contextmanager
def in_pieces(model: nn.Module) -> Iterator[None]:
    """Compute the wide convolutions of a model in pieces meanwhile, where no gradient is asked."""
    wide = [
        part
        for part in model.modules()
        if type(part) is nn.Conv2d
        and part.groups == 1
        and part.weight.numel() * part.weight.itemsize > CACHE
    ]
    for part in wide:
        part.__class__ = WideConv
    try:
        yield
    finally:
        for part in wide:
            part.__class__ = nn.Conv2d


class WideConv(nn.Conv2d):
    """A convolution of many channels; the numbers are nn.Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        width = self._width(x)
        if width >= self.out_channels:
            return super().forward(x)
        weights = self.weight.split(width)
        biases = self.bias.split(width) if self.bias is not None else [None] * len(weights)
        parts = zip(weights, biases, strict=True)
        return torch.cat([self._conv_forward(x, *part) for part in parts], 1)

    def _width(self, x: Tensor) -> int:
        """Channels of a piece: all where the whole is as fast, or may have other bits.

        The bits are the same of oneDNN's kernels on one thread.
        """
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.ndim != 4 or len(x) < BATCH:
            return self.out_channels
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        size = self.weight.numel() * dtype.itemsize
        large = x.shape[2] * x.shape[3] > PIXELS * self.stride[0] * self.stride[1]
        known = dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.enabled
        if large or size <= CACHE or not known or torch.get_num_threads() > 1:
            return self.out_channels
        return max(self.out_channels * PIECE // size // BLOCK, 1) * BLOCK
