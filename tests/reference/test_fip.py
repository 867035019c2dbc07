"""FIP: the Fisher diagonal, the trace and the run of the release."""

from __future__ import annotations

import torch

from defenses.fip import squared_batch_means
from tests.reference.golden import load
from tests.support.toys import CPU


def test_fisher() -> None:
    z = load("defenses/fip")
    model, data = z.net(), z.data()
    fisher = squared_batch_means(model, data, CPU)
    ours = torch.cat([fisher[name].flatten() for name, _ in model.named_parameters()])
    z.agree("F of one batch", ours, "fisher", within=1e-5, relative=True)
