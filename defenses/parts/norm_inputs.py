"""What the BatchNorm layers of a model are given, and channels that stand out in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from defenses.parts.neurons import layers, prune

BATCH = 250
"""Images of a forward pass; changes no more than rounding, as the model is in eval mode."""


@torch.inference_mode()
def observed(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    reduce: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """What `reduce` makes of the inputs of each norm layer, for all images.

    Args:
        model: In eval mode, on the device; no hook is left on it.
        images: uint8 [N, C, H, W], used as they are.
        device: Where to compute, in single precision.
        reduce: Inputs of a layer, float [B, C, positions], to [B, ...].

    Returns:
        [N, ...] on the CPU for each layer of `neurons.layers`, in that order.
    """
    reduced: list[list[Tensor]] = [[] for _ in layers(model)]
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for (_, layer), batches in zip(layers(model), reduced, strict=True):

        def keep(module: nn.Module, inputs: tuple[Tensor], into: list[Tensor] = batches) -> None:
            into.append(reduce(inputs[0].float().reshape(*inputs[0].shape[:2], -1)).cpu())

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        for batch in images.split(BATCH):
            model(batch.to(device).float().div_(255))
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(batches) for batches in reduced]


def above(values: Iterable[Tensor], u: float) -> Tensor:
    """Which channels exceed their layer's mean by more than `u` deviations; bool, all layers."""
    return torch.cat([value > value.mean() + u * value.std(correction=0) for value in values])


@torch.no_grad()
def zero(model: nn.Module, dead: Tensor, shift: bool) -> None:
    """Set the scale of these channels (bool, all layers) to zero, and the shift where asked."""
    prune(model, dead)
    if shift:
        masks = dead.split([len(layer.weight) for _, layer in layers(model)])
        for (_, layer), mask in zip(layers(model), masks, strict=True):
            if layer.bias is not None:
                layer.bias.masked_fill_(mask.to(layer.bias.device), 0.0)
