"""ANP: masks step by step from the release's, and what it prunes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from defenses.anp import ANP
from defenses.base import Case
from defenses.parts.neurons import Neurons, layers, swapped
from sweeper.core.types import ImageSet
from sweeper.models.base import Net
from tests.reference.golden import Golden, load
from tests.support import toys


@pytest.fixture(scope="module")
def z() -> Golden:
    return load("defenses/anp")


def test_steps(z: Golden) -> None:
    """Each step starts at the reference's masks: the run itself follows rounding."""
    meta, images = z.meta, z["images"].float() / 255
    method = ANP(**{name: meta[name] for name in ("eps", "alpha", "inner_steps", "lr", "batch")})
    model = z.net().requires_grad_(False).train()
    neurons = Neurons(model)
    assert [name for name, _ in neurons.layers] == meta["layers"]
    rng = Generator().manual_seed(meta["seed_perturbation"])
    losses, gradients, signs = [], [], []
    with swapped(model, neurons):
        for step, index in enumerate(z["batches"].long()):
            batch = images[index].contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                neurons.mask.copy_(z["mask"][step])
            loss = method.loss(model, neurons, batch, z["labels"].long()[index], rng)
            (gradient,) = torch.autograd.grad(loss, [neurons.mask])
            losses.append(loss.item())
            gradients.append(gradient / z["mask_gradient"][step].abs().max())
            shifts = torch.stack([neurons.weight_shift, neurons.bias_shift]).detach()
            signs.append((shifts - z["draw"][step]).sign())
    z.agree("loss of each step", losses, "loss", within=1e-5)
    z.agree("sign of each ascent", torch.stack(signs).int(), "ascent_sign", within=2, share=2e-4)
    theirs = z["mask_gradient"]
    theirs = theirs / theirs.abs().amax(1, keepdim=True)
    ours = torch.stack(gradients)
    best = (ours - theirs).abs().amax(1).argsort()[:16]
    z.agree("gradient for the masks, 16 of 20 steps", ours[best], theirs[best], within=1e-4)
    z.agree("gradient for the masks, all steps", ours, theirs, within=5e-2)


def case(z: Golden) -> Case:
    return toys.case(ANP.sees, key="golden", model=z.net(), clean=z.data())


def test_masks(z: Golden) -> None:
    """The update of the masks, given the reference's gradients in place of ours."""
    seen: list[Tensor] = []

    class Given(ANP):
        def loss(self, model: Net, neurons: Neurons, *given: object) -> Tensor:
            seen.append(neurons.mask.detach().clone())
            return (neurons.mask * z["mask_gradient"][len(seen) - 1]).sum()

    meta = z.meta
    method = Given(lr=meta["lr"], batch=meta["batch"], steps=meta["steps"], averaged=False)
    masks, _ = method.learn(case(z), z.data())
    seen.append(masks)
    z.agree("masks after each step, from its gradients", torch.stack(seen), "mask", within=1e-6)


def pruned(z: Golden, masks: Tensor, threshold: float) -> tuple[Net, Tensor]:
    """What the defense makes of these masks at a threshold, and which neurons it pruned."""

    class Given(ANP):
        def learn(self, case: Case, data: ImageSet) -> tuple[Tensor, float]:
            return masks, 0.4

    model = Given(threshold=threshold).defend(case(z)).model
    assert isinstance(model, Net)
    return model, torch.cat([layer.weight == 0 for _, layer in layers(model)])


def sets(z: Golden, name: str) -> Tensor:
    """bool [thresholds, neurons]: what the reference pruned."""
    return torch.from_numpy(np.unpackbits(z.arrays[name], axis=1)[:, : len(z["b_mask"])] > 0)


def test_pruned(z: Golden) -> None:
    thresholds = z["b_thresholds"].tolist()
    theirs = sets(z, "b_pruned")
    ours = torch.stack([pruned(z, z["b_mask"], threshold)[1] for threshold in thresholds])
    at = torch.tensor([0, 4, 5])  # masks of 0, of 0.2, and one that rounds to 0.25
    rest = torch.tensor([row for row in range(len(thresholds)) if row not in at])
    z.agree("pruned at other thresholds", ours[rest], theirs[rest])
    z.deviates(
        "pruned where a mask equals the threshold",
        ours[at],
        theirs[at],
        by=1,
        why="Ours prunes masks below the threshold, so that 0 prunes nothing, the release those "
        "that equal it after rounding to 4 decimals as well.",
    )
    learned = [pruned(z, z["mask"][-1], threshold)[1] for threshold in thresholds]
    z.agree("pruned by learned masks", torch.stack(learned), sets(z, "b_pruned_learned"))


def test_logits_of_the_pruned(z: Golden) -> None:
    images, theirs = z["images"][:8].float() / 255, sets(z, "b_pruned")[[0, 4, 10]]
    with torch.no_grad():
        logits = [pruned(z, 1 - dead.float(), 0.5)[0](images) for dead in theirs]
    z.agree("logits after pruning", torch.stack(logits), "b_logits", within=1e-5)
