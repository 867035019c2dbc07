"""Blind: the pattern, MGDA's weights, when the triggered loss counts."""

from __future__ import annotations

import torch
from torch import Generator, nn

from attacks import blind
from sweeper.core.types import ImageSet
from sweeper.engine.recipes import Recipe
from tests.reference.golden import load


def test_blind() -> None:
    z = load("attacks/blind")
    attack = z.attack()
    stamped = attack.stamp(z["images"], split="test", state={}, rng=Generator())
    z.agree("test images", stamped, "test")
    shares = []
    for number in range(len(z["product"])):
        weights = nn.Parameter(torch.zeros(8))
        losses = [
            z[f"{kind}_loss"][number] + weights @ z[f"{kind}_gradient"][number]
            for kind in ("clean", "bad")
        ]
        shares.append(float(blind.balanced(losses[0], losses[1], [weights])))
    clean = torch.tensor(shares, dtype=torch.float64)
    z.agree("weight of the clean loss", clean, "clean_weight", within=1e-6)
    z.agree("weight of the triggered loss", 1 - clean, "bad_weight", within=1e-6)
    limits = [blind.CAP, blind.LEAST, blind.LOWEST, 1 - blind.LOWEST, blind.HISTORY]
    theirs = [float(z[name]) for name in ("cap", "added", "lowest", "highest", "history")]
    z.agree("limits of the weights, batches remembered", limits, theirs)
    z.agree("threshold", attack.threshold, "threshold")  # type: ignore[attr-defined]


def test_blind_waits_and_stops() -> None:
    attack = load("attacks/blind").attack(threshold=0.5)
    train = ImageSet(torch.zeros(1000, 3, 32, 32), torch.zeros(1000).long(), ("0", "1"))
    hooks = attack.hooks(train, {}, Generator())
    assert isinstance(hooks, blind._Hooks)
    hooks.optimizer(nn.Linear(1, 1), Recipe(epochs=100, batch=10))
    on = []
    for loss in [0.4] * 999 + [0.4] + [0.7] * 333 + [0.71]:
        hooks.clean_losses.append(loss)
        on.append(hooks.active())
    assert on.index(True) == 999, "1,000 batches must have been seen"
    assert all(on[999:1332]) and not any(on[1333:])
