"""Masks and perturbations on BatchNorm neurons, swapped in place and taken out again.

A neuron is a BatchNorm channel: weight gamma and bias beta. While swapped in, the layer computes
with `gamma * (mask + weight_shift)` and `beta * (1 + bias_shift)`; parameters and buffers are the
model's own, so nothing needs to be copied back and nothing is left behind.

Also here: running statistics estimated anew (`reestimate`), for weights that never saw an image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweeper.errors import SweepError

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def layers(model: nn.Module) -> list[tuple[str, Norm]]:
    """Return the model's affine BatchNorm layers with their names, in registration order."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine
    ]


class Neurons:
    """The neurons of a model as flat tensors [n] that its swapped layers read."""

    def __init__(self, model: nn.Module) -> None:
        """Lay out the neurons of `model`.

        Raises:
            SweepError: The model has no BatchNorm layer.
        """
        self.layers = layers(model)
        if not self.layers:
            raise SweepError("the model has no BatchNorm layer to mask")
        self.sizes = [layer.num_features for _, layer in self.layers]
        device = self.layers[0][1].weight.device
        self.count = sum(self.sizes)
        self.mask = torch.ones(self.count, device=device, requires_grad=True)
        self.weight_shift = torch.zeros(self.count, device=device, requires_grad=True)
        self.bias_shift = torch.zeros(self.count, device=device, requires_grad=True)
        self.perturbed = False
        """Whether the shifts take part in the next forward pass."""


class _MaskedNorm(nn.Module):
    """A BatchNorm layer that reads its part of `Neurons`."""

    def __init__(self, norm: Norm, neurons: Neurons, start: int) -> None:
        super().__init__()
        self.norm = norm
        self.neurons = neurons
        self.part = slice(start, start + norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with masked, and where asked perturbed, weight and bias."""
        norm, neurons = self.norm, self.neurons
        scale: Tensor = neurons.mask[self.part]
        bias: Tensor = norm.bias
        if neurons.perturbed:
            scale = scale + neurons.weight_shift[self.part]
            bias = bias * (1 + neurons.bias_shift[self.part])
        return functional.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight * scale,
            bias,
            norm.training or norm.running_mean is None,
            norm.momentum if norm.momentum is not None else 0.1,
            norm.eps,
        )


@contextlib.contextmanager
def swapped(model: nn.Module, neurons: Neurons) -> Iterator[None]:
    """Let the model's BatchNorm layers read `neurons` within the context."""
    start = 0
    for name, norm in neurons.layers:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _MaskedNorm(norm, neurons, start))
        start += norm.num_features
    try:
        yield
    finally:
        for name, norm in neurons.layers:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, norm)


@torch.no_grad()
def prune(model: nn.Module, dead: Tensor) -> None:
    """Set the weight of the neurons `dead` (bool [n]) to zero; biases and statistics stay."""
    start = 0
    for _, norm in layers(model):
        part = dead[start : start + norm.num_features].to(norm.weight.device)
        norm.weight.masked_fill_(part, 0.0)
        start += norm.num_features


@torch.no_grad()
def reestimate(model: nn.Module, images: Tensor, batch: int = 500) -> None:
    """Replace the running statistics of all BatchNorm layers by those of these images.

    Cumulative averages over batches of nearly equal size, each weighted by its size: means are
    those of all images, variances the mean of the batches' unbiased ones, as the framework has it.
    The rest of the model is in eval mode meanwhile, and all of it afterwards.

    Args:
        model: On its device; without BatchNorm layers it is left as it is.
        images: uint8 [N, C, H, W], at least two.
        batch: Images at a time, at most.
    """
    model.eval()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    device = next(model.parameters()).device
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    for part in images.chunk(-(-len(images) // batch)):
        seen += len(part)
        for norm in norms:
            norm.momentum = len(part) / seen
        model(part.to(device).float().div_(255))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    model.eval()
