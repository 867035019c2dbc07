"""CLP: the channels BackdoorBench's code prunes, network by network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from defenses.clp import CLP
from sweeper.core import catalog
from tests.reference.golden import load
from tests.reference.vgg import network

NETS = ("resnet18", "preact-resnet18", "vgg")


def pruned(method: CLP, name: str, u: float) -> np.ndarray:
    """Bool over the channels of all norms in order: gamma and beta are zero."""
    z = load("defenses/clp")
    model = network(z, name)
    method.prune(model, u)
    norms: dict[str, nn.Module] = dict(model.named_modules())
    dead = []
    for norm in z.meta["order"][name]["norms"]:
        weight, bias = norms[norm].get_parameter("weight"), norms[norm].get_parameter("bias")
        dead.append((weight == 0) & (bias == 0))
    return np.asarray(torch.cat(dead))


def theirs(name: str, u: float) -> np.ndarray:
    """The same of the reference."""
    z = load("defenses/clp")
    count = sum(z.meta["order"][name]["sizes"])
    return np.unpackbits(z.arrays[f"{name}_pruned_{u}"])[:count].astype(bool)


def all_sets(method: CLP, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the reference's sets at each u, joined."""
    pairs = [(name, u) for name in names for u in load("defenses/clp").meta["u"]]
    ours = np.concatenate([pruned(method, name, u) for name, u in pairs])
    return ours, np.concatenate([theirs(name, u) for name, u in pairs])


def test_released() -> None:
    released = catalog.make("defense", "clp", {"preset": "released"})
    ours, reference = all_sets(released, NETS)
    assert reference.sum() > 50
    load("defenses/clp").agree("channels of the preset `released`", ours, reference)


def test_default_of_a_network_whose_norms_follow_their_convolution() -> None:
    ours, reference = all_sets(CLP(), ("resnet18",))
    load("defenses/clp").agree("channels of the default, ResNet", ours, reference)


def test_default_of_a_network_whose_norms_come_first() -> None:
    ours, reference = all_sets(CLP(), ("preact-resnet18",))
    load("defenses/clp").deviates(
        "channels of the default, pre-activation ResNet",
        ours,
        reference,
        by=1,
        why="By default a norm is paired with the convolution it reads, not with the one "
        "registered before it.",
    )
