"""Masks and perturbations on a network's neurons, swapped in place and taken out again.

A neuron is a channel of a BatchNorm layer; where there is none, a channel of another norm with
weights (GroupNorm, LayerNorm); without any, an output of a convolution or hidden linear layer. Its
scale is the norm's gamma or the layer's weight slice, its shift beta or the bias. While swapped in,
a layer computes with `scale * (mask + weight_shift)` and `shift * (1 + bias_shift)`; parameters and
buffers are the model's own, so nothing needs to be copied back and nothing is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweeper.core.errors import SweepError

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Layer = BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.Conv2d | nn.Linear


def layers(model: nn.Module) -> list[tuple[str, Layer]]:
    """Return the layers whose channels are neurons, with their names, in registration order."""
    head = getattr(model, "classifier", None)
    hidden = [(n, m) for n, m in model.named_modules() if m is not head]
    for kinds in (
        BATCHNORMS,
        (nn.GroupNorm, nn.LayerNorm),
        (nn.Conv2d, nn.Linear),
    ):
        matching = [
            (name, m) for name, m in hidden if isinstance(m, kinds) and m.weight is not None
        ]
        if matching:
            return matching
    return []


def width(layer: Layer) -> int:
    """How many neurons a layer has."""
    return int(layer.weight.shape[-1 if isinstance(layer, nn.LayerNorm) else 0])


class Neurons:
    """The neurons of a model as flat tensors [n] that its swapped layers read."""

    def __init__(self, model: nn.Module) -> None:
        """Lay out the neurons of `model`.

        Raises:
            SweepError: The model has no layer to mask.
        """
        self.layers = layers(model)
        if not self.layers:
            raise SweepError(
                "the model has no norm, convolution or hidden linear layer to mask: use another"
            )
        self.sizes = [width(layer) for _, layer in self.layers]
        device = self.layers[0][1].weight.device
        self.count = sum(self.sizes)
        self.mask = torch.ones(self.count, device=device, requires_grad=True)
        self.weight_shift = torch.zeros(self.count, device=device, requires_grad=True)
        self.bias_shift = torch.zeros(self.count, device=device, requires_grad=True)
        self.perturbed = False
        """Whether the shifts take part in the next forward pass."""


class _Masked(nn.Module):
    """A layer that reads its part of `Neurons`."""

    def __init__(self, layer: Layer, neurons: Neurons, offset: int) -> None:
        super().__init__()
        self.layer = layer
        self.neurons = neurons
        self.slice = slice(offset, offset + width(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Compute with masked, and where asked perturbed, scale and shift."""
        layer, neurons = self.layer, self.neurons
        scale: Tensor = neurons.mask[self.slice]
        bias: Tensor | None = layer.bias
        if neurons.perturbed:
            scale = scale + neurons.weight_shift[self.slice]
            bias = None if bias is None else bias * (1 + neurons.bias_shift[self.slice])
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
            if isinstance(layer, nn.Linear):
                return functional.linear(x, weight, bias)
            output: Tensor = layer._conv_forward(x, weight, bias)
            return output
        weight = layer.weight * scale
        if isinstance(layer, nn.LayerNorm):
            return functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
        if isinstance(layer, nn.GroupNorm):
            return functional.group_norm(x, layer.num_groups, weight, bias, layer.eps)
        return functional.batch_norm(
            x,
            layer.running_mean,
            layer.running_var,
            weight,
            bias,
            layer.training or layer.running_mean is None,
            layer.momentum if layer.momentum is not None else 0.1,
            layer.eps,
        )


@contextlib.contextmanager
def swapped(model: nn.Module, neurons: Neurons) -> Iterator[None]:
    """Let the model's layers read `neurons` within the context."""
    offset = 0
    for name, layer in neurons.layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Masked(layer, neurons, offset))
        offset += width(layer)
    try:
        yield
    finally:
        for name, layer in neurons.layers:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)


@torch.no_grad()
def prune(model: nn.Module, dead: Tensor) -> None:
    """Set the scale of the neurons `dead` (bool [n]) to zero; shifts and statistics stay."""
    offset = 0
    for _, layer in layers(model):
        mask = dead[offset : offset + width(layer)].to(layer.weight.device)
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        layer.weight.masked_fill_(mask.view(shape), 0.0)
        offset += width(layer)
