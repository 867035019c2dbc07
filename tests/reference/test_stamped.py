"""Attacks that stamp: the same images, the same pixels.

Draws of a reference are in its file; they are given to ours in place of its own.
"""

from __future__ import annotations

import torch

from tests.reference.golden import Golden, load


def stamped(z: Golden, split: str = "train", **options: object) -> torch.Tensor:
    """What ours makes of the file's images; the state is what the file's meta lists."""
    state = {name: z[name] for name in z.meta.get("state", ())}
    attack = z.attack(**options)
    return attack.stamp(z["images"], split=split, state=state, rng=torch.Generator())


def test_badnets_of_anp() -> None:
    z = load("attacks/badnets-anp")
    z.agree("training images", stamped(z), "train")
