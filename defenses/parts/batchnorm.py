"""BatchNorm's running statistics estimated anew, for weights that never saw an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    count = 0
    for chunk in images.chunk(-(-len(images) // batch)):
        count += len(chunk)
        for norm in norms:
            norm.momentum = len(chunk) / count
        model(chunk.to(device).float().div_(255))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
