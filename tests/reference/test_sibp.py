"""SIBP: the pruned set of the release, network by network."""

from __future__ import annotations

import numpy as np
import torch

from defenses.sibp import SIBP
from tests.reference.golden import load
from tests.reference.vgg import network

NETS = ("resnet18", "tiny", "vgg")


def sets(method: SIBP) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the reference's: bool, whether all of a row of a parameter is zero."""
    z, ours, theirs = load("defenses/sibp"), [], []
    for name in NETS:
        for u in z.meta["u"]:
            model = network(z, name)
            method.prune(model, u)
            parameters = dict(model.named_parameters())
            rows = [parameters[key][:, None] for key in z.meta["order"][name]["names"]]
            ours.append(np.asarray(torch.cat([~row.flatten(1).any(1) for row in rows])))
            theirs.append(np.unpackbits(z.arrays[f"{name}_pruned_{u}"])[: len(ours[-1])])
    return np.concatenate(ours), np.concatenate(theirs).astype(bool)


def test_released() -> None:
    ours, theirs = sets(SIBP(**SIBP.presets["released"]))
    assert theirs.sum() > 200
    load("defenses/sibp").agree("pruned rows of the preset `released`", ours, theirs)


def test_default() -> None:
    load("defenses/sibp").agree("pruned rows of the default", *sets(SIBP()))
