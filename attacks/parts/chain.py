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
    for name, module in list(trunk.named_modules()):
        if isinstance(module, nn.Conv2d):
            layer: nn.Module = _narrow_conv(module, width, stem)
            stem = False
        elif isinstance(module, nn.BatchNorm2d):
            layer = nn.BatchNorm2d(width, module.eps, module.momentum)
        elif next(module.parameters(recurse=False), None) is not None:
            raise SweepError(REFUSED.format(why=f"a layer {type(module).__name__}"))
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(trunk.get_submodule(parent), leaf, layer)
    return nn.Sequential(copy.deepcopy(model.normalise).cpu(), trunk)


def _narrow_conv(conv: nn.Conv2d, width: int, stem: bool) -> nn.Conv2d:
    depthwise = conv.groups > 1
    if depthwise and not conv.groups == conv.in_channels == conv.out_channels:
        raise SweepError(REFUSED.format(why="a grouped convolution"))
    if width > conv.out_channels or (not stem and width > conv.in_channels):
        raise SweepError(f"sra: a layer has fewer than {width} channels: lower `width`")
    return nn.Conv2d(
        conv.in_channels if stem else width,
        width,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=width if depthwise else 1,
        bias=conv.bias is not None,
    )


@torch.no_grad()
def implant(model: Net, chain: nn.Sequential, width: int) -> None:
    """Write the chain into the first channels of every layer and cut all ties to the others."""
    stem = True
    for layer, chain_layer in _pairs(model.trunk, chain[1]):
        if isinstance(layer, nn.Conv2d) and isinstance(chain_layer, nn.Conv2d):
            if not (stem or layer.groups > 1):
                layer.weight[:width] = 0
                layer.weight[:, :width] = 0
            inputs = chain_layer.weight.shape[1]
            layer.weight[:width, :inputs] = chain_layer.weight
            if layer.bias is not None and chain_layer.bias is not None:
                layer.bias[:width] = chain_layer.bias
            stem = False
        else:
            for name in NORM:
                getattr(layer, name)[:width] = getattr(chain_layer, name)


def _pairs(network: nn.Module, chain: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Convolutions and norms of two networks of one architecture."""
    for layer, chain_layer in zip(network.modules(), chain.modules(), strict=True):
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            yield layer, chain_layer


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
