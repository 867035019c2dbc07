"""f-FIP, the fast form of FIP: only the singular values of each layer are trained.

Karim et al., ACM CCS 2024 (arXiv 2409.00863); objective and options are FIP's (`fip.py`). Every
convolution, linear layer and embedding computes with `U diag(relu(s + delta)) V^T`, the thin
singular value decomposition of its given weight (per group, the weight as a matrix of outputs x the
rest). Trained are the deltas alone: 4,325 numbers of a CIFAR ResNet-18's 11.2 M. Biases and
BatchNorm's weights are frozen; its running statistics follow. At the end the layers are folded
back. Attention is swapped where its projections are linear layers (`transformer`); torch's own,
which holds them as one bare weight (`vit-tiny`), is not.

The layer is evaluated as two convolutions, by V^T and by U with its columns scaled: no gradient of
a full weight is ever needed, which is where the time is saved. The released code has such layers
but nothing that trains them.

`eta_r` and `lr` have defaults of their own: at FIP's (5 and 0.005) 100 steps leave ACC and ASR
where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.fip import FIP
from sweeper.core.options import LearningRate, NonNegative
from sweeper.models.base import Net

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding
KINDS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class FFIP(FIP):
    """FIP on singular values."""

    eta_r: NonNegative = 0.0
    """Weight of the distance from the given singular values; 5, FIP's, hardly lets them move."""
    lr: LearningRate = 0.05
    """Learning rate (SGD without weight decay, constant)."""

    title = "Fast FIP (f-FIP)"
    presets: ClassVar[dict[str, Mapping[str, Any]]] = {}

    def enter(self, model: Net) -> Callable[[], None]:
        """Swap in layers whose singular values are trained; returns what folds them back."""
        model.requires_grad_(False)
        layers = [
            (name, module)
            for name, module in model.named_modules()
            if type(module) in KINDS  # torch's attention reads its own kind's weight
        ]
        swapped = {name: Spectral(layer) for name, layer in layers}
        for name, module in swapped.items():
            _place(model, name, module)

        def leave() -> None:
            for name, layer in layers:
                with torch.no_grad():
                    layer.weight.copy_(swapped[name].weight())
                _place(model, name, layer)

        return leave


class Spectral(nn.Module):
    """A layer with the weight `U diag(relu(s + delta)) V^T`; only delta is trained."""

    def __init__(self, layer: Layer) -> None:
        """Decompose the weight of `layer`, which is kept for its bias and geometry."""
        super().__init__()
        groups = 1 if isinstance(layer, nn.Linear | nn.Embedding) else layer.groups
        weight = layer.weight.detach()
        matrices = weight.reshape(groups, weight.shape[0] // groups, -1).double()
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        self.layer = layer
        self.left: Tensor
        self.values: Tensor
        self.right: Tensor
        self.register_buffer("left", left.to(weight.dtype))
        self.register_buffer("values", values.to(weight.dtype))
        self.register_buffer("right", right.to(weight.dtype))
        self.delta = nn.Parameter(torch.zeros_like(self.values))

    def scale(self) -> Tensor:
        """The singular values in use, [groups, rank], never negative."""
        return functional.relu(self.values + self.delta)

    def weight(self) -> Tensor:
        """The weight of the ordinary layer this one equals."""
        product = (self.left * self.scale()[:, None]) @ self.right
        return product.reshape(self.layer.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        layer, outward = self.layer, self.left * self.scale()[:, None]
        if isinstance(layer, nn.Embedding):
            return functional.linear(functional.embedding(x, outward[0]), self.right[0].T)
        if isinstance(layer, nn.Linear):
            inner = functional.linear(x, self.right[0])
            return functional.linear(inner, outward[0], layer.bias)
        inner = layer._conv_forward(x, self.right.reshape(-1, *layer.weight.shape[1:]), None)
        outward = outward.flatten(0, 1)[(..., *[None] * len(layer.kernel_size))]
        convolve = getattr(functional, f"conv{len(layer.kernel_size)}d")
        out: Tensor = convolve(inner, outward, layer.bias, groups=layer.groups)
        return out


def _place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where `name` says."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
