"""A narrow chain inside a network of convolutions: cut out, and put in the place of its channels.

The chain is the first channels of every layer. Where layers are chained or added, as in all nets
whose channels keep their place, it is a network of its own as soon as nothing else is read by it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sweeper.core.errors import SweepError
from sweeper.models.base import Net

REFUSED = (
    "sra: this architecture has no narrow chain of its own ({why}): choose a network of chained or "
    "added convolutions, such as tiny, resnet18, preact-resnet18, vgg16-bn or mobilenet-v2"
)
NORM = ("weight", "bias", "running_mean", "running_var")


def narrowed(model: Net, width: int) -> nn.Sequential:
    """A new network of the architecture with `width` channels everywhere; pixels -> features.

    Layers are initialised as torch does, on the CPU.

    Raises:
        SweepError: A layer is no plain or depthwise convolution and no norm, or is narrower.
    """
    trunk = copy.deepcopy(model.trunk).cpu()
    stem = True
    for name, part in list(trunk.named_modules()):
        if isinstance(part, nn.Conv2d):
            made: nn.Module = _narrow_conv(part, width, stem)
            stem = False
        elif isinstance(part, nn.BatchNorm2d):
            made = nn.BatchNorm2d(width, part.eps, part.momentum)
        elif next(part.parameters(recurse=False), None) is not None:
            raise SweepError(REFUSED.format(why=f"a layer {type(part).__name__}"))
        else:
            continue
        home, _, leaf = name.rpartition(".")
        setattr(trunk.get_submodule(home), leaf, made)
    return nn.Sequential(copy.deepcopy(model.normalise).cpu(), trunk)


def _narrow_conv(part: nn.Conv2d, width: int, stem: bool) -> nn.Conv2d:
    depthwise = part.groups > 1
    if depthwise and not part.groups == part.in_channels == part.out_channels:
        raise SweepError(REFUSED.format(why="a grouped convolution"))
    if width > part.out_channels or (not stem and width > part.in_channels):
        raise SweepError(f"sra: a layer has fewer than {width} channels: lower `width`")
    return nn.Conv2d(
        part.in_channels if stem else width,
        width,
        part.kernel_size,  # type: ignore[arg-type]
        part.stride,  # type: ignore[arg-type]
        part.padding,  # type: ignore[arg-type]
        groups=width if depthwise else 1,
        bias=part.bias is not None,
    )


@torch.no_grad()
def implant(model: Net, chain: nn.Sequential, width: int) -> None:
    """Write the chain into the first channels of every layer and cut all ties to the others."""
    stem = True
    for big, small in _pairs(model.trunk, chain[1]):
        if isinstance(big, nn.Conv2d) and isinstance(small, nn.Conv2d):
            if not (stem or big.groups > 1):
                big.weight[:width] = 0
                big.weight[:, :width] = 0
            inputs = small.weight.shape[1]
            big.weight[:width, :inputs] = small.weight
            if big.bias is not None and small.bias is not None:
                big.bias[:width] = small.bias
            stem = False
        else:
            for name in NORM:
                getattr(big, name)[:width] = getattr(small, name)


def _pairs(one: nn.Module, other: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Convolutions and norms of two networks of one architecture."""
    for left, right in zip(one.modules(), other.modules(), strict=True):
        if isinstance(left, nn.Conv2d | nn.BatchNorm2d):
            yield left, right


@torch.no_grad()
def check_shape(chain: nn.Sequential, images: Tensor) -> None:
    """Pass uint8 images through a new chain.

    Raises:
        SweepError: Its layers do not fit: the architecture joins or divides channels.
    """
    device = next(chain.parameters()).device
    try:
        chain.eval()(images.to(device).float() / 255)
    except RuntimeError as error:
        why = "it joins or divides channels"
        raise SweepError(REFUSED.format(why=why)) from error


@torch.no_grad()
def check(model: Net, chain: nn.Sequential, width: int, pixels: Tensor) -> None:
    """Compare the chain alone with the chain in its place; both in eval mode.

    Raises:
        SweepError: They differ: the architecture moves channels about.
    """
    alone, inside = chain(pixels), model.features(pixels)[:, :width]
    if not torch.allclose(alone, inside, rtol=1e-2, atol=1e-3):
        raise SweepError(REFUSED.format(why="it moves channels about"))
