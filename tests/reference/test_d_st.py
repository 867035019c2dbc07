"""D-ST: the contrast of the encoder and the loss of the head."""

from __future__ import annotations

import pytest
import torch

from defenses.d_st import mce, ss_ctl
from tests.reference.golden import load

SIZES = {32: ("loss of 32", "gradient of 32"), 6: ("loss of 6", "gradient of 6")}


@pytest.mark.parametrize("size", SIZES)
def test_ss_ctl(size: int) -> None:
    z = load("defenses/ss_ctl")
    meta, labels, part = z.meta, z[f"labels_{size}"].long(), z[f"part_{size}"]

    def loss(views: torch.Tensor, positives: str) -> torch.Tensor:
        heat, base = meta["temperature"], meta["base_temperature"]
        return ss_ctl(views, labels, part, temperature=heat, base=base, positives=positives)

    views = z[f"views_{size}"].requires_grad_()
    ours = loss(views, meta["positives"])
    (gradient,) = torch.autograd.grad(ours, views)
    z.agree(SIZES[size][0], ours, f"loss_{size}", within=1e-5)
    z.agree(SIZES[size][1], gradient, f"gradient_{size}", within=1e-6)
    if size == 32:
        z.deviates(
            "loss of 32, our default",
            loss(views, "paper"),
            "loss_32",
            by=0.1,
            within=0.2,
            why="A clean sample attracts clean ones alone, as in the paper, in the release all of "
            "its label.",
        )


def test_mce() -> None:
    z = load("defenses/mce")
    head = torch.nn.Linear(16, 10)
    head.load_state_dict({"weight": z["weight"], "bias": z["bias"]})
    optimizer = torch.optim.SGD(head.parameters(), lr=z.meta["lr"], momentum=z.meta["momentum"])
    logits = head(z["features"])
    loss = mce(logits, z["labels"].long(), z["part"], z.meta["weight_of_poisoned"])
    loss.backward()
    z.agree("loss", loss, "loss", within=1e-6)
    z.agree("gradient for the weight", head.weight.grad, "gradient_weight", within=1e-6)
    z.agree("gradient for the bias", head.bias.grad, "gradient_bias", within=1e-6)
    optimizer.step()
    z.agree("weight after a step", head.weight, "weight_after", within=1e-6)
    z.agree("bias after a step", head.bias, "bias_after", within=1e-6)
