"""CLP, Channel Lipschitzness Pruning (Zheng et al., ECCV 2022).

The defender sees the weights and nothing else. A backdoor channel must answer strongly to a small
pattern: each channel of a convolution and the BatchNorm that reads it is scored by its Lipschitz
bound, the largest singular value of `gamma / sigma * W[o]` as a matrix [C_in, k k]. Channels above
their layer's `mean + u std` get gamma = beta = 0. No training, and nothing is chosen: u is 3.

Deviations, each with its reason; `preset: released` has none of them:

- Which convolution a BatchNorm reads is traced through the network's graph. The release takes the
  one registered last before it, which is another layer wherever a BatchNorm comes first, as in
  pre-activation ResNets (8 of 17 pairs are wrong in ours, all of fitting shape). A BatchNorm that
  reads a sum or a concatenation has no convolution of its own and is left alone.
- sigma is BatchNorm's own `sqrt(var + eps)`; the release omits eps. (Of a variance of zero it takes
  the infinite score; here 1e-12 is added even then, and notes count such channels: `constant`.)

The largest z-score n values can have is (n - 1) / sqrt(n): at u = 3 a layer of less than 11
channels is never pruned. Notes count the layers (`pairs`) and those too small (`too_small`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defenses.base import Case, Defense
from defenses.parts.graph import graph
from sweeper.core.errors import SweepError
from sweeper.core.options import Positive
from sweeper.core.types import Outcome

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]
"""A convolution and the BatchNorm that reads its output."""


@dataclass(frozen=True, kw_only=True)
class CLP(Defense):
    """Zeroes the channels of exceptional Lipschitz bound, layer by layer."""

    u: Positive = 3.0
    """Deviations above a layer's mean score from which a channel is pruned (Tiny ImageNet: 5)."""
    pairing: str = "graph"
    """graph | registered (the convolution registered last before each BatchNorm)."""
    epsilon: bool = True
    """Whether sigma holds BatchNorm's epsilon."""

    title = "Channel Lipschitzness Pruning (CLP)"
    paper = "Zheng et al., ECCV 2022"
    kind = "repair"
    sees = frozenset({"model"})
    requires = frozenset({"batchnorm"})
    light = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {"pairing": "registered", "epsilon": False},
        "backdoorbench-tiny": {"u": 5.0},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: An unknown pairing.
        """
        if self.pairing not in ("graph", "registered"):
            raise SweepError(f"pairing: {self.pairing!r} is not one of graph, registered")

    def defend(self, case: Case) -> Outcome:
        """Prune a copy of the victim."""
        model = case.fresh_model()
        return Outcome(model=model, notes=self.prune(model, self.u))

    def prune(self, model: nn.Module, u: float) -> dict[str, Any]:
        """Prune in place; returns the notes."""
        pairs = by_graph(model) if self.pairing == "graph" else by_registration(model)
        pruned, constant = [], 0
        for conv, norm in pairs:
            dead = outliers(scores(conv, norm, self.epsilon), u)
            assert norm.running_var is not None
            constant += int((norm.running_var == 0).sum())
            with torch.no_grad():
                norm.weight.masked_fill_(dead, 0.0)
                norm.bias.masked_fill_(dead, 0.0)
            pruned.append(int(dead.sum()))
        widths = [norm.num_features for _, norm in pairs]
        return {
            "pairs": len(pairs),
            "channels": sum(widths),
            "pruned": sum(pruned),
            "pruned_by_layer": pruned,
            "too_small": sum(n - 1 <= u * n**0.5 for n in widths),
            "constant": constant,
        }


def _suits(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a norm has statistics and weights, and as many channels as the convolution."""
    return (
        isinstance(conv, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.running_var is not None
        and conv.out_channels == norm.num_features
    )


def by_graph(model: nn.Module) -> list[Pair]:
    """The pairs of a model by what its BatchNorms read, in the order they are computed."""
    modules = dict(model.named_modules())
    pairs = []
    for node in graph(model).nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        while source.op == "call_module" and isinstance(modules[source.target], nn.Identity):
            source = source.args[0]
        if source.op == "call_module" and _suits(modules[source.target], modules[node.target]):
            pairs.append((modules[source.target], modules[node.target]))
    return pairs


def by_registration(model: nn.Module) -> list[Pair]:
    """As released: each BatchNorm with the convolution registered last before it, if it fits."""
    pairs, last = [], None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif last is not None and isinstance(module, nn.BatchNorm2d) and _suits(last, module):
            pairs.append((last, module))
    return pairs


@torch.no_grad()
def scores(conv: nn.Conv2d, norm: nn.BatchNorm2d, epsilon: bool = True) -> Tensor:
    """Lipschitz bound of each output channel; float [C_out]."""
    assert norm.running_var is not None
    variance = norm.running_var + (norm.eps if epsilon else 1e-12)
    matrices = conv.weight.detach().float().flatten(2)
    bounds: Tensor = torch.linalg.matrix_norm(matrices, ord=2)
    return (norm.weight / variance.sqrt()).abs() * bounds


def outliers(bounds: Tensor, u: float) -> Tensor:
    """Bool [C]: scores above mean + u x deviation (of a sample) of their layer."""
    return bounds > bounds.mean() + u * bounds.std()
